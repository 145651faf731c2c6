"""The chunked gated delta rule agrees with the recurrent reference, in outputs and in every gradient."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from layerroute.ops.gated_delta import chunked, gated_delta_rule
from layerroute.ops.gated_delta.chunked import chunked_gated_delta_rule
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule
from tests.parity.gated_delta_inputs import NAMES, Inputs, assert_same, make, run, run_with_gradients

TOLERANCE = 1e-12  # float64


def check(inputs: Inputs, tolerance: float = TOLERANCE, **options: object) -> None:
    expected = run_with_gradients(recurrent_gated_delta_rule, inputs, **options)
    assert_same(run_with_gradients(chunked_gated_delta_rule, inputs, **options), expected, tolerance)


@pytest.fixture(params=["one span", "a span a chunk"], autouse=True)
def span(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes as small as a test's fit one span; cut them into many as well."""
    if request.param == "a span a chunk":
        monkeypatch.setattr(chunked, "_CPU_SPAN", 1)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("time", [1, 5, 31, 32, 33, 63, 64, 65, 127])
def test_outputs_and_gradients(time: int, state: bool, documents: bool) -> None:
    check(make(time, state=state, documents=documents))


def test_a_thousand_tokens() -> None:
    check(make(1000, batch=1, heads=1, key_dim=4, value_dim=4, documents=True))


@pytest.mark.parametrize("chunk", [16, 32, 64, 128])
def test_any_chunk_size(chunk: int) -> None:
    inputs = make(150, batch=1, documents=True)
    expected = run_with_gradients(recurrent_gated_delta_rule, inputs)
    assert_same(run_with_gradients(chunked_gated_delta_rule, inputs, chunk=chunk), expected, TOLERANCE)


@pytest.mark.parametrize("through", [("output",), ("state",)])
def test_gradient_through_output_or_state_alone(through: tuple[str, ...]) -> None:
    check(make(70), through=through)


def test_options() -> None:
    check(make(40), normalize_qk=True, scale=0.3)
    check(make(40, state=False), normalize_qk=True)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    time=st.integers(0, 80),
    heads=st.integers(1, 3),
    key_dim=st.integers(1, 9),
    value_dim=st.integers(1, 9),
    state=st.booleans(),
    documents=st.booleans(),
    normalize=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_shape(
    batch: int,
    time: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    state: bool,
    documents: bool,
    normalize: bool,
    seed: int,
) -> None:
    inputs = make(
        time,
        batch=batch,
        heads=heads,
        key_dim=key_dim,
        value_dim=value_dim,
        state=state,
        documents=documents,
        seed=seed,
    )
    check(inputs, tolerance=1e-10, normalize_qk=normalize)


def test_gradcheck_against_finite_differences() -> None:
    inputs = make(19, batch=1, heads=1, key_dim=3, value_dim=2, documents=True)
    leaves = [t.requires_grad_() for t in (*inputs.tensors(), inputs.state)]

    def rule(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return chunked_gated_delta_rule(
            *tensors[:5],
            initial_state=tensors[5],
            output_final_state=True,
            document_ids=inputs.documents,
            normalize_qk=True,
        )

    assert torch.autograd.gradcheck(rule, leaves, fast_mode=True)


@pytest.mark.parametrize("cuts", [(1,), (64,), (3, 4, 70), (31, 32, 33), (17, 90, 99)])
def test_any_split_equals_one_pass(cuts: tuple[int, ...]) -> None:
    inputs = make(100, documents=True)
    whole, final = run(chunked_gated_delta_rule, inputs)
    pieces, state = [], inputs.state
    for start, stop in pairwise((0, *cuts, 100)):
        piece = inputs.sliced(slice(start, stop), state)
        if start and (inputs.documents[:, start] != inputs.documents[:, start - 1]).any():
            # a new call continues its state: the caller clears it for rows that begin a document
            new = inputs.documents[:, start] != inputs.documents[:, start - 1]
            piece.state = state.masked_fill(new[:, None, None, None], 0.0)
        output, state = run(chunked_gated_delta_rule, piece)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-12)


def test_packed_documents_equal_separate_ones() -> None:
    inputs, bounds = make(90, batch=1), (0, 7, 39, 72, 90)
    inputs.documents = torch.cat([torch.full((1, b - a), i) for i, (a, b) in enumerate(pairwise(bounds))], 1)
    packed, final = run(chunked_gated_delta_rule, inputs)
    for index, (start, stop) in enumerate(pairwise(bounds)):
        alone = inputs.sliced(slice(start, stop), inputs.state if index == 0 else None)
        output, state = run(chunked_gated_delta_rule, alone)
        torch.testing.assert_close(packed[:, start:stop], output, rtol=0, atol=1e-12)
    torch.testing.assert_close(final, state, rtol=0, atol=1e-12)


def masked(inputs: Inputs, hidden: torch.Tensor) -> Inputs:
    """Large values at hidden tokens, with nothing written and nothing decayed there."""
    for tensor in (inputs.query, inputs.key, inputs.value):
        tensor[hidden] = 50.0
    inputs.log_decay[hidden] = 0.0
    inputs.beta[hidden] = 0.0
    return inputs


