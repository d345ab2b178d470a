"""Published results as rows of boards: RobustBench's entries, and what papers, READMEs and logs print.

A number is one row, however often it is printed: same board, architecture, clean and robust accuracy.
RobustBench's row comes first, then the sources in the order of data/papers.json; the others are named in its
citation, and the recipe that trains the model in its `recipe`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dkl.architectures import show_model
from dkl.catalog import RECIPES, Named, Published
from dkl.documents import show_pixels
from dkl.intervals import wilson_interval
from dkl.recipes import Train
from service.model_info import ROBUSTBENCH_IMAGES, ModelInfo
from service.papers import Printed, Source, papers
from service.rows import Board, Boards, Row

_DATA = Path(__file__).parent / "data"
_SAME_BOARD = {("Linf", 0.031): 8 / 255, ("L2", 128 / 255): 0.5}
"""Radii that RobustBench, and we with it, rank together with another one."""
_YEAR = re.compile(r"(?:19|20)\d\d")


class InPrint(NamedTuple):
    """Everything published that is known here."""

    boards: Boards
    rows: Mapping[str, Row]
    """By entry."""
    recipes: Mapping[str, Row]
    """By named recipe: the row of the number that the catalogue compares with."""
    documents: Mapping[str, ModelInfo]
    """By entry, what RobustBench's file says; of RobustBench's rows and imported ones."""
    merged: Mapping[str, str]
    """By the entry that a number had alone: the entry of the row that it is part of."""


def in_print(documents: Iterable[ModelInfo]) -> InPrint:
    """The rows of these documents of RobustBench's, of the papers and of the catalogue."""
    by_entry = {info.entry: info for info in documents}
    rows = _Rows()
    for info in by_entry.values():
        rows.add(_robustbench_row(info))
    for info in by_entry.values():
        rows.claim(info.entry)
    for printed in papers().rows:
        source = papers().sources[printed.source]
        if printed.misprint is None:
            rows.merge(_paper_row(printed, source), source.short)
    recipes = {
        name: rows.of_recipe(name, entry)
        for name, entry in RECIPES.items()
        if isinstance(entry.published, Published)
    }
    of_recipes = {name: rows.rows[entry] for name, entry in recipes.items()}
    return InPrint(rows.boards(), rows.rows, of_recipes, by_entry, rows.merged)


class _Rows:
    """Rows by entry, and where each number stands."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.merged: dict[str, str] = {}
        self._places: dict[tuple[object, ...], str] = {}

    def add(self, row: Row) -> None:
        self.rows[row.entry] = row
        self._places.setdefault(_number(row), row.entry)

    def claim(self, entry: str) -> None:
        """Find the row by its authors' own number too, which RobustBench's evaluation may miss by little."""
        row = self.rows[entry]
        if row.reported_accuracy is not None:
            claimed = row.model_copy(update={"robust_accuracy": row.reported_accuracy})
            self._places.setdefault(_number(claimed), entry)

    def merge(self, row: Row, short: str) -> None:
        """Add the row, or name its source, `short`, where its number stands already."""
        if (entry := self._places.get(_number(row))) is None:
            self.add(row)
            return
        if entry != row.entry:
            self.merged[row.entry] = entry
        known = self.rows[entry]
        also = "; " if "; also in " in (known.citation or "") else "; also in "
        update: dict[str, object] = {"citation": f"{known.citation}{also}{short}"}
        if known.images is None and row.images is not None:
            update |= {field: getattr(row, field) for field in ("images", "clean_interval", "robust_interval")}
        self.rows[entry] = known.model_copy(update=update)

    def of_recipe(self, name: str, named: Named) -> str:
        """The entry of the row that the catalogue compares the recipe with; all its numbers are linked with it."""
        printed = [one for one in (named.published, *named.also) if isinstance(one, Published)]
        entries = [self._link(name, named, one) for one in printed]
        return entries[0]

    def _link(self, name: str, named: Named, published: Published) -> str:
        row = _catalogue_row(name, named, published)
        entry = self._places.get(_number(row))
        if entry is None:
            self.add(row)
        elif self.rows[entry].recipe is None:
            self.rows[entry] = self.rows[entry].model_copy(update={"recipe": name})
        return entry or row.entry

    def boards(self) -> Boards:
        boards: dict[Board, list[Row]] = {}
        for row in self.rows.values():
            boards.setdefault(row.board, []).append(row)
        return boards


def _number(row: Row) -> tuple[object, ...]:
    """What is the same wherever a number is printed."""
    model = row.architecture.removesuffix(" (Swish)").removesuffix("-SiLU").replace("WRN-", "WideResNet-")
    return row.board, model, round(row.clean_accuracy, 6), round(row.robust_accuracy, 6)


def _board(dataset: str, threat_model: str, eps: float | None) -> Board:
    for (norm, radius), of_board in _SAME_BOARD.items():
        if eps is not None and threat_model == norm and abs(eps - radius) < 1e-9:
            eps = of_board
    return Board.model_validate({"dataset": dataset, "threat_model": threat_model, "eps": eps})


def _fraction(percent: float) -> float:
    return round(percent / 100, 6)


# --- RobustBench --------------------------------------------------------------------------------------------


@cache
def packaged_documents() -> tuple[ModelInfo, ...]:
    """RobustBench's entries that come with the package."""
    content = json.loads((_DATA / "robustbench.json").read_text(encoding="utf-8"))
    return tuple(ModelInfo.model_validate(entry) for entry in content["entries"])


