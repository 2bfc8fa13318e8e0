"""Rows of a prediction: input and output files."""
