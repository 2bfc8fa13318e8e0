"""Engines of a prediction: a vLLM server or a gateway."""
