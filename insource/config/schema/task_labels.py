"""Validation of `task.labels`.

[0, 1]                     ["0", "1"]: YAML parses digits as numbers, a source has them as text
{true: sent, false: not}   {"true": "sent", "false": "not"}
[" billing", refund]       refused: no answer can equal the first label
"""

from collections.abc import Collection

from insource.text.labels import clean_label, display_label, find_unclean


def labels_to_text(labels: object) -> object:
    """Return the labels with numbers and booleans as text; other values stay unchanged."""
    if isinstance(labels, list):
        return [_label_to_text(label) for label in labels]
    if isinstance(labels, dict):
        return {_label_to_text(label): description for label, description in labels.items()}
    return labels


def check_labels(labels: Collection[str]) -> None:
    """Raise ValueError with the labels that cannot be answered as written."""
    if unclean := find_unclean(labels):
        corrections = ", ".join(f"{display_label(label)} (write {clean_label(label)!r})" for label in unclean[:5])
        raise ValueError(f"labels with white space at an edge, or with invisible characters: {corrections}")


def _label_to_text(label: object) -> object:
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, int | float):
        return str(label)
    if not isinstance(label, str):
        raise ValueError(f"labels: given {label!r}, allowed: text, such as 'none'")
    return label
