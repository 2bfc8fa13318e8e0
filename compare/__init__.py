"""Compare the tuned model with its baselines: systems, answers, scores with intervals, costs, verdict, report."""
