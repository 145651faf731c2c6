"""The recurrent reference does what its definition says, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from layerroute.ops.gated_delta.inputs import check_inputs
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule


def column(*values: float) -> Tensor:
    """One row, one head: (1, T, 1, 1)."""
    return torch.tensor(values, dtype=torch.float64)[None, :, None, None]


def run(**changes: object) -> tuple[list[float], float]:
    arguments: dict[str, object] = {
        "query": column(1.0, 3.0),
        "key": column(1.0, 0.5),
        "value": column(4.0, 6.0),
        "log_decay": column(0.0, math.log(0.5))[..., 0],
        "beta": column(0.25, 0.5)[..., 0],
        "scale": 2.0,
        "output_final_state": True,
    }
    output, state = recurrent_gated_delta_rule(**{**arguments, **changes})
    return output.flatten().tolist(), state.item()


def test_two_tokens_by_hand() -> None:
    # S1 = 1 * 0.25 * (4 - 0) = 1, o1 = 2 * 1 * 1
    # S2 = 0.5 * 1 = 0.5; written 0.5 * (6 - 0.5 * 0.5) = 2.875; S2 = 0.5 + 0.5 * 2.875 = 1.9375; o2 = 2 * 3 * S2
    outputs, state = run()
    assert outputs == pytest.approx([2.0, 11.625])
    assert state == pytest.approx(1.9375)


def test_initial_state_is_decayed_and_read() -> None:
    # S1 = 8 + 0.25 * (4 - 8) = 7; S2 = 3.5 + 0.5 * 0.5 * (6 - 1.75) = 4.5625
    outputs, state = run(initial_state=torch.full((1, 1, 1, 1), 8.0, dtype=torch.float64))
    assert outputs == pytest.approx([14.0, 27.375])
    assert state == pytest.approx(4.5625)


def test_a_new_document_finds_an_empty_state_but_the_first_token_continues() -> None:
    initial = torch.full((1, 1, 1, 1), 8.0, dtype=torch.float64)
    outputs, state = run(initial_state=initial, document_ids=torch.tensor([[5, 6]]))
    assert outputs == pytest.approx([14.0, 9.0])  # S2 = 0.5 * 0.5 * 6
    assert state == pytest.approx(1.5)


def test_default_scale_is_the_root_of_the_key_dimension() -> None:
    ones = torch.ones(1, 1, 1, 4, dtype=torch.float64)
    flat = torch.zeros(1, 1, 1, dtype=torch.float64)
    output, state = recurrent_gated_delta_rule(ones, ones, ones[..., :1], flat, flat + 1, scale=None)
    assert output.item() == pytest.approx(4 * 4**-0.5)
    assert state is None


def test_normalization_divides_by_the_length() -> None:
    vectors = torch.tensor([3.0, 4.0], dtype=torch.float64)[None, None, None]
    flat = torch.zeros(1, 1, 1, dtype=torch.float64)
    output, _ = recurrent_gated_delta_rule(
        vectors, 7 * vectors, torch.ones_like(flat)[..., None], flat, flat + 1, scale=1.0, normalize_qk=True
    )
    assert output.item() == pytest.approx(1.0, abs=1e-6)


def test_no_token_returns_the_state_it_was_given() -> None:
    empty, flat = torch.zeros(2, 0, 3, 4), torch.zeros(2, 0, 3)
    state = torch.randn(2, 3, 4, 4)
    output, final = recurrent_gated_delta_rule(
        empty, empty, empty, flat, flat, initial_state=state, output_final_state=True
    )
    assert output.shape == (2, 0, 3, 4)
    assert torch.equal(final, state)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("key", (2, 5, 3, 4)),
        ("value", (2, 6, 2, 4)),
        ("log_decay", (2, 5, 1)),
        ("beta", (2, 6, 3)),
        ("initial_state", (2, 2, 4, 5)),
        ("document_ids", (5, 2)),
    ],
)
def test_a_wrong_shape_names_its_tensor(name: str, shape: tuple[int, ...]) -> None:
    tensors: dict[str, Tensor | None] = {
        "query": torch.zeros(2, 5, 2, 4),
        "key": torch.zeros(2, 5, 2, 4),
        "value": torch.zeros(2, 5, 2, 4),
        "log_decay": torch.zeros(2, 5, 2),
        "beta": torch.zeros(2, 5, 2),
        "initial_state": None,
        "document_ids": None,
    }
    check_inputs(**tensors)
    with pytest.raises(ValueError, match=f"^{name} has shape"):
        check_inputs(**{**tensors, name: torch.zeros(shape)})
