"""report.md, for a pull request: verdict, systems, paired differences, cost, routing, incomplete parts, hashes.

in   a label "a|b `x` <script>" in scores.json
out  a&#124;b &#96;x&#96; &lt;script&gt;

Texts of models, labels and providers are escaped: they start no table cell, tag or link, and mention no user.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compare.report import head_note, routing_section, section_data, untuned_note, wording
from insource.config.schema.compare import HEAD
from insource.system.number_format import (
    format_count,
    format_delta,
    format_delta_range,
    format_number,
    format_p_value,
    format_percent,
    format_points,
    format_range,
    format_seconds,
    format_usd,
)
from insource.tasks import metric_label
from insource.tracking.scores.comparison import Plan, Scores
from insource.tracking.scores.cost_result import MeasuredCost
from insource.tracking.scores.routing_result import Estimate, ExpectedValue

# The word joiner after @ prevents mentions of users.
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "@": "&#64;\u2060", "#": "&#35;"}
ESCAPED_CHARACTERS = r"\*_[]~$!"


def render_markdown(scores: Scores) -> str:
    """Return the text of report.md."""
    parts = [
        *_verdict(scores),
        *_systems(scores),
        *_differences(scores),
        *_cost(scores),
        *_routing(scores),
        *_incomplete(scores),
        *_integrity(scores),
    ]
    # The text has no tags and no quotations, but a number may be <0.1%.
    return "\n\n".join(parts).replace("<", "&lt;").replace(">", "&gt;") + "\n"


def escape_markdown(text: object) -> str:
    """Return a text on one line without active Markdown syntax."""
    line = " ".join("".join(character if character.isprintable() else " " for character in str(text)).split())
    escaped = "".join(
        f"\\{character}" if character in ESCAPED_CHARACTERS else ENTITIES.get(character, character)
        for character in line
    )
    # Bare URLs become links without any markup.
    escaped = escaped.replace("://", ":&#47;&#47;")
    return re.sub(r"(?i)\b(www)\.", r"\1&#46;", escaped)


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already. The first column is text, the others are numbers."""
    rule = ["---", *["--:"] * (len(headers) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, rule, *rows))


def _verdict(scores: Scores) -> list[str]:
    verdict, task, base = scores.verdict, scores.task, scores.base
    note = wording.linear_baseline_note(scores)
    untuned_text = untuned_note.describe_untuned_base(scores)
    head_text = head_note.describe_head(scores)
    pocket_note = " The base is the pocket model, which replaces the model of the recipe." if base.pocket else ""
    meta = (
        f"{escape_markdown(task.kind).capitalize()}, {format_count(task.n_test, 'sealed test row')}, "
        f"{task.n_train:,} to train on. Base {escape_markdown(base.name)}, "
        f"{wording.quantization_label(scores)}, measured on {escape_markdown(scores.hardware)}.{pocket_note} "
        f"Run {escape_markdown(scores.run_id)}."
    )
    reasons = [
        f"- {escape_markdown(reason.text)}"
        + (f" ({escape_markdown(reason.value)})" if reason.value and reason.value not in reason.text else "")
        for reason in wording.supporting_reasons(scores)
    ]
    questions = [
        f"- **{escape_markdown(question.favors)}**, {escape_markdown(question.question)} "
        f"{escape_markdown(question.value)}: {escape_markdown(question.text)}"
        for question in wording.question_reasons(scores)
    ]
    open_points = [f"- {escape_markdown(point)}" for point in verdict.open_questions]
    return [
        f"# {escape_markdown(scores.recipe)}: comparison",
        f"**Verdict: {escape_markdown(verdict.choice)}.** {escape_markdown(verdict.headline)}",
        *([f"**Note:** {escape_markdown(note.text)}"] if note else []),
        *([f"**Note:** {escape_markdown(untuned_text)}"] if untuned_text else []),
        *([escape_markdown(head_text)] if head_text else []),
        meta,
        *(["\n".join(reasons)] if reasons else []),
        *(
            [f"The questions besides quality: {escape_markdown(wording.format_votes(scores))}.", "\n".join(questions)]
            if questions
            else []
        ),
        *(["Open points:", "\n".join(open_points)] if open_points else []),
    ]


def _systems(scores: Scores) -> list[str]:
    quality = section_data.quality(scores)
    headers = ["System", f"{metric_label(quality['metric'])} (95% interval)"]
    headers += [metric_label(metric) for metric in quality["others"]]
    headers += ["per 1,000 requests", "per 1,000 right", "median latency", "rows"]
    return ["## Systems", markdown_table(headers, [_system(row) for row in quality["rows"]])]


def _system(row: Mapping[str, Any]) -> list[str]:
    system, score = row["system"], row["figure"]
    name = escape_markdown(row["title"]) + ("" if system.complete else " **INCOMPLETE**")
    latency = system.latency
    return [
        f"**{name}**" if row["chief"] and system.complete else name,
        f"{format_percent(score.value)} ({format_range(score.ci_low, score.ci_high)})",
        *("–" if value is None else format_percent(value.value) for value in row["others"]),
        format_usd(system.cost_usd_per_1k),
        format_usd(system.cost_usd_per_1k_correct),
        format_seconds(latency.p50_seconds) if latency else "–",
        f"{wording.count_answered(system):,} of {system.n:,}"
        + (f" ({outcomes})" if (outcomes := wording.format_outcomes(system)) else ""),
    ]


