"""Execution of a prediction: queries, journal and progress on disk."""
