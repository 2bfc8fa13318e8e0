"""Scale of a run's confidences, and the threshold below which a prediction abstains, from routing.json of the run."""

from dataclasses import replace

from compare.decision import routing_policy
from compare.eval_dataset import EvalDataset
from compare.scoring import confidence
from compare.scoring.confidence import scale_from_json
from deploy.routing import Routing
from insource.config.errors import StageError
from insource.config.recipe import Recipe
from insource.tracking.prompt_spec import read_trained_base
from insource.tracking.run import Run
from insource.tracking.scores.comparison import read_compared_model

EQUIVALENT_VARIANTS = ("adapter", "merged")
COMPARE_HINT = "`make compare` makes one"


def load_run_routing(run: Run, dataset: EvalDataset, variant: str, recipe: Recipe) -> Routing:
    """Return scale and threshold of a variant of a run: adapter, merged or quantized/<scheme>.

    The threshold is None, with the reason, if routing.json belongs to another adapter, other weights, another base or
    another target.
    """
    reason = _no_threshold_reason(run, variant, recipe.serve.base)
    if reason is not None:
        # Without a comparison the scale is fitted on the reference answers that training wrote.
        has_validation = (run.folder / "data" / "validation.jsonl").is_file()
        return Routing(confidence.fit_tuned_scale(run, dataset) if has_validation else None, None, reason)
    try:
        policy = routing_policy.read_policy(run.folder / "routing.json")
    except StageError as error:
        return Routing(None, None, str(error))
    scale = scale_from_json(policy.score) if policy.score else None
    routing = Routing.from_policy(policy, scale)
    if routing.threshold is not None and not routing.matches_target(recipe.route):
        reason = "routing.json keeps another target than `route` names now; compare again"
        return replace(routing, threshold=None, no_threshold_reason=reason)
    return routing


def _no_threshold_reason(run: Run, variant: str, base: str) -> str | None:
    compare_stage = run.stage("compare")
    if compare_stage.state != "done" or not (run.folder / "routing.json").is_file():
        return f"run {run.id} was not compared; {COMPARE_HINT}"
    if not run.used_current_adapter("compare"):
        return f"the comparison was of another adapter; {COMPARE_HINT}"
    compared = read_compared_model(run.folder / "scores.json")
    compared_variant = compared.variant
    if compared_variant != variant and not (compared_variant in EQUIVALENT_VARIANTS and variant in EQUIVALENT_VARIANTS):
        return f"the comparison was of {compared_variant}, and {variant} answers; compare with serve.model={variant}"
    # Only a base that training changed can differ from the published one.
    if read_trained_base(run.folder / "adapter"):
        served_base = compared.served_base
        if served_base != base:
            unknown_base = "by an earlier version, which did not say on which base"
            base_note = f"on the base {served_base}" if served_base else unknown_base
            return f"the comparison was {base_note}, and serve.base is {base}; {COMPARE_HINT}"
    return None
