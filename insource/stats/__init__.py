"""Metrics as sums over rows, their intervals, and paired tests."""
