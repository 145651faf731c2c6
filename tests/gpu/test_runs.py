"""Training, saving and loading on this device: checkpoints, one rank of DDP, a base in four bits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from layerroute.cli.main import main
from layerroute.records import read_record
from layerroute.routing import executed, forced
from layerroute.skipping import SkipConfig, add_router, load_pretrained
from layerroute.skipping.pretrained import base_options
from tests.gpu.devices import DEVICE, DTYPES, TOLERANCE
from tests.gpu.test_contracts import VOCABULARY, build
from tests.parity.contracts import assert_close, tokens
from tests.tiny import write_recipe
from tests.tiny_pretrained import SENTENCE, write_documents, write_pretrained

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_saved_model_is_the_same_when_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    model, ids = build("hybrid", dtype), tokens(2, 17, VOCABULARY).to(DEVICE)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, device_map={"": DEVICE})
    # Loading keeps the decay's parameters in fp32.
    assert_close(loaded(ids).logits.float(), model(ids).logits.float(), "loaded and saved", TOLERANCE[dtype])
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=dtype, device_map={"": DEVICE})
    assert torch.equal(again(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_goes_on_from_a_checkpoint_and_is_opened_again(
    tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {
        "max_steps": 6,
        "save_every": 3,
        "evaluate_every": 3,
        "precision": precision,
        "device": DEVICE.type,
    }
    recipe = write_recipe(tmp_path, train=short, model={"routing": {"estimator": "selected"}})
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert main(["train", str(recipe), "--out", str(straight)]) == 0
    checkpoint = str(straight / "checkpoints" / "checkpoint-3")
    assert main(["train", str(recipe), "--out", str(resumed), "--resume", checkpoint]) == 0
    losses = [read_record(out)["metrics"]["validation_loss"] for out in (straight, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 2e-2)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "straight"), "--device", DEVICE.type, "--json"]) == 0
    best = read_record(tmp_path / "straight")["metrics"]["best_validation_loss"]
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(best, rel=1e-2)


ONE_RANK = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from layerroute.routing import collect_decisions
from tests.gpu.devices import DEVICE, TOLERANCE
from tests.gpu.test_contracts import VOCABULARY, build
from tests.parity.contracts import assert_close, tokens
backend = "nccl" if DEVICE.type == "cuda" else "gloo"
dist.init_process_group(backend, init_method="file://{rendezvous}", rank=0, world_size=1)
ids = tokens(2, 17, VOCABULARY).to(DEVICE)
gradients = []
for wrap in (lambda model: model, lambda model: DistributedDataParallel(model, find_unused_parameters=True)):
    torch.manual_seed(0)
    model = wrap(build("hybrid", routing={{"estimator": "selected"}}).train())
    with collect_decisions(model) as found:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert len(found) == 1
    gradients.append({{n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}})
for name, gradient in gradients[0].items():
    assert_close(gradients[1][name], gradient, name)
dist.destroy_process_group()
print("the same")
"""


def test_one_rank_of_ddp_has_the_gradients_of_the_model(tmp_path: Path) -> None:
    """In a process of its own, which a process group does not outlive."""
    program = ONE_RANK.format(rendezvous=tmp_path / "rendezvous")
    environment = os.environ | {"LAYERROUTE_NO_TYPECHECK": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "the same" in done.stdout, done.stderr[-2000:]


@torch.no_grad()
def test_a_base_in_four_bits_is_routed(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    write_documents(tmp_path, {"train": 60}, length=60, sentence=f"{SENTENCE}.")
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128}
    write_pretrained(tmp_path / "model", tmp_path / "train.jsonl", **sizes)
    options = base_options(device=DEVICE, quantization="nf4")
    plain: Any = load_pretrained(str(tmp_path / "model"), **options)[0]
    ids = tokens(2, 17, 290).to(DEVICE)
    expected = plain(ids, use_cache=False).logits.float()
    assert plain.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    model = add_router(plain, SkipConfig(layers=[2, 3, 4, 5], router_layer=2, rank=4))
    with forced(model, 1):
        assert_close(model(ids, use_cache=False).logits.float(), expected, "all tokens run", 3e-2)
    found = []
    for execution in ("masked", "sparse"):
        with forced(model, 0.5), executed(model, execution):
            found.append(model(ids, use_cache=False).logits.float())
    assert (found[0] - expected).abs().max() > 0.1, "routing must matter"
    assert_close(found[1], found[0], "sparse and masked", 3e-2)
