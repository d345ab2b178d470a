"""Out of memory: fewer images pass the model at once, and the work goes on."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from dkl.events import Adjusted

T = TypeVar("T")

FULL = (torch.OutOfMemoryError, MemoryError, RuntimeError)
"""What may be raised where memory is full; see `out_of_memory`."""


def out_of_memory(error: Exception) -> str | None:
    """What was asked for in vain, in a few words; None where `error` is about something else."""
    full = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not full and "can't allocate memory" not in str(error):  # a CPU says it so
        return None
    return str(error).partition("\n")[0].strip() or type(error).__name__


@contextmanager
def required(what: str) -> Iterator[None]:
    """Where memory is full inside, MemoryError says that `what` does not fit."""
    try:
        yield
    except FULL as error:
        if (said := out_of_memory(error)) is None:
            raise
        raise MemoryError(f"{what} does not fit into memory ({said}); take a smaller model") from None


class Room:
    """How many images pass the model at once; fewer every time that memory is full."""

    def __init__(self, images: int) -> None:
        self.images = images
        self._adjusted: list[Adjusted] = []

    def halve(self, tried: int, said: str, where: str) -> None:
        """`tried` images were too many: `where` begins again with half of them. MemoryError where it was one.

        To be called when the error is gone: until then its traceback holds what filled the memory.
        """
        if tried == 1:
            raise MemoryError(f"not even one image at a time fits into memory ({said}); take a smaller model")
        now = tried // 2
        self.images = min(self.images, now)
        sentence = f"{tried} images at once did not fit into memory ({said}); from {where} on {now} pass at a time"
        self._adjusted.append(Adjusted(sentence=sentence, micro_batch=now))
        gc.collect()  # a thread's error and the thread hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def fitting(self, images: int, where: str, work: Callable[[int], T]) -> T:
        """What `work` makes of so many images, or of as many as fit."""
        while True:
            try:
                return work(images)
            except FULL as error:
                if (said := out_of_memory(error)) is None:
                    raise
            self.halve(images, said, where)
            images //= 2

    def take_adjusted(self) -> tuple[Adjusted, ...]:
        """What was halved since the last call."""
        adjusted, self._adjusted = tuple(self._adjusted), []
        return adjusted
