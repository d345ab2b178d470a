"""What a terminal says about the end of a job."""

import pytest
from samples import BATCH, JUDGED, TRAINED

from dkl.events import EvaluateResult, Finished
from service.client import Event
from service.terminal import Bars, console, leaderboard_table


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 160)


def said(finished: Finished, capsys: pytest.CaptureFixture[str]) -> str:
    events = [Event(e.kind, e.model_dump(mode="json")) for e in (BATCH, finished)]
    with Bars() as bars:
        bars.follow(bars.add("a job"), events)
    return capsys.readouterr().out


def judged(**changes: object) -> Finished:
    assert isinstance(JUDGED.result, EvaluateResult)
    return Finished(result=JUDGED.result.model_copy(update=changes))


@pytest.mark.parametrize(
    ("finished", "sentence"),
    [
        (TRAINED, "trained: 95.0% clean, 2 s"),
        (judged(), "judged: 100.0% clean, 50.0% robust"),
        (judged(protocol="custom"), "50.0% robust, custom"),
        (judged(protocol="AutoAttack standard, fast"), "50.0% robust, AutoAttack standard, fast"),
        (judged(protocol="screen"), "50.0% robust, an estimate, not AutoAttack"),
        (judged(stopped_early=True), "at most 50.0% robust"),
        (judged(warnings=("gradients of [exactly] zero",)), "suspicious: gradients of [exactly] zero"),
        (judged(images=200, could_still_break=0.02), "the whole suite would break at most 4 more of 200 images"),
    ],
)
def test_a_result_says_what_it_is_worth(
    finished: Finished, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in said(finished, capsys)


def test_a_plain_result_needs_no_remark(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(judged(), capsys)
    assert not any(word in out for word in ("suspicious", "confidence", "most", "estimate"))


def test_the_ranking_names_who_attacked(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "rank": 1,
        "name": "mine",
        "architecture": "CNN-32",
        "clean_accuracy": 0.9,
        "robust_accuracy": 0.5,
        "robust_interval": None,
        "images": 100,
        "suite": "AutoAttack standard, by pyautoattack",
        "source": "measured",
    }
    console.print(leaderboard_table({"board": {"title": "Digits"}, "rows": [row]}))
    assert "AutoAttack standard, by pyautoattack, 100 images, measured" in capsys.readouterr().out
