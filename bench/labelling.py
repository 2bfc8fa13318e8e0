"""Accuracy by the rows that are labelled: `python -m bench.labelling --banking77 FOLDER`.

A linear model starts from the same random rows of Banking77 in every arm. Each round adds rows: random ones, those of
`make label` (`data_prep/selection/row_ranking.py`), or the most uncertain ones without diversity. The model is fitted
again and scored on the held-out file. It prints the first table of docs/labelling.md and writes
bench/results/labelling.json.

`--small` shows that it runs, on few rows. It writes a file only if `--results` names one. `--choose` compares rules on
train rows instead (`bench/labelling_choice.py`). The rule was chosen that way.

    labelled   random   make label   difference (95% over seeds)
       750     68.1%    70.3%        +2.2 points (+1.1 to +3.3)
"""

import argparse
import csv
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from bench import docs_tables, labelling_choice, machine
from bench.labelling_choice import paired_interval
from bench.labelling_pools import POOLS, Rows
from bench.linear_refits import LinearRefits, Refit, score
from bench.training.workloads import add_banking77_option
from data_prep.selection.row_ranking import rank_rows
from insource.config import cli
from insource.config.errors import RecipeError
from insource.system import atomic_files
from insource.system.console_log import log_line
from insource.text.text_keys import clean, duplicate_key

RESULTS = Path(__file__).parent / "results" / "labelling.json"
DOCS = machine.ROOT / "docs" / "labelling.md"
SEEDS = 5
BASELINE, CURRENT = "random", "make label"


@dataclass(frozen=True)
class Schedule:
    """How many rows are labelled when."""

    start_rows: int
    """Random rows that are labelled first."""
    rounds: int
    round_rows: int

    @property
    def labelled_rows(self) -> list[int]:
        """Return the number of labelled rows at the start and after each round."""
        return [self.start_rows + self.round_rows * number for number in range(self.rounds + 1)]


COMPLETE, SMALL = Schedule(500, 4, 250), Schedule(30, 2, 10)


@dataclass(frozen=True)
class Round:
    """The state of an arm before it adds rows. `uncertainty` is that of the `pool` texts, by the arm's own model."""

    pool: Sequence[str]
    labelled: Sequence[str]
    uncertainty: Sequence[float]
    count: int
    seed: int


def choose_random(state: Round) -> list[int]:
    """Return random rows of the pool."""
    return random.Random(f"{state.seed} {len(state.labelled)}").sample(range(len(state.pool)), state.count)


def choose_uncertain(state: Round) -> list[int]:
    """Return the most uncertain rows of the pool, however similar they are."""
    order = sorted(range(len(state.pool)), key=lambda row: -state.uncertainty[row])
    return order[: state.count]


def choose_ranked(state: Round) -> list[int]:
    """Return the rows that `make label` chooses."""
    return rank_rows(
        state.pool,
        uncertainty=state.uncertainty,
        labelled_texts=state.labelled,
        count=state.count,
        seed=state.seed,
    )


