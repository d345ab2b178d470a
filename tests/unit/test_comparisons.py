"""Entries side by side: against published examples, definitions, and small cases that one can check by eye."""

from typing import Any

import numpy as np
import pytest

from dkl.flags import Flags, pack
from dkl.intervals import wilson_interval
from dkl.paired import Pairs
from service.comparisons import comparison_of
from service.contenders import Contender
from service.learning_curves import EpochPoint, LearningCurve
from service.pair_tests import alone, pair_tests, shared_images
from service.rows import Board, Row
from service.side_by_side import classes, evaluation_recipes, stages, training_recipes
from service.significance import holm
from service.tables import Job
from service.web.comparison import class_tables, curve_chart, pair_tables, reasons, show_p, signed, verdict

DIGITS = Board(dataset="digits", threat_model="Linf", eps=0.2)
L2 = Board(dataset="digits", threat_model="L2", eps=0.5)
CIFAR = Board(dataset="cifar10", threat_model="Linf", eps=8 / 255)


def row(label: str, clean: float, robust: float, images: int | None, **changes: Any) -> Row:
    def interval(fraction: float) -> tuple[float, float] | None:
        return wilson_interval(round(fraction * images), images) if images else None

    known = {
        "entry": f"entry-{label}", "name": f"model {label}", "source": "measured", "board": DIGITS, "eps": 0.2,
        "architecture": "CNN-32", "clean_accuracy": clean, "robust_accuracy": robust,
        "best_known_accuracy": robust,
        "clean_interval": interval(clean), "robust_interval": interval(robust), "images": images,
        "suite": "AutoAttack standard",
    }  # fmt: skip
    return Row(**{**known, **changes})


def judged(label: str, clean: str, robust: str, *, data: str = "d" * 64, **changes: Any) -> Contender:
    """An evaluation of as many images as there are 0 and 1."""
    right, standing = ([flag == "1" for flag in flags] for flags in (clean, robust))
    flags = Flags(data_sha256=data, clean=pack(right), robust=pack(standing))
    job = Job(result={"flags": flags.model_dump()}, recipe={"kind": "evaluate"})
    return Contender(label, row(label, np.mean(right), np.mean(standing), len(right), **changes), job, None)


def published(
    label: str, clean: float = 0.9, robust: float = 0.5, images: int | None = None, **changes: Any
) -> Any:
    return Contender(label, row(label, clean, robust, images, source="published", **changes), None, None)


def evaluated(
    label: str, result: dict[str, Any], recipe: dict[str, Any] | None = None, **changes: Any
) -> Contender:
    job = Job(result=result, recipe=recipe or {"kind": "evaluate"})
    return Contender(label, row(label, 0.9, 0.5, 100, **changes), job, None)


# --- pairs ------------------------------------------------------------------------------------------------


def test_a_pair_on_the_same_images_is_compared_image_by_image() -> None:
    a, b = judged("A", "1111111110", "1111110000"), judged("B", "1111111101", "1000000000")
    (test,) = pair_tests([a, b])
    expected = Pairs(both=1, only_a=5, only_b=0, neither=4)
    assert test.robust is not None
    assert test.robust.counts is not None
    assert test.robust.counts.model_dump() == {"both": 1, "only_a": 5, "only_b": 0, "neither": 4}
    assert test.robust.difference == 0.5
    assert test.robust.interval == expected.interval()
    assert test.robust.p_value == test.robust.corrected == expected.p_value() == 2 / 2**5
    assert test.robust.unpaired is None
    assert test.clean is not None
    assert test.clean.counts is not None
    assert (test.clean.counts.only_a, test.clean.counts.only_b, test.clean.p_value) == (1, 1, 1.0)