@pytest.mark.parametrize(
    "where",
    [slice(0, 9), slice(40, 70), slice(91, 100), slice(0, 100, 2)],
    ids=["front", "middle", "end", "every other"],
)
def test_masked_tokens_change_nothing(where: slice) -> None:
    hidden = torch.zeros(2, 100, dtype=torch.bool)
    hidden[:, where] = True
    inputs = masked(make(100), hidden)
    check(inputs)
    shown = [t[~hidden].unflatten(0, (2, -1)) for t in inputs.tensors()]
    names = ("query", "key", "value", "log_decay", "beta")
    compact = Inputs(**dict(zip(names, shown, strict=True)), state=inputs.state)
    output, state = run(chunked_gated_delta_rule, inputs)
    expected, final = run(chunked_gated_delta_rule, compact)
    torch.testing.assert_close(output[~hidden].unflatten(0, (2, -1)), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [chunked_gated_delta_rule, recurrent_gated_delta_rule])
@pytest.mark.parametrize("time", [1, 40, 65])
def test_masked_tokens_alone_keep_the_state_bit_for_bit(rule: object, time: int) -> None:
    inputs = make(time, dtype=torch.float32)
    _, state = run(rule, masked(inputs, torch.ones(2, time, dtype=torch.bool)))
    assert torch.equal(state, inputs.state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("decay", [0.0, -1e-3, -30.0, -1e4, "mixed"])
def test_extreme_decays_and_rates_stay_finite_and_right(
    decay: float | str, beta: float, dtype: torch.dtype
) -> None:
    inputs = make(70, batch=1, dtype=dtype)
    inputs.beta.fill_(beta)
    if decay == "mixed":  # gentle decays after a strong one keep their precision
        inputs.log_decay[:, ::9] = -1e4
    else:
        inputs.log_decay.fill_(decay)
    check(inputs, tolerance=1e-11 if dtype == torch.float64 else 2e-5)
    gradient = run_with_gradients(chunked_gated_delta_rule, inputs)["log_decay"]
    assert gradient[inputs.log_decay == -1e4].eq(0).all()  # not round-off: nothing is left to change


def test_repeated_keys_are_no_trouble() -> None:
    """Formed from powers of A, the inverse would be off by 2e-8 here, and in fp32 by 4."""
    inputs = make(128, batch=1, state=False)
    inputs.key[:] = inputs.key[:, :1]
    inputs.beta.fill_(0.97)
    inputs.log_decay.fill_(0.0)
    check(inputs, tolerance=1e-11)


@pytest.mark.parametrize("time", [3, 50])
def test_half_precision_is_computed_in_single(time: int) -> None:
    inputs = make(time, state=False, dtype=torch.float32)
    half = Inputs(**{n: t.bfloat16() for n, t in zip(NAMES[2:7], inputs.tensors(), strict=True)})
    single = Inputs(**{n: t.float() for n, t in zip(NAMES[2:7], half.tensors(), strict=True)})
    actual = run_with_gradients(chunked_gated_delta_rule, half)
    expected = run_with_gradients(chunked_gated_delta_rule, single)
    assert actual["output"].dtype == torch.bfloat16 and actual["final_state"].dtype == torch.float32
    assert all(actual[name].dtype == torch.bfloat16 for name in NAMES[2:7])
    assert torch.equal(actual["output"], expected["output"].bfloat16())
    assert_same(actual, expected, tolerance=1e-2)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_autocast_does_not_reach_inside(backend: str) -> None:
    inputs = make(40, dtype=torch.float32)
    expected = run_with_gradients(gated_delta_rule, inputs, backend=backend)

    def rule(*tensors: torch.Tensor, **options: object) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gated_delta_rule(*tensors, **options)

    assert_same(run_with_gradients(rule, inputs, backend=backend), expected, tolerance=0.0)


def test_gradient_checkpointing() -> None:
    inputs = make(70)

    def rule(*tensors: torch.Tensor, **options: object) -> object:
        return checkpoint(chunked_gated_delta_rule, *tensors, use_reentrant=False, **options)

    expected = run_with_gradients(chunked_gated_delta_rule, inputs)
    assert_same(run_with_gradients(rule, inputs), expected, tolerance=0.0)


def test_frozen_inputs_take_no_gradient() -> None:
    inputs = make(40)
    inputs.value.requires_grad_()
    output, _ = run(chunked_gated_delta_rule, inputs)
    output.sum().backward()
    assert inputs.value.grad is not None and inputs.query.grad is None
    assert not run(chunked_gated_delta_rule, make(40))[0].requires_grad


def test_a_second_derivative_is_refused() -> None:
    inputs = make(40)
    inputs.value.requires_grad_()
    output, _ = run(chunked_gated_delta_rule, inputs)
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs.value, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|twice"):
        gradient.sum().backward()


def test_agrees_with_transformers() -> None:
    """A witness that shares no line with ours; it pads to chunks of 64 and knows no documents."""
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    inputs = make(150, key_dim=16, value_dim=16, dtype=torch.float32)

    def theirs(*tensors: torch.Tensor, document_ids: object, **options: object) -> object:
        assert document_ids is None
        return module.torch_chunk_gated_delta_rule(*tensors, use_qk_l2norm_in_kernel=True, **options)

    expected = run_with_gradients(theirs, inputs)
    assert_same(
        run_with_gradients(chunked_gated_delta_rule, inputs, normalize_qk=True), expected, tolerance=2e-5
    )


def test_normalized_queries_and_keys_need_no_care_at_zero() -> None:
    inputs = make(40)
    inputs.query[:, 3] = 0.0
    inputs.key[:, 3] = 0.0
    check(inputs, normalize_qk=True)
    assert F.cosine_similarity(inputs.key[:, 3], inputs.key[:, 3], dim=-1).eq(0).all()
