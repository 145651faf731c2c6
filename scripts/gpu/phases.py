"""What each phase runs: commands of the library, at the sizes of a GPU or, in a rehearsal, tiny ones."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from layerroute.errors import UserError
from layerroute.integrity import replace_text

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sitting works.

    Attributes:
        out: folder of all records.
        pack: folder that ``unpack`` made; None without one.
        rehearse: on a CPU, tiny.
    """

    out: Path
    pack: Path | None = None
    rehearse: bool = False

    def packed(self, name: str) -> Path | None:
        """A folder of the pack, None if it has none of this name."""
        found = None if self.pack is None else self.pack / name
        return found if found is not None and found.is_dir() else None


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of a phase.

    Attributes:
        name: in ``steps.json``.
        command: what is called.
        stdout: file of the phase's folder that takes its standard output; None for the log.
        environment: variables beside those of the sitting.
    """

    name: str
    command: Sequence[str]
    stdout: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The command as one would type it."""
        words = list(self.command)
        if words[1:3] == ["-m", "layerroute"]:
            words = words[2:]
        return shlex.join(words)


def layerroute(*words: str, name: str, **options: Any) -> Step:
    """A command of the library."""
    return Step(name=name, command=[sys.executable, "-m", "layerroute", *words], **options)


class _Bench:
    """Steps that run ``layerroute bench``: a record a step, which goes on after the rows that it has."""

    def __init__(self, place: Place, phase: str) -> None:
        self.place, self.folder = place, place.out / phase
        self.machine = ["--device", "cpu" if place.rehearse else "cuda"]
        self.machine += ["--dtype", "fp32" if place.rehearse else "bf16"]

    def __call__(
        self,
        name: str,
        case: str,
        *words: str,
        real: str,
        tiny: str,
        machine: bool = True,
        environment: dict[str, str] | None = None,
    ) -> Step:
        """``real`` and ``tiny`` are the words that differ between a GPU and a rehearsal."""
        own = (tiny if self.place.rehearse else real).split()
        repeats = ["--repeats", "3" if self.place.rehearse else "5"]
        kept = ["--out", str(self.folder / f"{name}.json"), "--resume"]
        given = [*words, *own, *(self.machine if machine else ()), *repeats, *kept]
        return layerroute("bench", case, *given, name=name, environment=environment or {})


def _uncompiled(place: Place) -> dict[str, str]:
    """A rehearsal does without torch's compiler, which takes minutes: the same code runs uncompiled."""
    return {"TORCH_COMPILE_DISABLE": "1"} if place.rehearse else {}


def tests(place: Place) -> list[Step]:
    """Parity and contracts on the device."""
    results = place.out / "tests" / "tests.jsonl"
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", "--tb=short"]
    if not place.rehearse and importlib.util.find_spec("xdist"):
        command += ["-n", "8"]  # most of the time goes into compiling kernels, on the CPU
    environment = {"LAYERROUTE_NO_TYPECHECK": "1", "GPU_TEST_RESULTS": str(results), "PYTEST_ADDOPTS": ""}
    if place.rehearse:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return [Step(name="tests", command=command, environment=environment)]


def kernels(place: Place) -> list[Step]:
    """Routed attention and the gated delta rule against their rivals."""
    bench = _Bench(place, "kernels")
    attention = "--sizes 1x1024x16x128 1x4096x16x128 1x16384x16x128 1x65536x16x128 --rates 0.25"
    return [
        bench("attention", "attention", real=attention, tiny="--sizes 1x96x2x16 --rates 0.25"),
        bench(
            "gated-delta",
            "gated-delta",
            real="--sizes 1x1024x16x128 1x4096x16x128 1x16384x16x128 1x65536x16x128",
            tiny="--sizes 1x96x2x16",
        ),
        bench(
            "peers",
            "peers",
            "--flex",
            "--eager-up-to",
            "4096",
            real=attention,
            tiny="--sizes 1x96x2x16 --rates 0.25",
        ),
    ]


