"""Checkpoints of strangers: nothing of theirs is run, nothing outside their folder is read, nothing huge allocated."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from layerroute.cli.main import main
from layerroute.errors import UserError
from layerroute.hybrid import HybridForCausalLM
from layerroute.integrity import MANIFEST, seal
from layerroute.lab.runs import load_runs
from layerroute.records import read_record, write_record
from layerroute.skipping import load_pretrained, load_router, save_router
from tests.integration.test_train import stop_after, train
from tests.parity.skipping_models import plain, routed
from tests.tiny import write_recipe


class Bomb:
    """What a pickle can do: run any command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("layerroute: error: ")]
    return line


@pytest.fixture
def model(finished_run: Path, tmp_path: Path) -> Path:
    """A saved model whose manifest somebody may write anew."""
    return Path(shutil.copytree(finished_run / "best", tmp_path / "model"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """An allocation of more than four GiB beyond what is used now fails, instead of bringing the machine down."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def generate(folder: Path) -> int:
    return main(["generate", str(folder), "The router", "--max-new-tokens", "2"])


def test_a_damaged_model_is_told_and_one_changed_on_purpose_can_be_used(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "mine"}))
    assert generate(model) == 2
    assert "is damaged (generation_config.json has" in complaint(capsys)
    (model / MANIFEST).unlink()
    assert generate(model) == 0


def header(folder: Path, change: Any) -> None:
    """Rewrite the header of the weights and leave their bytes."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    content = json.loads(data[8 : 8 + size])
    change(content)
    text = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def huge_shape(content: dict[str, Any]) -> None:
    name = next(name for name in content if name != "__metadata__")
    content[name]["shape"] = [10**15]


def huge_extent(content: dict[str, Any]) -> None:
    name = next(name for name in content if name != "__metadata__")
    content[name] |= {"shape": [10**15 // 4], "data_offsets": [0, 10**15]}


def huge_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 10**15) + path.read_bytes()[8:])


def huge_config(**sizes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **sizes}))

    return change


def huge_config_and_no_weights(folder: Path) -> None:
    huge_config(hidden_size=60_000, intermediate_size=90_000)(folder)
    save_file({}, folder / "model.safetensors")


HUGE = {
    "header of 10^15 bytes": huge_header,
    "tensor of 10^15 elements": lambda folder: header(folder, huge_shape),
    "tensor of 10^15 bytes": lambda folder: header(folder, huge_extent),
    "vocabulary of 10^15 tokens": huge_config(vocab_size=10**15),
    "hidden size of 10^5": huge_config(hidden_size=100_000, head_dim=50_000),
    "10^9 heads": huge_config(num_attention_heads=10**9, num_key_value_heads=10**9, granularity="head"),
    "large model, empty weights": huge_config_and_no_weights,
}


