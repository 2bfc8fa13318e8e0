"""The rows to label next, as a CSV file for a spreadsheet: `make label`."""

LINEAR = "linear"
"""ENGINE=linear: a linear model on the train rows, instead of the trained run."""
DEFAULT_ROWS = 200
