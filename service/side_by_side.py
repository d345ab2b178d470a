"""What entries of a comparison have in common and what not: recipes, attack after attack, class by class."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from dkl.datasets import known_class_names
from service.contenders import Contender
from service.rows import Board
from service.wording import fields

Key = TypeVar("Key")
_NAMES_THE_MODEL = {"model.job"}
"""Of an evaluation: differs always, and says nothing about how it was judged."""


class FieldValues(BaseModel):
    """One field of several recipes, in the words of its override: "threat.eps", "8/255"."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    field: str
    values: list[str | None]
    """One per entry; absent where a recipe has no such field, or does not set it."""


class Recipes(BaseModel):
    """Recipes of one kind, field by field."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    entries: list[str]
    """Labels of the entries whose recipe is known."""
    different: list[FieldValues]
    same: list[FieldValues]


class StageCell(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    accuracy: float
    """Fraction of all images that stand after it."""
    phase: str
    """What the attack was for: "suite", "search", "recheck", ...; "corruption" where it was none."""


class StageRow(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    attack: str
    """"clean", the attack's kind, or the corruption."""
    eps: float
    """Radius in pixels; 0 for the clean pass and for corruptions."""
    cells: list[StageCell | None]
    """One per entry; absent where its evaluation had no such stage."""


class Stages(BaseModel):
    """Evaluations on one board, attack after attack, up to the board's radius; on a board of common corruptions
    the mean accuracy over the severities of each."""

    board: Board
    entries: list[str]
    rows: list[StageRow]


class ClassRow(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    number: int
    name: str
    accuracies: list[float | None]
    """One per entry; absent where its images have none of the class."""
    spread: float | None
    """The highest minus the lowest; absent where fewer than two are known."""


class Classes(BaseModel):
    """Accuracy class by class, of entries that can be compared."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    of: Literal["robust", "clean"]
    dataset: str
    board: Board | None
    """Of robust accuracies; clean ones are compared over all boards of a data set."""
    entries: list[str]
    rows: list[ClassRow]


def _merged(lists: Sequence[Sequence[Key]]) -> list[Key]:
    """Every key once; what a list has and those before it have not comes after what precedes it there."""
    merged: list[Key] = []
    for keys in lists:
        place = 0
        for key in keys:
            if key in merged:
                place = max(place, merged.index(key) + 1)
            else:
                merged.insert(place, key)
                place += 1
    return merged


# --- recipes ----------------------------------------------------------------------------------------------


def training_recipes(group: Sequence[Contender]) -> Recipes:
    """How the models were made."""
    return _recipes({one.label: one.recipe for one in group if one.recipe})


def evaluation_recipes(group: Sequence[Contender]) -> Recipes:
    """How they were judged."""
    return _recipes({one.label: one.evaluation.recipe for one in group if one.evaluation})


def _recipes(known: Mapping[str, Mapping[str, Any]]) -> Recipes:
    words = [dict(fields(recipe)) for recipe in known.values()]
    paths = [path for path in _merged([list(one) for one in words]) if path not in _NAMES_THE_MODEL]
    rows = [FieldValues(field=path, values=[one.get(path) for one in words]) for path in paths]
    return Recipes(
        entries=list(known),
        different=[row for row in rows if len(set(row.values)) > 1],
        same=[row for row in rows if len(set(row.values)) == 1],
    )


# --- attack after attack ----------------------------------------------------------------------------------

_StageKey = tuple[float, str, int]
"""Radius, attack, and how often the evaluation had used that attack at that radius before."""


def stages(group: Sequence[Contender]) -> list[Stages]:
    """For every board with two or more evaluations of the group."""
    tables = []
    for board in dict.fromkeys(one.row.board for one in group):
        here = [one for one in group if one.row.board == board and one.result]
        if len(here) > 1:
            cells = [_stage_cells(one) for one in here]
            rows = [
                StageRow(attack=name, eps=eps, cells=[of.get((eps, name, nth)) for of in cells])
                for eps, name, nth in _merged([list(of) for of in cells])
            ]
            tables.append(Stages(board=board, entries=[one.label for one in here], rows=rows))
    return tables


def _stage_cells(one: Contender) -> dict[_StageKey, StageCell]:
    """In the order in which they ran. What an older service did not keep is as it was then."""
    assert one.result
    limit, cells = one.row.eps or 0.0, dict[_StageKey, StageCell]()
    for under in one.result.get("table", ()):
        cells[0.0, under["corruption"], 0] = StageCell(accuracy=under["mean"], phase="corruption")
    for number, stage in enumerate(one.result.get("stages", ())):
        eps, name = stage.get("eps", limit if number else 0.0), stage["name"]
        if eps <= limit:
            before = sum(key[:2] == (eps, name) for key in cells)
            phase = stage.get("phase", "suite" if number else "clean")
            cells[eps, name, before] = StageCell(accuracy=stage["accuracy"], phase=phase)
    return cells


# --- class by class ---------------------------------------------------------------------------------------


def classes(group: Sequence[Contender]) -> list[Classes]:
    """Robust accuracies of every board, then clean ones of every data set, that two or more have."""
    boards = dict.fromkeys(one.row.board for one in group)
    tables = [
        _classes("robust", board.dataset, board, [c for c in group if c.row.board == board]) for board in boards
    ]
    for dataset in dict.fromkeys(board.dataset for board in boards):
        here = [one for one in group if one.row.board.dataset == dataset]
        tables.append(_classes("clean", dataset, None, here))
    return [table for table in tables if len(table.entries) > 1]


def _classes(
    of: Literal["robust", "clean"], dataset: str, board: Board | None, group: Sequence[Contender]
) -> Classes:
    known = {one.label: kept for one in group if one.result and (kept := one.result.get(f"class_{of}_accuracy"))}
    names = known_class_names(dataset)
    rows = []
    for number in range(max(map(len, known.values()), default=0)):
        accuracies = [kept[number] if number < len(kept) else None for kept in known.values()]
        there = [a for a in accuracies if a is not None]
        rows.append(
            ClassRow(
                number=number,
                name=names[number] if number < len(names) else str(number),
                accuracies=accuracies,
                spread=max(there) - min(there) if len(there) > 1 else None,
            )
        )
    return Classes(of=of, dataset=dataset, board=board, entries=list(known), rows=rows)