def test_clean_and_robust_p_values_are_corrected_over_all_pairs_each_for_themselves() -> None:
    group = [
        judged("A", "1" * 20, "1" * 20),
        judged("B", "1" * 20, "1" * 10 + "0" * 10),
        judged("C", "1" * 20, "1" * 9 + "0" * 11),
    ]
    tests = {(test.a, test.b): test for test in pair_tests(group)}
    assert list(tests) == [("A", "B"), ("A", "C"), ("B", "C")]
    raw = [test.robust.p_value for test in tests.values() if test.robust]
    assert [test.robust.corrected for test in tests.values() if test.robust] == holm(np.array(raw)).tolist()
    assert tests["A", "B"].robust.corrected == pytest.approx(2 * 2 / 2**10)
    assert {test.clean.corrected for test in tests.values() if test.clean} == {1.0}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    # Newcombe (1998), Statistics in Medicine 17, 873, Table II, method 10: 56/70 and 48/80, 9/10 and 3/10
    [((56, 70), (48, 80), (0.0524, 0.3339)), ((9, 10), (3, 10), (0.1705, 0.8090))],
)
def test_without_flags_the_interval_is_that_of_independent_samples(one: Any, other: Any, expected: Any) -> None:
    a, b = (published(label, 0.95, k / n, n) for label, (k, n) in zip("AB", (one, other), strict=True))
    (test,) = pair_tests([a, b])
    assert test.robust is not None
    assert test.robust.interval == pytest.approx(expected, abs=5e-5)
    assert (test.robust.counts, test.robust.p_value, test.robust.corrected) == (None, None, None)
    assert test.robust.unpaired == "published"


def test_where_the_number_of_images_is_not_known_there_is_no_interval() -> None:
    (test,) = pair_tests([judged("A", "1110", "1100"), published("B")])
    assert test.robust is not None
    assert (test.robust.difference, test.robust.interval) == (0.0, None)


def test_what_is_paired_and_what_is_not() -> None:
    a, older = judged("A", "1110", "1100"), evaluated("B", {})
    others, more = judged("B", "1110", "1100", data="e" * 64), judged("B", "11100", "11000")
    elsewhere, far = judged("B", "1110", "1100", board=L2), judged("B", "1110", "1100", board=CIFAR)
    found = [pair_tests([a, b])[0] for b in (older, others, more, elsewhere, far)]
    assert [t.robust.unpaired if t.robust else "not compared" for t in found] == [
        "without verdicts", "other images", "other images", "not compared", "not compared",
    ]  # fmt: skip
    assert [t.clean.counts is not None if t.clean else None for t in found] == [False, False, False, True, None]


def test_images_that_one_alone_stands_on_or_loses() -> None:
    flags = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0]], bool)
    assert alone(flags, 0).tolist() == [False, True, False, False, False]
    assert alone(~flags, 2).tolist() == [False, False, False, True, False]
    group = [
        judged(label, "11111", "".join(map(str, r.astype(int)))) for label, r in zip("ABC", flags, strict=True)
    ]
    (shared,) = shared_images(
        [*group, published("D"), judged("E", "1", "1"), judged("F", "11111", "11111", board=L2)]
    )
    assert shared.entries == ["A", "B", "C"]
    assert (shared.images, shared.stands_alone, shared.falls_alone) == (5, [1, 1, 0], [0, 0, 1])


# --- side by side -----------------------------------------------------------------------------------------


def test_recipes_say_what_differs_and_what_is_the_same() -> None:
    a = evaluated("A", {}, {"kind": "evaluate", "threat": {"eps": 8 / 255}, "model": {"job": "a"}, "seed": 1})
    b = evaluated("B", {}, {"kind": "evaluate", "threat": {"eps": 8 / 255}, "model": {"zoo": "z"}, "seed": 2})
    found = evaluation_recipes([a, published("C"), b])
    assert found.entries == ["A", "B"]
    assert [(f.field, f.values) for f in found.different] == [("model.zoo", [None, "z"]), ("seed", ["1", "2"])]
    assert [(f.field, f.values[0]) for f in found.same] == [("kind", "evaluate"), ("threat.eps", "8/255")]


def test_a_published_entry_brings_the_recipe_that_stands_for_it() -> None:
    here = Contender("A", row("A", 0.9, 0.5, 100), Job(recipe={}), Job(recipe={"kind": "train", "epochs": 3}))
    found = training_recipes([here, published("B", recipe="ikl-at-cifar100-wrn-34-10"), published("C")])
    assert found.entries == ["A", "B"]
    assert next(f.values for f in found.different if f.field == "epochs") == ["3", "200"]


def stage(name: str, accuracy: float, eps: float = 0.2, phase: str = "suite") -> dict[str, Any]:
    return {"name": name, "phase": phase, "eps": eps, "accuracy": accuracy}