def inference(place: Place) -> list[Step]:
    """Prefill and decode of models that skip layers, and prefill of the hybrid model."""
    bench = _Bench(place, "inference")
    shares = "--skip 0.25 0.5 0.75"
    decode = {
        "real": f"--sizes 1x2048 {shares}",
        "tiny": "--shape tiny --sizes 1x24 --skip 0.5 --new-tokens 4",
    }
    prefill = {"real": f"--sizes 1x2048 {shares}", "tiny": "--shape tiny --sizes 1x48 --skip 0.5"}
    large, small = "llama-3-8b", "smollm2-135m"
    uncompiled = _uncompiled(place)
    steps = [
        bench("decode-8b-compiled", "decode", "--compile", **_shaped(decode, large), environment=uncompiled),
        bench("decode-8b", "decode", **_shaped(decode, large)),
        bench("prefill-8b", "prefill", **_shaped(prefill, large)),
    ]
    hybrid = bench(
        "hybrid",
        "hybrid",
        "--peers",
        real="--sizes 1x4096 1x16384 1x65536 --rates 0.125",
        tiny="--sizes 1x64 --rates 0.25 --hidden-size 64",
    )
    # A rehearsal would repeat itself: both shapes are tiny then.
    again = [
        bench("decode-135m-compiled", "decode", "--compile", **_shaped(decode, small)),
        bench("decode-135m", "decode", **_shaped(decode, small)),
        bench("prefill-135m", "prefill", **_shaped(prefill, small)),
    ]
    return [*steps, hybrid, *([] if place.rehearse else again)]


def _shaped(words: dict[str, str], shape: str) -> dict[str, Any]:
    return {**words, "real": f"--shape {shape} {words['real']}"}


_TINY_HYBRID = {"hidden_size": 64, "num_attention_heads": 2}
_TINY_TRAIN = {
    "max_steps": 6,
    "batch_size": 4,
    "evaluate_every": 3,
    "save_every": 3,
    "log_every": 2,
    "evaluation_sequences": 4,
    "threshold_tokens": 64,
    "route_sentences": 0,
    "precision": "fp32",
    "device": "cpu",
}
_ARMS = {
    "static": ("baseline", {}),
    "dynamic": ("dynamic", {}),
    "dynamic_selected": ("dynamic", {"model": {"routing": {"estimator": "selected"}}}),
}


def original(place: Place) -> list[Step]:
    """The attention-routing experiment at its own size: throughput first, then runs, a seed after the other."""
    text = _text(place)
    for arm, (base, changes) in _ARMS.items():
        common: dict[str, Any] = {
            "data": {"source": "files", "dataset": None, "revision": None, "max_characters": None, **text},
            "train": {"report_to": [], "save_every": 100, "keep_checkpoints": 1, "route_sentences": 0},
        }
        if place.rehearse:
            common["model"] = _TINY_HYBRID
            common["data"] |= {"sequence_length": 32}
            common["train"] |= _TINY_TRAIN
        _recipe(place, arm, f"attention_routing/full/{base}.yaml", common, changes)
    recipes = {arm: str(_recipe_file(place, arm)) for arm in _ARMS}
    static, *routed = recipes.values()
    bench = _Bench(place, "original")
    steps = [
        bench("train", "train", "--static", static, "--routed", *routed, real="", tiny="", machine=False),
    ]
    seeds = [1] if place.rehearse else [1, 2, 3]
    arms = ["static", "dynamic_selected"] if place.rehearse else list(_ARMS)
    return steps + [_train(place, "original", arm, seed) for seed in seeds for arm in arms]


