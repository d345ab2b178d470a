"""The entries of a comparison, each with the jobs behind it where it was measured here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from numpy import bool_
from numpy.typing import NDArray
from pydantic import Field
from sqlalchemy import Engine, select
from sqlalchemy.orm import lazyload

from dkl.catalog import RECIPES
from dkl.flags import Flags, unpack
from service.db import reading
from service.leaderboard import entry
from service.rows import Row
from service.standings import standings
from service.tables import Job

FEWEST, MOST = 2, 6
EntryName = Annotated[str, Field(max_length=200)]


class ComparisonError(ValueError):
    """So many entries, or the same one twice, are no comparison; the message says what to ask for."""


@dataclass(frozen=True)
class Contender:
    """One entry of a comparison."""

    label: str
    """Its place as a letter: "A" is the first."""
    row: Row
    evaluation: Job | None
    """Where it was measured here."""
    training: Job | None
    """The training or import whose model was judged, if one was."""

    @property
    def result(self) -> Mapping[str, Any] | None:
        return self.evaluation.result if self.evaluation else None

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """How the model was made: by the job here, or by the named recipe that the published row is about."""
        if self.training:
            return self.training.recipe
        named = RECIPES.get(self.row.recipe or "")
        return named.recipe.model_dump(mode="json") if named else None

    @cached_property
    def flags(self) -> Flags | None:
        """Absent for published entries, and for evaluations older than flags in results."""
        kept = (self.result or {}).get("flags")
        return Flags.model_validate(kept) if kept else None

    @cached_property
    def clean(self) -> NDArray[bool_] | None:
        """(N,): classified correctly without an attack, in ascending order of the images' positions."""
        return unpack(self.flags.clean, self._images) if self.flags else None

    @cached_property
    def robust(self) -> NDArray[bool_] | None:
        """(N,): stands at threat.eps; in the same order."""
        return unpack(self.flags.robust, self._images) if self.flags else None

    @property
    def _images(self) -> int:
        assert self.row.images is not None  # of an evaluation with flags
        return self.row.images


def contenders(db: Engine, names: Sequence[str]) -> list[Contender]:
    """The entries called `names`, in that order. ComparisonError unless they are 2 to 6 different ones, and
    UnknownEntryError where a leaderboard has none of a name."""
    if not FEWEST <= len(names) <= MOST:
        raise ComparisonError(f"a comparison is of {FEWEST} to {MOST} entries, found {len(names)}")
    boards = standings(db)
    rows = [boards.find(name) or entry(db, name) for name in names]
    known = [row.entry for row in rows]
    if twice := [name for at, name in enumerate(known) if name in known[:at]]:
        raise ComparisonError(f"entry {twice[0]!r} is named twice; name another one, or leave it out")
    ids = {job_id for row in rows for job_id in (row.job_id, row.model_job_id) if job_id}
    with reading(db) as session:
        found = session.scalars(select(Job).where(Job.id.in_(ids)).options(lazyload("*")))
        jobs = {job.id: job for job in found}
    return [
        Contender(label, row, jobs.get(row.job_id or ""), jobs.get(row.model_job_id or ""))
        for label, row in zip("ABCDEF", rows, strict=False)
    ]