def test_stages_are_aligned_by_attack() -> None:
    a = [stage("clean", 0.9, 0.0, "clean"), stage("apgd-ce", 0.6), stage("square", 0.5)]
    b = [
        stage("clean", 0.8, 0.0, "clean"),
        stage("pgd", 0.5, phase="screen"),
        stage("apgd-ce", 0.4, phase="audit"),
    ]
    b.append(stage("apgd-ce", 0.3, phase="recheck"))
    (table,) = stages([evaluated("A", {"stages": a}), published("P"), evaluated("B", {"stages": b})])
    assert table.entries == ["A", "B"]
    cells = [(r.attack, *(c and (c.accuracy, c.phase) for c in r.cells)) for r in table.rows]
    assert cells == [
        ("clean", (0.9, "clean"), (0.8, "clean")),
        ("pgd", None, (0.5, "screen")),
        ("apgd-ce", (0.6, "suite"), (0.4, "audit")),
        ("apgd-ce", None, (0.3, "recheck")),
        ("square", (0.5, "suite"), None),
    ]


def test_stages_beyond_the_boards_radius_are_left_out_and_boards_are_not_mixed() -> None:
    curve = [stage("clean", 0.9, 0.0, "clean"), *(stage("pgd", 0.9 - eps, eps) for eps in (0.1, 0.2, 0.3))]
    group = [
        evaluated("A", {"stages": curve}),
        evaluated("B", {"stages": curve}),
        evaluated("C", {"stages": curve}, board=L2),
    ]
    (table,) = stages(group)
    assert table.entries == ["A", "B"]
    assert [r.eps for r in table.rows] == [0.0, 0.1, 0.2]


def test_corruptions_are_compared_one_by_one() -> None:
    board = Board(dataset="cifar10", threat_model="corruptions", eps=None)
    results = [{"table": [{"corruption": name, "mean": mean} for name, mean in some]} for some in (
        [("fog", 0.5), ("snow", 0.6)], [("fog", 0.4), ("snow", 0.7)],
    )]  # fmt: skip
    (table,) = stages([evaluated(label, r, board=board, eps=None) for label, r in zip("AB", results, strict=True)])
    assert [(r.attack, *(c.accuracy for c in r.cells if c)) for r in table.rows] == [
        ("fog", 0.5, 0.4),
        ("snow", 0.6, 0.7),
    ]


def by_class(label: str, robust: list[float | None], clean: list[float | None], **changes: Any) -> Contender:
    return evaluated(label, {"class_robust_accuracy": robust, "class_clean_accuracy": clean}, **changes)


def test_classes_with_names_and_by_difference() -> None:
    group = [
        by_class("A", [0.5, 0.2, None, 0.4], [0.9, 0.9, None, 0.8], board=CIFAR),
        by_class("B", [0.4, 0.7, 0.1, 0.4], [0.9, 0.8, 0.7, 0.8], board=CIFAR),
    ]
    robust, clean = classes(group)
    assert (robust.of, clean.of, robust.board, clean.board) == ("robust", "clean", CIFAR, None)
    assert [r.name for r in robust.rows] == ["airplane", "automobile", "bird", "cat"]
    assert [r.spread for r in robust.rows] == pytest.approx([0.1, 0.5, None, 0.0])
    in_order, _ = class_tables([robust, clean], "class")
    sorted_robust, _ = class_tables([robust, clean], "-difference")
    assert [r.number for r in in_order.rows] == [0, 1, 2, 3]
    assert [r.number for r in sorted_robust.rows] == [1, 0, 3, 2]
    assert (in_order.low, in_order.high, in_order.place(0.4)) == (0.1, 0.7, 50)


def test_clean_accuracies_are_compared_over_boards_of_one_data_set_and_robust_ones_are_not() -> None:
    group = [
        by_class("A", [0.5], [0.9]),
        by_class("B", [0.4], [0.8], board=L2),
        by_class("C", [0.4], [0.8], board=CIFAR),
    ]
    (table,) = classes(group)
    assert (table.of, table.entries) == ("clean", ["A", "B"])


# --- as a whole -------------------------------------------------------------------------------------------


def test_best_and_remarks() -> None:
    a, b = judged("A", "1110", "1000"), judged("B", "1110", "1100", suite="custom, by pyautoattack")
    found = comparison_of([a, b], [])
    assert (found.best.robust, found.best.clean) == (["B"], [])
    assert found.remarks == [
        "They were judged in different ways (A: AutoAttack standard; B: custom): the weaker judge breaks fewer "
        "images."
    ]
    other = comparison_of([a, b, judged("C", "1111", "0000", board=L2)], [])
    assert (other.best.robust, other.best.clean) == (["B"], ["C"])
    assert other.remarks[0] == (
        "The robust accuracies are about different threat models (A and B: Linf, eps 0.2; C: L2, eps 0.5) and "
        "cannot be compared; the clean ones can."
    )
    far = comparison_of([a, judged("B", "1111", "0000", board=CIFAR)], [])
    assert (far.best.robust, far.best.clean) == ([], [])
    assert (
        "different data sets (A: Handwritten digits, Linf, eps 0.2; B: CIFAR-10, Linf, eps 8/255)"
        in far.remarks[0]
    )
    old = comparison_of([published("A", eps=0.031), published("B", eps=0.2)], [])
    assert "slightly different radii (A: 0.031; B: 0.2)" in old.remarks[0]


