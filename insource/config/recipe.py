"""The schema of a recipe: one frozen tree, strict at every depth.

    task: {kind: classification, instruction: Route the message., labels: auto}
    data: {source: {path: tickets.csv}, columns: {text: message, label: queue}}
    model: {base: Qwen/Qwen3-4B-Instruct-2507, quantization: nf4}

`load.py` turns YAML into this tree; `python -m insource.config.recipe` writes `recipes/.schema.json` for editors.
"""

import json
import sys
from pathlib import Path
from typing import Self

from pydantic import ValidationInfo, field_validator, model_validator

from insource.config import conflicts
from insource.config.schema.compare import Compare
from insource.config.schema.curve import Curve
from insource.config.schema.data import Data, Privacy, Task
from insource.config.schema.lora import Lora
from insource.config.schema.section import ConflictError, Section
from insource.config.schema.serving_and_cost import Cost, Decide, Export, Route, Serve, Tracking
from insource.config.schema.train import Accelerate, Model, Train


class Recipe(Section):
    """A resolved recipe: the values of the file, hardware file and SET applied, all defaults filled in."""

    task: Task
    data: Data
    model: Model
    privacy: Privacy = Privacy()
    lora: Lora = Lora()
    train: Train = Train()
    export: Export = Export()
    serve: Serve = Serve()
    compare: Compare = Compare()
    curve: Curve = Curve()
    cost: Cost = Cost()
    decide: Decide = Decide()
    route: Route = Route()
    tracking: Tracking = Tracking()
    accelerate: Accelerate = Accelerate()

    @model_validator(mode="after")
    def _check_consistency(self, info: ValidationInfo) -> Self:
        # The recipe of a run was checked when the run was created, by the rules of that version.
        if not (info.context or {}).get("of_run") and (mistakes := conflicts.find_conflicts(self)):
            raise ConflictError(mistakes)
        changes = conflicts.fill_derived_values(self)
        return self.model_copy(update=changes) if changes else self

    @field_validator("data")
    @classmethod
    def _check_stratify(cls, data: Data) -> Data:
        if data.split.stratify not in (None, "label", data.columns.label):
            raise ValueError(f"split.stratify: only the label can be stratified by, given {data.split.stratify!r}")
        return data

    def with_model(self, **changes: object) -> Self:
        """Return the recipe with changed values in its section `model`."""
        return self.model_copy(update={"model": self.model.model_copy(update=changes)})


def make_json_schema() -> dict[str, object]:
    """Return the JSON Schema of a recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def main() -> None:
    """Write `.schema.json`, or with --check exit 1 if it is out of date."""
    path, text = Path(__file__).parents[2] / "recipes" / ".schema.json", json.dumps(make_json_schema(), indent=1) + "\n"
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.exit("recipes/.schema.json is not what insource/config/recipe.py says: run `make schema`")


if __name__ == "__main__":
    main()