def _differences(scores: Scores) -> list[str]:
    sections = ["## Paired differences"]
    for group in section_data.differences(scores):
        rows = [
            [
                f"{escape_markdown(row['a'])} minus {escape_markdown(row['b'])}"
                + (" (planned)" if row["chief"] else ""),
                format_delta(row["comparison"].delta),
                format_delta_range(row["comparison"].ci_low, row["comparison"].ci_high),
                format_p_value(row["comparison"].p_adjusted),
                format_points(row["comparison"].margin),
                format_points(row["comparison"].mde),
                wording.CONCLUSION_LABELS[row["comparison"].conclusion],
            ]
            for row in group["rows"]
        ]
        name = metric_label(group["metric"])
        headers = [f"{name}, points", "difference", "interval", "p, adjusted", "margin", "detectable", "judged"]
        sections.append(markdown_table(headers, rows))
    return sections if len(sections) > 1 else [*sections, "None was made."]


def _cost(scores: Scores) -> list[str]:
    cost, titles = scores.cost, wording.display_names(scores)
    self_hosted = cost.self_hosted
    if isinstance(self_hosted, MeasuredCost):
        text = (
            f"Self-hosted, at {format_count(self_hosted.requests, 'request')} a month: "
            f"{format_usd(self_hosted.usd_per_month)} "
            f"({format_count(self_hosted.machines, 'machine')} {format_usd(self_hosted.machines_usd)}, engineer "
            f"{format_usd(self_hosted.engineer_usd)}, training {format_usd(self_hosted.training_usd)}), measured at "
            f"{format_number(self_hosted.requests_per_second)} requests a second on "
            f"{escape_markdown(self_hosted.hardware)}."
        )
    else:
        reason = escape_markdown(self_hosted.missing_reason)
        text = f"The cost of self-hosting was not measured: {reason}. So break-even is withheld."
    rows = []
    for name, api_cost in cost.systems.items():
        break_even = api_cost.break_even
        placeholder = "never" if break_even.never else "withheld"
        first_requests, permanent_requests = (
            placeholder if value is None else f"{value:,}"
            for value in (break_even.first_requests, break_even.permanent_requests)
        )
        rows.append(
            [
                escape_markdown(titles.get(name, name)),
                format_usd(api_cost.usd_per_request),
                first_requests,
                permanent_requests,
            ]
        )
    headers = ["Against", "a request", "self-hosting is cheaper from, requests a month", "permanently from"]
    notes = [head_note.COST_NOTE] if HEAD in scores.systems else []
    return ["## Cost", text, *notes, *([markdown_table(headers, rows)] if rows else [])]


def _routing(scores: Scores) -> list[str]:
    section = routing_section.build_routing_section(scores)
    if section is None:
        return []
    rows = [
        [
            escape_markdown(strategy["title"]),
            format_percent(strategy["result"].local),
            format_percent(strategy["result"].correct.value),
            _estimate_range(strategy["result"].correct),
            format_usd(strategy["result"].usd_per_1k),
        ]
        for strategy in section["strategies"]
    ]
    headers = ["Test rows answered", "by the self-hosted model only", "right", "interval", "per 1,000 requests"]
    paragraphs = [section["summary"], section["on_test"], section["policy"].guarantee]
    return [
        "## Routing",
        *(escape_markdown(paragraph) for paragraph in paragraphs if paragraph),
        *([markdown_table(headers, rows)] if rows else []),
    ]


def _incomplete(scores: Scores) -> list[str]:
    lines = [f"- **INCOMPLETE** {escape_markdown(line)}" for line in wording.incomplete_notes(scores)]
    lines += [
        f"- Did not run: {escape_markdown(skipped.title)}: {escape_markdown(skipped.reason)}"
        for skipped in scores.not_run
    ]
    return ["## What is incomplete", "\n".join(lines) if lines else "Nothing."]


def _integrity(scores: Scores) -> list[str]:
    integrity, plan = scores.integrity, scores.plan
    versions = ", ".join(f"{library} {version}" for library, version in integrity.versions.items())
    fields = {
        "plan": _plan_text(plan) if plan else "none, so every comparison is exploratory",
        "plan, sha256": plan.sha256 if plan else "none",
        "test.jsonl, sha256": integrity.test_sha256,
        "readings of the test set": "; ".join(f"{opening.opened} by {opening.run}" for opening in integrity.openings)
        or "none",
        "test rows also in train": integrity.leaked_rows,
        **({"train labels": teacher_text} if (teacher_text := wording.teacher_text(scores)) else {}),
        "parity": wording.parity_text(scores),
        "answers from the cache": integrity.cache_hits,
        "retries": integrity.retries,
        "fallbacks": "; ".join(integrity.fallbacks) or "none",
        "code": integrity.git_commit or "no commit is known",
        "versions": versions,
    }
    return ["## Integrity", "\n".join(f"- {name}: {escape_markdown(value)}" for name, value in fields.items())]


def _plan_text(plan: Plan) -> str:
    state = "confirmatory" if plan.confirmatory else f"not confirmatory: {plan.exploratory_reason}"
    return (
        f"{plan.system} against {plan.baseline} by {plan.metric}, margin {format_points(plan.margin)} points, alpha "
        f"{plan.alpha}, written {plan.registered_at}, {state}"
    )


def _estimate_range(estimate: Estimate | ExpectedValue) -> str:
    return format_range(estimate.ci_low, estimate.ci_high) if isinstance(estimate, Estimate) else "–"
