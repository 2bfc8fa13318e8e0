"""The training bench: cases, workloads, runs and tables."""
