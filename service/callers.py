"""Who asks for something: a key, somebody without one, the command line on this machine, or the service itself."""

from dataclasses import dataclass
from typing import Literal

Scope = Literal["nothing", "leaderboard", "read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = ("nothing", "leaderboard", "read", "submit", "admin")
"""Each includes those before it."""


@dataclass(frozen=True)
class Caller:
    name: str
    """For the history and the audit log: "anna (0a1b2c3d4e5f)", "anonymous", "command line"."""
    scope: Scope
    key_id: str | None = None
    address: str | None = None
    request_id: str | None = None

    def may(self, scope: Scope) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def owns(self, key_id: str | None) -> bool:
        """Whether they may change what was made with this key; what was made without one is everybody's."""
        return self.may("admin") or key_id in {None, self.key_id}


COMMAND_LINE = Caller("command line", "admin")
"""Whoever may read the data directory or the database's password owns the installation."""
ANONYMOUS = Caller("anonymous", "submit")
"""Somebody without a key, where none is needed."""
