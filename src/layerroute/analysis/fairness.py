"""What differs between two arms besides what is being tested: each of these can explain a difference in loss."""

from layerroute.analysis.arms import Arm
from layerroute.analysis.controls import FLOPS_TOLERANCE, PARAMETER_TOLERANCE, relative
from layerroute.analysis.format import count, learning_rate, signed_percent
from layerroute.analysis.runs import Run

SAME_COST = 0.005
"""Half a point: executed FLOPs, as shares of one model's, that are at most so far apart are equal."""


def same_cost(one: float | None, other: float | None) -> bool:
    """Whether two shares of executed FLOPs, measured on the same text, are equal: no verdict where this is False.

    Args:
        one, other: executed forward FLOPs per token, as shares (0.25 is 25 %) of the same model's. None, where they
            were not measured, equals nothing.
    """
    return one is not None and other is not None and abs(one - other) <= SAME_COST + 1e-12



def unequal(subject: Arm, rival: Arm) -> list[str]:
    """What ``subject`` has more or less of than ``rival``, as short phrases; empty where all is equal.

    Parameters within 1 % and executed forward FLOPs per token within 2 % count as equal; learning rate, tokens seen,
    context length and batch size must be the same.
    """
    phrases = []
    parameters = relative(subject.parameters, rival.parameters)
    if parameters is not None and abs(parameters) > PARAMETER_TOLERANCE:
        phrases.append(f"{signed_percent(parameters)} parameters")
    flops = relative(subject.cost, rival.cost)
    if flops is not None and abs(flops) > FLOPS_TOLERANCE:
        phrases.append(f"{signed_percent(flops)} executed FLOPs per token")
    if subject.learning_rate != rival.learning_rate:
        phrases.append(
            f"learning rate {learning_rate(subject.learning_rate)} against "
            f"{learning_rate(rival.learning_rate)}"
        )
    for name, keys in (
        ("tokens seen", ("tokens_seen",)),
        ("context length", ("flops", "context_length")),
        ("batch size", ("recipe", "train", "batch_size")),
    ):
        ours, theirs = subject.example.value(*keys), rival.example.value(*keys)
        if ours is not None and theirs is not None and ours != theirs:
            phrases.append(f"{name} {count(ours)} against {count(theirs)}")
    return phrases


def data_identity(run: Run) -> tuple[str, str]:
    """What must be equal for losses to be comparable: data fingerprint and tokenizer."""
    return str(run.value("data", "fingerprint")), str(run.value("data", "tokenizer"))


def machine(run: Run) -> str:
    """The hardware of a run in words."""
    accelerator = run.value("hardware", "accelerator")
    cpu, cores = run.value("hardware", "cpu"), run.value("hardware", "cores")
    host = f"{cpu} ({cores} cores)"
    return f"{accelerator}, {host}" if accelerator else host
