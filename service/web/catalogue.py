"""The named recipes as a list to choose from: searched, in groups, with what running one took here."""

from collections.abc import Mapping
from functools import cache
from itertools import groupby
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine, select

from dkl.architectures import show_model
from dkl.catalog import RECIPES, Named
from dkl.datasets import show_name
from dkl.protocols import CorruptionProtocol
from dkl.recipes import Distillation, Fit, Train
from service.db import reading
from service.tables import Job

_LOOKED_AT = 300
"""Jobs in which the last run of a recipe is looked for, the newest ones."""


class Wanted(BaseModel):
    """Which recipes to list."""

    model_config = ConfigDict(frozen=True)

    search: Annotated[str, Field(max_length=100)] = ""
    """Words that have to be in its name, its description, its method or its network."""
    kind: Literal["", "train", "distill", "evaluate", "corruptions"] = ""
    dataset: Annotated[str, Field(max_length=100)] = ""


class LastRun(NamedTuple):
    """The last time that a recipe ran through here without changes."""

    job_id: str
    seconds: float


class Row(NamedTuple):
    name: str
    entry: Named
    method: str
    """What comes before the data set in its name: "trades-awp"."""
    network: str
    """Empty for an evaluation."""
    threat: str
    """Empty where there is none."""
    last: LastRun | None


class Group(NamedTuple):
    title: str
    anchor: str
    trains: bool
    rows: list[Row]

    @property
    def size(self) -> int:
        return len(self.rows)


DATASETS: tuple[str, ...] = tuple(dict.fromkeys(entry.recipe.dataset for entry in RECIPES.values()))
"""Those that recipes are about."""


def groups(db: Engine, wanted: Wanted) -> list[Group]:
    """The recipes that are wanted, by data set and then by what they do, each group in the catalogue's order."""
    lasts = _last_runs(db)
    rows = [row_of(name, entry, lasts.get(name)) for name, entry in RECIPES.items()]
    found = sorted((row for row in rows if _fits(row, wanted)), key=place_of)
    return [_titled([*some]) for _, some in groupby(found, place_of)]


def place_of(row: Row) -> tuple[int, int]:
    """Where its group stands in the list: by data set, then by what it does."""
    recipe = row.entry.recipe
    return DATASETS.index(recipe.dataset), _DOES.index(_does(recipe))


def _titled(rows: list[Row]) -> Group:
    recipe = rows[0].entry.recipe
    return Group(title_of(rows[0]), f"{recipe.dataset}-{_does(recipe)}", isinstance(recipe, Fit), rows)


def title_of(row: Row) -> str:
    """Of the group that it belongs to: "CIFAR-10, training"."""
    return f"{show_name(row.entry.recipe.dataset)}, {_does(row.entry.recipe)}"


_DOES = ("training", "distillation", "evaluation")


def _does(recipe: object) -> str:
    match recipe:
        case Train():
            return "training"
        case Distillation():
            return "distillation"
        case _:
            return "evaluation"


def row_of(name: str, entry: Named, last: LastRun | None = None) -> Row:
    recipe = entry.recipe
    method = name.partition(f"-{recipe.dataset}")[0]
    threat = "common corruptions" if isinstance(recipe, CorruptionProtocol) else str(recipe.threat or "")
    return Row(name, entry, method, show_model(recipe.model) if isinstance(recipe, Fit) else "", threat, last)


def _fits(row: Row, wanted: Wanted) -> bool:
    recipe = row.entry.recipe
    text = " ".join([row.name, row.entry.about, row.network, row.threat, show_name(recipe.dataset)]).casefold()
    return (
        wanted.kind in {"", recipe.kind}
        and wanted.dataset in {"", recipe.dataset}
        and all(word in text for word in wanted.search.casefold().split())
    )


# --- what it takes ----------------------------------------------------------------------------------------


def _last_runs(db: Engine) -> dict[str, LastRun]:
    """By the recipe's name."""
    ended = select(Job.id).where(Job.status == "succeeded", Job.name.in_(RECIPES), Job.started_at.is_not(None))
    newest = ended.order_by(Job.finished_at.desc()).limit(_LOOKED_AT)
    ran = select(Job.id, Job.name, Job.recipe, Job.started_at, Job.finished_at).where(Job.id.in_(newest))
    found: dict[str, LastRun] = {}
    with reading(db) as session:
        for job_id, name, recipe, started, finished in session.execute(ran.order_by(Job.finished_at.desc())):
            if name not in found and _is_unchanged(name, recipe):
                found[name] = LastRun(job_id, finished - started)
    return found


def _is_unchanged(name: str, recipe: Mapping[str, Any]) -> bool:
    """Whether it is the catalogue's, whatever model it judges and whatever its seed is."""
    return all(recipe.get(field) == value for field, value in _named(name).items() if field != "seed")


@cache
def _named(name: str) -> dict[str, Any]:
    return RECIPES[name].recipe.model_dump(mode="json")
