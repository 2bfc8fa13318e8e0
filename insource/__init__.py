"""The library that all stages use; it imports no stage."""
