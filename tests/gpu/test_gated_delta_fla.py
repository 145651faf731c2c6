"""The flash-linear-attention kernels agree with the reference, on a GPU."""

import pytest
import torch

from layerroute.ops.gated_delta import fla, gated_delta_rule
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule
from tests.parity.gated_delta_inputs import NAMES, Inputs, assert_same, make, run, run_with_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(fla.unavailable_reason() is not None, reason=str(fla.unavailable_reason())),
]


def on_gpu(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    tensors = dict(zip(NAMES[2:7], inputs.tensors(), strict=True))
    narrow = {name: t.cuda().to(dtype) for name, t in tensors.items() if name in ("query", "key", "value")}
    return Inputs(
        **narrow,
        log_decay=inputs.log_decay.cuda(),
        beta=inputs.beta.cuda(),
        state=None if inputs.state is None else inputs.state.cuda(),
        documents=None if inputs.documents is None else inputs.documents.cuda(),
    )


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("time", [63, 64, 65, 1000])
def test_outputs_and_gradients(time: int, state: bool, documents: bool) -> None:
    sizes = {"key_dim": 64, "value_dim": 64, "dtype": torch.float32}
    inputs = on_gpu(make(time, state=state, documents=documents, **sizes), torch.bfloat16)
    expected = run_with_gradients(recurrent_gated_delta_rule, inputs, normalize_qk=True)
    actual = run_with_gradients(gated_delta_rule, inputs, normalize_qk=True, backend="fla")
    assert_same(actual, expected, tolerance=2e-2)


@pytest.mark.parametrize("time", [1, 7, 64])
def test_decoding(time: int) -> None:
    inputs = on_gpu(make(time, key_dim=64, value_dim=64, dtype=torch.float32), torch.bfloat16)
    output, state = run(gated_delta_rule, inputs, backend="fla")
    expected, final = run(recurrent_gated_delta_rule, inputs)
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(state, final, rtol=1e-2, atol=1e-2)


def test_masked_tokens_keep_the_state() -> None:
    inputs = make(70, key_dim=64, value_dim=64, dtype=torch.float32)
    inputs.log_decay.zero_()
    inputs.beta.zero_()
    inputs = on_gpu(inputs, torch.bfloat16)
    _, state = run(gated_delta_rule, inputs, backend="fla")
    assert torch.equal(state, inputs.state)


def test_auto_takes_it_for_half_precision_only(caplog: pytest.LogCaptureFixture) -> None:
    half = on_gpu(make(70, key_dim=64, value_dim=64, dtype=torch.float32), torch.bfloat16)
    assert fla.obstacle(half.query, half.value) is None
    assert "float32" in str(fla.obstacle(half.query.float(), half.value.float()))


@pytest.mark.parametrize("documents", [False, True])
def test_the_chunked_backend_runs_on_cuda_too(documents: bool) -> None:
    inputs = on_gpu(make(100, documents=documents, dtype=torch.float32), torch.float32)
    expected = run_with_gradients(recurrent_gated_delta_rule, inputs)
    assert_same(run_with_gradients(gated_delta_rule, inputs, backend="chunked"), expected, tolerance=1e-4)
