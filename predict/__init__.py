"""Bulk prediction: rows in any format that data preparation reads go in, the same rows with answers come out."""

ENGINES = ("vllm", "gateway")
