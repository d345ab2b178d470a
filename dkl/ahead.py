"""The next batch is read in the background while this one is trained on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Read = TypeVar("Read")


class Ahead(Generic[Read]):
    """What `read(epoch, index)` returns, asked for one batch before it is needed.

    `read` is a function of its arguments alone, so a wrong guess of what comes next costs time and nothing else.
    The thread ends with this object; at the end of the process at most two batches are waited for.
    """

    def __init__(self, read: Callable[[int, int], Read], *, batches: int) -> None:
        self._read = read
        self._batches = batches
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._next: tuple[tuple[int, int], Future[Read]] | None = None

    def get(self, epoch: int, index: int) -> Read:
        """The batch `index` of `epoch`; what `read` raised for it is raised here."""
        if self._next is not None and self._next[0] == (epoch, index):
            wanted = self._next[1]
        else:
            if self._next is not None:
                self._next[1].cancel()
            wanted = self._thread.submit(self._read, epoch, index)
        following = (epoch, index + 1) if index + 1 < self._batches else (epoch + 1, 0)
        self._next = (following, self._thread.submit(self._read, *following))
        return wanted.result()
