"""Run directories as `layerroute train` leaves them, made up but realistic, for the tests of analysis and report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from layerroute.records import write_record

HIDDEN, CONTEXT, VOCABULARY = 128, 256, 4096
MIXER = {"gdn": 5 * HIDDEN * HIDDEN, "softmax": 4 * HIDDEN * HIDDEN}
MLP = 8 * HIDDEN * HIDDEN
STATIC = ["gdn", "gdn", "gdn", "softmax"]
ROUTED = ["gdn", "routed", "routed", "softmax"]
SENTENCES = (
    ["def", " read", "_", "record", "(", "path", ")", ":", "\n", "    ", "return", " json", ".", "load", "(", ")"],
    ["#", " The", " cat", " sat", " on", " the", " mat", ",", " 42", " times", "."],
    ["<script>", "alert", "(", "'", "x", "'", ")", "</script>", " &", " \"", "quoted", "\""],
    [" $", "a", "^", "2", "$", "\t", "naïve", " Σ", "\u4e2d", "\u200b", "%s", "|", "*", "`"],
    ["for", " i", " in", " range", "(", "10", ")", ":", "\n", "        ", "total", " +=", " values", "[", "i", "]"],
    ["class", " Error", "(", "Exception", ")", ":", "\n", "    ", '"""', "Raised", " when", " a", " key", " is"],
    ["import", " os", ",", " sys", "\n", "from", " pathlib", " import", " Path"],
    ["if", " not", " isinstance", "(", "value", ",", " str", ")", ":", "\n", "    ", "raise", " Type", "Error"],
)  # fmt: skip


