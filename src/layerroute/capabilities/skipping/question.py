"""The question: is per-token layer skipping worth more than controls of equal FLOPs that look at no token."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layerroute.capabilities.skipping import tables
from layerroute.capabilities.skipping.kinds import KINDS, PERIODIC, RANDOM, STATIC, kind_of, skipped
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.controls import EQUAL_COST
from layerroute.lab.format import percent
from layerroute.lab.question import LOSS, Control, Question, Shown
from layerroute.lab.table import Table
from layerroute.outcomes import Outcome


def _tables(comparison: Comparison) -> Mapping[str, Table | None]:
    return {
        "main": tables.main_table(comparison),
        "differences": tables.differences_table(comparison),
        "sites": tables.sites_table(comparison.arms),
        "runs": tables.runs_table(comparison),
    }


def _opening(subject: Arm) -> str:
    return (
        f"{subject.label} skips {percent(skipped(subject))} of routed compute and executes "
        f"{percent(subject.executed_share)} of the plain model's FLOPs."
    )


def _arm_facts(comparison: Comparison, arm: Arm) -> Mapping[str, Any]:
    key = "this_minus_baseline" if comparison.baseline else "subject_minus_this"
    gap = next((pair.difference for pair in comparison.pairs if arm in (pair.subject, pair.rival)), None)
    told = None
    if gap is not None and comparison.same_data and arm is not comparison.yardstick:
        told = {
            "mean": gap.mean,
            "low": gap.low,
            "high": gap.high,
            "seeds": len(gap.seeds),
            "windows": gap.windows,
            "detectable": gap.detectable,
        }
    return {"skipped": skipped(arm), "executed": arm.executed_share, key: told}


def _page() -> Any:
    from layerroute.capabilities.skipping.page import PAGE

    return PAGE


QUESTION = Question(
    capability="layer_skipping",
    title="Layer skipping: what per-token routing is worth",
    text=(
        "Does it pay to let each token choose which layers of a pretrained model it runs, against skipping the same "
        "share of compute without looking at the token, with the same training?"
    ),
    kinds=KINDS,
    kind_of=kind_of,
    metric=replace(LOSS, digits=3),
    controls=(
        Control(
            name="random", kinds=(RANDOM,), match=EQUAL_COST, refutes="that it matters which tokens skip"
        ),
        Control(
            name="periodic", kinds=(PERIODIC,), match=EQUAL_COST, refutes="that skipping must be decided"
        ),
        Control(name="static prune", kinds=(STATIC,), match=EQUAL_COST, refutes="that tokens must differ"),
    ),
    against="controls",
    correction="none",
    text_alone=True,
    rate_key="skip.routing.rate",
    words={
        Outcome.UNPAIRED: "cannot be paired: {why}",
        Outcome.OTHER_DATA: "no verdict: different data",
        Outcome.UNALIKE: "no verdict: {unlike}",
        Outcome.UNEQUAL_COST: "no verdict: {unlike}",
    },
    opening=_opening,
    whole=tables.full_depth,
    tables=_tables,
    arm_facts=_arm_facts,
    terminal=(
        Shown(table="main"),
        Shown(table="differences"),
        Shown(table="equal_cost", hide=frozenset({"Seeds", "p", "Detectable"})),
    ),
    page=_page,
)
