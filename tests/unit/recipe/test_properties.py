"""Whatever is done to a recipe, the answer is a Recipe or a UserError of one line, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerroute.errors import UserError
from layerroute.recipe import Recipe, dump_recipe, load_recipe
from layerroute.recipe.yaml_reader import dump

BASE = {
    "name": "arm",
    "capability": "probe",
    "seed": 3,
    "model": {"width": 8, "heads": 2, "routing": {"rate": 0.5}},
    "train": {
        "max_steps": 3,
        "ramp": {"start": 1.0},
        "report_to": ["a"],
        "betas": [0.1, 0.2],
        "weights": {"a": 1},
    },
}
REAL = {
    "name": "arm",
    "capability": "attention_routing",
    "seed": 3,
    "model": {
        "hidden_size": 96,
        "num_attention_heads": 4,
        "layer_pattern": ["gdn", "routed", "softmax"],
        "routing": {"rate": 0.5, "router": "mlp"},
    },
    "data": {"source": "python-stdlib", "sequence_length": 64, "max_documents": 5},
    "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3},
    "objective": {"balance_weight": 0.01, "temperature": {"start": 1.0, "end": 0.5}},
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [10**30, -(10**400), 1e308, float("inf"), float("nan"), "", "auto", "gdn", "../x", "\x00", "é"]
    ),
    st.floats(),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
)
TOLERANT = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(tree, dict):
        return [path]
    return [path, *(inner for key, value in tree.items() for inner in paths(value, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    """Replace, remove, rename or add at up to three places."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from([path for path in paths(tree) if path]))
        branch = tree
        for key in parents:
            branch = branch[key]
        match draw(st.sampled_from(["replace", "remove", "rename", "add"])):
            case "replace":
                branch[last] = draw(VALUES)
            case "remove":
                del branch[last]
            case "rename":
                branch[draw(st.text(max_size=6)) or last[:-1]] = branch.pop(last)
            case "add":
                branch[draw(st.sampled_from(["base", "name", "max_steps", "rate", "x"]))] = draw(VALUES)
        if not tree:
            break
    return tree


def load_or_refuse(path: Path, overrides: dict[str, Any] | None = None) -> Recipe | None:
    try:
        return load_recipe(path, overrides)
    except UserError as error:
        message = str(error)
    assert message.strip()
    return None


@TOLERANT
@given(tree=mutated(BASE))
def test_mutated_trees(probe: None, tmp_path: Path, tree: dict[str, Any]) -> None:
    path = tmp_path / "arm.yaml"
    path.write_bytes(dump(tree).encode("utf-8", errors="surrogatepass"))
    recipe = load_or_refuse(path)
    if recipe is not None:
        path.write_text(dump_recipe(recipe))
        assert load_recipe(path) == recipe


@TOLERANT
@given(place=st.floats(0, 1), cut=st.integers(0, 12), put=st.binary(max_size=6))
def test_mutated_bytes(probe: None, tmp_path: Path, place: float, cut: int, put: bytes) -> None:
    content = dump(BASE).encode()
    at = int(place * len(content))
    path = tmp_path / "arm.yaml"
    path.write_bytes(content[:at] + put + content[at + cut :])
    load_or_refuse(path)


@TOLERANT
@given(
    key=st.sampled_from(
        ["train.max_steps", "train", "seed", "name", "model.routing.rate", "train.ramp.start", "a.b"]
    )
    | st.text(max_size=6),
    value=st.text(max_size=8) | VALUES,
)
def test_any_override(probe: None, tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(dump(BASE))
    load_or_refuse(path, {key: value})


@settings(TOLERANT, max_examples=60)
@given(tree=mutated(REAL))
def test_mutated_trees_of_the_real_sections(tmp_path: Path, tree: dict[str, Any]) -> None:
    path = tmp_path / "arm.yaml"
    path.write_bytes(dump(tree).encode("utf-8", errors="surrogatepass"))
    load_or_refuse(path)


def test_the_unmutated_recipes_load(probe: None, tmp_path: Path) -> None:
    for tree in (BASE, REAL):
        path = tmp_path / "arm.yaml"
        path.write_text(dump(tree))
        assert load_recipe(path).name == "arm"


@pytest.mark.parametrize("key", ["base", "capability"])
def test_a_property_that_must_be_able_to_fail(probe: None, tmp_path: Path, key: str) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(dump({**BASE, key: "nonsense"}))
    assert load_or_refuse(path) is None
