"""The untuned base's answers to the validation rows, kept for resumed trainings and for those on subsets of the rows.

runs/<recipe>/.untuned/<digest>.jsonl   {"text": "delivery_delay", "token_ids": [...], "log_probability": -2.1,
                                         "margin": 0.3, "complete": true, "field_log_probability": null}

The trainings of a learning curve share base, prompts and validation rows, so these answers are computed once. A new
training without `train.max_train_rows` computes them and writes the file; if it is interrupted, it reads them when it
goes on from a checkpoint. With `train.shots` the prompts depend on the train rows, so nothing is kept.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.tracking import digests
from insource.tracking.run import Run
from train.distributed import world
from train.evaluate.constrained_decoding import DecodedAnswer
from train.evaluate.validation import GenerationEvaluator, PreferenceEvaluator
from train.loop import checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNTUNED_FOLDER = ".untuned"


def predict_untuned(
    run: Run, recipe: Recipe, evaluator: GenerationEvaluator | PreferenceEvaluator, model: "PreTrainedModel"
) -> list[Any]:
    """Return the outputs of the untuned base for the validation rows.

    Only one process on decoded answers keeps them: several processes would have to agree on whether the file exists.
    """
    if isinstance(evaluator, PreferenceEvaluator) or world.world_size() > 1 or recipe.train.shots:
        return evaluator.predict(model, "untuned")
    data_digest = (run.folder / "data").resolve().name
    digest = digests.compute_untuned_digest(recipe, data_digest, evaluator.max_answer_tokens)
    path = run.folder.parent / UNTUNED_FOLDER / f"{digest}.jsonl"
    goes_on = bool(checkpoints.list_checkpoints(run.folder / checkpoints.FOLDER))
    if (goes_on or recipe.train.max_train_rows is not None) and path.is_file():
        log_line(f"untuned   the answers of an earlier call: {path.name}")
        return read_answers(path)
    answers = evaluator.predict(model, "untuned")
    write_answers(path, answers)
    return answers


def write_answers(path: Path, answers: Sequence[DecodedAnswer]) -> None:
    """Write answers to a JSONL file and create its folder."""
    # JSON has no infinity: null means that no step had a choice.
    lines = [asdict(answer) | {"margin": answer.margin if math.isfinite(answer.margin) else None} for answer in answers]
    path.parent.mkdir(exist_ok=True)
    atomic_files.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_answers(path: Path) -> list[DecodedAnswer]:
    """Return the answers that `write_answers` wrote."""
    return [
        DecodedAnswer(**(line | {"margin": math.inf if line["margin"] is None else line["margin"]}))
        for line in atomic_files.read_jsonl(path)
    ]
