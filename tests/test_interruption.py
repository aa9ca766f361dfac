"""SIGINT and SIGTERM: a stop at a safe point, or KeyboardInterrupt while waiting."""

import os
import signal
from collections.abc import Iterator

import pytest

from t5ts.interruption import interrupt_on_signals, stop_on_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _as_in_a_background_job() -> Iterator[None]:
    """A shell starts `command &` with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_one_that_waits_is_interrupted(number):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(KeyboardInterrupt), interrupt_on_signals():
        os.kill(os.getpid(), number)
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_one_that_works_is_asked_first_and_interrupted_by_ctrl_c_after_it(number):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun repeats it
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
