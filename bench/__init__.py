"""Measurements: one module a command, `python -m bench.NAME`."""
