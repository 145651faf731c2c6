"""Progress, best model, record and last curve point."""

import io
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from layerroute.training.callbacks import (
    BestModelCallback,
    FinalStepCallback,
    ProgressCallback,
    RecordCallback,
)
from layerroute.training.callbacks.wording import describe, duration, rates


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


def test_only_a_better_model_is_saved() -> None:
    saved = []
    callback = BestModelCallback(Path("best"), saved.append)
    callback.on_evaluate(None, state(1, best_metric=None), None, metrics={"eval_loss": 3.0})
    callback.on_evaluate(None, state(2, best_metric=3.0), None, metrics={"eval_loss": 3.0})
    callback.on_evaluate(None, state(3, best_metric=3.0), None, metrics={"eval_loss": 2.9})
    callback.on_evaluate(None, state(4, best_metric=2.9), None, metrics={"eval_loss": float("nan")})
    assert saved == [Path("best")] * 2


def test_the_record_says_what_was_reached_so_far() -> None:
    written = []
    callback = RecordCallback(written.append)
    metrics = {"eval_loss": 3.0, "eval_perplexity": 20.0, "eval_accuracy": 0.2}
    callback.on_evaluate(None, state(5, best_metric=None, best_global_step=None), None, metrics=metrics)
    callback.on_evaluate(
        None, state(10, best_metric=3.0, best_global_step=5), None, metrics={**metrics, "eval_loss": 3.5}
    )
    first, second = (update["metrics"] for update in written)
    assert (first["best_validation_loss"], first["best_step"], first["steps"]) == (3.0, 5, 5)
    assert (second["validation_loss"], second["best_validation_loss"], second["best_step"]) == (3.5, 3.0, 5)


def test_the_last_step_is_a_curve_point() -> None:
    control = SimpleNamespace(should_log=False)
    FinalStepCallback().on_step_end(None, state(19), control)
    assert not control.should_log
    FinalStepCallback().on_step_end(None, state(20), control)
    assert control.should_log
