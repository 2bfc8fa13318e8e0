"""Quantization fitted on rows of train, by llm-compressor, in an environment of its own: `.venvs/llmcompressor`.

llm-compressor 0.14 does not yet allow the torch that vLLM 0.32 wants, so it cannot stand in the same environment. It is
given token ids, prompts with their answers as training has them; no row of validation, calibration or test.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files, venvs
from insource.tasks import load_task_spec
from insource.tasks.rendering import chat_template
from insource.tracking.run import Run

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "calibrate.txt"
# They come built for CUDA and break `import transformers` next to a CPU build of torch.
EXCLUDED_ON_CPU = ("torchvision", "torchaudio")


def quantize_gptq(run: Run, recipe: Recipe, merged: Path, preset: str, group_size: int, folder: Path) -> None:
    """Writes the merged model quantized by a preset into a folder. Raises StageError where llm-compressor fails."""
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
        last_line = (result.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise StageError(f"llm-compressor ended with {result.returncode}: {last_line[:500]}")
    print(f"calibrate {len(sample_calibration_rows(run, recipe))} rows of train", file=sys.stderr)


def calibration_token_ids(run: Run, recipe: Recipe, merged: Path) -> list[list[int]]:
    """Returns rows of train as token ids, prompt and answer."""
    module, spec = load_task_spec(atomic_files.read_json(merged / "prompt.json")["task"])
    tokenizer = chat_template.load_saved_tokenizer(str(merged))
    rows = sample_calibration_rows(run, recipe)
    conversations = [module.messages(spec, row["input"]) for row in rows]
    answers = [module.training_answers(spec, row["target"])[0] for row in rows]
    examples = chat_template.render_examples(tokenizer, conversations, answers)
    return [example.prompt_ids + example.completion_ids for example in examples]


def sample_calibration_rows(run: Run, recipe: Recipe) -> list[dict[str, Any]]:
    """Returns the rows of train that are calibrated on, in a seeded order."""
    rows = list(atomic_files.read_jsonl(run.folder / "data" / "train.jsonl"))
    return random.Random(recipe.train.seed).sample(rows, min(len(rows), recipe.export.calibration_rows))
