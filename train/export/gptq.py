"""Quantization fitted on rows of train, by llm-compressor in a separate environment: `.venvs/llmcompressor`.

llm-compressor 0.14 does not yet allow the torch that vLLM 0.32 needs, so both cannot share an environment. It gets
token ids of prompts with their answers, as in training, and no row of validation, calibration or test.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files, venvs
from insource.tasks import few_shot, tfidf
from insource.tasks.data_row import DataRow, Rows
from insource.tasks.rendering import chat_template
from insource.tracking.prompt_spec import PromptSpec
from insource.tracking.run import Run

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "calibrate.txt"
# They are built for CUDA and break `import transformers` beside a CPU build of torch.
EXCLUDED_ON_CPU = ("torchvision", "torchaudio")


def quantize_gptq(run: Run, recipe: Recipe, merged: Path, preset: str, group_size: int, folder: Path) -> None:
    """Write the merged model, quantized by a preset, into a folder. Raise StageError if llm-compressor fails."""
    excluded = EXCLUDED_ON_CPU if recipe.accelerate.use_cpu else ()
    python = venvs.ensure_venv_from_lock(ROOT / ".venvs" / "llmcompressor", LOCK, excluded)
    with tempfile.TemporaryDirectory() as temp_dir:
        rows_path = Path(temp_dir) / "rows.jsonl"
        rows_path.write_text(
            "".join(json.dumps({"input_ids": ids}) + "\n" for ids in calibration_token_ids(run, recipe, merged))
        )
        command = [str(python), str(Path(__file__).with_name("gptq_program.py"))]
        command += [str(merged), str(rows_path), preset, str(group_size), str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise StageError(f"llm-compressor ended with {result.returncode}: {last_line[:500]}", code="INS-E013")
    print(f"calibrate {len(sample_calibration_rows(run, recipe))} rows of train", file=sys.stderr)


def calibration_token_ids(run: Run, recipe: Recipe, merged: Path) -> list[list[int]]:
    """Return rows of train as token ids, prompt and answer. With `train.shots` their examples are other such rows."""
    prompt = PromptSpec.read(merged)
    task, spec = prompt.load_task()
    tokenizer = chat_template.load_saved_tokenizer(str(merged))
    rows = sample_calibration_rows(run, recipe)
    shots: list[Rows] = []
    if prompt.examples is not None:
        nearest = tfidf.nearest_other_rows(rows, prompt.examples.shots)
        shots = [[rows[index] for index in indices] for indices in nearest]
        shots = few_shot.fit_examples(task, spec, tokenizer, rows, shots, prompt.examples.max_prompt_tokens)
    conversations = few_shot.build_conversations(task, spec, rows, shots)
    answers = [task.training_answers(spec, row["target"])[0] for row in rows]
    rendered = chat_template.render_examples(tokenizer, conversations, answers)
    return [row.prompt_ids + row.completion_ids for row in rendered]


def sample_calibration_rows(run: Run, recipe: Recipe) -> list[DataRow]:
    """Return the rows of train for calibration, in a seeded order."""
    rows = list(atomic_files.read_jsonl(run.folder / "data" / "train.jsonl"))
    return random.Random(recipe.train.seed).sample(rows, min(len(rows), recipe.export.calibration_rows))
