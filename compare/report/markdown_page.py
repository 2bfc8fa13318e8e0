"""report.md: a comparison for a pull request: verdict, main table, paired differences, cost, routing, what is not
whole, hashes.

in   a label "a|b `x` <script>" in scores.json
out  a&#124;b &#96;x&#96; &lt;script&gt;

What models, labels and providers wrote is text here: it opens no table cell, no tag, no link, and calls nobody by name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compare.report import routing_section, section_data, wording
from compare.report.wording import Scores

# A word joiner keeps a name from being called by its @.
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "@": "&#64;\u2060", "#": "&#35;"}
ESCAPED_CHARACTERS = r"\*_[]~$!"


def render_markdown(scores: Scores) -> str:
    """Returns the text of report.md."""
    parts = [
        *_verdict(scores),
        *_systems(scores),
        *_differences(scores),
        *_cost(scores),
        *_routing(scores),
        *_incomplete(scores),
        *_integrity(scores),
    ]
    # There is no tag and no quotation here; a figure may be <0.1%.
    return "\n\n".join(parts).replace("<", "&lt;").replace(">", "&gt;") + "\n"


def escape_markdown(text: object) -> str:
    """Returns a text on one line in which Markdown finds nothing to do."""
    line = " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())
    escaped = "".join(f"\\{one}" if one in ESCAPED_CHARACTERS else ENTITIES.get(one, one) for one in line)
    # Bare addresses become links without any sign.
    escaped = escaped.replace("://", ":&#47;&#47;")
    return re.sub(r"(?i)\b(www)\.", r"\1&#46;", escaped)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table whose cells are Markdown already. The first column is text, the others are figures."""
    rule = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _verdict(scores: Scores) -> list[str]:
    verdict, task, base = scores["verdict"], scores["task"], scores["base"]
    linear = wording.linear_baseline_note(scores)
    pocket = " The base is the pocket model, which stands in for the recipe's own." if base["pocket"] else ""
    meta = (
        f"{escape_markdown(task['kind']).capitalize()}, {wording.format_count(task['n_test'], 'sealed test row')}, "
        f"{task['n_train']:,} to train on. Base {escape_markdown(base['name'])}, "
        f"{escape_markdown(base['quantization'])}, measured on "
        f"{escape_markdown(scores['hardware'])}.{pocket} Run {escape_markdown(scores['run_id'])}."
    )
    reasons = [
        f"- {escape_markdown(one['says'])}"
        + (f" ({escape_markdown(one['figure'])})" if one["figure"] is not None else "")
        for one in wording.supporting_reasons(scores)
    ]
    asked = [
        f"- **{escape_markdown(one['for'])}**, {escape_markdown(one['question'])} "
        f"{escape_markdown(one['figure'])}: {escape_markdown(one['says'])}"
        for one in wording.question_reasons(scores)
    ]
    undecided = [f"- {escape_markdown(one)}" for one in verdict["undecided"]]
    return [
        f"# {escape_markdown(scores['recipe'])}: comparison",
        f"**Verdict: {escape_markdown(verdict['choice'])}.** {escape_markdown(verdict['headline'])}",
        *([f"**Note:** {escape_markdown(linear.says)}"] if linear else []),
        meta,
        *(["\n".join(reasons)] if reasons else []),
        *(
            [f"The questions beside quality: {escape_markdown(wording.format_votes(scores))}.", "\n".join(asked)]
            if asked
            else []
        ),
        *(["What stays undecided:", "\n".join(undecided)] if undecided else []),
    ]


def _systems(scores: Scores) -> list[str]:
    shown = section_data.quality(scores)
    heads = ["System", f"{wording.metric_name(shown['metric'])} (95% interval)"]
    heads += [wording.metric_name(other) for other in shown["others"]]
    heads += ["per 1,000 requests", "per 1,000 right", "median latency", "rows"]
    return ["## Systems", markdown_table(heads, [_system(row) for row in shown["rows"]])]


def _system(row: Mapping[str, Any]) -> list[str]:
    system, figure = row["system"], row["figure"]
    name = escape_markdown(row["title"]) + ("" if system["complete"] else " **INCOMPLETE**")
    latency = system["latency"]
    return [
        f"**{name}**" if row["chief"] and system["complete"] else name,
        f"{wording.format_percent(figure['value'])} ({wording.format_range(figure['ci_low'], figure['ci_high'])})",
        *("–" if other is None else wording.format_percent(other["value"]) for other in row["others"]),
        wording.format_usd(system["cost_usd_per_1k"]),
        wording.format_usd(system["cost_usd_per_1k_right"]),
        wording.format_seconds(latency["p50_seconds"]) if latency else "–",
        f"{wording.count_answered(system):,} of {system['n']:,}"
        + (f" ({ends})" if (ends := wording.format_outcomes(system)) else ""),
    ]


