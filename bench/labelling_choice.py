"""Rules for the rows to label next, compared on train rows: `python -m bench.labelling --choose --banking77 FOLDER`.

Each rule labels the pools of `bench/labelling_pools.py` in rounds, from the same random rows of each seed. After each
round the linear model is fitted again, and scored on rows that are held out from the pool. No file of test rows is
read for the models. It writes bench/results/labelling_choice.json.

    rule               banking77               near-copies                              mean
    random             73.4%                   66.1%
    most uncertain     +4.1 (+3.0 to +5.2)     +5.8 (+4.0 to +7.5); 525 useful rows     +4.2
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from bench import machine
from bench.labelling_pools import POOLS, Pool, Rows
from bench.linear_refits import LinearRefits, score
from data_prep.arrays import Array
from data_prep.selection import representative_rows, row_ranking
from insource.system import atomic_files
from insource.system.console_log import log_line

RESULTS = Path(__file__).parent / "results" / "labelling_choice.json"
BASELINE, CURRENT = "random", "facility location of 10k"
EMBEDDING_SEED = 17


@dataclass(frozen=True)
class Candidates:
    """The rows that may be chosen: unit vectors [rows, dimensions] and uncertainty [rows], and what is labelled."""

    vectors: Array
    labelled: Array
    """Unit vectors of the labelled rows."""
    uncertainty: Array
    count: int
    seed: int


def choose_random(state: Candidates) -> Sequence[int]:
    """Return random rows."""
    return random.Random(f"{state.seed} {len(state.labelled)}").sample(range(len(state.vectors)), state.count)


def choose_uncertain(state: Candidates) -> Sequence[int]:
    """Return the most uncertain rows, however similar they are."""
    ranked: list[int] = np.argsort(-state.uncertainty, kind="stable")[: state.count].tolist()
    return ranked


def choose_by_product(state: Candidates, exponent: float) -> Sequence[int]:
    """Return greedily the row of the largest uncertainty times distance**exponent to labelled and chosen rows."""
    return _choose_greedily(state, lambda distance, _: state.uncertainty * distance**exponent)


def choose_in_window(state: Candidates, beta: int) -> Sequence[int]:
    """Return greedily the row of the largest product among the most uncertain rows: beta * k of them for row k."""
    ranks = np.argsort(np.argsort(-state.uncertainty, kind="stable"))
    return _choose_greedily(
        state, lambda distance, step: np.where(ranks < beta * (step + 1), state.uncertainty * distance, -1.0)
    )


def choose_clusters(state: Candidates, beta: int) -> Sequence[int]:
    """Return the row nearest each centre of k-means among the beta * count most uncertain rows.

    K-means weights the rows by uncertainty. Source: Zhdanov 2019, arXiv:1901.05954.
    """
    from sklearn.cluster import KMeans

    top = np.argsort(-state.uncertainty, kind="stable")[: beta * state.count]
    clusters = KMeans(state.count, n_init=1, max_iter=50, random_state=state.seed)
    clusters.fit(state.vectors[top], sample_weight=state.uncertainty[top] + 1e-6)
    distances = clusters.transform(state.vectors[top])
    nearest = {int(top[distances[:, centre].argmin()]) for centre in range(state.count)}
    fill = (int(row) for row in top if int(row) not in nearest)  # if one row is nearest to two centres
    return [*nearest, *(next(fill) for _ in range(state.count - len(nearest)))]


def choose_representative(state: Candidates) -> Sequence[int]:
    """Return the rows that represent the most uncertain rows, as `make label` does."""
    order = np.argsort(-state.uncertainty, kind="stable")
    vectors, uncertainty = state.vectors[order], state.uncertainty[order]
    positions = representative_rows.choose_representative(vectors, state.labelled, uncertainty, state.count)
    return [int(row) for row in order[positions]]


RULES: dict[str, Callable[[Candidates], Sequence[int]]] = {
    BASELINE: choose_random,
    "most uncertain": choose_uncertain,
    "product": lambda state: choose_by_product(state, 1.0),
    "product, distance^1/2": lambda state: choose_by_product(state, 0.5),
    "product, distance^1/4": lambda state: choose_by_product(state, 0.25),
    "product among 4k": lambda state: choose_in_window(state, 4),
    "k-means of 10N": lambda state: choose_clusters(state, 10),
    CURRENT: choose_representative,
}


def _choose_greedily(state: Candidates, gain: Callable[[Array, int], Array]) -> list[int]:
    """Return rows one by one: the next one has the largest gain of (distance to the nearest row, step)."""
    similarity = _similarity_to_labelled(state)
    chosen: list[int] = []
    for step in range(state.count):
        gains = gain(np.clip(1.0 - similarity, 0.0, 1.0), step)
        gains[chosen] = -2.0
        chosen.append(int(gains.argmax()))
        similarity = np.maximum(similarity, state.vectors @ state.vectors[chosen[-1]])
    return chosen


def _similarity_to_labelled(state: Candidates) -> Array:
    """Return the cosine similarity of each row to the nearest labelled row."""
    similarity: Array = np.max(state.vectors @ state.labelled.T, axis=1)
    return similarity


@dataclass(frozen=True)
class PreparedPool:
    """A pool with its term counts and vectors, which all rules and seeds share."""

    pool: Pool
    refits: LinearRefits
    vectors: Array


def prepare_pool(pool: Pool) -> PreparedPool:
    """Return the pool with the term counts of its rows and of the scored rows, and the vectors of its rows."""
    texts = [text for text, _ in pool.rows]
    vectors, _ = row_ranking.embed_texts(texts, [], EMBEDDING_SEED)
    return PreparedPool(pool, LinearRefits([*texts, *(text for text, _ in pool.scored)]), vectors)


def measure_rule(prepared: PreparedPool, rule: str, seed: int) -> dict[str, Any]:
    """Return the accuracy after each round, and how many different useful rows were chosen."""
    pool = prepared.pool
    chosen = _draw_start(pool, seed)
    accuracies = []
    for round_number in range(pool.rounds + 1):
        fitted = prepared.refits.fit(chosen, [pool.rows[row][1] for row in chosen])
        accuracies.append(score(fitted, pool.scored))
        if round_number < pool.rounds:
            rest = np.setdiff1d(np.arange(len(pool.rows)), chosen)
            uncertainty = 1.0 - fitted.margins[rest]
            state = Candidates(prepared.vectors[rest], prepared.vectors[chosen], uncertainty, pool.round_rows, seed)
            chosen += [int(rest[position]) for position in RULES[rule](state)]
    added = [pool.origins[row] for row in chosen[pool.start_rows :]]
    useful = {origin for origin in added if origin is not None}
    return {"pool": pool.name, "rule": rule, "seed": seed, "accuracy": accuracies, "useful_rows": len(useful)}


def _draw_start(pool: Pool, seed: int) -> list[int]:
    """Return the random rows that are labelled first; none of them is useless."""
    useful = [row for row, origin in enumerate(pool.origins) if origin is not None]
    return random.Random(seed).sample(useful, pool.start_rows)


def measure_all(train: Rows, seeds: int, names: Sequence[str], results_path: Path = RESULTS) -> dict[str, Any]:
    """Return the results of all rules on the named pools, and write them after each pool.

    The file keeps its results of other pools.
    """
    results: dict[str, Any] = {
        **machine.describe_call(f"python -m bench.labelling --choose --banking77 FOLDER --seeds {seeds}"),
        "pools": [],
        "runs": [],
    }
    if results_path.exists():
        previous = atomic_files.read_json(results_path)
        for key, column in (("pools", "name"), ("runs", "pool")):
            results[key] = [entry for entry in previous[key] if entry[column] not in names]
    for name in names:
        pool = POOLS[name](train)
        prepared = prepare_pool(pool)
        for seed in range(seeds):
            for rule in RULES:
                results["runs"].append(measure_rule(prepared, rule, seed))
                log_line(str(results["runs"][-1]))
        sizes = {"rows": len(pool.rows), "scored_rows": len(pool.scored), "start_rows": pool.start_rows}
        rounds = {"round_rows": pool.round_rows, "rounds": pool.rounds}
        results["pools"].append({"name": name, **sizes, **rounds})
        atomic_files.write_json(results_path, results)
    return results


def paired_interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean difference of values that are paired by seed, and its 95% interval (t distribution)."""
    from scipy.stats import t

    differences = [value - other for value, other in zip(values, others, strict=True)]
    n = len(differences)
    if n < 2:
        return differences[0], float("nan"), float("nan")
    half_width = float(t.ppf(0.975, n - 1)) * stdev(differences) / n**0.5
    return mean(differences), mean(differences) - half_width, mean(differences) + half_width


