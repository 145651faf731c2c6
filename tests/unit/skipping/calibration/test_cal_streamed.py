"""A calibration that reads a layer at a time gives what one in memory gives, bit for bit, also when it was cut off."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from transformers import AutoModelForCausalLM

from layerroute.skipping.calibration import Journal, compare_arms, fit_arms, score, score_budgets
from layerroute.skipping.calibration import journal as journals
from layerroute.skipping.calibration.folders import save_calibration
from layerroute.skipping.calibration.memory import memory_needed
from layerroute.skipping.devices import is_offloaded
from layerroute.skipping.fingerprint import fingerprint
from layerroute.skipping.layerwise import layer_by_layer
from layerroute.skipping.pretrained import streamed_options
from layerroute.skipping.weights import empty_model
from tests.parity.skipping_models import plain
from tests.unit.skipping.calibration.tiny_calibration import Cut, config, cut_at_fit, ids

STATISTICS, SELECTION, HELDOUT = ids(48), ids(8, seed=3), ids(80, seed=4)
CASES = {
    "mlp": {"also": [0.2]},
    "attention, token, dense": {"unit": "attention", "granularity": "token", "target": "dense"},
    "block, cost": {"unit": "block", "allocation": "cost", "rounds": 2},
}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Nothing is left in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERROUTE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in several files, in half the bytes that it computes in."""
    path = tmp_path_factory.mktemp("model")
    plain().to(torch.bfloat16).save_pretrained(path, max_shard_size="20KB")
    return path


