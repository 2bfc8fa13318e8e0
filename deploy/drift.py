"""`python -m deploy.drift RECIPE`: has the guarantee of the deployed threshold still ground under today's traffic?

drift     classifier@3f2a90c17b5e44d0: 12,040 answers of the last 7 days, beside 403 calibration rows
holds     confidence: the distributions differ by 0.041 at most (p 0.53)
LOST      labels: 18.2% of the answers would have to change (p 2.1e-31); refund_status: 12.0% before, 30.1% now
holds     feedback: 192 of 200 kept answers right, 96.0% (92.3 to 98.0); promised: more than 95.0% right (p 0.79)

The guarantee is about requests that are exchangeable with the calibration rows. So the confidences and the labels of
the deployed model's answers are tested against those that it gave there (insource/stats/drift.py), and right answers
that came by POST /v1/feedback against what was promised. By Holm's correction over these tests, none of them fails for
99 of 100 deployments where nothing has changed; further calls on one deployment share its calibration rows. Exit 3
where one of them fails and there is a threshold; without one there is no guarantee to lose, what failed is told as
changed, and the exit code is 0.
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
from deploy.gateway.paths import feedback
from deploy.monitoring import mirror, traffic_profiles
from deploy.monitoring.traffic_profiles import MAX_LABEL_SETS, TrafficProfile
from deploy.routing import Routing
from insource.config import cli
from insource.config.errors import RecipeError, StageError
from insource.config.load import describe_precedence, load
from insource.stats import drift, paired
from insource.stats.intervals import wilson
from insource.stats.metric_stats import mean_metric
from insource.system import atomic_files
from insource.tracking import folder_ownership

Line = Mapping[str, Any]
Lines = Sequence[Line]
ALPHA = 0.01
DEFAULT_DAYS = 7


@dataclass(frozen=True)
class Finding:
    """What was looked at."""

    what: str
    told: str
    p_value: float | None
    """None: it was not tested, `told` says why."""


def main() -> int:
    parser = cli.build_parser("deploy.drift", "Test whether the deployed threshold's guarantee still has ground.")
    parser.add_argument("--registry", help="the folder of deployed versions (default: $REGISTRY, else ./registry)")
    parser.add_argument(
        "--days", default=os.environ.get("DAYS") or str(DEFAULT_DAYS), help=f"of traffic (default: {DEFAULT_DAYS})"
    )
    arguments = parser.parse_intermixed_args()
    if not (arguments.days.isascii() and arguments.days.isdecimal()) or not 1 <= int(arguments.days) <= 3660:
        raise RecipeError(f"--days: given {arguments.days!r}, allowed: 1 to 3660")
    loaded = load(arguments.recipe, arguments.set, arguments.hardware)
    print("\n".join(describe_precedence(loaded)), file=sys.stderr)
    folder = registry.registry_root(arguments.registry)
    place = folder / folder_ownership.resolve_name(loaded, folder).name
    if (version := registry.current_version(place)) is None:
        raise RecipeError(f"nothing is deployed below {place}; `make deploy RECIPE={arguments.recipe}` deploys")
    routed = routing.load_routing(place, registry.read_history(place), version)
    return report_drift(place, version, routed, int(arguments.days))


def report_drift(place: Path, version: str, routed: Routing, days: int) -> int:
    """Prints what was found of a deployed version. Returns the exit code. Raises StageError where there is nothing to
    hold its traffic against."""
    deployment = atomic_files.digest([version, routed.file])
    since = datetime.now(UTC) - timedelta(days=days)
    seen = traffic_profiles.read_profile(place, deployment, f"{since:%Y-%m-%d}")
    told, mirrored = feedback.read_feedback(place, deployment, since), mirror.read_mirrored(place, deployment)
    if routed.profile is None and not mirrored:
        raise StageError(
            f"{version} below {place} has no profile of its calibration rows to hold traffic against: "
            f"`make compare RECIPE={place.name}`, then `make deploy RECIPE={place.name}`"
        )
    policy = routing_policy.read_policy(place / routing.FOLDER / routed.file) if routed.file else None
    before = routed.profile or AnswerProfile()
    beside = f", beside {before.rows:,} calibration rows" if before.rows else ""
    print(f"drift     {place.name}@{version}: {seen.profile.rows:,} answers of the last {days} days{beside}")
    found = compare_traffic(before, seen) if before.rows else []
    if policy is not None:
        found.append(compare_feedback(policy, told, mirrored))
    for line in [*format_routes(seen), *format_other_feedback(told), *format_mirror(told, mirrored, since)]:
        print(line)
    return conclude(policy, found, routed.why_none)


def compare_traffic(before: AnswerProfile, seen: TrafficProfile) -> list[Finding]:
    """Returns what became of confidences and labels."""
    if why := seen.untold:
        return [Finding("traffic", why, None)]
    now, found = seen.profile, []
    if before.confidences and now.confidences:
        test = drift.ks_test(before.confidences, now.confidences)
        told = f"the distributions differ by {test.distance:.3f} at most; median {_median(before.confidences):.3f} "
        found.append(Finding("confidence", f"{told}before, {_median(now.confidences):.3f} now", test.p_value))
    if before.answers and seen.others:
        told = f"{seen.others:,} answers have sets of labels beyond the {MAX_LABEL_SETS:,} that are counted one by one"
        found.append(Finding("labels", told, None))
    elif before.answers and now.answers:
        test = drift.chi_square_test(before.answers, now.answers)
        name, was, share = drift.find_largest_change(before.answers, now.answers)
        told = f"{test.distance:.1%} of the answers would have to change; {name}: {was:.1%} before, {share:.1%} now"
        found.append(Finding("labels", told, test.p_value))
    return found or [Finding("traffic", "no answer tells a confidence, and the task has no labels", None)]


def compare_feedback(policy: RoutingPolicy, told: Lines, mirrored: Mapping[str, Line]) -> Finding:
    """Returns what right answers tell of those that the threshold kept, or would keep of those that were mirrored."""
    if policy.threshold is None:
        return Finding("feedback", f"there is no threshold: {policy.why_none}", None)
    right = [bool(line["right"]) for line in told if line["kept"]]
    for line, mine in _join_mirrored(told, mirrored):
        if mine["confidence"] is not None and mine["confidence"] >= policy.threshold:
            right.append(mine["digest"] == line["right_digest"])
    if not right:
        return Finding("feedback", "of no answer that the threshold kept the right one is known", None)
    share = _format_fraction(right, "kept answers")
    if policy.target_accuracy is None:
        return Finding(
            "feedback", f"{share}; the target compares with {policy.not_worse_than}, so nothing is tested", None
        )
    p_value = drift.binomial_p_value(sum(right), len(right), policy.target_accuracy)
    return Finding("feedback", f"{share}; promised: {policy.target}", p_value)


def format_other_feedback(told: Lines) -> list[str]:
    """Returns lines on right answers of answers that nothing was promised of."""
    found = []
    for name, local in (("other local answers", True), ("answers of the API model", False)):
        if right := [bool(line["right"]) for line in told if line["local"] is local and not line["kept"]]:
            found.append(f"feedback  {_format_fraction(right, name)}")
    return found


def format_mirror(told: Lines, mirrored: Mapping[str, Line], since: datetime) -> list[str]:
    """Returns lines on what the deployed model answered aside: how often as the API model from then on, and how often
    right, by the feedback that came."""
    found = []
    if agreed := [bool(one["agreed"]) for one in mirrored.values() if datetime.fromisoformat(one["at"]) >= since]:
        found.append(f"mirror    {_format_fraction(agreed, 'mirrored answers', 'the same')}")
    if both := _join_mirrored(told, mirrored):
        own = [mine["digest"] == line["right_digest"] for line, mine in both]
        theirs = [bool(line["right"]) for line, _ in both]
        between = paired.compute_paired_difference(
            mean_metric(list(map(float, own))), mean_metric(list(map(float, theirs)))
        )
        found.append(f"mirror    {_format_fraction(own, 'of them')}; {_format_fraction(theirs, 'of the API model')}")
        told_in_points = (100 * one for one in (between.delta, between.low, between.high))
        found.append("mirror    difference {:+.1f} points ({:+.1f} to {:+.1f})".format(*told_in_points))
    return found


def _join_mirrored(told: Lines, mirrored: Mapping[str, Line]) -> list[tuple[Line, Line]]:
    """Feedback on answers that the deployed model was asked for too, with what it said."""
    return [(line, mirrored[line["answer"]]) for line in told if line["answer"] in mirrored]


def format_routes(seen: TrafficProfile) -> list[str]:
    """Returns a line on who answered, and why."""
    total = seen.reasons.total()
    shares = ", ".join(f"{name} {n / total:.1%}" for name, n in seen.reasons.most_common())
    return [f"routes    {shares}"] if total else []


def conclude(policy: RoutingPolicy | None, found: Sequence[Finding], why_none: str | None) -> int:
    """Prints each finding and what follows. Returns the exit code. `why_none`: why there is no threshold."""
    tested = [one for one in found if one.p_value is not None]
    adjusted = dict(zip((one.what for one in tested), paired.holm([one.p_value or 0.0 for one in tested]), strict=True))
    lost = [one.what for one in tested if adjusted[one.what] < ALPHA]
    guaranteed = policy is not None and policy.threshold is not None
    failed = "LOST" if guaranteed else "changed"
    for one in found:
        word = "untested" if one.p_value is None else failed if one.what in lost else "holds"
        p_value = "" if one.p_value is None else f" (p {one.p_value:.2g})"
        print(f"{word:9} {one.what}: {one.told}{p_value}")
    if policy is None or not guaranteed:
        unlike = f"; traffic is not like the calibration rows: {', '.join(lost)}" if lost else ""
        print(f"verdict   there is no guarantee to lose: {why_none}{unlike}")
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


def _format_fraction(right: Sequence[bool], what: str, right_is: str = "right") -> str:
    share, n = sum(right) / len(right), len(right)
    low, high = wilson(share, n, 0.05)
    return f"{sum(right):,} of {n:,} {what} {right_is}, {share:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _median(counts: Mapping[int, int]) -> float:
    half, passed = sum(counts.values()) / 2, 0
    for value in sorted(counts):
        passed += counts[value]
        if passed >= half:
            return value / 1000
    return 0.0


if __name__ == "__main__":
    cli.run_cli(main)
