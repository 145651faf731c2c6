"""What the flash-linear-attention backend does around the kernels, with the reference standing in for them.

The kernels themselves are compared on a GPU, in tests/gpu.
"""

import inspect
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from layerroute.ops.gated_delta import fla
from layerroute.ops.gated_delta.fla import document_boundaries, fla_gated_delta_rule
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule
from tests.parity.gated_delta_inputs import assert_same, make, run, run_with_gradients


class Kernels:
    """Two functions with the library's arguments and layout; ``calls`` lists which ran."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def chunk(self, **arguments: Any) -> tuple[Tensor, Tensor | None]:
        self.calls.append("chunk")
        return self.kernel(**arguments)

    def recurrent(self, **arguments: Any) -> tuple[Tensor, Tensor | None]:
        self.calls.append("recurrent")
        if torch.is_grad_enabled():  # the library's recurrent kernel raises in its backward pass
            assert not any(isinstance(t, Tensor) and t.requires_grad for t in arguments.values())
        return self.kernel(**arguments)

    def kernel(
        self,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        scale: float | None,
        initial_state: Tensor | None,
        output_final_state: bool,
        use_qk_l2norm_in_kernel: bool,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        assert q.dtype == k.dtype == v.dtype
        options = {"scale": scale, "normalize_qk": use_qk_l2norm_in_kernel, "output_final_state": True}
        if cu_seqlens is None:
            output, state = recurrent_gated_delta_rule(
                q, k, v, g, beta, initial_state=initial_state, **options
            )
            return output, state if output_final_state else None
        assert q.shape[0] == 1
        outputs, states = [], []
        for index, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
            piece = [t[:, start:stop] for t in (q, k, v, g, beta)]
            first = None if initial_state is None else initial_state[index : index + 1]
            output, state = recurrent_gated_delta_rule(*piece, initial_state=first, **options)
            outputs.append(output)
            states.append(state)
        return torch.cat(outputs, 1), torch.cat(states) if output_final_state else None


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    stand_in = Kernels()
    monkeypatch.setattr(fla, "obstacle", lambda query, value: None)
    monkeypatch.setattr(fla, "_kernels", lambda: (stand_in.chunk, stand_in.recurrent))
    return stand_in


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("time", [1, 33, 80])
def test_layout_documents_and_states(time: int, state: bool, documents: bool, kernels: Kernels) -> None:
    inputs = make(time, batch=3, state=state, documents=documents, dtype=torch.float32)
    expected = run_with_gradients(recurrent_gated_delta_rule, inputs, normalize_qk=True)
    assert_same(run_with_gradients(fla_gated_delta_rule, inputs, normalize_qk=True), expected, 1e-5)
    assert kernels.calls == ["chunk"]


def test_short_calls_without_gradient_take_the_recurrent_kernel(kernels: Kernels) -> None:
    for time in (1, 64, 65):
        run(fla_gated_delta_rule, make(time, dtype=torch.float32))
    inputs = make(1, dtype=torch.float32)
    inputs.state.requires_grad_()
    run(fla_gated_delta_rule, inputs)
    with torch.no_grad():
        run(fla_gated_delta_rule, inputs)
    assert kernels.calls == ["recurrent", "recurrent", "chunk", "chunk", "recurrent"]


def test_no_token_calls_no_kernel(kernels: Kernels) -> None:
    inputs = make(0, dtype=torch.float32)
    output, state = run(fla_gated_delta_rule, inputs)
    assert output.shape == inputs.value.shape and torch.equal(state, inputs.state)
    assert kernels.calls == []


def test_boundaries_of_rows_and_documents() -> None:
    boundaries, first, last = document_boundaries(torch.tensor([[4, 4, 7, 7], [7, 7, 7, 7], [1, 2, 2, 3]]))
    assert boundaries.tolist() == [0, 2, 4, 8, 9, 11, 12]
    assert first.tolist() == [0, 2, 3]
    assert last.tolist() == [1, 2, 5]


def test_obstacles_are_told_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def tensor(dtype: torch.dtype, key_dim: int) -> Tensor:
        return torch.empty(1, 1, 1, key_dim, dtype=dtype, device="meta")

    class OnCuda:
        def __init__(self, tensor: Tensor) -> None:
            self.device, self.dtype, self.shape = torch.device("cuda"), tensor.dtype, tensor.shape

    def obstacle(dtype: torch.dtype, key_dim: int = 64) -> str | None:
        inner = inspect.unwrap(fla.obstacle)
        return inner(OnCuda(tensor(dtype, key_dim)), OnCuda(tensor(dtype, key_dim)))

    monkeypatch.setattr(fla, "unavailable_reason", lambda: "not here")
    assert obstacle(torch.float32) == "not here"
    monkeypatch.setattr(fla, "unavailable_reason", lambda: None)
    assert "values are float32" in obstacle(torch.float32)
    assert "up to 256, here 320" in obstacle(torch.bfloat16, 320)
    assert obstacle(torch.bfloat16) is None


def test_reasons_when_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = inspect.unwrap(fla.unavailable_reason)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason() == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'layerroute[cuda]'" in reason()

    def broken() -> None:
        raise ImportError("triton is too old")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(fla, "_kernels", broken)
    assert reason() == "flash-linear-attention does not import: triton is too old"
