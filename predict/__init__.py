"""Bulk prediction: answers to all rows of a file in any format that data preparation reads."""

ENGINES = ("vllm", "gateway", "ray")
