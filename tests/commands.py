"""The command line in this process, where a test is not about processes: torch need not be loaded for each."""

from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Answer]
"""dklbench with these words; what the fixture `dklbench` of tests/integration/conftest.py is."""
