"""The dispatch takes the backend asked for, names the nearest of a wrong one, and says once what runs."""

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from layerroute.errors import UserError
from layerroute.ops import backends
from layerroute.ops.gated_delta import backend_report, dispatch, fla, gated_delta_rule
from tests.parity.gated_delta_inputs import Inputs, make, run


@pytest.fixture(autouse=True)
def forget_announcements() -> None:
    backends.announce.cache_clear()


def test_auto_on_cpu_is_chunked_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="layerroute"):
        for _ in range(3):
            run(gated_delta_rule, make(40))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["gated delta rule runs on backend 'chunked' (tensors on cpu)"]


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_a_named_backend_is_the_one_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = dispatch.BACKENDS[name]

    def spy(*tensors: object, **options: object) -> object:
        calls.append(name)
        return real(*tensors, **options)

    monkeypatch.setitem(dispatch.BACKENDS, name, spy)
    output, state = run(gated_delta_rule, make(40), backend=name, normalize_qk=True, scale=0.5)
    expected = run(real, make(40), normalize_qk=True, scale=0.5)
    assert calls == [name]
    assert torch.equal(output, expected[0]) and torch.equal(state, expected[1])


def test_a_misspelt_backend_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"'chunk'.*Did you mean 'chunked'\?"):
        run(gated_delta_rule, make(3), backend="chunk")


def test_fla_on_a_cpu_tensor_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"tensors on cpu.*'chunked'"):
        run(gated_delta_rule, make(3), backend="fla")


def test_report_tells_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla, "unavailable_reason", lambda: "no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = backend_report()
    assert report["auto"] == {"cpu": "chunked", "cuda": None}
    assert report["backends"]["fla"] == {"available": False, "reason": "no CUDA device"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend_report()["auto"]["cuda"] == "chunked"
    monkeypatch.setattr(fla, "unavailable_reason", lambda: None)
    assert backend_report()["auto"]["cuda"] == "fla"
    assert backend_report()["backends"]["fla"] == {"available": True, "reason": ""}


@pytest.mark.parametrize("time", [3, 40])
def test_shapes_alone_can_be_worked_out(time: int) -> None:
    """On the meta device, as for counting a large model's FLOPs without its memory."""
    inputs = make(time, documents=True)
    inputs = Inputs(**{name: tensor.to("meta") for name, tensor in vars(inputs).items()})
    output, state = run(gated_delta_rule, inputs)
    assert output.shape == inputs.value.shape and state.shape == inputs.state.shape


@pytest.mark.slow
def test_compiled_whole_without_unrolling() -> None:
    """One graph for every length, in which the rule is one operator; outside the run-time shape checks."""
    code = """
        import torch
        from layerroute.ops.gated_delta import gated_delta_rule
        from tests.parity.gated_delta_inputs import assert_same, make, run_with_gradients

        operators = []

        def backend(graph, example_inputs):
            def collect(graph, example_inputs):
                operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
                return make_boxed_func(graph)
            return aot_autograd(fw_compiler=collect)(graph, example_inputs)

        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd
        compiled = torch.compile(gated_delta_rule, fullgraph=True, backend=backend)
        for time in (3, 70, 130):
            inputs = make(time, documents=True)
            expected = run_with_gradients(gated_delta_rule, inputs, normalize_qk=True)
            operators.clear()
            assert_same(run_with_gradients(compiled, inputs, normalize_qk=True), expected, 0.0)
        assert "layerroute.chunked_gated_delta.default" in operators, operators
        assert "layerroute.chunked_gated_delta_backward.default" in operators, operators
        assert not any("bmm" in name for name in operators), operators
    """
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=root, timeout=300)
