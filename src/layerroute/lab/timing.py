"""Can wall times of separate runs be compared? Where work that is equal took unequal time, they cannot."""

from collections.abc import Iterable, Sequence

NOISY = 1.15
"""Times of equal work that are further apart than this say more of the machine's other work than of the arms."""


def spread(groups: Iterable[Sequence[float]]) -> float | None:
    """The largest ratio of two times within a group of equal work; None where no group has two."""
    ratios = [max(group) / min(group) for group in groups if len(group) > 1 and min(group) > 0]
    return max(ratios, default=None)
