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
BACKSLASHED = r"\*_[]~$!"


def markdown(scores: Scores) -> str:
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


def plain(text: object) -> str:
    """Returns a text on one line in which Markdown finds nothing to do."""
    line = " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())
    escaped = "".join(f"\\{one}" if one in BACKSLASHED else ENTITIES.get(one, one) for one in line)
    # Bare addresses become links without any sign.
    escaped = escaped.replace("://", ":&#47;&#47;")
    return re.sub(r"(?i)\b(www)\.", r"\1&#46;", escaped)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table whose cells are Markdown already. The first column is text, the others are figures."""
    rule = ["---", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _verdict(scores: Scores) -> list[str]:
    verdict, task, base = scores["verdict"], scores["task"], scores["base"]
    linear = wording.linear_as_good(scores)
    pocket = " The base is the pocket model, which stands in for the recipe's own." if base["pocket"] else ""
    meta = (
        f"{plain(task['kind']).capitalize()}, {wording.many(task['n_test'], 'sealed test row')}, "
        f"{task['n_train']:,} to train on. Base {plain(base['name'])}, {plain(base['quantization'])}, measured on "
        f"{plain(scores['hardware'])}.{pocket} Run {plain(scores['run_id'])}."
    )
    reasons = [
        f"- {plain(one['says'])}" + (f" ({plain(one['figure'])})" if one["figure"] is not None else "")
        for one in wording.reasons(scores)
    ]
    asked = [
        f"- **{plain(one['for'])}**, {plain(one['question'])} {plain(one['figure'])}: {plain(one['says'])}"
        for one in wording.questions(scores)
    ]
    undecided = [f"- {plain(one)}" for one in verdict["undecided"]]
    return [
        f"# {plain(scores['recipe'])}: comparison",
        f"**Verdict: {plain(verdict['choice'])}.** {plain(verdict['headline'])}",
        *([f"**Note:** {plain(linear.says)}"] if linear else []),
        meta,
        *(["\n".join(reasons)] if reasons else []),
        *([f"The questions beside quality: {plain(wording.counted(scores))}.", "\n".join(asked)] if asked else []),
        *(["What stays undecided:", "\n".join(undecided)] if undecided else []),
    ]


def _systems(scores: Scores) -> list[str]:
    shown = section_data.quality(scores)
    heads = ["System", f"{wording.metric_name(shown['metric'])} (95% interval)"]
    heads += [wording.metric_name(other) for other in shown["others"]]
    heads += ["per 1,000 requests", "per 1,000 right", "median latency", "rows"]
    return ["## Systems", table(heads, [_system(row) for row in shown["rows"]])]


def _system(row: Mapping[str, Any]) -> list[str]:
    system, figure = row["system"], row["figure"]
    name = plain(row["title"]) + ("" if system["complete"] else " **INCOMPLETE**")
    latency = system["latency"]
    return [
        f"**{name}**" if row["chief"] and system["complete"] else name,
        f"{wording.percent(figure['value'])} ({wording.between(figure['ci_low'], figure['ci_high'])})",
        *("–" if other is None else wording.percent(other["value"]) for other in row["others"]),
        wording.usd(system["cost_usd_per_1k"]),
        wording.usd(system["cost_usd_per_1k_right"]),
        wording.seconds(latency["p50_seconds"]) if latency else "–",
        f"{wording.answered(system):,} of {system['n']:,}" + (f" ({ends})" if (ends := wording.ends(system)) else ""),
    ]


def _differences(scores: Scores) -> list[str]:
    found = ["## Paired differences"]
    for group in section_data.differences(scores):
        rows = [
            [
                f"{plain(row['a'])} minus {plain(row['b'])}" + (" (planned)" if row["chief"] else ""),
                wording.signed(row["one"]["delta"]),
                wording.signed_between(row["one"]["ci_low"], row["one"]["ci_high"]),
                wording.p_value(row["one"]["p_adjusted"]),
                "–" if row["one"]["margin"] is None else wording.points(row["one"]["margin"]),
                wording.points(row["one"]["mde"]),
                wording.JUDGED[row["one"]["judged"]],
            ]
            for row in group["rows"]
        ]
        name = wording.metric_name(group["metric"])
        heads = [f"{name}, points", "difference", "interval", "p, adjusted", "margin", "detectable", "judged"]
        found.append(table(heads, rows))
    return found if len(found) > 1 else [*found, "None was made."]


def _cost(scores: Scores) -> list[str]:
    cost, named = scores["cost"], wording.titles(scores)
    owned = cost["owned"]
    if owned["measured"]:
        told = (
            f"Owned, at {wording.many(owned['requests'], 'request')} a month: {wording.usd(owned['usd_per_month'])} "
            f"({wording.many(owned['machines'], 'machine')} {wording.usd(owned['machines_usd'])}, engineer "
            f"{wording.usd(owned['engineer_usd'])}, training {wording.usd(owned['training_usd'])}), measured at "
            f"{wording.shown(owned['requests_per_second'])} requests a second on {plain(owned['hardware'])}."
        )
    else:
        told = f"What owning costs was not measured: {plain(owned['why_not'])}. So break-even is withheld."
    rows = []
    for name, one in cost["systems"].items():
        found = one["break_even"]
        pays = "never" if found["never"] else "withheld"
        first, for_good = (
            pays if value is None else f"{value:,}" for value in (found["first_requests"], found["for_good_requests"])
        )
        rows.append([plain(named.get(name, name)), wording.usd(one["usd_per_request"]), first, for_good])
    heads = ["Against", "a request", "owning pays from, requests a month", "for good from"]
    return ["## Cost", told, *([table(heads, rows)] if rows else [])]


def _routing(scores: Scores) -> list[str]:
    shown = routing_section.routing(scores)
    if shown is None:
        return []
    rows = [
        [
            plain(one["title"]),
            wording.percent(one["local"]),
            wording.percent(one["right"]["value"]),
            "–" if one["right"]["ci_low"] is None else wording.between(one["right"]["ci_low"], one["right"]["ci_high"]),
            wording.usd(one["usd_per_1k"]),
        ]
        for one in shown["ways"]
    ]
    heads = ["Test rows answered", "by the owned model alone", "right", "interval", "per 1,000 requests"]
    told = [shown["said"], shown["on_test"], shown["policy"]["guarantee"]]
    return ["## Routing", *(plain(one) for one in told if one), *([table(heads, rows)] if rows else [])]


def _incomplete(scores: Scores) -> list[str]:
    lines = [f"- **INCOMPLETE** {plain(line)}" for line in wording.incomplete(scores)]
    lines += [f"- Did not run: {plain(one['title'])}: {plain(one['why'])}" for one in scores["not_run"]]
    return ["## What is incomplete", "\n".join(lines) if lines else "Nothing."]


def _integrity(scores: Scores) -> list[str]:
    told, plan = scores["integrity"], scores["plan"]
    versions = ", ".join(f"{library} {version}" for library, version in told["versions"].items())
    if plan:
        state = "confirmatory" if plan["confirmatory"] else f"not confirmatory: {plan['why_not']}"
        planned = (
            f"{plan['system']} against {plan['baseline']} by {plan['metric']}, margin {wording.points(plan['margin'])} "
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
        "served as trained": wording.served_as_trained(scores),
        "answers reused from before": told["cache_hits"],
        "retries": told["retries"],
        "fallbacks": "; ".join(told["fallbacks"]) or "none",
        "code": told["git_commit"] or "no commit is known",
        "versions": versions,
    }
    return ["## Integrity", "\n".join(f"- {what}: {plain(value)}" for what, value in facts.items())]
