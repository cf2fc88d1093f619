"""Signals become flags, and go back to whoever handled them before."""

import os
import signal

from ssl_vit.training.preemption import Preemption


def test_a_signal_is_remembered_and_handed_back_to_the_handler_before():
    calls: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    try:
        with Preemption(is_first=True) as preemption:
            assert not preemption.requested
            os.kill(os.getpid(), signal.SIGUSR2)
            assert preemption.requested
            assert calls == []
            preemption.hand_back()
        assert calls == [signal.SIGUSR2]
        os.kill(os.getpid(), signal.SIGUSR2)
        assert len(calls) == 2
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_schedulers_warning_is_what_goes_back_when_its_end_follows():
    calls: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: calls.append(number))
        for number in (signal.SIGUSR2, signal.SIGTERM)
    }
    try:
        with Preemption(is_first=True) as preemption:
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGTERM)
            preemption.hand_back()
        assert calls == [signal.SIGUSR2]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_only_the_first_rank_hands_back():
    calls: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    try:
        with Preemption(is_first=False) as preemption:
            os.kill(os.getpid(), signal.SIGUSR2)
            preemption.hand_back()
        assert calls == []
    finally:
        signal.signal(signal.SIGUSR2, before)
