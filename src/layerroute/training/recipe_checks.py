"""What one section of a recipe makes of another: settings that would say something and do nothing are refused."""

from typing import Any

from layerroute.errors import expect
from layerroute.recipe import Recipe

SEVERAL_BUDGETS = (
    "objective.budgets needs a router that serves several budgets: start.method: calibrated, arm: routed"
)


def check_recipe(recipe: Recipe) -> None:
    """Hold the sections of a recipe against each other.

    Raises:
        UserError: a setting has no effect, or not the one that it promises, beside another.
    """
    check = _skipping if recipe.capability == "layer_skipping" else _attention
    check(recipe.sections)


def _attention(sections: Any) -> None:
    # Here: the help of a command that checks loads without torch.
    from layerroute.hybrid import HybridConfig
    from layerroute.routing.serving import held_within

    # The section holds what the recipe says; the defaults of what it leaves out or sets to null are the class's.
    model, objective = HybridConfig(**sections["model"]), sections["objective"]
    routing = model.routing_config
    if not model.routed_layers or routing.control is not None:
        return
    expect(
        routing.estimator != "reinforce",
        "model.routing.estimator: reinforce learns from a policy loss, which layer skipping has and attention routing "
        "has not; use gumbel_st or selected",
    )
    held = routing.budget != "none" or objective.budget_weight > 0
    told = "nothing holds it: set model.routing.budget (quantile, say) or objective.budget_weight too"
    expect(
        held or held_within(model.serve) is not None or routing.rate == 0.5,
        f"model.routing.rate is {routing.rate}, and {told}",
    )
    expect(held or objective.rate.start is None, f"objective.rate leads to a rate, and {told}")
    _check_schedule(sections, routing)


def _skipping(sections: Any) -> None:
    routing, start, objective = sections["skip"].routing, sections["start"], sections["objective"]
    adapt = sections["adapt"]
    learns = routing.control is None and start.arm == "routed"
    expect(
        bool(adapt.lora_rank or adapt.router_rate or adapt.skip_rate),
        "nothing is trained: adapt.lora_rank, router_rate and skip_rate are 0; set one of them",
    )
    expect(not objective.budgets or (learns and start.method == "calibrated"), SEVERAL_BUDGETS)
    expect(
        objective.rate.start is None or not objective.budgets,
        "objective.rate.start has no effect with objective.budgets, of which each step draws one; leave one out",
    )
    if not learns:
        return
    expect(
        start.method == "calibrated" or adapt.router_rate > 0,
        "start.method: fresh makes a router that has learnt nothing, and adapt.router_rate: 0 leaves it so; set "
        "adapt.router_rate (1.0, say)",
    )
    _check_schedule(sections, routing)
    policy = routing.estimator == "reinforce"
    expect(
        policy == (objective.policy_weight > 0),
        "skip.routing.estimator: reinforce and objective.policy_weight go together: the one draws choices, from which "
        "the other learns",
    )
    expect(
        not policy or (start.method == "fresh" and routing.budget == "none"),
        "skip.routing.estimator: reinforce draws by the router's own probabilities: thresholds move them. Use "
        "start.method: fresh and skip.routing.budget: none",
    )
    if start.method == "fresh":
        return
    # These losses pull the probabilities to the rate, and a calibrated router meets it by its thresholds.
    for key in ("budget_weight", "lagrangian_step"):
        expect(
            not getattr(objective, key),
            f"objective.{key} holds the rate of probabilities without thresholds, and a calibration sets thresholds: "
            "leave it out (skip.routing.budget holds the rate), or set start.method: fresh",
        )
    for key, usual in _NOT_CALIBRATED.items():
        expect(
            getattr(routing, key) in usual,
            f"skip.routing.{key} is {getattr(routing, key)!r}, but a calibration makes a linear router, at its own "
            "start; leave it out, or set start.method: fresh",
        )


def _check_schedule(sections: Any, routing: Any) -> None:
    """What a schedule of the rate needs, and what is of use with one alone.

    Thresholds that are not set at evaluations serve the rate that training has come to.
    """
    expect(
        routing.surrogate == "cut" or sections["objective"].rate.start is not None,
        "routing.surrogate: asked is for a rate that a schedule leads to; set objective.rate.start",
    )
    expect(
        sections["objective"].rate.start is None or sections["train"].threshold_tokens > 0,
        "objective.rate.start needs train.threshold_tokens: without it evaluations are at the rate of the schedule, "
        "and the best model is one of a denser time",
    )


_NOT_CALIBRATED: dict[str, tuple[Any, ...]] = {
    "router": ("linear", "mlp"),  # the latter is the section's default
    "widths": (None,),
    "initial_bias": (0.0, 2.0),
    "zero_init": (False,),
}
