"""The GPU bench: one command that shows on one GPU, without a hub, what the GPU path does. See __main__.py."""
