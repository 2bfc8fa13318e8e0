"""The typed records of scores.json, which a comparison writes and decision, report and W&B read."""
