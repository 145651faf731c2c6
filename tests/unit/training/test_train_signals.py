import os
import signal

import pytest

from layerroute.training.signals import Interrupted, Interruption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_the_loop_ends_at_once(number, code) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, Interruption():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code
    assert str(caught.value) == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait() -> None:
    with Interruption() as interruption:
        interruption.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