def record(
    arm: str,
    seed: int = 42,
    *,
    pattern: list[str] | None = None,
    rates: dict[str, float] | None = None,
    control: str | None = None,
    loss: float = 4.1,
    learning_rate: float = 1e-3,
    status: str = "completed",
    extra_parameters: int = 0,
    fingerprint: str = "5f2c9e0a1b3d",
    steps: int = 200,
    heads: int = 1,
    executed: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A record of one run. ``rates`` by site makes it routed; ``changes`` replace top-level keys.

    ``executed``: FLOPs a token; default: what the made-up model needs, so that arms of other layers are unequal.
    """
    pattern = pattern or (ROUTED if rates else STATIC)
    kinds = [("gdn", "softmax") if kind == "routed" else (kind,) for kind in pattern]
    parameters = {
        "embeddings": VOCABULARY * HIDDEN,
        "gdn": sum(MIXER["gdn"] for paths in kinds if "gdn" in paths),
        "softmax": sum(MIXER["softmax"] for paths in kinds if "softmax" in paths),
        "mlp": MLP * len(pattern) + extra_parameters,
        "router": 2 * HIDDEN * pattern.count("routed") if rates and not control else 0,
        "head": VOCABULARY * HIDDEN,
    }
    path_flops = {
        "gdn": 2.0 * MIXER["gdn"] + 9000,
        "softmax": 2.0 * MIXER["softmax"] + 4 * HIDDEN * CONTEXT / 2,
    }
    flops = {
        "gdn": path_flops["gdn"] * sum("gdn" in paths for paths in kinds),
        "softmax": path_flops["softmax"] * sum("softmax" in paths for paths in kinds),
        "mlp": 2.0 * (MLP * len(pattern) + extra_parameters),
        "router": 2.0 * parameters["router"],
        "head": 2.0 * parameters["head"],
    }
    forward = sum(flops.values())
    routed = forward
    routing = None
    if rates:
        by_layer: dict[str, list[float]] = {}
        for site, rate in rates.items():
            by_layer.setdefault(site.split(".")[0], []).append(rate)
        for layer in by_layer.values():
            rate = sum(layer) / len(layer)
            routed -= (1 - rate) * path_flops["softmax"] + rate * path_flops["gdn"]
        routing = {
            "sites": list(rates),
            "paths": ["gdn", "softmax"],
            "expensive_path": "softmax",
            "rate": rates,
            "entropy": {site: entropy(rate) for site, rate in rates.items()},
            "token_entropy": {site: 0.9 * entropy(rate) for site, rate in rates.items()},
            "mean_rate": sum(rates.values()) / len(rates),
            "balance_loss": None
            if control
            else 1.0 + sum((r - 0.5) ** 2 * 4 for r in rates.values()) / len(rates),
            "tokens": 65536,
            "router": "parallel",
            "control": control,
            "causal": True,
            "context": "full_context",
            "estimator": None if control else "gumbel_st",
        }
    model = {
        "hidden_size": HIDDEN,
        "layer_pattern": pattern,
        "num_attention_heads": 4,
        "mlp_ratio": 4,
        "router_mode": "parallel",
        "granularity": "head" if heads > 1 else "token",
        "context": "full_context",
        "routing": {
            "router": "linear",
            "estimator": "gumbel_st",
            "control": control,
            "rate": 0.5,
            "budget": "none",
        },
        "intermediate_size": 352 + extra_parameters // 1000,
    }
    seconds = 60.0 + 25.0 * pattern.count("routed") + seed % 7
    found = {
        "schema": 1,
        "run": f"{arm}-seed{seed}",
        "arm": arm,
        "capability": "attention_routing",
        "seed": seed,
        "status": status,
        "error": None,
        "command": f"layerroute train recipes/attention_routing/cpu/{arm}.yaml --seed {seed}",
        "started": "2025-01-01T10:00:00+00:00",
        "finished": "2025-01-01T10:02:00+00:00" if status == "completed" else None,
        "recipe": {
            "name": arm,
            "capability": "attention_routing",
            "seed": seed,
            "model": model,
            "data": {"source": "python-stdlib", "tokenizer": "bpe", "sequence_length": CONTEXT},
            "train": {"max_steps": steps, "batch_size": 8, "learning_rate": learning_rate},
            "objective": {
                "balance_weight": 0.01 if rates and not control else 0.0,
                "temperature": {"start": 1.0, "end": 0.5, "begin": 0.0, "finish": 1.0},
            },
        },
        "metrics": {
            "validation_loss": loss,
            "validation_perplexity": math.exp(loss),
            "validation_accuracy": 0.5 - 0.07 * loss,
            "best_validation_loss": loss - 0.002,
            "best_step": steps - 20,
            "train_loss": loss - 0.1,
            "bigram_loss": 4.9871,
            "steps": steps,
        },
        "curves": "curves.jsonl",
        "token_routes": "token_routes.json" if rates else None,
        "routing": routing,
        "flops": {
            "forward_per_token": forward,
            "routed_per_token": routed,
            "by_part": flops,
            "by_path": path_flops,
            "executed_per_token": routed * 1.003 if executed is None else executed,
            "context_length": CONTEXT,
        },
        "timing": {
            "train_seconds": seconds,
            "tokens_per_second": steps * 8 * 256 / seconds,
            "evaluation_seconds": 3.2,
        },
        "parameters": {"total": sum(parameters.values()), "trainable": sum(parameters.values()), "by_part": parameters},
        "data": {
            "source": "python-stdlib",
            "fingerprint": fingerprint,
            "tokenizer": "bpe",
            "vocabulary_size": VOCABULARY,
            "train_tokens": 4_210_533,
            "validation_tokens": 468_120,
        },
        "tokens_seen": steps * 8 * 256,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "layerroute": "0.1.0"},
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "hardware": {
            "cpu": "Example CPU @ 2.1 GHz",
            "cores": 2,
            "memory_gib": 23.4,
            "accelerator": None,
            "platform": "Linux-6.1-x86_64-with-glibc2.36",
        },
    }  # fmt: skip
    if status != "completed":
        found |= {
            "error": "non-finite loss at step 120; last good checkpoint: checkpoint-100",
            "routing": None,
            "token_routes": None,
            "metrics": {**found["metrics"], "validation_loss": 5.9, "steps": 120},
        }
    return found | changes


def entropy(rate: float) -> float:
    """Entropy in nats of a choice between two paths."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)


def write_run(folder: Path, content: dict[str, Any]) -> Path:
    """Write ``content`` with curves and token routes that fit it to ``folder``."""
    write_record(folder, content)
    if content.get("curves"):
        lines = [json.dumps(point) for point in _curves(content)]
        (folder / content["curves"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if content.get("token_routes"):
        (folder / content["token_routes"]).write_text(json.dumps(_token_routes(content)), encoding="utf-8")
    return folder


def make_run(root: Path, arm: str, seed: int = 42, **settings: Any) -> Path:
    """A run directory below ``root``, named as the run."""
    content = record(arm, seed, **settings)
    return write_run(root / content["run"], content)


def sites(*rates: float, layer: int = 1) -> dict[str, float]:
    """Rates of consecutive layers from ``layer`` on, by site name."""
    return {f"layer{layer + index}.mixer": rate for index, rate in enumerate(rates)}


def _noise(content: dict[str, Any]) -> np.random.Generator:
    return np.random.default_rng([content["seed"], *content["arm"].encode()])


def _curves(content: dict[str, Any]) -> list[dict[str, Any]]:
    noise, final = _noise(content), content["metrics"].get("validation_loss", 5.9)
    train = {"max_steps": 200, "learning_rate": 1e-3} | content["recipe"].get("train", {})
    steps = train["max_steps"]
    stop = steps if content["status"] == "completed" else content["metrics"].get("steps", 120)
    rates = (content["routing"] or {}).get("rate", {})
    learned = bool(rates) and not content["routing"]["control"]
    floor, top = final - 0.15, math.log(VOCABULARY)
    points = []
    for step in range(0, stop + 1, 5):
        share = step / steps
        loss = floor + (top - floor) * (0.85 * math.exp(-9 * share) + 0.15 * math.exp(-1.5 * share))
        loss *= (final / (floor + (top - floor) * (0.85 * math.exp(-9) + 0.15 * math.exp(-1.5)))) ** share
        routing = {}
        for site, rate in rates.items():
            now = rate + (0.5 - rate) * math.exp(-4 * share) if learned else rate
            now = min(max(now + (0.02 * noise.standard_normal() if learned else 0), 0.0), 1.0)
            routing |= {f"rate/{site}": now, f"entropy/{site}": entropy(now)}
        if step:
            point = {"step": step, "split": "train", "lm_loss": loss + 0.05 * noise.standard_normal()}
            if learned:
                mean = sum(v for k, v in routing.items() if k.startswith("rate/")) / len(rates)
                point["balance_loss"] = 1 + 4 * (mean - 0.5) ** 2 + 0.002 * abs(noise.standard_normal())
                point["temperature"] = 1.0 - 0.5 * share
            point["loss"] = point["lm_loss"] + 0.01 * point.get("balance_loss", 0.0)
            warm = min(1.0, 10 * share)
            point["learning_rate"] = train["learning_rate"] * min(warm, 1 - share)
            points.append(point | routing)
        if step and step % 20 == 0:
            value = final if step == steps else loss + 0.01 * noise.standard_normal()
            points.append(
                {"step": step, "split": "validation", "loss": value, "perplexity": math.exp(value),
                 "accuracy": max(0.0, 0.5 - 0.07 * value)} | routing
            )  # fmt: skip
    return points


def _token_routes(content: dict[str, Any]) -> dict[str, Any]:
    noise, rates = _noise(content), list(content["routing"]["rate"].values())
    sentences = []
    for tokens in SENTENCES:
        probability = []
        for token in tokens:
            lean = 0.25 if token.strip().isalpha() else -0.25
            probability.append(
                [float(np.clip(noise.normal(rate + lean, 0.12), 0.01, 0.99)) for rate in rates]
            )
        choice = [[int(p > 0.5) for p in row] for row in probability]
        sentences.append({"tokens": tokens, "choice": choice, "probability": probability})
    return {
        "sites": list(rates and content["routing"]["rate"]),
        "paths": ["gdn", "softmax"],
        "sentences": sentences,
    }


def sample_study(root: Path, seeds: tuple[int, ...] = (42, 43, 44)) -> Path:
    """A study with a baseline, two dynamic arms, three controls and a failed run, below ``root``; all of equal cost."""
    equal: dict[str, Any] = {"executed": 2.83e6, "command": "layerroute study study.yaml"}
    for index, seed in enumerate(seeds):
        drift = 0.012 * index
        make_run(root, "baseline", seed, loss=4.112 + drift, **equal)
        make_run(
            root,
            "baseline_matched",
            seed,
            loss=4.095 + drift + 0.004 * (index % 2),
            extra_parameters=131_584,
            **equal,
        )
        make_run(
            root, "dynamic", seed, loss=4.078 + drift + 0.003 * (-1) ** index, learning_rate=2e-3, **equal,
            rates=sites(0.52 - 0.01 * index, 0.34 + 0.02 * index),
        )  # fmt: skip
        make_run(
            root, "dynamic_strong_balance", seed, loss=4.084 + drift - 0.005 * (index % 2), learning_rate=2e-3, **equal,
            rates=sites(0.50, 0.49 - 0.01 * index),
        )  # fmt: skip
        make_run(
            root,
            "random",
            seed,
            loss=4.101 + drift + 0.002 * index**2,
            rates=sites(0.43, 0.43),
            control="random",
            **equal,
        )
    make_run(root, "all_softmax", seeds[0], pattern=["softmax"] * 4, loss=4.06, **equal)
    make_run(root, "periodic", seeds[0], rates=sites(0.43, 0.43), control="periodic", status="failed")
    return root
