"""Calibrations are made once, and a damaged one is made anew."""

import pytest

from layerroute.skipping.calibration import arm_folder, cached_calibration, folders, save_routed
from layerroute.skipping.storage import read_router
from tests.parity.skipping_models import plain, routed
from tests.unit.skipping.calibration.tiny_calibration import config, ids


@pytest.mark.parametrize("arm", ["routed", "random"])
def test_a_calibration_is_made_once_and_anew_where_a_byte_of_it_differs(arm, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path))
    made = []
    whole = folders.fit_arms
    monkeypatch.setattr(
        folders, "fit_arms", lambda *args, **options: made.append(1) or whole(*args, **options)
    )
    model, asked = plain(), config()

    def folder(settings=asked):
        return cached_calibration(model, settings, statistics=ids(8), selection=ids(8, seed=3))

    path = arm_folder(folder(), arm) / "router.safetensors"
    before = path.read_bytes()
    assert folder() == folder() and len(made) == 1 and not caplog.text
    assert folder(config(budget=0.4)) != folder() and len(made) == 2
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert arm_folder(folder(), arm) / "router.safetensors" == path and len(made) == 3
    assert "is damaged" in caplog.text and path.name in caplog.text
    assert path.read_bytes() == before


@pytest.mark.parametrize("replaces", [True, False])
def test_a_router_is_not_served_with_what_belonged_to_the_one_before(replaces, tmp_path):
    model, others = routed(), [tmp_path / name for name in ("controls", "tokenizer")]
    if replaces:
        save_routed(model, tmp_path, notes={})
    for folder in others:
        folder.mkdir()
    save_routed(model, tmp_path, notes={})
    assert [folder.exists() for folder in others] == [not replaces] * 2
    assert read_router(tmp_path).notes == {"arm": "routed"}