def compare_rules(results: Mapping[str, Any], pool: str, rule: str, other: str) -> tuple[float, float, float]:
    """Return the mean paired difference of the last accuracy, and its 95% interval over the seeds."""
    return paired_interval(_last_accuracies(results, pool, rule), _last_accuracies(results, pool, other))


def _last_accuracies(results: Mapping[str, Any], pool: str, rule: str) -> list[float]:
    runs = sorted(_select(results, pool, rule), key=lambda run: run["seed"])
    return [run["accuracy"][-1] for run in runs]


def _select(results: Mapping[str, Any], pool: str, rule: str) -> list[dict[str, Any]]:
    return [run for run in results["runs"] if run["pool"] == pool and run["rule"] == rule]


def results_table(results: Mapping[str, Any]) -> str:
    """Return the results as Markdown: gains over random rows, and those of `make label` over other rules."""
    seeds = len({run["seed"] for run in results["runs"]})
    pools = [pool["name"] for pool in results["pools"]]
    others = [rule for rule in dict.fromkeys(run["rule"] for run in results["runs"]) if rule != BASELINE]
    levels = [f"{mean(_last_accuracies(results, pool, BASELINE)):.1%}" for pool in pools]
    lines = [
        f"{results['hardware']}, {results['date']}, `{results['command']}`, {seeds} seeds.",
        "",
        f"| rule | {' | '.join(pools)} | mean |",
        "|---" * (2 + len(pools)) + "|",
        f"| {BASELINE} | {' | '.join(levels)} | |",
    ]
    for rule in others:
        gains = [compare_rules(results, pool, rule, BASELINE)[0] for pool in pools]
        cells = [_format_difference(results, pool, rule, BASELINE, with_rows=True) for pool in pools]
        lines.append(f"| {rule} | {' | '.join(cells)} | {100 * mean(gains):+.1f} |")
    lines += ["", f"| {CURRENT}, minus | {' | '.join(pools)} |", "|---" * (1 + len(pools)) + "|"]
    for rule in others:
        if rule != CURRENT:
            cells = [_format_difference(results, pool, CURRENT, rule) for pool in pools]
            lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_difference(results: Mapping[str, Any], pool: str, rule: str, other: str, *, with_rows: bool = False) -> str:
    """Return the paired difference in points; with its useful rows, if rules differ in them on this pool."""
    difference, low, high = (100 * value for value in compare_rules(results, pool, rule, other))
    text = f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
    useful = {run["useful_rows"] for run in results["runs"] if run["pool"] == pool}
    if with_rows and len(useful) > 1:
        text += f"; {mean(run['useful_rows'] for run in _select(results, pool, rule)):.0f} useful rows"
    return text
