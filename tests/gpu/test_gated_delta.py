"""The gated delta rule on this device: the chunked backend and, on a GPU, flash-linear-attention's kernels."""

import pytest
import torch

from layerroute.ops.gated_delta import fla, gated_delta_rule
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule
from tests.gpu.devices import CUDA, DEVICE
from tests.parity.gated_delta_inputs import NAMES, Inputs, assert_same, make, run, run_with_gradients

pytestmark = pytest.mark.gpu
fla_runs = pytest.mark.skipif(fla.unavailable_reason() is not None, reason=str(fla.unavailable_reason()))
BACKENDS = ["chunked", pytest.param("fla", marks=fla_runs)]
TIMES = [63, 64, 65, *([1000] if CUDA else [])]


def inputs(time: int, backend: str, **options: object) -> Inputs:
    """On the device: fp32 for ours, for the kernels bf16 in what they multiply."""
    made = make(time, key_dim=64, value_dim=64, dtype=torch.float32, **options)
    half = torch.bfloat16 if backend == "fla" else torch.float32
    narrow = dict(zip(NAMES[2:5], (made.query, made.key, made.value), strict=True))
    rest = {name: getattr(made, name) for name in ("log_decay", "beta", "state", "documents")}
    return Inputs(
        **{name: tensor.to(DEVICE, half) for name, tensor in narrow.items()},
        **{name: None if tensor is None else tensor.to(DEVICE) for name, tensor in rest.items()},
    )


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients(backend: str, time: int, state: bool, documents: bool) -> None:
    given = inputs(time, backend, state=state, documents=documents)
    expected = run_with_gradients(recurrent_gated_delta_rule, given, normalize_qk=True)
    actual = run_with_gradients(gated_delta_rule, given, normalize_qk=True, backend=backend)
    assert_same(actual, expected, tolerance=2e-2 if backend == "fla" else 1e-4)


@pytest.mark.parametrize("time", [1, 7, 64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding(backend: str, time: int) -> None:
    given = inputs(time, backend)
    output, state = run(gated_delta_rule, given, backend=backend)
    expected, final = run(recurrent_gated_delta_rule, given)
    tolerance = 2e-2 if backend == "fla" else 1e-4
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state, final, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_tokens_keep_the_state(backend: str) -> None:
    given = inputs(70, backend)
    given.log_decay.zero_()
    given.beta.zero_()
    _, state = run(gated_delta_rule, given, backend=backend)
    assert torch.equal(state, given.state)


@fla_runs
def test_auto_takes_the_kernels_for_half_precision_only() -> None:
    half = inputs(70, "fla")
    assert fla.obstacle(half.query, half.value) is None
    assert "float32" in str(fla.obstacle(half.query.float(), half.value.float()))
