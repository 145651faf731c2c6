import os
import signal
from types import SimpleNamespace

import pytest

from layerroute.training.signals import Interrupted, Interruption, InterruptionCallback


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_the_loop_ends_at_once(number, code) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, Interruption():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code
    assert str(caught.value) == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_in_the_loop_the_step_is_finished_and_saved_first() -> None:
    with Interruption() as interruption:
        callback = InterruptionCallback(interruption)
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        callback.on_train_begin(None, None, control)
        callback.on_step_end(None, None, control)
        assert not control.should_save
        os.kill(os.getpid(), signal.SIGTERM)
        callback.on_step_end(None, None, control)
        assert control.should_save
        assert control.should_training_stop
        assert interruption.signal_number == signal.SIGTERM


def test_a_second_signal_does_not_wait() -> None:
    with Interruption() as interruption:
        interruption.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
