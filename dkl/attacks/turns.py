"""A blocking computation that takes turns with its caller: a generator for code that cannot yield.

The computation runs in a thread of its own and calls `pause` often. Four times per second `pause` blocks it until
the caller wants more, so exactly one of the two runs at any time. What is global in the process (random
generators, warning filters) can therefore be lent to the computation for its turn and taken back after it.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, suppress
from queue import SimpleQueue
from time import monotonic

SECONDS_PER_TURN = 0.25

Pause = Callable[[], None]
Lend = Callable[[], AbstractContextManager[None]]


class Stopped(BaseException):
    """Ends a computation that nobody waits for any more. Not an Exception: none must swallow it."""


def in_turns(compute: Callable[[Pause], None], lend: Lend) -> Generator[None, None, None]:
    """Run `compute(pause)`: yields whenever it has paused, ends when it has returned, raises what it raised.

    `lend()` is entered for each of its turns. Closing the iterator ends the computation at its next pause.
    """
    computation = _Computation(compute)
    computation.start()
    try:
        while computation.take_turn(lend):
            yield
    finally:
        computation.stop()


class _Computation(threading.Thread):
    def __init__(self, compute: Callable[[Pause], None]) -> None:
        super().__init__(name="attack", daemon=True)  # daemon: a forgotten one must not keep the process alive
        self._compute = compute
        self._go_on: SimpleQueue[bool] = SimpleQueue()
        self._paused: SimpleQueue[bool] = SimpleQueue()
        self._turn_ends = 0.0
        self._error: BaseException | None = None

    def take_turn(self, lend: Lend) -> bool:
        """In the caller's thread: let the computation run until it pauses (True) or is over (False)."""
        with lend():
            self._go_on.put(True)
            try:
                paused = self._paused.get()
            except BaseException:  # Ctrl-C while the computation runs: end it before its loan ends
                self.stop()
                raise
        if self._error is not None:
            raise self._error
        return paused

    def stop(self) -> None:
        self._go_on.put(False)
        self.join()

    def run(self) -> None:
        try:
            with suppress(Stopped):  # nobody waits for what it would have computed
                self._wait_for_turn()
                self._compute(self._pause)
        except BaseException as error:  # raised again where the caller waits
            self._error = error
        finally:
            self._paused.put(False)

    def _pause(self) -> None:
        if monotonic() >= self._turn_ends:
            self._paused.put(True)
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        if not self._go_on.get():
            raise Stopped
        self._turn_ends = monotonic() + SECONDS_PER_TURN
