"""From flags to numbers."""

import numpy as np
import pytest
from samples import provenance
from trials import evaluation
from witness import finding

from dkl.events import BatchDone
from dkl.flags import unpack
from dkl.intervals import wilson_interval
from dkl.summary import Ran, say_once, summarise
from dkl.tally import Tally

NAMES = ("clean", "apgd-ce", "square")


class Hand:
    """An evaluation by hand: stages on images, with the rows that fell."""

    def __init__(self, labels, *, curve=(), eps=0.1, **changes):
        self.recipe = evaluation(eps=eps, curve=curve, **changes)
        self.tally = Tally(np.arange(len(labels)), np.array(labels), 0)
        self.ran = []

    def stage(self, name, *fallen_per_batch, phase="suite", eps=0.1, warnings=(), rejected=0):
        """Each batch: (rows, those that fell)."""
        number = len(self.ran)
        ran = Ran(
            name, phase if number else "clean", eps if number else 0.0, sum(len(b[0]) for b in fallen_per_batch)
        )
        for batch, (rows, fallen) in enumerate(fallen_per_batch):
            self.tally.add(number, finding(rows, fallen))
            ran.events.append(
                BatchDone(
                    stage=number, name=name, phase=ran.phase, eps=ran.eps, batch=batch,
                    batches=len(fallen_per_batch), images=tuple(rows),
                    standing="".join("0" if row in fallen else "1" for row in rows), forwards=10, backwards=3,
                    seconds=number + 1, rejected=rejected, warnings=tuple(warnings),
                )
            )  # fmt: skip
        self.ran.append(ran)
        if number == 0:
            self.tally.begin_radius()
        return self

    def result(self, classes=3, **changes):
        about = {
            "checkpoint_sha256": "a" * 64,
            "architecture": "CNN-4",
            "preprocessing": "none",
            "engine": "hand",
            "precision": "float32",
            "notes": (),
            "warnings": (),
            "stopped_early": False,
            "evidence_sha256": "e" * 64,
            "data_sha256": "d" * 64,
            "provenance": provenance(self.recipe),
        }
        return summarise(self.recipe, self.tally, self.ran, classes=classes, **{**about, **changes})


def test_numbers_from_hand_made_flags():
    hand = Hand([0, 0, 1, 1, 0, 2])
    hand.stage("clean", ([0, 1, 2, 3], [3]), ([4, 5], []), warnings=["a", "a"])
    hand.stage("apgd-ce", ([0, 1, 2, 4], [2]), ([5], []), rejected=2, warnings=["b"])
    hand.stage("square", ([0, 1, 4, 5], [1, 4]), rejected=1, warnings=["b"])
    result = hand.result(classes=4, warnings=("first",), notes=("n",))
    assert result.images == 6
    assert result.clean_accuracy == 5 / 6
    assert result.clean_interval == wilson_interval(5, 6)
    assert result.robust_accuracy == 2 / 6
    assert result.robust_interval == wilson_interval(2, 6)
    assert [stage.name for stage in result.stages] == list(NAMES)
    assert [stage.phase for stage in result.stages] == ["clean", "suite", "suite"]
    assert [stage.eps for stage in result.stages] == [0, 0.1, 0.1]
    assert [stage.attacked for stage in result.stages] == [6, 5, 4]
    assert [stage.accuracy for stage in result.stages] == [5 / 6, 4 / 6, 2 / 6]
    assert [stage.seconds for stage in result.stages] == [2, 4, 3]
    assert [stage.forwards for stage in result.stages] == [20, 20, 10]
    assert [stage.backwards for stage in result.stages] == [6, 6, 3]
    assert (result.seconds, result.forwards, result.backwards) == (9, 50, 15)
    assert result.class_clean_accuracy == (1.0, 0.5, 1.0, None)
    assert result.class_robust_accuracy == (1 / 3, 0.0, 1.0, None)
    assert result.rejected == 5
    assert result.warnings[:3] == ("first", "a", "b")
    assert result.notes == ("n",)
    assert [point.robust_accuracy for point in result.curve] == [2 / 6]
    assert result.protocol == "AutoAttack standard"
    assert result.flags is not None
    assert result.flags.data_sha256 == "d" * 64
    assert unpack(result.flags.clean, 6).tolist() == [True, True, True, False, True, True]
    assert unpack(result.flags.robust, 6).tolist() == [True, False, False, False, False, True]


def test_the_clean_pass_alone():
    result = Hand([0, 1, 2]).stage("clean", ([0, 1, 2], [1])).result()
    assert result.robust_accuracy == result.clean_accuracy == 2 / 3


def test_a_curve_has_the_radii_that_were_reached():
    hand = Hand([0] * 4, curve=[0.05, 0.2]).stage("clean", ([0, 1, 2, 3], []))
    hand.stage("square", ([0, 1, 2, 3], [0]), eps=0.05)
    hand.tally.begin_radius()
    hand.stage("square", ([1, 2, 3], [1]))
    hand.tally.could_still_break = {0.05: 0.5, 0.1: 0.25}
    result = hand.result()
    assert [(point.eps, point.robust_accuracy) for point in result.curve] == [(0.05, 0.75), (0.1, 0.5)]
    assert result.robust_accuracy == 0.5
    assert result.robust_interval == result.curve[1].robust_interval == wilson_interval(2, 4)
    assert result.could_still_break == 0.25
    hand.tally.begin_radius()
    hand.stage("square", ([2, 3], [2, 3]), eps=0.2)
    result = hand.result()
    assert [point.robust_accuracy for point in result.curve] == [0.75, 0.5, 0.0]
    assert result.robust_accuracy == 0.5  # of threat.eps, not of the last radius
    assert unpack(result.flags.robust, 4).tolist() == [False, False, True, True]
    assert result.class_robust_accuracy == (0.5, None, None)


def test_what_was_done_is_named():
    assert Hand([0], policy="screen").stage("clean", ([0], [])).result().protocol == "screen"
    audited = Hand([0], policy="audited").stage("clean", ([0], [])).result(stopped_early=True)
    assert audited.protocol == "AutoAttack standard, audited"
    assert audited.stopped_early
    assert audited.could_still_break is None


ALL = list(range(500))


def test_square_that_finds_more_is_a_warning():
    hand = Hand([0] * 500).stage("clean", (ALL, [])).stage("apgd-ce", (ALL, [])).stage("square", (ALL, [498, 499]))
    assert hand.result().warnings == (
        "square, which uses no gradients, broke 0.40% of the images where the attacks with gradients had failed; "
        "these may mislead: try more queries and restarts, or an adaptive attack",
    )


@pytest.mark.parametrize(
    "stages",
    [
        [("apgd-ce", []), ("square", [499])],  # 0.2 points are AutoAttack's threshold
        [("square", ALL)],  # nothing to compare with
        [("square", []), ("apgd-t", [498, 499])],  # gradients find as much
    ],
)
def test_square_is_no_surprise(stages):
    hand = Hand([0] * 500).stage("clean", (ALL, []))
    for name, fallen in stages:
        hand.stage(name, (ALL, fallen))
    assert hand.result().warnings == ()


def test_say_once():
    sentences = ["3 points", "other", "2.5 points", "other", "points"]
    assert say_once(sentences) == ("3 points", "other", "points")