def _robustbench_row(info: ModelInfo) -> Row:
    """Under corruptions the best known accuracy is the accuracy."""
    corrupted = info.threat_model == "corruptions"
    robust = info.corruptions_acc if corrupted else info.autoattack_acc
    assert robust is not None
    assert info.clean_acc is not None
    clean, robust = _fraction(info.clean_acc), _fraction(robust)
    eps = None if corrupted else info.eps
    board = _board(info.dataset, info.threat_model, eps)
    images = ROBUSTBENCH_IMAGES.get(info.dataset)
    return Row(
        entry=info.entry,
        name=info.key,
        source="published",
        board=board,
        eps=eps,
        architecture=info.architecture or "unknown",
        clean_accuracy=clean,
        robust_accuracy=robust,
        best_known_accuracy=robust if info.external is None or corrupted else _fraction(info.external),
        **_intervals(clean, robust, images),
        images=images,
        suite="common corruptions, 15 x 5" if corrupted else "AutoAttack standard",
        unreliable=info.unreliable,
        extra_data=info.additional_data,
        title=info.name,
        authors=info.authors,
        venue=info.venue,
        year=_year(info.venue),
        url=info.link,
        citation="RobustBench",
        note=_note(info, board),
        reported_accuracy=None if info.reported is None else _fraction(info.reported),
        forward_passes=info.number_forward_passes,
    )


def _intervals(clean: float, robust: float, images: int | None) -> dict[str, tuple[float, float]]:
    """Under corruptions as if every image were seen once, which makes the interval wider than it is."""
    if images is None:
        return {}
    return {
        "clean_interval": wilson_interval(clean * images, images),
        "robust_interval": wilson_interval(robust * images, images),
    }


def _year(venue: str | None) -> int | None:
    years = _YEAR.findall(venue or "")
    return int(years[-1]) if years else None


def _note(info: ModelInfo, board: Board) -> str | None:
    """The footnote, and what the board has no column for."""
    sentences = [info.footnote.rstrip(".") + "."] if info.footnote else []
    if (
        board.eps is not None
        and info.eps != board.eps
        and info.eps
        and show_pixels(info.eps) not in (info.footnote or "")
    ):
        sentences.append(_other_radius(info.eps, board.eps))
    if info.corruptions_mce is not None:
        sentences.append(f"Mean corruption error {info.corruptions_mce:.2f} %.")
    if info.corruptions_acc_3d is not None:
        mce = "" if info.corruptions_mce_3d is None else f", mean corruption error {info.corruptions_mce_3d:.2f} %"
        sentences.append(f"Under 3D common corruptions (12 x 5): accuracy {info.corruptions_acc_3d:.2f} %{mce}.")
    return " ".join(sentences) or None


def _said(info: ModelInfo, of_board: float) -> bool:
    """Whether the radius goes without saying, or the footnote says it."""
    assert info.eps is not None
    return abs(info.eps - of_board) < 1e-9 or show_pixels(info.eps) in (info.footnote or "")


def _other_radius(eps: float, of_board: float) -> str:
    levels = round(255 * eps)
    shown = f"{levels}/255" if abs(255 * eps - levels) < 1e-6 else f"{eps:g}"
    return f"Judged at {shown} instead of {show_pixels(of_board)}."


# --- papers -------------------------------------------------------------------------------------------------


def _paper_row(printed: Printed, source: Source) -> Row:
    clean, robust = _fraction(printed.clean), _fraction(printed.robust)
    eps, board = printed.eps, _board(printed.dataset, printed.norm, printed.eps)
    model = printed.architecture.replace("WideResNet-", "WRN-").removesuffix(" (Swish)")
    details = ", ".join(filter(None, (printed.variant, printed.data)))
    notes = [_other_radius(eps, board.eps)] if board.eps is not None and abs(board.eps - eps) > 1e-9 else []
    notes += [f"With {printed.data}."] if printed.data else []
    return Row(
        entry=_slug("paper", printed.dataset, printed.norm, printed.method.lower(), model.lower(), clean, robust),
        name=f"{printed.method} {model}" + (f" ({details})" if details else ""),
        source="published",
        board=board,
        eps=eps,
        architecture=printed.architecture,
        clean_accuracy=clean,
        robust_accuracy=robust,
        best_known_accuracy=robust,
        **_intervals(clean, robust, printed.images),
        images=printed.images,
        suite="AutoAttack standard",
        extra_data=printed.extra_data,
        title=source.title,
        authors=source.authors,
        venue=source.venue,
        year=source.year,
        url=source.url,
        citation=source.citation,
        note=" ".join([*notes, *filter(None, [printed.note])]) or None,
        reported_accuracy=robust,
    )


def _slug(*parts: str | float) -> str:
    """For addresses; accuracies in hundredths of a percent."""
    words = [f"{10_000 * part:04.0f}" if isinstance(part, float) else part for part in parts]
    return re.sub("[^A-Za-z0-9]+", "-", "-".join(words))


# --- the catalogue ------------------------------------------------------------------------------------------


def _catalogue_row(name: str, named: Named, published: Published) -> Row:
    recipe = named.recipe
    assert isinstance(recipe, Train)
    assert recipe.threat is not None
    eps = recipe.threat.eps if published.eps is None else published.eps
    clean, robust = published.clean_accuracy, published.robust_accuracy
    return Row(
        entry=_slug("paper", recipe.dataset, recipe.threat.norm, name, clean, robust),
        name=name,
        source="published",
        board=_board(recipe.dataset, recipe.threat.norm, eps),
        eps=eps,
        architecture=show_model(recipe.model),
        clean_accuracy=clean,
        robust_accuracy=robust,
        best_known_accuracy=robust,
        images=None,
        suite="AutoAttack standard",
        citation=published.source,
        url=published.url,
        reported_accuracy=robust,
        recipe=name,
    )
