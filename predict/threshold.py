"""The scale of a run's confidences and the threshold below which a prediction abstains: routing.json of the run."""

from compare.decision import routing_policy
from compare.eval_dataset import EvalDataset
from compare.scoring import confidence
from compare.scoring.confidence import scale_from_json
from deploy.routing import Routing
from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.system import atomic_files
from insource.tracking.base_models import base_store
from insource.tracking.run import Run

EQUIVALENT_VARIANTS = ("adapter", "merged")
COMPARE_HINT = "`make compare` makes one"


def load_run_routing(here: Run, material: EvalDataset, form: str, recipe: Recipe) -> Routing:
    """Returns scale and threshold of a run's form (adapter, merged, quantized/<scheme>); the threshold is None, with
    the reason, where routing.json is of another adapter, other weights, another base or another target."""
    why = _no_threshold_reason(here, form, recipe.serve.base)
    if why is not None:
        # The scale is the run's own also without a comparison: training left its reference answers.
        validated = (here.folder / "data" / "validation.jsonl").is_file()
        return Routing(confidence.fit_tuned_scale(here, material) if validated else None, None, why)
    try:
        policy = routing_policy.read_policy(here.folder / "routing.json")
    except StageError as error:
        return Routing(None, None, str(error))
    scale = scale_from_json(policy.score) if policy.score else None
    target = (policy.target_accuracy, policy.not_worse_than, policy.margin, policy.confidence)
    found = Routing(scale, policy.threshold, policy.why_none, target)
    if found.threshold is not None and not found.keeps(recipe.route):
        return Routing(scale, None, "routing.json keeps another target than `route` names now; compare again", target)
    return found


def _no_threshold_reason(here: Run, form: str, base: str) -> str | None:
    compared = here.stage("compare")
    if compared.get("state") != "done" or not (here.folder / "routing.json").is_file():
        return f"run {here.id} was not compared; {COMPARE_HINT}"
    if compared["inputs"].get(f"adapter/{atomic_files.CHECKSUMS}") != atomic_files.sha256(
        here.folder / "adapter" / atomic_files.CHECKSUMS
    ):
        return f"the comparison was of another adapter; {COMPARE_HINT}"
    scores = atomic_files.read_json(here.folder / "scores.json")
    of = scores["systems"]["tuned"].get("form")
    if of != form and not (of in EQUIVALENT_VARIANTS and form in EQUIVALENT_VARIANTS):
        return f"the comparison was of {of}, and {form} answers; compare with serve.model={form}"
    # Without a base that training changed, the trained base is the published one.
    if base_store.get_trained_record(atomic_files.read_json(here.folder / "adapter" / "prompt.json")):
        asked = scores.get("base", {}).get("served_as")
        if asked != base:
            was = f"on the base {asked}" if asked else "by an earlier version, which did not say on which base"
            return f"the comparison was {was}, and serve.base is {base}; {COMPARE_HINT}"
    return None
