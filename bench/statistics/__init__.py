"""Simulated data and compared methods of the statistical benches."""
