"""Sweeps whose points are drawn: Optuna's samplers over the keys of a study file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import Trial

from layerroute.studies.configuration import RangeConfig, SweepConfig

_PLAIN = (bool, int, float, str, type(None))


def make_sampler(sweep: SweepConfig, begun: int) -> optuna.samplers.BaseSampler:
    """The sampler of the trial before which ``begun`` others were begun.

    It is seeded with that number, so that no two workers draw alike, and one worker alone always draws the same.
    """
    seed = sweep.seed + begun
    if sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if sweep.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.NSGAIISampler(seed=seed)


def draw(trial: Trial, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key for a trial; a trial that is tried again gets the values that it had."""
    return {key: _one(trial, key, values) for key, values in keys.items()}


def _one(trial: Trial, key: str, values: list[Any] | RangeConfig) -> Any:
    if isinstance(values, list):
        if all(isinstance(value, _PLAIN) for value in values):
            return trial.suggest_categorical(key, values)
        # Optuna's categories are plain values: a list (a layer pattern, say) travels as JSON.
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in values]))
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(key, values.low, values.high, log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)
