"""What skipping costs, token by token and place by place, in the loss and not in the states: forward passes only."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerroute.skipping.calibration.fits import influence
from layerroute.skipping.calibration.in_order import Advance, Policy, replay, step
from layerroute.skipping.calibration.stack import LayerStack


@dataclass(frozen=True, kw_only=True)
class Search:
    """The windows on which one place at a time is changed, and what the full model says about them.

    Attributes:
        ids: the windows.
        embedded: input of the first layer.
        reference: next-token probabilities of the full model, (N, T, V).
        entropy: of the full model's prediction, (N, T).
        final: output of the full model's last layer.
    """

    ids: Int[Tensor, "N T"]
    embedded: Float[Tensor, "N T D"]
    reference: Float[Tensor, "N T V"]
    entropy: Float[Tensor, "N T"]
    final: Float[Tensor, "N T D"]

    @staticmethod
    def of(stack: LayerStack, ids: Int[Tensor, "N T"], *, advance: Advance | None = None) -> "Search":
        """Run the full model."""
        embedded = stack.embed(ids)
        last = replay(stack, Policy(), embedded, ids, advance=advance)
        reference = stack.probabilities(last, ids)
        entropy = stack.cross_entropies(last, ids, reference)
        return Search(ids=ids, embedded=embedded, reference=reference, entropy=entropy, final=last)

    def divergence(self, stack: LayerStack, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T"]:
        """KL from the full model's prediction, of the output of the last layer."""
        return stack.cross_entropies(states, self.ids, self.reference) - self.entropy


@dataclass(frozen=True, kw_only=True)
class LayerCosts:
    """At one place, under the routing of all others.

    Attributes:
        cost: (n,) by token: how much larger the divergence is if it skips here than if it runs.
        score: (n,) what the policy orders tokens by, rising.
        influence: (n,) the true log-influence of the unit.
    """

    cost: Float[Tensor, "n"]
    score: Float[Tensor, "n"]
    influence: Float[Tensor, "n"]

    @property
    def total(self) -> float:
        """Mean cost if all tokens skip rather than run."""
        return float(self.cost.mean())


def measure_costs(
    stack: LayerStack, search: Search, policy: Policy, *, advance: Advance | None = None
) -> tuple[dict[int, LayerCosts], float]:
    """Reverse every token's choice at one place after the other, and see what happens to the prediction.

    The divergence from the full model stands for the loss: its expectation is the rise in cross-entropy under the
    model's own distribution, and it is far less noisy than the loss itself, because what is drawn in the
    text is not part of it. A token is charged with the change of its own prediction (what its choice does to later
    tokens is charged to these).

    Returns:
        The costs by place, and the mean divergence under the policy itself.
    """
    counted = ~policy.sinks(search.ids)
    notes = stack.journal.step()
    # At place `next`: the states under the policy and what its routers have read; by place those with that place's
    # choices reversed.
    now = notes.recall() or {
        "next": 0,
        "states": search.embedded,
        "features": None,
        "reversed": {},
        "seen": {},
    }
    states, features, reversed_, seen = now["states"], now["features"], now["reversed"], now["seen"]
    for place in range(now["next"], stack.depth):
        with stack.weights(place):
            for changed, (others, read) in reversed_.items():
                reversed_[changed] = step(stack, policy, place, others, read, search.ids)[:2]
            if place in policy.sites:
                *after, skips = step(stack, policy, place, states, features, search.ids, flip=True)
                reversed_[place] = tuple(after)
                given = stack.before(place, states)
                own = influence(given, stack.through(place, given), policy.sites[place].skip)[counted]
                predictor = None if policy.chooser == "oracle" else policy.sites[place].predictor
                read = states if stack.reads_at(place, policy.router_layer) else features
                score = own if predictor is None else policy.scores(predictor, read)[counted]
                seen[place] = (skips, own, score)
            states, features, _ = step(stack, policy, place, states, features, search.ids)
        notes.note(
            {"next": place + 1, "states": states, "features": features, "reversed": reversed_, "seen": seen},
            states=True,
        )
        if advance is not None:
            advance(((place + 1) / stack.depth) ** 2)
    base = search.divergence(stack, states)
    found: dict[int, LayerCosts] = {}
    for place in policy.sites:
        skips, own, score = seen[place]
        changed_by = search.divergence(stack, reversed_.pop(place)[0]) - base
        cost = torch.where(skips, -changed_by, changed_by)
        found[place] = LayerCosts(cost=cost[counted], score=score, influence=own)
    return found, float(base[counted].mean())


def greedy_layers(
    divergence_without: Callable[[tuple[int, ...]], float],
    first: dict[int, float],
    count: int,
) -> tuple[int, ...]:
    """The layers whose removal, one after the other, costs least, in that order.

    Lazy: a layer is measured anew only while its cost in an earlier round is below the best of this one. That finds
    what measuring all would, as long as removing one layer never makes another cheaper to remove.

    Args:
        divergence_without: the loss without some layers.
        first: the loss without each layer alone.
        count: of layers to remove.
    """
    removed: tuple[int, ...] = ()
    known = dict(first)
    base = 0.0
    for turn in range(count):
        fresh: dict[int, float] = dict(known) if turn == 0 else {}
        while True:
            best = min(known, key=lambda layer: known[layer])
            if best in fresh:
                break
            known[best] = fresh[best] = divergence_without((*removed, best)) - base
        removed = (*removed, best)
        base += known.pop(best)
    return removed
