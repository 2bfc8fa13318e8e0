"""From scored predictions to the figures of scores.json."""