def test_the_verdict_says_from_whom_the_best_can_be_told() -> None:
    group = [
        judged("A", "1" * 40, "1" * 20 + "0" * 20),
        judged("B", "1" * 40, "0" * 40),
        judged("C", "1" * 40, "1" * 19 + "0" * 21),
        published("D", 0.9, 0.01, 10_000),
        published("E", 0.9, 0.4),
    ]
    assert verdict(comparison_of(group, [])) == [
        "A has the highest robust accuracy, 50.00 %.",
        "The paired test sets A apart from B.",
        "A cannot be told from C: such a difference may be chance.",
        "Without a paired test, the 95 % interval sets A apart from D.",
        "Whether A is better than E is open.",
    ]
    assert verdict(comparison_of([published("A"), published("B")], [])) == []
    tied = verdict(comparison_of([judged("A", "11", "10"), judged("B", "11", "01"), judged("C", "11", "00")], []))
    assert tied[0] == "A and B have the highest robust accuracy, 50.00 %."
    assert tied[1] == "A cannot be told from C: such a difference may be chance."


def test_reasons_are_told_once() -> None:
    group = [published("A"), judged("B", "11", "10"), published("C"), evaluated("D", {}), judged("E", "1", "1")]
    assert reasons(comparison_of(group, [])) == [
        "A and C are published: which of the images are classified correctly is not known here.",
        "D is older than verdicts per image in results: judge again to have them.",
        "Not judged on the same images: B and E.",
    ]
    board = Board(dataset="cifar10", threat_model="corruptions", eps=None)
    corrupted = [evaluated(label, {}, board=board, eps=None) for label in "AB"]
    assert reasons(comparison_of(corrupted, [])) == [
        "Of accuracies under corruptions no verdict per image is kept."
    ]
    assert reasons(comparison_of([judged("A", "1", "1"), judged("B", "1", "0")], [])) == []


def test_intervals_become_pictures_on_a_round_scale() -> None:
    (robust, clean) = pair_tables(pair_tests([published("A", 0.9, 0.55, 100), published("B", 0.9, 0.5)]))
    assert (robust.of, robust.limit, robust.rows[0].whisker) == ("robust", 0.05, (None, 100.0, None))
    assert (clean.of, clean.limit, clean.rows[0].whisker.at) == ("clean", 0.01, 50.0)
    (wide, _) = pair_tables(pair_tests([published("A", 0.9, 1.0, 3), published("B", 0.9, 0.0, 3)]))
    assert wide.limit == 1.0
    assert wide.rows[0].whisker.at == 100.0


def test_numbers_as_texts() -> None:
    assert [signed(x) for x in (0.0125, -0.003, 0.000001, -0.000001)] == [
        "+1.25",
        "\N{MINUS SIGN}0.30",
        "0.00",
        "0.00",
    ]
    assert signed(-0.7, 0) == "\N{MINUS SIGN}70"
    assert [show_p(p) for p in (0.0004, 0.001, 0.04567, 1.0)] == ["< 0.001", "0.001", "0.046", "1.000"]


def test_a_curve_has_the_colour_of_its_entrys_letter() -> None:
    def curve(labels: list[str], **more: float) -> LearningCurve:
        return LearningCurve(
            job_id="0", entries=labels, epochs=[EpochPoint(epoch=n, loss=1 / n, **more) for n in (1, 2)]
        )

    curves, names = [curve(["B", "C"]), curve(["D"], validation_accuracy=0.5)], {"B": "one", "D": "two"}
    loss = curve_chart("loss", curves, names)
    assert loss is not None
    assert [(line.label, line.tone) for line in loss.lines] == [("B, C one", 1), ("D two", 3)]
    clean = curve_chart("clean", curves, names)
    assert clean is not None
    assert (clean.title, [line.tone for line in clean.lines]) == ("Held-out images, clean: D two", [3])
    assert curve_chart("robust", curves, names) is None
