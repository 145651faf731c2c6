"""What the report reads of a comparison under the names that it knows."""

from layerroute.capabilities.attention.routing import routing_sentence
from layerroute.capabilities.attention.tables import bigram_sentence
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.runs import TokenRoutes
from layerroute.lab.tokens import LayerKinds, token_groups


def recall(comparison: Comparison) -> str:
    """What is asked beside, in a sentence."""
    return " ".join(comparison.answers_beside)


def bigram(comparison: Comparison) -> str:
    """How the arms stand against the bigram model."""
    return bigram_sentence(comparison.arms)


def routing_sentences(comparison: Comparison) -> list[str]:
    """How each arm with a learned router spread its tokens; first the arm that the answer is about."""
    learned = sorted(
        (arm for arm in comparison.arms if arm.kind.learned), key=lambda arm: arm is not comparison.subject
    )
    return [text for arm in learned if (text := routing_sentence(arm))]


def kinds_by_layer(routes: TokenRoutes) -> dict[str, LayerKinds]:
    """By cut, where there are two layers."""
    return {cut: one.layers for cut, one in token_groups(routes).items() if one.layers is not None}


def kind_of(arm: Arm) -> str:
    """The name of its kind."""
    return str(arm.kind)
