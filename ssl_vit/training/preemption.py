"""Signals to stop: save at the next step boundary on all ranks, then hand the signal back.

The scheduler's warning (SIGUSR2), its termination signal (SIGTERM) and the first Ctrl-C only set a
flag. A second Ctrl-C exits at once. submitit's own handler would requeue from rank 0 in the middle
of a step; ours replaces it and calls it when everything is on disk.
"""

import os
import signal
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

EXIT_SAVED = 75
"""Exit code of a run that was stopped by a signal and can be resumed (EX_TEMPFAIL in
sysexits.h).
"""


class Preemption:
    """A context in which signals to stop are remembered instead of acted on.

    Args:
        is_first: Whether this rank hands the signal back.
    """

    def __init__(self, is_first: bool) -> None:
        self.is_first = is_first
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._interrupted = 0.0

    def __enter__(self) -> "Preemption":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        # A launcher may have blocked signals until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether this rank received a signal to stop; the ranks have to agree on stopping."""
        return self.received is not None

    def hand_back(self) -> None:
        """Pass the signal to its previous handler (submitit requeues), on the first rank only."""
        if self.received is None or not self.is_first:
            return
        previous = self._previous.get(self.received)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(self.received, None)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # A launcher repeats the terminal's Ctrl-C within moments; a person takes longer.
        if number == signal.SIGINT and now - self._interrupted > 1.0:
            if self._interrupted > 0.0:
                os._exit(130)
            self._interrupted = now
        # SIGTERM may follow the scheduler's warning while we save; the warning is handed back,
        # because only it requeues.
        if self.received is None or number == signal.SIGUSR2:
            self.received = number


def outlive_signals_in_worker(worker: int) -> None:
    """Make a data worker ignore signals to stop, because it is needed until the run has saved.

    Workers end with the loader, or a minute after a SIGTERM, whichever comes first.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(60))
