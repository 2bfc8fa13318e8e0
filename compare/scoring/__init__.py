"""From answers to parsed and scored predictions, confidences and completeness."""
