"""What `dklbench doctor` found: one line each, with a way out where something is wrong."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "info", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    level: Level
    """error: it does not work, or not safely. warning: somebody should know. info: worth knowing."""
    check: str
    says: str
    fix: str = ""
    """What to do about it."""

    @property
    def bad(self) -> bool:
        return self.level == "error"
