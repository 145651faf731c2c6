"""What headroom says, from rows as they are measured."""

from typing import Any

import numpy as np
import pytest

from layerroute.lab.headroom import gaps, verdict

WINDOWS = 64
NOISE = np.random.default_rng(0).normal(0.0, 1.0, WINDOWS)


def arm(executed: float | None, above: float, noise: float = 0.0) -> dict[str, Any]:
    losses = 3.0 + above + noise * (NOISE - NOISE.mean())
    return {
        "executed": executed,
        "window_losses": losses.tolist(),
        "loss": float(losses.mean()),
        "skipped": 0.2,
    }


def row(
    above: float, *, noise: float = 0.01, at: float | None = 0.80, budget: float = 0.25
) -> dict[str, Any]:
    """Influence at 80 % of the FLOPs, between static arms at 78 % (loss 0.4 above) and 84 % (0.1 above)."""
    return {"budget": budget, "influence": arm(at, above, noise), "static": [arm(0.84, 0.1), arm(0.78, 0.4)]}


def said(*rows: dict[str, Any]) -> str:
    return verdict([{**one, "gap": gap} for one, gap in zip(rows, gaps(rows), strict=True)])


def test_static_pruning_is_read_off_at_the_same_flops_with_its_interval() -> None:
    (gap,) = gaps([row(0.25, noise=0.05)])
    assert gap is not None and gap["mean"] == pytest.approx(0.25 - 0.3)
    assert gap["high"] - gap["low"] == pytest.approx(4 * 0.05 / 8, rel=0.2)
    (near,) = gaps([row(0.25, at=0.783)])
    assert near is not None and near["mean"] == pytest.approx(0.25 - 0.4), (
        "within half a point nothing is read off"
    )


@pytest.mark.parametrize("at", [0.70, 0.85, None])
def test_what_is_not_between_two_static_arms_gets_no_verdict(at: float | None) -> None:
    assert gaps([row(-5.0, at=at)]) == [None]
    assert said(row(-5.0, at=at)).startswith("No verdict")


def test_a_wide_interval_is_no_absence() -> None:
    text = said(row(0.23, noise=0.4))
    assert "cannot be told" in text and "little" not in text and "can win here." not in text
    assert "little to win" in said(row(0.298, noise=0.01))
    assert "can win here." in said(row(0.2, noise=0.1))


def test_sign_and_interval_of_the_gain_agree() -> None:
    assert "changes the loss by -0.100 nats (-0.1" in said(row(0.2, noise=0.1))


def test_several_budgets_are_corrected_for() -> None:
    """What one budget alone would show is not shown by the best of ten."""
    one = row(0.278, noise=0.08)
    assert "can win here." in said(one)
    text = said(*(row(0.278 if n == 3 else 0.30, noise=0.08, budget=0.1 + n / 20) for n in range(10)))
    assert "cannot be told" in text and "at a budget of 25%" in text and "10 budgets together" in text