ARMS: dict[str, Callable[[Round], list[int]]] = {
    BASELINE: choose_random,
    CURRENT: choose_ranked,
    "uncertain only": choose_uncertain,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.labelling", description="Chosen rows against random rows.")
    add_banking77_option(parser)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--small", action="store_true", help="two rounds of ten rows, to try the bench")
    parser.add_argument("--results", type=Path, help=f"where the JSON goes ({RESULTS.name}; --small: nowhere)")
    parser.add_argument("--choose", action="store_true", help="compare rules on train rows, without the held-out file")
    parser.add_argument("--pools", nargs="+", choices=[*POOLS], default=[*POOLS], help="with --choose: only these")
    parser.add_argument("--write-docs", action="store_true", help="put the last results of both into docs/labelling.md")
    arguments = parser.parse_args()
    if arguments.write_docs:
        docs_tables.write_tables(DOCS, "labelling", RESULTS, results_table)
        docs_tables.write_tables(DOCS, "labelling_choice", labelling_choice.RESULTS, labelling_choice.results_table)
        return cli.OK
    train, held_out = read_rows(arguments.banking77)
    if arguments.choose:
        print(labelling_choice.results_table(labelling_choice.measure_all(train, arguments.seeds, arguments.pools)))
        return cli.OK
    path = arguments.results or (None if arguments.small else RESULTS)
    schedule = SMALL if arguments.small else COMPLETE
    print(results_table(measure_all(train, held_out, arguments.seeds, schedule, path)))
    return cli.OK


def measure_all(train: Rows, held_out: Rows, seeds: int, schedule: Schedule, path: Path | None) -> dict[str, Any]:
    """Return the results of all arms, and write them after each arm if a path is given."""
    started_at = time.process_time()
    refits = LinearRefits([text for text, _ in [*train, *held_out]])
    starts = [random.Random(seed).sample(range(len(train)), schedule.start_rows) for seed in range(seeds)]
    fits = [fit_rows(refits, train, start) for start in starts]
    results: dict[str, Any] = {
        **machine.describe_call(
            f"python -m bench.labelling --banking77 FOLDER --seeds {seeds}" + (" --small" if schedule == SMALL else "")
        ),
        "pool_rows": len(train),
        "held_out_rows": len(held_out),
        "labelled_rows": schedule.labelled_rows,
        "runs": [],
    }
    for arm in ARMS:
        for seed in range(seeds):
            accuracy = measure_arm(arm, seed, schedule, refits, train, held_out, starts[seed], fits[seed])
            results["runs"].append({"seed": seed, "arm": arm, "accuracy": accuracy})
            log_line(f"{arm}, seed {seed}: {accuracy}")
        results["cpu_seconds"] = round(time.process_time() - started_at)
        if path:
            atomic_files.write_json(path, results)
    return results


def read_rows(folder: Path) -> tuple[Rows, Rows]:
    """Return the distinct train rows that are not in the held-out file, and the held-out rows. Raise RecipeError."""
    held_out = _read_csv(folder / "test.csv")
    seen = {duplicate_key(text) for text, _ in held_out}
    train = []
    for text, label in _read_csv(folder / "train.csv"):
        key = duplicate_key(text)
        if key not in seen:
            seen.add(key)
            train.append((text, label))
    return train, held_out


def _read_csv(path: Path) -> list[tuple[str, str]]:
    if not path.exists():
        raise RecipeError(
            f"there is no Banking77 at {path}; give its folder: --banking77 FOLDER, or BANKING77=FOLDER",
            code="INS-D001",
        )
    with path.open(encoding="utf-8", newline="") as file:
        return [(clean(row["text"]), row["category"]) for row in csv.DictReader(file)]


def fit_rows(refits: LinearRefits, train: Rows, chosen: Sequence[int]) -> Refit:
    """Return the predictions of the linear model fitted on these train rows."""
    return refits.fit(chosen, [train[row][1] for row in chosen])


def measure_arm(
    arm: str,
    seed: int,
    schedule: Schedule,
    refits: LinearRefits,
    train: Rows,
    held_out: Rows,
    start: Sequence[int],
    fitted: Refit,
) -> list[float]:
    """Return the accuracy on the held-out rows at the start and after each round.

    `refits` has the train rows, then the held-out rows. `start` are the first labelled rows, and `fitted` the model
    fitted on them, which all arms share.
    """
    chosen, accuracies = list(start), [score(fitted, held_out)]
    for _ in range(schedule.rounds):
        is_chosen = set(chosen)
        rest = [row for row in range(len(train)) if row not in is_chosen]
        uncertainty = [min(max(1 - float(fitted.margins[row]), 0.0), 1.0) for row in rest]
        labelled = [train[row][0] for row in chosen]
        state = Round([train[row][0] for row in rest], labelled, uncertainty, schedule.round_rows, seed)
        chosen += [rest[position] for position in ARMS[arm](state)]
        fitted = fit_rows(refits, train, chosen)
        accuracies.append(score(fitted, held_out))
    return accuracies


def compare_with_random(results: Mapping[str, Any], arm: str, step: int) -> tuple[float, float, float]:
    """Return the mean paired difference to random rows, and its 95% interval."""
    return paired_interval(_accuracies(results, arm, step), _accuracies(results, BASELINE, step))


def _accuracies(results: Mapping[str, Any], arm: str, step: int) -> list[float]:
    """Return the accuracies of an arm after `step` rounds, in the order of the seeds."""
    runs = sorted((run for run in results["runs"] if run["arm"] == arm), key=lambda run: run["seed"])
    return [run["accuracy"][step] for run in runs]


def results_table(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown: means over the seeds, and differences to random rows with their intervals."""
    seeds = len({run["seed"] for run in results["runs"]})
    others = [arm for arm in dict.fromkeys(run["arm"] for run in results["runs"]) if arm != BASELINE]
    lines = [
        f"{results['hardware']}, {results['date']}, `{results['command']}`, {results['cpu_seconds']:,} s of one core. "
        f"{results['pool_rows']:,} rows to choose from, {results['held_out_rows']:,} held-out rows, {seeds} seeds.",
        "",
        f"| labelled rows | {BASELINE} | {' | '.join(f'{arm} | difference (95%)' for arm in others)} |",
        "|---" * (2 + 2 * len(others)) + "|",
    ]
    for step, rows in enumerate(results["labelled_rows"]):
        cells = [f"{rows:,}", f"{mean(_accuracies(results, BASELINE, step)):.1%}"]
        for arm in others:
            difference, low, high = (100 * value for value in compare_with_random(results, arm, step))
            cells += [
                f"{mean(_accuracies(results, arm, step)):.1%}",
                f"{difference:+.1f} points ({low:+.1f} to {high:+.1f})" if step else "the same rows",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_cli(main)
