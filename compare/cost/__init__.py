"""Costs of self-hosting and of API models, and the break-even between them."""
