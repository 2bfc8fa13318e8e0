"""Cleaning, keys and labels of texts: shared by the recipe schema, the tasks and data preparation.

Imports nothing of the project.
"""
