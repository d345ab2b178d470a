"""Images of an evaluation to look at: clean, adversarial, what was changed, and what the model saw in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dkl.documents import show_pixels
from service.exhibits import Exhibits
from service.web.confusion import class_name
from service.web.pictures import change_of, picture_url

PER_PAGE = 12
STANDS, WRONG = "stands", "wrong"
"""Beside the names of attacks: no attack broke it, and none was needed."""


class Choice(NamedTuple):
    """One way to narrow the gallery down."""

    value: str
    label: str
    images: int


class Picture(NamedTuple):
    """One image with what became of it."""

    position: int
    """In the data set's test split."""
    label: str
    before: str
    """What the model took the clean image for."""
    after: str | None
    """What it takes the adversarial one for; absent where there is none."""
    fate: str
    """The attack that broke it, "stands", or "wrong"."""
    radius: str | None
    """At which it was broken: "8/255"."""
    distance: str | None
    factor: float | None
    """By which the difference is amplified."""
    clean_url: str
    adversarial_url: str | None
    difference_url: str | None


@dataclass(frozen=True)
class Gallery:
    pictures: Sequence[Picture]
    """Of the page: broken ones first, then those that stand, then those that were wrong at once."""
    images: int
    """That match."""
    stored: int
    """Images whose clean picture is stored."""
    page: int
    pages: int
    side: int
    """The longer side of an image, in pixels."""
    classes: Sequence[Choice]
    attacks: Sequence[Choice]


def gallery_of(
    exhibits: Exhibits, entry: str, names: Sequence[str], *, label: int | None, attack: str | None, page: int
) -> Gallery | None:
    """One page of the images of class `label` that `attack` broke; None where no clean pictures are stored.

    `entry` is in the pictures' addresses, `names` are the classes'.
    """
    rows = exhibits.rows_clean
    if exhibits.predicted is None or not len(rows):
        return None
    fates, labels = _fates(exhibits, rows), exhibits.labels[rows]
    fits = np.ones(len(rows), bool)
    if label is not None:
        fits &= labels == label
    if attack is not None:
        fits &= np.array(fates) == attack
    chosen = _in_order(rows[fits], [fate for fate, fit in zip(fates, fits, strict=True) if fit])
    shown = chosen[(page - 1) * PER_PAGE : page * PER_PAGE]
    pictures = [_picture(exhibits, entry, names, row) for row in shown]
    first = exhibits.clean(int(rows[0]))
    assert first is not None
    return Gallery(
        pictures=pictures,
        images=len(chosen),
        stored=len(rows),
        page=page,
        pages=-(-len(chosen) // PER_PAGE),
        side=max(first.shape[1:]),
        classes=[Choice(str(k), class_name(names, k), n) for k, n in _counted(labels)],
        attacks=_attacks(fates),
    )


def _fates(exhibits: Exhibits, rows: NDArray[np.int32]) -> list[str]:
    stages = [stage.name for stage in exhibits.about.stages]
    found = []
    for row in rows:
        broken = exhibits.broken_at[row] >= 0
        unbroken = STANDS if exhibits.clean_correct[row] else WRONG
        found.append(stages[exhibits.stage[row]] if broken else unbroken)
    return found


def _in_order(rows: NDArray[np.int32], fates: Sequence[str]) -> list[int]:
    after = {STANDS: 1, WRONG: 2}
    return [int(row) for row, _ in sorted(zip(rows, fates, strict=True), key=lambda pair: after.get(pair[1], 0))]


def _counted(labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    return [(int(k), int(n)) for k, n in zip(*np.unique(labels, return_counts=True), strict=True)]


def _attacks(fates: Sequence[str]) -> list[Choice]:
    names = [fate for fate in dict.fromkeys(sorted(fates)) if fate not in {STANDS, WRONG}]
    words = {STANDS: "none: it stands", WRONG: "none: wrong at once"}
    return [
        Choice(name, words.get(name, name), fates.count(name)) for name in (*names, STANDS, WRONG) if name in fates
    ]


def _picture(exhibits: Exhibits, entry: str, names: Sequence[str], row: int) -> Picture:
    assert exhibits.predicted is not None
    assert exhibits.predicted_adv is not None
    change = change_of(exhibits, row)
    after, at = int(exhibits.predicted_adv[row]), int(exhibits.broken_at[row])
    return Picture(
        position=int(exhibits.images[row]),
        label=class_name(names, int(exhibits.labels[row])),
        before=_seen(names, int(exhibits.predicted[row])),
        after=_seen(names, after) if change else None,
        fate=_fates(exhibits, np.array([row], np.int32))[0],
        radius=show_pixels(exhibits.radii[at]) if at >= 0 else None,
        distance=change.shown_distance if change else None,
        factor=change.factor if change else None,
        clean_url=picture_url(entry, exhibits.sha256, row, "clean"),
        adversarial_url=picture_url(entry, exhibits.sha256, row, "adversarial") if change else None,
        difference_url=picture_url(entry, exhibits.sha256, row, "difference") if change else None,
    )


def _seen(names: Sequence[str], number: int) -> str:
    return "nothing: its logits were not finite" if number < 0 else class_name(names, number)