@pytest.mark.parametrize("case", HUGE)
def test_sizes_are_checked_before_anything_is_allocated(
    model: Path,
    case: str,
    little_memory: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    HUGE[case](model)
    seal(model)

    def allocate(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("it is looked at before anything is made of it")

    monkeypatch.setattr(HybridForCausalLM, "from_pretrained", allocate)
    assert generate(model) == 2
    assert "weights" in complaint(capsys)


def test_shards_are_read_from_their_own_folder_only(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(model / "model.safetensors")
    shutil.move(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../elsewhere.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    seal(model)
    assert generate(model) == 2
    assert "'../elsewhere.safetensors', which lies outside of it; nothing was read" in complaint(capsys)
    shutil.move(tmp_path / "elsewhere.safetensors", model / "one.safetensors")
    index["weight_map"] = dict.fromkeys(weights, "one.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    seal(model)
    assert generate(model) == 0


@pytest.mark.slow
def test_a_pickle_bomb_in_a_checkpoint_does_not_go_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        assert train(recipe, tmp_path / "run") == 143
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    mark = tmp_path / "mark"

    def refused(name: str, content: bytes) -> str:
        """What is said of a checkpoint with this in the place of one of its files."""
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content)
        seal(checkpoint)  # it is a stranger's, and intact
        capsys.readouterr()
        assert train(recipe, tmp_path / "run", "--resume", str(checkpoint)) == 2, name
        (checkpoint / name).write_bytes(whole)
        assert read_record(tmp_path / "run")["status"] == "failed"
        line = complaint(capsys)
        assert str(checkpoint) in line and "cannot be used" in line
        return line

    saved = io.BytesIO()
    torch.save({"state": {}, "x": Bomb(mark)}, saved)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        for bomb in (saved.getvalue(), pickle.dumps(Bomb(mark))):
            assert "none of it was run" in refused(name, bomb)
            assert not mark.exists()
    # What is no pickle may be nonsense, too.
    state = json.loads((checkpoint / "layerroute_state.json").read_text())
    trainer = json.loads((checkpoint / "trainer_state.json").read_text())
    for name, tree in (
        ("trainer_state.json", []),
        ("trainer_state.json", {**trainer, "global_step": 10**9}),
        ("trainer_state.json", {**trainer, "surprise": 1}),
        ("layerroute_state.json", {**state, "meter": 5}),
        ("layerroute_state.json", {key: value for key, value in state.items() if key != "loss"}),
    ):
        refused(name, json.dumps(tree).encode())
    seal(checkpoint)
    # Links out of the folder are not written through.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    for name in ("recipe.yaml", ".lock", "token_routes.json"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
        (tmp_path / "run" / name).symlink_to(elsewhere)
    (tmp_path / "run" / "curves.jsonl").unlink()
    (tmp_path / "run" / "curves.jsonl").symlink_to(tmp_path / "new")
    assert train(recipe, tmp_path / "run", "--resume", str(checkpoint)) == 0
    assert elsewhere.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_weights_as_a_pickle_are_not_taken_beside_safetensors_either(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        torch.save({"x": Bomb(mark)}, model / name)
    seal(model)
    assert generate(model) == 0
    (model / "model.safetensors").unlink()
    seal(model)
    assert generate(model) == 2
    assert "as a pickle only, which are not loaded" in complaint(capsys)
    assert not mark.exists()


def test_secrets_of_the_environment_are_in_no_record(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_" + "s3cr3t" * 4
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, secret)
    recipe = write_recipe(tmp_path, train={"max_steps": 2, "report_to": ["tensorboard"]})
    assert train(recipe, tmp_path / "run") == 0
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_a_base_model_is_not_read_from_a_pickle(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    plain("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save({"x": Bomb(mark)}, tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the model"):
        load_pretrained(str(tmp_path / "base"))
    assert not mark.exists()


def test_a_router_that_asks_for_more_than_it_holds_is_refused(tmp_path: Path, little_memory: None) -> None:
    folder = save_router(routed("llama"), tmp_path / "router")
    whole = json.loads((folder / "router.json").read_text())
    for change in ({"rank": 10**12}, {"routing": {**whole["skip"]["routing"], "widths": [10**12]}}):
        (folder / "router.json").write_text(json.dumps({**whole, "skip": {**whole["skip"], **change}}))
        with pytest.raises(UserError, match="asks for a width of 1000000000000, but"):
            load_router(plain("llama"), folder)
    (folder / "router.json").write_text(json.dumps(whole))
    load_router(plain("llama"), folder)


def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask at the terminal, and run it after a "y"."""
    mark, base = tmp_path / "mark", tmp_path / "base"
    plain("llama").save_pretrained(base)
    (base / "code.py").write_text(
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'strange'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    config = json.loads((base / "config.json").read_text())
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (base / "config.json").write_text(json.dumps({**config, "model_type": "strange", "auto_map": classes}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match=r"run only where a recipe says model\.trust_remote_code: true"):
        load_pretrained(str(base))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vocab_size": 10**15}, "says vocab_size 1000000000000000, but the weights beside it have"),
        ({"num_hidden_layers": 10**6}, "says num_hidden_layers 1000000"),
        (
            {"num_hidden_layers": 60, "intermediate_size": 60_000},
            "parameters, but the weights beside it have",
        ),
        ({"num_hidden_layers": 8}, "parameters, but the weights beside it have"),
        ({"num_attention_heads": 5}, "config.json: "),
        ({"intermediate_size": 47}, "cannot load the model"),
        ({"num_hidden_layers": 8, "intermediate_size": 16}, "cannot load the model"),
    ],
)
def test_a_base_model_that_asks_for_more_than_it_holds_is_refused(
    tmp_path: Path, little_memory: None, change: dict[str, int], told: str
) -> None:
    """transformers makes at random what is missing."""
    plain("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=told):
        load_pretrained(str(tmp_path))


def test_an_adapter_that_asks_for_more_than_it_holds_is_refused(tmp_path: Path, little_memory: None) -> None:
    model = routed("llama")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    folder = save_router(model, tmp_path / "router")
    path = folder / "adapter" / "adapter_config.json"
    whole = json.loads(path.read_text())
    for change, told in (
        ({"r": 10**12}, "asks for r 1000000000000"),
        ({"rank_pattern": {"q_proj": 10**12}}, "asks for q_proj 1000000000000"),
        ({"layer_replication": [[0, 7]] * 10}, "LoRA's layer_replication"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING is not one of"),
        ({"r": "2"}, "is damaged"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(UserError, match=told):
            load_router(plain("llama"), folder)
    path.write_text(json.dumps(whole))
    load_router(plain("llama"), folder)


@pytest.mark.parametrize("key", ["curves", "token_routes"])
def test_a_record_names_files_of_its_own_folder_only(finished_run: Path, tmp_path: Path, key: str) -> None:
    secret = tmp_path / "secret.json"
    shutil.copyfile(finished_run / read_record(finished_run)[key], secret)
    for name in ("../secret.json", str(secret)):
        write_record(tmp_path / "run", {**read_record(finished_run), key: name})
        (run,) = load_runs([tmp_path / "run"])
        with pytest.raises(UserError, match="nothing was read"):
            getattr(run, key)
