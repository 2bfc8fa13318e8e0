"""Write the files of a comparison: predictions/, routing.json, scores.json, report.html and report.md."""

from collections.abc import Sequence

from compare.analysis import comparisons
from compare.analysis.system_scores import SystemScores
from compare.eval_dataset import EvalDataset
from compare.report import html_page
from compare.scoring import predictions
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking import wandb_comparison
from insource.tracking.run import Run
from insource.tracking.scores.comparison import Scores, write_scores


def write_comparison(
    trained_run: Run,
    dataset: EvalDataset,
    scored_systems: Sequence[SystemScores],
    scores: Scores,
    recipe: Recipe,
) -> None:
    """Write predictions, routing policy, scores and report."""
    folder = trained_run.folder / "predictions"
    for scored in scored_systems:
        predictions.write_predictions(folder, scored.name, scored.predictions, scored.confidences)
        if repeats := scored.responses.repeat_answers:
            repeat_predictions = predictions.score_answers(dataset, dataset.test[: len(repeats)], repeats)
            predictions.write_predictions(folder, scored.name, repeat_predictions, [None] * len(repeats), repeat=1)
    atomic_files.write_json(trained_run.folder / "routing.json", scores.routing.to_json() if scores.routing else None)
    write_scores(trained_run.folder / "scores.json", scores)
    by_name = {scored.name: scored for scored in scored_systems}
    tuned, baseline = scores.primary_pair
    disagreements = comparisons.disagreements(by_name[tuned], by_name[baseline], dataset) if tuned and baseline else []
    html_page.write_report(trained_run.folder, scores, disagreements)
    wandb_comparison.log_comparison(trained_run, recipe, scores, disagreements)
