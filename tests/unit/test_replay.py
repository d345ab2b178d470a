"""What a replay says: from results as the interface answers them, and from evidence in files."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from samples import DISTILLED, JUDGED, TRAIN, TRAINED
from witness import evidence

from dkl.evidence import EvidenceError
from dkl.recipes import fingerprint
from service.replay import Report, add_images, compare, shown
from service.terminal import console


def job(job_id: str, finished: Any, **changes: Any) -> dict[str, Any]:
    """An ended job as the interface answers it; `changes` go into its result."""
    result = {**finished.result.model_dump(mode="json"), **changes}
    recipe = TRAIN.model_dump(mode="json")
    return {
        "id": job_id,
        "kind": result["kind"],
        "recipe": recipe,
        "fingerprint": fingerprint(TRAIN),
        "result": result,
    }


def pair(finished: Any, **changes: Any) -> Report:
    return compare(job("a" * 12, finished), job("b" * 12, finished, **changes))


def printed(report: Report, capsys: pytest.CaptureFixture[str]) -> str:
    console.print(shown(report), soft_wrap=True)
    return capsys.readouterr().out


@pytest.mark.parametrize("finished", [TRAINED, DISTILLED, JUDGED])
def test_the_same_result_is_identical_whenever_it_was_made(
    finished: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    report = pair(finished, seconds=99.0)
    assert (report.verdict, report.same, report.result, report.unknown) == ("identical", True, [], [])
    assert "identical: job bbbbbbbbbbbb and job aaaaaaaaaaaa found the same" in printed(report, capsys)


def test_another_accuracy_differs(capsys: pytest.CaptureFixture[str]) -> None:
    report = pair(JUDGED, robust_accuracy=0.0, class_robust_accuracy=[0.0], evidence_sha256="f" * 64)
    assert (report.verdict, report.same) == ("differs", False)
    assert report.where == ["robust_accuracy", "class_robust_accuracy[0]"]
    out = printed(report, capsys)
    assert "differs: robust_accuracy, class_robust_accuracy[0]" in out
    assert "evidence_sha256" in out


def test_of_a_distillation_the_time_of_an_iteration_is_not_compared_and_the_student_is() -> None:
    assert pair(DISTILLED, seconds_per_iteration=7.0).verdict == "identical"
    other = pair(DISTILLED, checkpoint_sha256="c" * 64)
    assert (other.verdict, other.same) == ("same numbers", False)
    assert pair(DISTILLED, class_accuracy=[0.8]).verdict == "differs"
    assert pair(DISTILLED, teacher_sha256="c" * 64).verdict == "differs"


def test_a_model_that_is_not_the_one_that_was_judged_differs() -> None:
    assert pair(JUDGED, checkpoint_sha256="b" * 64).verdict == "differs"


def test_what_surrounds_the_numbers_may_differ(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [{**JUDGED.result.model_dump(mode="json")["stages"][0], "forwards": 3}]
    report = pair(JUDGED, engine="dkl-bench 0.2.0", notes=["a batch did not fit"], stages=stages)
    assert (report.verdict, report.same) == ("same numbers", True)
    assert {found.field for found in report.result} == {"engine", "notes", "stages[0].forwards"}
    assert "the same accuracies and verdicts; what differs is above" in printed(report, capsys)


def test_other_weights_with_the_same_accuracy_are_not_the_same_result(capsys: pytest.CaptureFixture[str]) -> None:
    report = pair(TRAINED, checkpoint_sha256="b" * 64)
    assert (report.verdict, report.same) == ("same numbers", False)
    assert "but other weights" in printed(report, capsys)


def test_provenance_explains_and_does_not_decide(capsys: pytest.CaptureFixture[str]) -> None:
    before = TRAINED.result.model_dump(mode="json")["provenance"]
    changed = {"device": "NVIDIA H200", "driver": {"nvidia": "580.95"}, "versions": {"torch": "2.12.0"}}
    report = pair(TRAINED, provenance={**before, **changed})
    assert report.verdict == "identical"
    assert {found.field for found in report.provenance} == {"device", "driver", "versions.torch"}
    out = printed(report, capsys)
    assert "where it comes from" in out
    assert "2.12.0" in out


def test_what_older_services_did_not_keep_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    old = job("a" * 12, JUDGED)
    for name in ("provenance", "could_still_break"):
        del old["result"][name]
    report = compare(old, job("b" * 12, JUDGED))
    assert report.verdict == "identical"
    assert report.unknown == ["could_still_break", "provenance"]
    assert "not kept: could_still_break, provenance" in printed(report, capsys)


def test_a_recipe_that_is_read_otherwise_today_is_told() -> None:
    after = job("b" * 12, TRAINED)
    after["recipe"] = {**after["recipe"], "grace": 3}
    after["fingerprint"] = "0" * 64
    report = compare(job("a" * 12, TRAINED), after)
    assert (report.verdict, report.same) == ("same numbers", True)
    assert report.recipe == [("grace", None, "3")]


def test_images_are_compared_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    report = pair(JUDGED, evidence_sha256="f" * 64)
    before = evidence()
    stage = np.where(before.broken_at == 0, 2, before.stage).astype(before.stage.dtype)
    add_images(report, before, replace(before, stage=stage))
    assert (report.verdict, report.same) == ("same numbers", True)
    assert report.fell_otherwise > 0
    add_images(report, before, evidence(broken_at=(-1, 1, 1, -1, -1)))
    assert report.where == ["images, Linf 0.1", "images, Linf 0.2"]
    assert [(row.at, row.only_before, row.only_after) for row in report.images] == [
        *(("clean", 0, 0), ("Linf 0.1", 0, 2), ("Linf 0.2", 0, 1)),
    ]
    assert "5 images, Linf 0.1: 0 fell only now, 2 only the first time" in printed(report, capsys)
    assert report.document()["images"][1] == {"at": "Linf 0.1", "images": 5, "only_before": 0, "only_after": 2}


def test_other_images_cannot_be_compared() -> None:
    with pytest.raises(EvidenceError, match="only results on the same images"):
        add_images(pair(JUDGED), evidence(), evidence(images=(0, 1, 3, 4, 7)))
