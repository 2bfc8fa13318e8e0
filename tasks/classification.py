"""Choose one label for a text.

    row      {"id": "T000017", "input": {"text": "my parcel is late"}, "target": "delivery_delay", "group": "C01294"}
    prompt   [{"role": "user", "content": "Route the message ...\\n\\nLabels:\\n- delivery_delay: A parcel that ...
             \\n\\nAnswer with exactly one label.\\n\\nInput:\\nmy parcel is late"}]
    answer   "delivery_delay"

All that is the same for every row comes first, so that it can be computed once: see train/packing.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.schema_data import Task


@dataclass(frozen=True)
class Spec:
    """A classification task with its labels resolved: {label: description or ""}, in prompt order."""

    instruction: str
    labels: Mapping[str, str]


def specify(task: Task, labels: Mapping[str, str]) -> Spec:
    """Returns the task as prompts need it; `labels` as data preparation found or checked them (data.json)."""
    return Spec(task.instruction, dict(labels))


def messages(spec: Spec, row_input: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the conversation up to the answer: one user message, which every chat template can take."""
    lines = [f"- {label}: {about}" if about else f"- {label}" for label, about in spec.labels.items()]
    content = "\n\n".join(
        (
            spec.instruction,
            "Labels:\n" + "\n".join(lines),
            "Answer with exactly one label.",
            f"Input:\n{row_input['text']}",
        )
    )
    return [{"role": "user", "content": content}]


def answer(spec: Spec, target: str) -> str:
    """Returns the text that the model should answer."""
    return target


def grammar(spec: Spec) -> str:
    """Returns the output constraint as a grammar (EBNF as xgrammar and vLLM read it): exactly one of the labels."""
    return "root ::= " + " | ".join(_quoted(label) for label in spec.labels)


def output_schema(spec: Spec) -> dict[str, Any]:
    """Returns the output constraint as a JSON Schema, for backends that take one."""
    return {"type": "string", "enum": list(spec.labels)}


def parse(spec: Spec, output: str) -> str | None:
    """Returns the label that the output is, or None. White space around it is forgiven, nothing else."""
    label = output.strip()
    return label if label in spec.labels else None


def score(spec: Spec, targets: Sequence[str], answers: Sequence[str | None]) -> dict[str, Any]:
    """Returns {"n", "accuracy", "macro_f1", "invalid", "per_class": {label: {"precision", "recall", "f1", "n"}}}.

    An answer that is None counts as wrong. macro_f1 is the mean over the labels that occur among the targets or the
    answers. Raises ValueError without rows: no rows is no score.
    """
    from sklearn.metrics import precision_recall_fscore_support

    if not targets:
        raise ValueError("no rows to score")
    given = ["" if one is None else one for one in answers]
    occurring = [label for label in spec.labels if label in set(targets) | set(given)]
    columns = precision_recall_fscore_support(targets, given, labels=occurring, zero_division=0.0)
    per_class = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
        for label, p, r, f, n in zip(occurring, *columns, strict=True)
    }
    return {
        "n": len(targets),
        "accuracy": sum(a == t for a, t in zip(given, targets, strict=True)) / len(targets),
        "macro_f1": sum(one["f1"] for one in per_class.values()) / len(per_class),
        "invalid": sum(one is None for one in answers),
        "per_class": per_class,
    }


def _quoted(label: str) -> str:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