def skipping(place: Place) -> list[Step]:
    """Transfer training of SmolLM2-135M, routed and static, on ever more tokens; each pair judged away from home."""
    away = _text(place)["validation_paths"]
    model = str(_tiny_model(place) if place.rehearse else place.packed("model") or "smollm2-135m")
    steps = []
    for million in (1,) if place.rehearse else (1, 4, 16):
        for arm, changes in (
            ("router", {}),
            ("greedy", {"start": {"arm": "static_greedy"}, "skip": {"granularity": "token"}}),
        ):
            batch, length = 16, 256
            common: dict[str, Any] = {
                "model": {"name": model},
                "train": {
                    "batch_size": batch,
                    "max_steps": million * 1_000_000 // (batch * length),
                    "report_to": [],
                    "save_every": 100,
                    "evaluate_every": 0,
                    "keep_checkpoints": 1,
                    "route_sentences": 0,
                },
            }
            if place.rehearse:
                common = _tiny_skipping(place, common)
            _recipe(place, f"{arm}-{million}m", "layer_skipping/mixture.yaml", common, changes)
            steps.append(_train(place, "skipping", f"{arm}-{million}m", 42))
        runs = [str(place.out / "skipping" / f"{arm}-{million}m-seed42") for arm in ("router", "greedy")]
        tokens = (
            ["--tokens-heldout", "256", "--length", "32"] if place.rehearse else ["--tokens-heldout", "65536"]
        )
        steps.append(
            layerroute(
                *("transfer", runs[0], "--against", runs[1], "--data"),
                f"prose={','.join(away)}",
                *(*tokens, "--json"),
                name=f"judged-{million}m",
                stdout=f"judged-{million}m.json",
            )
        )
    return steps


def _train(place: Place, phase: str, arm: str, seed: int) -> Step:
    out = place.out / phase / f"{arm}-seed{seed}"
    words = ("train", str(_recipe_file(place, arm)), "--seed", str(seed), "--out", str(out))
    return layerroute(*words, name=f"{arm}-seed{seed}")


def _recipe_file(place: Place, arm: str) -> Path:
    return place.out / "recipes" / f"{arm}.yaml"


def _recipe(place: Place, arm: str, base: str, common: dict[str, Any], changes: dict[str, Any]) -> None:
    """Write an arm's recipe over a shipped one."""
    content: dict[str, Any] = {}
    for section in (*common, *changes):
        content[section] = {**common.get(section, {}), **changes.get(section, {})}
    file = _recipe_file(place, arm)
    content["base"] = os.path.relpath(ROOT / "recipes" / base, file.parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, yaml.safe_dump(content))


def _text(place: Place) -> dict[str, Any]:
    """The part of a recipe's data section that names text and tokenizer: the pack's, or generated."""
    text, tokenizer = place.packed("text"), place.packed("tokenizer")
    if place.rehearse:
        return _tiny_text(place)
    if text is None:
        raise UserError("this phase needs text: give --pack DIR, made by pack with --text and unpacked")
    return {
        "paths": [str(path) for path in sorted((text / "train").iterdir())],
        "validation_paths": [str(path) for path in sorted((text / "validation").iterdir())],
        "tokenizer": str(tokenizer) if tokenizer else "bpe",
        "vocabulary_size": 50257,
    }


def _tiny_text(place: Place) -> dict[str, Any]:
    from tests.tiny_pretrained import write_documents

    folder = place.out / "text"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "validation.jsonl").exists():
        write_documents(folder, {"train": 150, "validation": 40}, length=60)
    return {
        "paths": [str(folder / "train.jsonl")],
        "validation_paths": [str(folder / "validation.jsonl")],
        "tokenizer": "bpe",
        "vocabulary_size": 300,
    }


def _tiny_model(place: Place) -> Path:
    from tests.tiny_pretrained import write_pretrained

    folder = place.out / "models" / "tiny"
    if not (folder / "model.safetensors").exists():
        write_pretrained(folder, Path(_tiny_text(place)["paths"][0]))
    return folder


def _tiny_skipping(place: Place, common: dict[str, Any]) -> dict[str, Any]:
    text = _tiny_text(place)
    return {
        **common,
        "skip": {"layers": [2, 3, 4, 5], "router_layer": 2, "rank": 4, "sink_tokens": 1},
        "start": {"tokens_statistics": 512, "tokens_selection": 128, "tokens_search": 128},
        "adapt": {"lora_rank": 2},
        "data": {"source": "files", "paths": text["paths"], "sequence_length": 32, "kinds": {}},
        "train": {**common["train"], **_TINY_TRAIN, "threshold_tokens": 256},
    }


PHASES: dict[str, Callable[[Place], list[Step]]] = {
    "tests": tests,
    "kernels": kernels,
    "inference": inference,
    "original": original,
    "skipping": skipping,
}
