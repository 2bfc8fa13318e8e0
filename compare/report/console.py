"""The console summary at the end of a comparison."""

import os

from compare.report import head_note, routing_section, untuned_note, wording
from insource.config.schema.compare import TUNED
from insource.tasks import metric_label
from insource.tracking.run import Run
from insource.tracking.scores.comparison import Scores
from insource.tracking.scores.system_result import SystemResult

MAX_LINES = 10
# The line on a classification head, and one more system.
MAX_HEAD_LINES = 2


def summary_lines(run: Run, scores: Scores) -> list[str]:
    """Return the summary of a comparison, at most MAX_LINES lines, and MAX_HEAD_LINES more if it has a head."""
    metric = scores.deciding_metric
    best_first = sorted(scores.systems.values(), key=lambda system: -system.metrics[metric].value)
    header = [f"verdict   {scores.verdict.choice.upper()}: {scores.verdict.headline}"]
    if note := wording.linear_baseline_note(scores):
        header.append(f"linear    {note.text}")
    if untuned_text := untuned_note.describe_untuned_base(scores):
        header.append(f"base      {untuned_text}")
    if head_text := head_note.describe_head(scores):
        header.append(f"head      {head_text}")
    header.append(f"questions {wording.format_votes(scores)}")
    footer = []
    if latency := scores.systems[TUNED].latency:
        percentiles = f"p50 {latency.p50_seconds:.2f} s, p95 {latency.p95_seconds:.2f} s"
        footer.append(f"latency   {percentiles} of the tuned model, {latency.concurrency} requests at a time")
    if section := routing_section.build_routing_section(scores):
        footer.append(f"routing   {routing_section.policy_summary(section['policy'])}")
    if scores.not_run:
        footer.append(f"not run   {', '.join(skipped.name for skipped in scores.not_run)}")
    footer.append(f"report    {os.path.relpath(run.folder / 'report.html')}")
    available_lines = MAX_LINES + (MAX_HEAD_LINES if head_text else 0) - len(header) - len(footer)
    return [*header, *(_system_line(system, metric) for system in best_first[:available_lines]), *footer]


def _system_line(system: SystemResult, metric: str) -> str:
    value = system.metrics[metric]
    score_text = f"{metric_label(metric)} {value.value:.1%} ({value.ci_low:.1%} to {value.ci_high:.1%})"
    return f"          {score_text}  {system.title}{'' if system.complete else '  INCOMPLETE'}"
