"""The type of the NumPy arrays that have one entry per row."""

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
