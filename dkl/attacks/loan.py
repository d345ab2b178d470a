"""What an attack changes in the whole process, lent to it for as long as it runs and given back unchanged."""

import logging
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

import torch
from pyautoattack.checks import checks_doc_path
from torch import Tensor

SECONDS_PER_TURN = 0.25

T = TypeVar("T")
R = TypeVar("R")


class Loan:
    """torch's random generators, Python's warning filters and pyautoattack's logger, one turn after the other.

    The borrower's random numbers go on from turn to turn; for the first they start from `seed`. One borrower per
    process at a time.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        self._states: list[Tensor] = []
        self._notes: list[str] = []

    @contextmanager
    def turn(self) -> Iterator[None]:
        with torch.random.fork_rng(self._devices), warnings.catch_warnings(record=True) as caught, self._logger():
            warnings.simplefilter("always")
            self._recall_random_states()
            try:
                yield
            finally:
                self._keep_random_states()
                self._notes += [str(warning.message) for warning in caught]

    def take_notes(self) -> list[str]:
        """What was logged and warned about since the last call, each sentence once."""
        notes, self._notes = self._notes, []
        return list(dict.fromkeys(notes))

    @contextmanager
    def _logger(self) -> Iterator[None]:
        logger = logging.getLogger("auto-attack")
        level = logger.level
        logger.setLevel(logging.WARNING)
        logger.addFilter(self._intercept)
        try:
            yield
        finally:
            logger.removeFilter(self._intercept)
            logger.setLevel(level)

    def _intercept(self, record: logging.LogRecord) -> bool:
        self._notes.append(record.getMessage().removesuffix(f" See {checks_doc_path} for details."))
        return False  # goes no further

    def _recall_random_states(self) -> None:
        if not self._states:
            torch.manual_seed(self.seed)
            return
        torch.set_rng_state(self._states[0])
        for device, state in zip(self._devices, self._states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def _keep_random_states(self) -> None:
        self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]


def by_turns(work: Generator[T, None, R], loan: Loan) -> Generator[T, None, R]:
    """`work` with a yield a few times per second, of its latest; it has what `loan` lends while it computes.

    A model may draw random numbers or warn; that is the loan's reason.
    """
    try:
        while True:
            with loan.turn():
                ends = perf_counter() + SECONDS_PER_TURN
                try:
                    latest = next(work)
                    while perf_counter() < ends:
                        latest = next(work)
                except StopIteration as end:
                    return end.value
            yield latest
    finally:
        work.close()
