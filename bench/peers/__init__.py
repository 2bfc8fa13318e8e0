"""Programs that run one measured system in a process of its own."""
