"""What the page of a comparison shows beside its numbers: its sentences, an order of the classes, and pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple
from urllib.parse import urlencode

from service.comparisons import Comparison, listed
from service.learning_curves import LearningCurve
from service.pair_tests import Difference, PairTest
from service.rows import Board
from service.side_by_side import Classes, ClassRow
from service.significance import LEVEL
from service.web.charts import Chart, Series, line_chart
from service.wording import percent

Order = Literal["class", "-difference"]
CurveKind = Literal["loss", "clean", "robust", "training-clean", "training-robust"]


def address(entries: Sequence[str], **more: str) -> str:
    return f"/compare?{query(entries, **more)}"


def query(entries: Sequence[str], **more: str) -> str:
    return urlencode([*(("entry", entry) for entry in entries), *more.items()])


# --- in sentences -----------------------------------------------------------------------------------------


def verdict(compared: Comparison) -> list[str]:
    """Who is the most robust on its board and from whom that can be told, in sentences."""
    rows = {entry.label: entry.row for entry in compared.entries}
    boards: dict[Board, list[str]] = {}
    for label in compared.best.robust:
        boards.setdefault(rows[label].board, []).append(label)
    sentences = []
    for board, best in boards.items():
        have, where = "has" if len(best) == 1 else "have", f" on {board.title}" if len(boards) > 1 else ""
        accuracy = percent(rows[best[0]].robust_accuracy)
        sentences += [f"{listed(best)} {have} the highest robust accuracy{where}, {accuracy} %."]
        sentences += _told_apart(best, compared.tests)
    return sentences


def _told_apart(best: Sequence[str], tests: Sequence[PairTest]) -> list[str]:
    """The first of the best ones against all that are not as good."""
    first, groups = best[0], dict[str, list[str]]()
    for test in tests:
        other = test.b if test.a == first else test.a
        if test.robust and first in {test.a, test.b} and other not in best:
            groups.setdefault(_told(test.robust), []).append(other)
    return [told.format(first, listed(groups[told])) for told in _TOLD if told in groups]


_TOLD = (
    "The paired test sets {0} apart from {1}.",
    "{0} cannot be told from {1}: such a difference may be chance.",
    "Without a paired test, the 95 % interval sets {0} apart from {1}.",
    "Whether {0} is better than {1} is open.",
)


def _told(found: Difference) -> str:
    """How the difference is spoken of, which may have either sign."""
    if found.corrected is not None:
        return _TOLD[0] if found.corrected <= LEVEL else _TOLD[1]
    apart = found.interval is not None and not found.interval[0] <= 0 <= found.interval[1]
    return _TOLD[2] if apart else _TOLD[3]


# --- classes ----------------------------------------------------------------------------------------------


class ClassTable(NamedTuple):
    of: Classes
    rows: list[ClassRow]
    low: float
    """Where the scale of its picture begins, in whole tenths like its end."""
    high: float

    def place(self, accuracy: float) -> float:
        """On a scale of 0 to 100."""
        return round(100 * (accuracy - self.low) / (self.high - self.low), 2)


def class_tables(tables: Sequence[Classes], order: Order) -> list[ClassTable]:
    return [_class_table(table, order) for table in tables if table.rows]


def _class_table(table: Classes, order: Order) -> ClassTable:
    """The classes by number, or those first on which the entries differ most."""
    known = [accuracy for row in table.rows for accuracy in row.accuracies if accuracy is not None]
    low = math.floor(10 * min(known, default=0) + 1e-9) / 10
    high = math.ceil(10 * max(known, default=1) - 1e-9) / 10
    rows = table.rows if order == "class" else sorted(table.rows, key=_spread, reverse=True)
    return ClassTable(table, rows, *((low, high) if low < high else (max(0, high - 0.1), max(0.1, high))))


def _spread(row: ClassRow) -> float:
    return -1.0 if row.spread is None else row.spread


# --- differences ------------------------------------------------------------------------------------------


class Whisker(NamedTuple):
    """A difference with its interval, on a scale of 0 to 100 with no difference at 50."""

    low: float | None
    at: float
    high: float | None


class PairRow(NamedTuple):
    test: PairTest
    found: Difference
    whisker: Whisker


class PairTable(NamedTuple):
    of: Literal["robust", "clean"]
    limit: float
    """The fraction that the scale ends at, on either side."""
    rows: list[PairRow]


def pair_tables(tests: Sequence[PairTest]) -> list[PairTable]:
    """Of the robust and of the clean accuracies, each where it can be compared for any pair."""
    robust = [(test, test.robust) for test in tests if test.robust]
    clean = [(test, test.clean) for test in tests if test.clean]
    return [table for table in (_pair_table("robust", robust), _pair_table("clean", clean)) if table.rows]


def _pair_table(of: Literal["robust", "clean"], found: Sequence[tuple[PairTest, Difference]]) -> PairTable:
    limit = _limit([difference for _, difference in found])
    return PairTable(of, limit, [PairRow(test, d, _whisker(d, limit)) for test, d in found])


def reasons(compared: Comparison) -> list[str]:
    """Why pairs have no paired test, in sentences."""
    found = [(test, d.unpaired) for test in compared.tests if (d := test.robust or test.clean)]
    concerned = {label for test, reason in found if reason for label in (test.a, test.b)}
    entries = [entry for entry in compared.entries if entry.label in concerned]
    published = [entry.label for entry in entries if entry.row.source == "published"]
    silent = [entry for entry in entries if entry.data_sha256 is None and entry.label not in published]
    older = [entry.label for entry in silent if entry.board.threat_model != "corruptions"]
    others = [f"{test.a} and {test.b}" for test, reason in found if reason == "other images"]
    sentences = {
        f"{_are(published)} published: which of the images are classified correctly is not known here.": published,
        "Of accuracies under corruptions no verdict per image is kept.": len(silent) > len(older),
        f"{_are(older)} older than verdicts per image in results: judge again to have them.": older,
        f"Not judged on the same images: {', '.join(others)}.": others,
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def _are(labels: Sequence[str]) -> str:
    return f"{listed(labels)} {'is' if len(labels) == 1 else 'are'}" if labels else ""


def _limit(differences: Sequence[Difference]) -> float:
    """The smallest round fraction that no interval reaches beyond."""
    ends = [abs(end) for d in differences for end in (d.difference, *(d.interval or ()))]
    widest = max(ends, default=0.0)
    return next(
        (limit for limit in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7) if widest < limit + 1e-9), 1.0
    )


def _whisker(found: Difference, limit: float) -> Whisker:
    def place(value: float) -> float:
        return round(50 + 50 * value / limit, 2)

    low, high = map(place, found.interval) if found.interval else (None, None)
    return Whisker(low, place(found.difference), high)


def show_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def signed(fraction: float, digits: int = 2) -> str:
    """In points of percent with a sign: "+1.25", "-0.30" with a true minus, "0.00"."""
    points = round(100 * fraction, digits) or 0.0  # no negative zero
    return f"{points:+.{digits}f}".replace("-", "\N{MINUS SIGN}") if points else f"{points:.{digits}f}"


# --- curves -----------------------------------------------------------------------------------------------

_TITLES: dict[CurveKind, tuple[str, str, str]] = {
    "loss": ("Training loss", "loss", "loss"),
    "clean": ("Held-out images, clean", "accuracy", "validation_accuracy"),
    "robust": ("Held-out images under PGD", "accuracy", "validation_robust_accuracy"),
    "training-clean": ("Training images, clean", "accuracy", "clean_accuracy"),
    "training-robust": ("Training images under the training's attack", "accuracy", "adversarial_accuracy"),
}
"""Title, name of the vertical axis, and field of an epoch."""


def curve_chart(of: CurveKind, curves: Sequence[LearningCurve], names: Mapping[str, str]) -> Chart | None:
    """One line per training; `names` are those of the entries by label. None where no training says it."""
    title, y_label, field = _TITLES[of]
    series = [
        Series(
            f"{', '.join(curve.entries)} {names[curve.entries[0]]}",
            [(point.epoch, getattr(point, field)) for point in curve.epochs],
        )
        for curve in curves
    ]
    told = [one for one in series if any(y is not None for _, y in one.points)]
    title = f"{title}: {told[0].label}" if len(told) == 1 else title  # a single line has no legend
    chart = line_chart(title, series, x_label="epoch", y_label=y_label, percent=of != "loss")
    if chart is None:
        return None
    tones = {one.label: "ABCDEF".index(one.label[0]) for one in series}  # an entry's colour is its letter's
    return replace(chart, lines=[line._replace(tone=tones[line.label]) for line in chart.lines])


def charts(compared: Comparison, entries: Sequence[str]) -> list[tuple[Chart, str]]:
    """The curves that any of the trainings has, each with the address of its file."""
    names = {entry.label: entry.row.name for entry in compared.entries}
    drawn = ((of, curve_chart(of, compared.curves, names)) for of in _TITLES)
    return [(chart, f"/compare/curves.svg?{query(entries, of=of)}") for of, chart in drawn if chart]
