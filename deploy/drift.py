"""Run `python -m deploy.drift RECIPE`: test whether the threshold's guarantee still applies to current traffic.

drift     classifier@3f2a90c17b5e44d0: 12,040 answers of the last 7 days, beside 403 calibration rows
holds     confidence: the distributions differ by 0.041 at most (p 0.53)
LOST      labels: 18.2% of the answers would have to change (p 2.1e-31); refund_status: 12.0% before, 30.1% now
holds     feedback: 192 of 200 kept answers right, 96.0% (92.3 to 98.0); promised: more than 95.0% right (p 0.79)

The guarantee holds for requests that are exchangeable with the calibration rows. Confidences and labels of the deployed
model's answers are tested against its answers to those rows (insource/stats/drift.py). Right answers from POST
/v1/feedback are tested against the guaranteed accuracy. With Holm's correction over these tests, none of them fails in
99 of 100 deployments without a change. Further calls on one deployment share its calibration rows.

The exit code is 3 if a test fails and there is a threshold. Without a threshold there is no guarantee to lose: a failed
test is reported as changed, and the exit code is 0.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compare.decision import routing_policy
from compare.decision.answer_profile import AnswerProfile
from compare.decision.routing_policy import RoutingPolicy
from deploy import registry, routing
from deploy.monitoring import feedback_record, mirror, traffic_profiles
from deploy.monitoring.traffic_profiles import MAX_LABEL_SETS, TrafficProfile
from deploy.routing import Routing
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import describe_precedence, load
from insource.stats import drift, paired
from insource.stats.intervals import wilson
from insource.stats.metric_stats import mean_metric
from insource.system import atomic_files
from insource.system.number_format import format_range
from insource.tracking import folder_ownership

Line = Mapping[str, Any]
Lines = Sequence[Line]
ALPHA = 0.01
DEFAULT_DAYS = 7


@dataclass(frozen=True)
class Finding:
    """Result of one test."""

    name: str
    message: str
    p_value: float | None
    """None: not tested; the message contains the reason."""


def main() -> int:
    """Parse the command line and report drift of the deployed version. Return the exit code."""
    parser = cli.build_parser("deploy.drift", "Test whether the deployed threshold's guarantee still has ground.")
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    parser.add_argument(
        "--days", default=os.environ.get("DAYS") or str(DEFAULT_DAYS), help=f"of traffic (default: {DEFAULT_DAYS})"
    )
    arguments = parser.parse_intermixed_args()
    if not (arguments.days.isascii() and arguments.days.isdecimal()) or not 1 <= int(arguments.days) <= 3660:
        raise RecipeError(f"--days: given {arguments.days!r}, allowed: 1 to 3660", code="INS-R011")
    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    print("\n".join(describe_precedence(loaded)), file=sys.stderr)
    root = registry.registry_root(arguments.registry)
    registry_dir = root / folder_ownership.resolve_name(loaded, root).name
    if (version := registry.current_version(registry_dir)) is None:
        raise RecipeError(
            f"nothing is deployed below {registry_dir}; `make deploy RECIPE={arguments.recipe}` deploys",
            code="INS-G001",
        )
    deployed_routing = routing.load_routing(registry_dir, registry.read_history(registry_dir), version)
    return report_drift(registry_dir, version, deployed_routing, int(arguments.days))


def report_drift(registry_dir: Path, version: str, deployed_routing: Routing, days: int) -> int:
    """Print the findings on a deployed version. Return the exit code.

    Raise StageError if there is nothing to compare its traffic with.
    """
    deployment_id = atomic_files.digest([version, deployed_routing.file])
    since = datetime.now(UTC) - timedelta(days=days)
    traffic = traffic_profiles.read_profile(registry_dir, deployment_id, f"{since:%Y-%m-%d}")
    feedback_lines = feedback_record.read_feedback(registry_dir, deployment_id, since)
    mirrored = mirror.read_mirrored(registry_dir, deployment_id)
    if deployed_routing.profile is None and not mirrored:
        raise StageError(
            f"{version} below {registry_dir} has no profile of its calibration rows to compare traffic with: run "
            f"`make compare RECIPE={registry_dir.name}`, then `make deploy RECIPE={registry_dir.name}`",
            code="INS-G006",
        )
    file = deployed_routing.file
    policy = routing_policy.read_policy(registry_dir / routing.FOLDER / file) if file else None
    calibration = deployed_routing.profile or AnswerProfile()
    note = f", beside {calibration.rows:,} calibration rows" if calibration.rows else ""
    print(f"drift     {registry_dir.name}@{version}: {traffic.profile.rows:,} answers of the last {days} days{note}")
    findings = compare_traffic(calibration, traffic) if calibration.rows else []
    if policy is not None:
        findings.append(compare_feedback(policy, feedback_lines, mirrored))
    lines = [*format_routes(traffic), *format_other_feedback(feedback_lines)]
    for line in [*lines, *format_mirror(feedback_lines, mirrored, since)]:
        print(line)
    return print_verdict(policy, findings, deployed_routing.no_threshold_reason)


def compare_traffic(calibration: AnswerProfile, traffic: TrafficProfile) -> list[Finding]:
    """Return the findings on confidences and labels."""
    if reason := traffic.unusable_reason:
        return [Finding("traffic", reason, None)]
    current, findings = traffic.profile, []
    if calibration.confidences and current.confidences:
        test = drift.ks_test(calibration.confidences, current.confidences)
        medians = f"{_median(calibration.confidences):.3f} before, {_median(current.confidences):.3f} now"
        message = f"the distributions differ by {test.distance:.3f} at most; median {medians}"
        findings.append(Finding("confidence", message, test.p_value))
    if calibration.answers and traffic.others:
        message = (
            f"{traffic.others:,} answers have sets of labels beyond the {MAX_LABEL_SETS:,} that are counted one by one"
        )
        findings.append(Finding("labels", message, None))
    elif calibration.answers and current.answers:
        test = drift.chi_square_test(calibration.answers, current.answers)
        name, previous_fraction, fraction = drift.find_largest_change(calibration.answers, current.answers)
        message = (
            f"{test.distance:.1%} of the answers would have to change; {name}: {previous_fraction:.1%} "
            f"before, {fraction:.1%} now"
        )
        findings.append(Finding("labels", message, test.p_value))
    return findings or [Finding("traffic", "no answer has a confidence, and the task has no labels", None)]


def compare_feedback(policy: RoutingPolicy, feedback_lines: Lines, mirrored: Mapping[str, Line]) -> Finding:
    """Return the finding on right answers, for answers that the threshold kept or would keep of the mirrored ones."""
    if policy.threshold is None:
        return Finding("feedback", f"there is no threshold: {policy.no_threshold_reason}", None)
    correct = [bool(line["right"]) for line in feedback_lines if line["kept"]]
    for line, mirrored_line in _join_mirrored(feedback_lines, mirrored):
        if mirrored_line["confidence"] is not None and mirrored_line["confidence"] >= policy.threshold:
            correct.append(mirrored_line["digest"] == line["right_digest"])
    if not correct:
        return Finding("feedback", "of no answer that the threshold kept the right one is known", None)
    fraction = _format_fraction(correct, "kept answers")
    if policy.target_accuracy is None:
        return Finding(
            "feedback", f"{fraction}; the target compares with {policy.not_worse_than}, so nothing is tested", None
        )
    p_value = drift.binomial_p_value(sum(correct), len(correct), policy.target_accuracy)
    return Finding("feedback", f"{fraction}; promised: {policy.target}", p_value)


def format_other_feedback(feedback_lines: Lines) -> list[str]:
    """Return lines on right answers for answers without a guarantee."""
    lines = []
    for name, is_local in (("other local answers", True), ("answers of the API model", False)):
        unkept = (line for line in feedback_lines if line["local"] is is_local and not line["kept"])
        if correct := [bool(line["right"]) for line in unkept]:
            lines.append(f"feedback  {_format_fraction(correct, name)}")
    return lines


def format_mirror(feedback_lines: Lines, mirrored: Mapping[str, Line], since: datetime) -> list[str]:
    """Return lines on the mirrored answers of the deployed model.

    One line has how often they agreed with the API model since `since`, others how often both were right by the
    feedback.
    """
    lines = []
    recent = (record for record in mirrored.values() if datetime.fromisoformat(record["at"]) >= since)
    if agreed := [bool(record["agreed"]) for record in recent]:
        lines.append(f"mirror    {_format_fraction(agreed, 'mirrored answers', 'the same')}")
    if pairs := _join_mirrored(feedback_lines, mirrored):
        local_correct = [mirrored_line["digest"] == line["right_digest"] for line, mirrored_line in pairs]
        api_correct = [bool(line["right"]) for line, _ in pairs]
        difference = paired.compute_paired_difference(
            mean_metric(list(map(float, local_correct))), mean_metric(list(map(float, api_correct)))
        )
        lines.append(
            f"mirror    {_format_fraction(local_correct, 'of them')}; "
            f"{_format_fraction(api_correct, 'of the API model')}"
        )
        points = (100 * value for value in (difference.delta, difference.low, difference.high))
        lines.append("mirror    difference {:+.1f} points ({:+.1f} to {:+.1f})".format(*points))
    return lines


def _join_mirrored(feedback_lines: Lines, mirrored: Mapping[str, Line]) -> list[tuple[Line, Line]]:
    """Return feedback on mirrored answers, with the answer of the deployed model."""
    return [(line, mirrored[line["answer"]]) for line in feedback_lines if line["answer"] in mirrored]


def format_routes(traffic: TrafficProfile) -> list[str]:
    """Return a line with the fractions of answers by system and reason, or no line."""
    total = traffic.reasons.total()
    shares = ", ".join(f"{name} {n / total:.1%}" for name, n in traffic.reasons.most_common())
    return [f"routes    {shares}"] if total else []


def print_verdict(policy: RoutingPolicy | None, findings: Sequence[Finding], no_threshold_reason: str | None) -> int:
    """Print each finding and the verdict. Return the exit code. `no_threshold_reason` is why there is no threshold."""
    tested = [finding for finding in findings if finding.p_value is not None]
    p_values = paired.holm([finding.p_value or 0.0 for finding in tested])
    adjusted = {finding.name: p_value for finding, p_value in zip(tested, p_values, strict=True)}
    lost = [finding.name for finding in tested if adjusted[finding.name] < ALPHA]
    guaranteed = policy is not None and policy.threshold is not None
    failure_word = "LOST" if guaranteed else "changed"
    for finding in findings:
        word = "untested" if finding.p_value is None else failure_word if finding.name in lost else "holds"
        p_value = "" if finding.p_value is None else f" (p {finding.p_value:.2g})"
        print(f"{word:9} {finding.name}: {finding.message}{p_value}")
    if policy is None or not guaranteed:
        note = f"; traffic is not like the calibration rows: {', '.join(lost)}" if lost else ""
        print(f"verdict   there is no guarantee to lose: {no_threshold_reason}{note}")
    elif lost:
        print(
            f"verdict   the guarantee has lost its ground: {', '.join(lost)}. Label rows of this traffic and put them "
            "into the data, then `make run` and `make deploy`; until then route.mirror has the API model answer"
        )
        return cli.GATE_FAILED
    elif not tested:
        print("verdict   too little is known of this traffic to say")
    else:
        print(f"verdict   nothing speaks against it ({', '.join(adjusted)}): {policy.guarantee}")
    return cli.OK


def _format_fraction(correct: Sequence[bool], subject: str, predicate: str = "right") -> str:
    fraction, n = sum(correct) / len(correct), len(correct)
    low, high = wilson(fraction, n, 0.05)
    return f"{sum(correct):,} of {n:,} {subject} {predicate}, {fraction:.1%} ({format_range(low, high)})"


def _median(counts: Mapping[int, int]) -> float:
    half, cumulative = sum(counts.values()) / 2, 0
    for value in sorted(counts):
        cumulative += counts[value]
        if cumulative >= half:
            return value / 1000
    return 0.0


if __name__ == "__main__":
    cli.run_cli(main)