def in_memory(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def streamed(folder):
    options = streamed_options(str(folder), torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    assert model.model.layers[3].mlp.up_proj.weight.is_meta and not model.lm_head.weight.is_meta
    return model.requires_grad_(False)


def made(model, asked, journal=None, stage=lambda name: lambda share: None):
    found = fit_arms(model, asked, statistics=STATISTICS, selection=SELECTION, journal=journal, stage=stage)
    scores, against = compare_arms(model, found, HELDOUT, journal=journal, stage=stage)
    return (
        found,
        scores,
        against,
        score_budgets(model, found, STATISTICS, HELDOUT, journal=journal, stage=stage),
    )


def flat(value):
    """Plain data and bytes of whatever a calibration gives."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [flat(own) for own in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: flat(getattr(value, f.name)) for f in fields(value) if f.name != "seconds"}
    return repr(value)


@pytest.fixture(scope="module")
def expected(folder):
    found = {}

    def of(case):
        if case not in found:
            found[case] = flat(made(in_memory(folder), config(**CASES[case])))
        return found[case]

    return of


@pytest.mark.parametrize("case", CASES)
def test_streamed_is_in_memory(folder, expected, case, tmp_path):
    model = streamed(folder)
    assert flat(made(model, config(**CASES[case]), Journal(tmp_path / "journal"))) == expected(case)
    assert model.model.layers[3].mlp.up_proj.weight.is_meta, "weights go when they are not needed"


@pytest.mark.parametrize("states", [True, False], ids=["streamed", "in memory"])
@pytest.mark.parametrize("case", CASES)
def test_a_calibration_that_is_cut_off_again_and_again_goes_on(
    folder, expected, case, states, tmp_path, monkeypatch
):
    """Each run is killed a few layers beyond the one before."""
    monkeypatch.setattr(journals, "EVERY", 0.0)
    reached, runs, cuts = set(), 0, (6, 12, 25, 40, 55)

    def stage(name):
        def advance(share):
            if (name, share) not in reached:
                reached.add((name, share))
                if len(reached) in cuts:
                    raise Cut

        return advance

    while True:
        runs += 1
        model = streamed(folder) if states else in_memory(folder)
        try:
            found = made(model, config(**CASES[case]), Journal(tmp_path / "journal", states=states), stage)
        except Cut:
            continue
        break
    assert runs == len(cuts) + 1
    assert flat(found) == expected(case)


@pytest.mark.parametrize("states", [True, False], ids=["streamed", "in memory"])
def test_a_run_that_goes_on_computes_no_layer_again(folder, states, tmp_path, monkeypatch):
    model, asked = streamed(folder) if states else in_memory(folder), config()
    fitted = cut_at_fit(monkeypatch, None)
    for _ in range(2):
        journal = Journal(tmp_path, states=states)
        fit_arms(model, asked, statistics=STATISTICS, selection=SELECTION, controls=[], journal=journal)
    assert fitted == [2, 3, 4, 5]


def test_a_step_reads_a_layer_once_for_all_windows(folder):
    """Also what sees the whole model: scoring a routed or a plain one."""
    model, fetched = streamed(folder), []
    for index, layer in enumerate(model.model.layers):
        hook = layer.mlp.up_proj._hf_hook
        original = hook.weights_map
        hook.weights_map = Watched(original, fetched, index)
    plain_model = in_memory(folder)
    found = score(model, HELDOUT)
    assert fetched == list(range(7))
    assert torch.equal(found.losses, score(plain_model, HELDOUT).losses)


class Watched(dict):
    """Weights that tell when they are read."""

    def __init__(self, weights, fetched, index):
        self.weights, self.fetched, self.index = weights, fetched, index

    def __getitem__(self, name):
        self.fetched.append(self.index)
        return self.weights[name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_call_that_fails_ends_all(folder, error):
    model, ended = streamed(folder), []

    def call(part):
        try:
            model(part, use_cache=False)
            if int(part[0, 0]) == 7:
                raise error("here")
        finally:
            ended.append(part)

    parts = [torch.full((1, 4), start) for start in (3, 7, 9)]
    with pytest.raises(error, match="here"):
        layer_by_layer(model, call, parts)
    assert len(ended) == 3 and is_offloaded(model.model.layers[6])
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)


def test_saved_routers_name_the_base_that_was_streamed(folder, tmp_path):
    model, asked = streamed(folder), config()
    assert fingerprint(model) == fingerprint(in_memory(folder))
    found = fit_arms(model, asked, statistics=STATISTICS, selection=SELECTION, controls=[])
    save_calibration(model, found, STATISTICS, tmp_path / "streamed")
    save_calibration(in_memory(folder), found, STATISTICS, tmp_path / "memory")
    one, other = ((tmp_path / name / "router.safetensors").read_bytes() for name in ("streamed", "memory"))
    assert one == other


MEASURE = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from layerroute.skipping.calibration import CalibrationConfig, Journal, compare_arms, fit_arms
from layerroute.skipping.pretrained import streamed_options
folder, work = sys.argv[1], sys.argv[2]
options = streamed_options(folder, torch.device("cpu")) if work else {}
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval().requires_grad_(False)
Path("/proc/self/clear_refs").write_text("5")  # loading maps whole files, whose pages are nobody's
config = CalibrationConfig(**json.loads(sys.argv[3]))
ids = torch.randint(2, 60, (4, 32))
found = fit_arms(model, config, statistics=ids, selection=ids, journal=Journal(Path(work)) if work else None)
compare_arms(model, found, ids)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""


@pytest.mark.walk
def test_streaming_saves_the_memory_of_the_layers(tmp_path):
    """A model of a gigabyte, most of it in layers."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells the peak since a moment")
    model = plain("llama", hidden_size=1024, intermediate_size=8192, num_hidden_layers=9)
    model.save_pretrained(tmp_path / "model")
    asked = config(own_text=0.0, layers=None, tokens_statistics=128)
    settings = json.dumps({f.name: getattr(asked, f.name) for f in fields(asked)})
    peaks = {}
    for name, work in (("memory", ""), ("streamed", str(tmp_path / "work"))):
        out = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / "model"), work, settings],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks[name] = int(out.stdout) * 1024
    layers = sum(p.numel() * 4 for p in model.model.layers.parameters())
    assert peaks["memory"] - peaks["streamed"] > 0.5 * layers, peaks
    for name, peak in peaks.items():
        need = memory_needed(
            empty_model(tmp_path / "model"),
            asked,
            dtype=torch.float32,
            precision="fp32",
            streamed=name == "streamed",
        )
        assert 0.7 * peak < need.total < 2.0 * peak, (name, peak, need)
