"""All error codes with their descriptions, and the page docs/errors.md that is made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from insource.config.error_codes import comparison, data, machine, recipe, serving, training
from insource.config.error_codes.codes import ErrorCode
from insource.config.error_codes.description import ErrorDescription

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"
AREAS: Mapping[str, Sequence[ErrorDescription]] = {
    "Recipe and call": recipe.DESCRIPTIONS,
    "Data": data.DESCRIPTIONS,
    "Base models and training": training.DESCRIPTIONS,
    "Export and serving": serving.EXPORT_AND_SERVING,
    "Comparison": comparison.COMPARISON,
    "API models and budgets": comparison.API_MODELS_AND_BUDGETS,
    "Gateway and deployment": serving.GATEWAY_AND_DEPLOYMENT,
    "Prediction": serving.PREDICTION,
    "Machine and environment": machine.DESCRIPTIONS,
}
TABLE: Mapping[ErrorCode, ErrorDescription] = {
    description.code: description for descriptions in AREAS.values() for description in descriptions
}
INTRODUCTION = """\
# Errors

<!-- Written by `make schema` from insource/config/error_codes/. Change that package, not this page. -->

Each error message begins with a code: `error[INS-D001]: data.source.path: there is no file rows.csv`. The code names
the kind of problem; this page describes each kind and what to do. A recipe with several mistakes gives the code of each
at the end of its line.

| first word | exit code | meaning |
|---|---|---|
| `error` | 2 | recipe, data or call are wrong; nothing was done |
| `failed` | 1 | recipe and call are right, and the stage failed |
| `check failed` | 3 | a check failed, such as parity before serving |

The gateway answers HTTP requests with the error codes of the OpenAI and Anthropic APIs instead
([gateway.md](gateway.md)).
"""


def make_page() -> str:
    """Return the text of docs/errors.md."""
    sections = [INTRODUCTION]
    for title, descriptions in AREAS.items():
        links = [f"[{entry.code}](#{entry.code.lower()}) {entry.title}" for entry in descriptions]
        sections.append(f"## {title}\n\n" + "\n".join(f"- {link}" for link in links) + "\n")
        sections += [_format_entry(entry) for entry in descriptions]
    return "\n".join(sections)


def _format_entry(entry: ErrorDescription) -> str:
    example = "\n".join(f"    {line}" for line in entry.example.splitlines())
    return f"### {entry.code}\n\n**{entry.title}.** {entry.cause}\n\n{entry.action}\n\n{example}\n"