def _differences(scores: Scores) -> list[str]:
    found = ["## Paired differences"]
    for group in section_data.differences(scores):
        rows = [
            [
                f"{escape_markdown(row['a'])} minus {escape_markdown(row['b'])}"
                + (" (planned)" if row["chief"] else ""),
                wording.format_delta(row["one"]["delta"]),
                wording.format_delta_range(row["one"]["ci_low"], row["one"]["ci_high"]),
                wording.format_p_value(row["one"]["p_adjusted"]),
                "–" if row["one"]["margin"] is None else wording.format_points(row["one"]["margin"]),
                wording.format_points(row["one"]["mde"]),
                wording.CONCLUSION_LABELS[row["one"]["judged"]],
            ]
            for row in group["rows"]
        ]
        name = wording.metric_name(group["metric"])
        heads = [f"{name}, points", "difference", "interval", "p, adjusted", "margin", "detectable", "judged"]
        found.append(markdown_table(heads, rows))
    return found if len(found) > 1 else [*found, "None was made."]


def _cost(scores: Scores) -> list[str]:
    cost, named = scores["cost"], wording.display_names(scores)
    owned = cost["owned"]
    if owned["measured"]:
        told = (
            f"Owned, at {wording.format_count(owned['requests'], 'request')} a month: "
            f"{wording.format_usd(owned['usd_per_month'])} "
            f"({wording.format_count(owned['machines'], 'machine')} {wording.format_usd(owned['machines_usd'])}, "
            "engineer "
            f"{wording.format_usd(owned['engineer_usd'])}, training {wording.format_usd(owned['training_usd'])}), "
            "measured at "
            f"{wording.format_number(owned['requests_per_second'])} requests a second on "
            f"{escape_markdown(owned['hardware'])}."
        )
    else:
        told = f"What owning costs was not measured: {escape_markdown(owned['why_not'])}. So break-even is withheld."
    rows = []
    for name, one in cost["systems"].items():
        found = one["break_even"]
        pays = "never" if found["never"] else "withheld"
        first, for_good = (
            pays if value is None else f"{value:,}" for value in (found["first_requests"], found["for_good_requests"])
        )
        rows.append(
            [escape_markdown(named.get(name, name)), wording.format_usd(one["usd_per_request"]), first, for_good]
        )
    heads = ["Against", "a request", "owning pays from, requests a month", "for good from"]
    return ["## Cost", told, *([markdown_table(heads, rows)] if rows else [])]


def _routing(scores: Scores) -> list[str]:
    shown = routing_section.build_routing_section(scores)
    if shown is None:
        return []
    rows = [
        [
            escape_markdown(one["title"]),
            wording.format_percent(one["local"]),
            wording.format_percent(one["right"]["value"]),
            "–"
            if one["right"]["ci_low"] is None
            else wording.format_range(one["right"]["ci_low"], one["right"]["ci_high"]),
            wording.format_usd(one["usd_per_1k"]),
        ]
        for one in shown["ways"]
    ]
    heads = ["Test rows answered", "by the owned model alone", "right", "interval", "per 1,000 requests"]
    told = [shown["said"], shown["on_test"], shown["policy"]["guarantee"]]
    return [
        "## Routing",
        *(escape_markdown(one) for one in told if one),
        *([markdown_table(heads, rows)] if rows else []),
    ]


def _incomplete(scores: Scores) -> list[str]:
    lines = [f"- **INCOMPLETE** {escape_markdown(line)}" for line in wording.incomplete_notes(scores)]
    lines += [
        f"- Did not run: {escape_markdown(one['title'])}: {escape_markdown(one['why'])}" for one in scores["not_run"]
    ]
    return ["## What is incomplete", "\n".join(lines) if lines else "Nothing."]


def _integrity(scores: Scores) -> list[str]:
    told, plan = scores["integrity"], scores["plan"]
    versions = ", ".join(f"{library} {version}" for library, version in told["versions"].items())
    if plan:
        state = "confirmatory" if plan["confirmatory"] else f"not confirmatory: {plan['why_not']}"
        planned = (
            f"{plan['system']} against {plan['baseline']} by {plan['metric']}, margin "
            f"{wording.format_points(plan['margin'])} "
            f"points, alpha {plan['alpha']}, written {plan['written']}, {state}"
        )
    else:
        planned = "none, so every comparison is exploratory"
    facts = {
        "plan": planned,
        "plan, sha256": plan["sha256"] if plan else "none",
        "test.jsonl, sha256": told["test_sha256"],
        "openings of the test": "; ".join(f"{one['opened']} by {one['run']}" for one in told["openings"]) or "none",
        "test rows also in train": told["leaked_rows"],
        "served as trained": wording.parity_text(scores),
        "answers reused from before": told["cache_hits"],
        "retries": told["retries"],
        "fallbacks": "; ".join(told["fallbacks"]) or "none",
        "code": told["git_commit"] or "no commit is known",
        "versions": versions,
    }
    return ["## Integrity", "\n".join(f"- {what}: {escape_markdown(value)}" for what, value in facts.items())]
