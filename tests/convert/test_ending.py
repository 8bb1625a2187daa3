"""Signals that end a command, as exceptions that let it clean up."""

from __future__ import annotations

import os
import signal

import pytest

from renderkiln.worker.convert.ending import signals_as_ctrl_c


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_within_a_signal_is_a_keyboard_interrupt_and_afterwards_what_it_was(
    told: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(told)
    with pytest.raises(KeyboardInterrupt), signals_as_ctrl_c("all is kept"):
        os.kill(os.getpid(), told)
    assert signal.getsignal(told) is before
    assert capsys.readouterr().err == "interrupted: all is kept\n"


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_ctrl_c("all is kept"):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
