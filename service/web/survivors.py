"""Images that tell the entries of a comparison apart: one model alone stands on them, or one alone falls."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dkl.datasets import known_class_names
from dkl.evidence import EvidenceError
from service.artifacts import Store, StoreError
from service.contenders import Contender
from service.exhibits import Exhibits, open_exhibits
from service.pair_tests import alone
from service.web.pictures import picture_url

MOST = 12
"""Images shown of each kind and entry."""


class Mistake(NamedTuple):
    """What a model took an image for that is something else."""

    label: str
    """The entry's."""
    predicted: str | None
    """A class; None where that is not kept."""
    at_once: bool
    """Without any attack."""


class Lone(NamedTuple):
    """An image that one model judges otherwise than all others."""

    position: int | None
    """In the data set's test split; None where no evidence is left to say it."""
    is_a: str | None
    """Its class."""
    picture: str
    """Address of the clean image."""
    mistakes: list[Mistake]


class LoneImages(NamedTuple):
    label: str
    """The entry's."""
    total: int
    shown: list[Lone]
    """Those of them whose picture is stored, the first ones."""


class Survivors(NamedTuple):
    """Entries of one board that saw the same images."""

    labels: list[str]
    images: int
    stands: list[LoneImages]
    """Per entry: what it alone classifies correctly under attack."""
    falls: list[LoneImages]
    """Per entry: what it alone does not."""
    gone: list[str]
    """Labels of the entries without evidence, and so without what they predicted."""


class _Witness(NamedTuple):
    one: Contender
    data_sha256: str
    standing: NDArray[np.bool_]
    exhibits: Exhibits | None


def survivors(store: Store, group: Sequence[Contender]) -> list[Survivors]:
    """For every set of two or more entries that were judged on the same images under the same threat."""
    sets: dict[tuple[object, ...], list[_Witness]] = {}
    for one in group:
        if witness := _witness(store, one):
            same = one.row.board, witness.data_sha256, len(witness.standing)
            sets.setdefault(same, []).append(witness)
    return [_survivors(witnesses) for witnesses in sets.values() if len(witnesses) > 1]


def _witness(store: Store, one: Contender) -> _Witness | None:
    """The verdicts of the result or else of the evidence, and the evidence if it is about them; None without."""
    exhibits = _exhibits(store, one)
    if one.flags and one.robust is not None:
        same = exhibits and (exhibits.about.data_sha256, len(exhibits.images)) == (
            one.flags.data_sha256,
            len(one.robust),
        )
        return _Witness(one, one.flags.data_sha256, one.robust, exhibits if same else None)
    if exhibits is None:
        return None
    at = exhibits.radii.tolist().index(exhibits.about.question.threat.eps)
    return _Witness(one, exhibits.about.data_sha256, exhibits.standing(at), exhibits)


def _exhibits(store: Store, one: Contender) -> Exhibits | None:
    sha256 = (one.result or {}).get("evidence_sha256")
    try:
        return open_exhibits(store, sha256) if sha256 else None
    except (EvidenceError, StoreError):  # the entry's own page says what is wrong with it
        return None


def _survivors(witnesses: Sequence[_Witness]) -> Survivors:
    standing = np.stack([witness.standing for witness in witnesses])
    return Survivors(
        labels=[witness.one.label for witness in witnesses],
        images=standing.shape[1],
        stands=[_lone(witnesses, at, alone(standing, at), standing) for at in range(len(witnesses))],
        falls=[_lone(witnesses, at, alone(~standing, at), standing) for at in range(len(witnesses))],
        gone=[witness.one.label for witness in witnesses if witness.exhibits is None],
    )


def _lone(
    witnesses: Sequence[_Witness], at: int, chosen: NDArray[np.bool_], standing: NDArray[np.bool_]
) -> LoneImages:
    rows = np.flatnonzero(chosen).tolist()
    shown: list[Lone] = []
    for row in rows:
        if len(shown) < MOST and (picture := _picture(witnesses, row)):
            fell = [witness for witness, stands in zip(witnesses, standing[:, row], strict=True) if not stands]
            shown.append(Lone(*_what(witnesses, row), picture, [_mistake(witness, row) for witness in fell]))
    return LoneImages(witnesses[at].one.label, len(rows), shown)


def _picture(witnesses: Sequence[_Witness], row: int) -> str | None:
    for one, _, _, exhibits in witnesses:
        if exhibits and exhibits.has_clean(row):
            return picture_url(one.row.entry, exhibits.sha256, row, "clean")
    return None


def _what(witnesses: Sequence[_Witness], row: int) -> tuple[int | None, str | None]:
    for one, _, _, exhibits in witnesses:
        if exhibits:
            return int(exhibits.images[row]), _class(one, int(exhibits.labels[row]))
    return None, None


def _mistake(witness: _Witness, row: int) -> Mistake:
    one, _, _, exhibits = witness
    if exhibits is None:
        return Mistake(one.label, None, at_once=one.clean is not None and not one.clean[row])
    at_once = not exhibits.clean_correct[row]
    predicted = exhibits.predicted if at_once else exhibits.predicted_adv
    number = -1 if predicted is None else int(predicted[row])
    return Mistake(one.label, _class(one, number) if number >= 0 else None, at_once=at_once)


def _class(one: Contender, number: int) -> str:
    dataset = one.row.board.dataset
    names = known_class_names(dataset)
    return names[number] if number < len(names) else f"class {number}"
