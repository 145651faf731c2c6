"""The Pareto front: what no other point beats in everything."""

from collections.abc import Mapping, Sequence


def pareto_front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """Names of the points that are on the front, every coordinate being better the lower it is.

    A point is off the front if another one is no worse in every coordinate and better in at least one. Equal points
    are on it together. In order of the first coordinate, then of the others.
    """
    names = [
        name
        for name, point in points.items()
        if not any(_beats(other, point) for rival, other in points.items() if rival != name)
    ]
    return sorted(names, key=lambda name: (tuple(points[name]), name))


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
