"""Progress, best model, record and last curve point."""

import io
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from layerroute.liveness import LOCK
from layerroute.training.callbacks import RunCallback
from layerroute.training.progress import ProgressCallback, describe, duration, rates
from layerroute.training.run_directory import RunDirectory
from layerroute.training.signals import Interruption


def state(step: int, **more) -> SimpleNamespace:
    return SimpleNamespace(**{"global_step": step, "max_steps": 20, "is_world_process_zero": True, **more})


def test_a_pipe_gets_one_plain_line_a_point() -> None:
    out = io.StringIO()
    callback = ProgressCallback(Console(file=out, width=40, highlight=False, markup=False, soft_wrap=True))
    callback.on_train_begin(None, state(0), None)
    logs = {"loss": 3.5, "lm_loss": 3.4, "rate/layer1.mixer": 0.25, "tokens_per_second": 1234.5}
    callback.on_step_end(None, state(10), None)
    callback.on_log(None, state(10), None, logs=logs)
    callback.on_log(
        None, state(10), None, logs={"eval_loss": 3.25, "eval_accuracy": 0.125, "eval_rate/layer1.mixer": 1.0}
    )
    callback.on_log(None, state(10), None, logs={"train_runtime": 1.0})
    callback.on_train_end(None, state(10), None)
    first, second = out.getvalue().splitlines()
    assert first.startswith("step 10/20  loss 3.5000  rate layer1.mixer 25%  1,234 tokens/s  ETA ")
    assert second == "step 10/20  validation loss 3.2500  accuracy 12.5%  rate layer1.mixer 100%"


def test_a_terminal_gets_a_bar_and_gets_its_cursor_back() -> None:
    out = io.StringIO()
    callback = ProgressCallback(Console(file=out, width=120, force_terminal=True))
    callback.on_train_begin(None, state(0), None)
    callback.on_log(None, state(5), None, logs={"loss": 3.5, "lm_loss": 3.4})
    callback.on_step_end(None, state(5), None)
    callback.close()
    callback.close()
    text = out.getvalue()
    assert "5/20" in text
    assert "loss 3.5000" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0


def test_many_sites_are_summed_up() -> None:
    logs = {f"rate/layer{index}.mixer": index / 10 for index in range(6)}
    assert rates(logs) == "  rate 25% (0%-50%, 6 sites)"
    assert rates({}) == ""
    assert [duration(seconds) for seconds in (7, 75, 3700)] == ["7s", "1m15s", "1h01m"]
    assert describe({}, None) == ""


ALONE = SimpleNamespace(world_size=1, device="cpu")
REACHED = {"eval_perplexity": 20.0, "eval_accuracy": 0.2}


def run_callback(folder: Path, **more) -> RunCallback:
    settings = {"seed": 0, "save_best": lambda path: None, "update": None, **more}
    return RunCallback(RunDirectory(folder), Interruption(), **settings)


def test_only_a_better_model_is_saved(tmp_path: Path) -> None:
    saved = []
    callback = run_callback(tmp_path, save_best=saved.append)
    for best, loss in ((None, 3.0), (3.0, 3.0), (3.0, 2.9), (2.9, float("nan"))):
        callback.on_evaluate(None, state(1, best_metric=best), None, metrics={"eval_loss": loss})
    assert saved == [tmp_path / "best"] * 2


def test_the_record_says_what_was_reached_so_far(tmp_path: Path) -> None:
    written = []
    callback = run_callback(tmp_path, update=written.append)
    for step, best, at, loss in ((5, None, None, 3.0), (10, 3.0, 5, 3.5)):
        now = state(step, best_metric=best, best_global_step=at)
        callback.on_evaluate(None, now, None, metrics={"eval_loss": loss, **REACHED})
    first, second = (update["metrics"] for update in written)
    assert (first["best_validation_loss"], first["best_step"], first["steps"]) == (3.0, 5, 5)
    assert (second["validation_loss"], second["best_validation_loss"], second["best_step"]) == (3.5, 3.0, 5)


def control() -> SimpleNamespace:
    return SimpleNamespace(
        should_log=False, should_save=False, should_evaluate=False, should_training_stop=False
    )


def test_the_last_step_is_a_curve_point(tmp_path: Path) -> None:
    callback, now = run_callback(tmp_path), control()
    assert not callback.on_step_end(ALONE, state(19), now).should_log
    assert callback.on_step_end(ALONE, state(20), now).should_log


def test_a_folder_that_is_gone_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    callback, now = run_callback(tmp_path, update=lambda sections: None), control()
    now.should_save = True
    callback.on_step_end(ALONE, state(3), now)
    (tmp_path / LOCK).unlink()
    with pytest.raises(FileNotFoundError, match="the folder of the run is gone"):
        callback.on_step_end(ALONE, state(4), now)


def test_every_step_is_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK).touch()
    os.utime(tmp_path / LOCK, (1, 1))
    reader, writer = run_callback(tmp_path), run_callback(tmp_path, update=lambda sections: None)
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    reader.on_step_end(ALONE, state(3), control())
    assert (tmp_path / LOCK).stat().st_mtime == 1, "a process that does not write touches nothing"
    writer.on_step_end(ALONE, state(3), control())
    assert (tmp_path / LOCK).stat().st_mtime > 1


def test_each_process_of_several_draws_noise_of_its_own(tmp_path: Path) -> None:
    drawn = []
    for processes, index in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(5)
        place = SimpleNamespace(world_size=processes, process_index=index, device="cpu")
        run_callback(tmp_path, seed=3).on_train_begin(place, None, None)
        drawn.append(float(torch.rand(())))
    torch.manual_seed(5)
    assert drawn[0] == float(torch.rand(())), "a process alone goes on with the run's own draw"
    assert len(set(drawn)) == 3


def test_after_training_a_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    callback = run_callback(tmp_path)
    callback.on_train_begin(ALONE, None, None)
    assert callback.interruption.deferred
    callback.on_train_end(ALONE, None, None)
    assert not callback.interruption.deferred


def test_a_signal_in_the_loop_lets_the_step_be_finished_and_saved_first(tmp_path: Path) -> None:
    callback = run_callback(tmp_path)
    with callback.interruption as interruption:
        callback.on_train_begin(ALONE, None, None)
        assert not callback.on_step_end(ALONE, state(1), control()).should_save
        os.kill(os.getpid(), signal.SIGTERM)
        told = callback.on_step_end(ALONE, state(2), control())
        assert told.should_save and told.should_training_stop
        assert interruption.signal_number == signal.SIGTERM
