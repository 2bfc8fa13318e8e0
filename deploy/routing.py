"""The routing record of a deployment: the scale of the model's confidence, and the threshold of routing.json.

registry/<name>/routing/<digest of its bytes>.json     routing.json of the run
registry/<name>/history.jsonl                          {..., "routing": {"file": "<digest>.json", "why_none": null,
                                                        "scale": {"of": "answer", "slope": 1.4, "intercept": -0.3}}}

So routing changes together with the version. A comparison after the deployment takes effect when the run is deployed
again.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare.decision import answer_profile, routing_policy
from compare.decision.answer_profile import AnswerProfile
from compare.decision.routing_policy import RoutingPolicy
from compare.eval_dataset import EvalDataset
from compare.records import Scale
from compare.scoring import confidence
from insource.config.errors import StageError
from insource.config.schema.serving_and_cost import Route
from insource.system import atomic_files
from insource.tracking.prompt_spec import PROMPT_FILE, PromptSpec
from insource.tracking.run import Run
from insource.tracking.scores.comparison import read_compared_model

FOLDER = "routing"


@dataclass(frozen=True)
class Routing:
    """Scale and threshold that decide when the deployed version answers."""

    scale: Scale | None = None
    """Scale of its confidence; None: the confidence is the probability of the answer."""
    threshold: float | None = None
    """None: no confidence is known above which it is right often enough."""
    no_threshold_reason: str | None = "it was deployed without a comparison; `make compare`, then `make deploy`"
    target: tuple[float | None, str | None, float | None, float] | None = None
    """Target that the threshold meets: target_accuracy, not_worse_than, margin and confidence of `route` in the
    comparison."""
    file: str | None = None
    """File name in registry/<name>/routing."""
    profile: AnswerProfile | None = None
    """Profile of the answers to the calibration rows; None: routing.json is missing or of an older version."""

    @classmethod
    def from_policy(
        cls,
        policy: RoutingPolicy,
        scale: Scale | None,
        file: str | None = None,
        profile: AnswerProfile | None = None,
    ) -> "Routing":
        """Return the routing of a routing.json."""
        target = (policy.target_accuracy, policy.not_worse_than, policy.margin, policy.confidence)
        return cls(scale, policy.threshold, policy.no_threshold_reason, target, file, profile)

    def matches_target(self, route: Route) -> bool:
        """Return whether the threshold, if there is one, is for the target that a recipe names now."""
        current = (route.target_accuracy, route.not_worse_than, route.margin, route.confidence)
        return self.target is None or self.target == current


def record_routing(registry_dir: Path, run: Run) -> dict[str, object]:
    """Copy routing.json of a run into registry/<name> and return the routing record for the history."""
    adapter = run.folder / "adapter"
    prompt = PromptSpec.read(adapter) if (adapter / PROMPT_FILE).is_file() else None
    if prompt is None or prompt.task is None or not (run.folder / "data" / "validation.jsonl").is_file():
        reason = f"run {run.id} has no prompt.json or no validation rows"
        return {"file": None, "scale": None, "why_none": reason}
    module, spec = prompt.load_task()
    scale = confidence.fit_tuned_scale(run, EvalDataset(module, spec, prompt, train=[], calibration=[], test=[]))
    record = {"scale": scale.json() if scale else None}
    source = run.folder / "routing.json"
    if (mismatch := _find_mismatch(run)) is not None:
        return {"file": None, **record, "why_none": mismatch}
    policy = routing_policy.read_policy(source)
    target = registry_dir / FOLDER / f"{atomic_files.sha256(source)[:16]}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    temp_path = target.with_suffix(".tmp")
    shutil.copyfile(source, temp_path)
    temp_path.replace(target)
    return {"file": target.name, "scale": policy.score or record["scale"], "why_none": policy.no_threshold_reason}


def load_routing(registry_dir: Path, history: Sequence[Mapping[str, Any]], version: str) -> Routing:
    """Return the routing of the last deployment of a version. Raise StageError if its file was changed."""
    records = [line["routing"] for line in history if line["to"] == version and line.get("routing")]
    if not records:
        return Routing()
    record = records[-1]
    # The rows on which the scale was fitted are not deployed.
    scale = confidence.scale_from_json(record["scale"]) if record["scale"] is not None else None
    if (name := record["file"]) is None:
        return Routing(scale, None, record["why_none"])
    path = registry_dir / FOLDER / name
    if not path.is_file() or atomic_files.sha256(path)[:16] != path.stem:
        raise StageError(f"{path} was changed after the deployment; deploy the run again", code="INS-G003")
    policy = routing_policy.read_policy(path)
    return Routing.from_policy(policy, scale, name, _read_profile(path))


def _read_profile(path: Path) -> AnswerProfile | None:
    """Return the profile of the calibration rows in routing.json, None if it is missing or empty."""
    payload = atomic_files.read_json(path).get(answer_profile.ROUTING_KEY)
    profile = answer_profile.profile_from_json(payload) if payload else None
    return profile if profile and profile.rows else None


def _find_mismatch(run: Run) -> str | None:
    """Return why there is no threshold for the deployed adapter, None if routing.json is for it."""
    compare = run.stage("compare")
    if compare.state != "done" or not (run.folder / "routing.json").is_file():
        return "it was deployed without a comparison; `make compare`, then `make deploy`"
    if not run.used_current_adapter("compare"):
        return "the comparison was of another adapter; `make compare`, then `make deploy`"
    variant = read_compared_model(run.folder / "scores.json").variant
    if variant not in ("adapter", "merged"):
        description = variant or "a form that it does not name"
        return f"the comparison was of {description}, and adapters are deployed; compare with serve.model=adapter"
    try:
        routing_policy.read_policy(run.folder / "routing.json")
    except StageError as error:
        return str(error)
    return None
