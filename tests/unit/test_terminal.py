"""What a terminal says about the end of a job."""

from io import StringIO

import pytest
from rich.console import Console
from samples import BATCH, DISTILLED, EPOCH, JUDGED, TRAINED

from dkl.catalog import RECIPES
from dkl.events import Adjusted, EvaluateResult, Finished
from dkl.events import Event as Said
from service import terminal_bars
from service.client import Event
from service.terminal import console
from service.terminal_bars import Bars
from service.terminal_tables import jobs_table, leaderboard_table, recipe_words, recipes_table, workers_table


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What a terminal on standard error gets."""
    written = StringIO()
    seen = Console(file=written, force_terminal=True, width=160, highlight=False)
    monkeypatch.setattr(terminal_bars, "notes", seen)
    return written


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 160)


def said(finished: Finished, capsys: pytest.CaptureFixture[str]) -> str:
    return printed([BATCH, finished], capsys)


def printed(
    events: list[Said], capsys: pytest.CaptureFixture[str], *, title: str = "a job", epochs: bool = False
) -> str:
    with Bars(epochs=epochs) as bars:
        bars.follow(bars.add(title), [Event(e.kind, e.model_dump(mode="json")) for e in events])
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
        "best_known_accuracy": 0.5,
        "robust_interval": None,
        "images": 100,
        "suite": "AutoAttack standard, by pyautoattack",
        "source": "measured",
    }
    console.print(leaderboard_table({"board": {"title": "Digits"}, "rows": [row], "total": 250}))
    out = capsys.readouterr().out
    assert "AutoAttack standard, by pyautoattack, 100 images, measured" in out
    assert "1 of 250 rows; --page has the others" in out


# --- a training -------------------------------------------------------------------------------------------

ADVERSARIAL = EPOCH.model_copy(
    update={
        "epoch": 7,
        "epochs": 60,
        "loss": 1.25,
        "adversarial_accuracy": 0.301,
        "validation_accuracy": 0.62,
        "validation_robust_accuracy": 0.2891,
        "images_per_second": 5120.4,
        "eta_seconds": 3725.0,
    }
)


def test_an_epoch_is_a_line_under_its_columns_and_fits_80_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "width", 80)
    later = ADVERSARIAL.model_copy(update={"epoch": 8})
    head, first, second, *_ = printed([ADVERSARIAL, later], capsys, epochs=True).splitlines()
    assert head.split() == [*("epoch", "loss", "clean", "adv.", "held", "out", "PGD", "lr", "images/s", "left")]
    assert first.split() == [
        "7/60",
        "1.2500",
        "90.0%",
        "30.1%",
        "62.0%",
        "28.9%",
        "0.1",
        "5,120",
        "1",
        "h",
        "2",
        "min",
    ]
    assert second.split()[0] == "8/60"
    assert len(head) == len(first) == len(second) <= 80


def test_a_natural_training_has_fewer_columns(capsys: pytest.CaptureFixture[str]) -> None:
    head, line, *_ = printed([EPOCH], capsys, epochs=True).splitlines()
    assert head.split() == ["epoch", "loss", "clean", "lr", "images/s", "left"]
    assert line.split() == ["1/2", "0.5000", "90.0%", "0.1", "1,000", "1.0", "s"]


def test_epochs_of_several_jobs_stay_in_their_bars(terminal: StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed([ADVERSARIAL], capsys) == ""
    assert "epoch 7 of 60: loss 1.250, clean 90.0%, adversarial 30.1%" in terminal.getvalue()


def test_a_file_gets_the_lines_while_the_terminal_gets_the_bars(
    terminal: StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed([ADVERSARIAL, TRAINED], capsys, title="mine", epochs=True)
    assert [line.split()[0] for line in out.splitlines()] == ["epoch", "7/60", "mine:"]
    assert "trained: 95.0% clean" in out
    assert "trained" in terminal.getvalue()
    assert "7/60" not in terminal.getvalue()


def test_without_a_terminal_there_are_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.follow(bars.add("mine"), [Event("progress", {"done": 1, "total": 2, "phase": "epoch 1 of 2"})])
    assert capsys.readouterr() == ("", "")


def test_a_program_has_standard_output_for_itself(terminal: StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(epochs=True, quiet=True) as bars:
        finished = [Event(e.kind, e.model_dump(mode="json")) for e in (ADVERSARIAL, TRAINED)]
        bars.follow(bars.add("mine"), finished)
    assert capsys.readouterr().out == ""
    assert "7/60" in terminal.getvalue()


def test_what_was_adjusted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    adjusted = Adjusted(sentence="128 images [at once] did not fit; going on with 64", micro_batch=64)
    assert "adjusted: 128 images [at once] did not fit; going on with 64" in printed([adjusted], capsys)


def test_a_training_ends_with_what_was_kept_and_what_papers_say(capsys: pytest.CaptureFixture[str]) -> None:
    held_out = {"selected_epoch": 2, "validation_accuracy": 0.8312, "validation_robust_accuracy": 0.4944}
    result = TRAINED.result.model_copy(update={**held_out, "notes": ("bfloat16 [not] available",)})
    out = printed([Finished(result=result)], capsys, title="ikl-at-cifar10-wrn-34-10")
    assert "weights of epoch 2 of 2: 83.12% on held-out images, 49.44% under PGD" in out
    assert "note: bfloat16 [not] available" in out
    assert "clean: published 84.80%, here 95.00% (+10.20); AutoAttack: published 57.09%" in out
    plain = printed([TRAINED], capsys, title="natural-digits")
    assert "weights of epoch" not in plain  # the last one, as ever
    assert "published" not in plain


def test_a_distillation_ends_with_what_it_took_and_what_papers_say(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed([DISTILLED], capsys, title="kd-cifar100-resnet56-resnet20")
    assert "distilled: 90.0% clean, 3 s" in out
    assert "teacher CNN-32: 95.00%; 12.5 ms per iteration\n" in out
    assert "accuracy: published 70.66%, here 90.00% (+19.34)" in out
    assert "AutoAttack" not in out


def test_a_distillation_of_long_tailed_data_tells_its_groups(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {"many_accuracy": 0.9, "few_accuracy": 0.25, "extra_parameters": 86912}
    out = said(Finished(result=DISTILLED.result.model_copy(update=groups)), capsys)
    assert "86,912 parameters learnt beside the student" in out
    assert "classes with many, medium or few training images: many 90.00%, few 25.00%" in out


def test_events_of_an_older_service_are_drawn_too(capsys: pytest.CaptureFixture[str]) -> None:
    epoch = {
        "epoch": 1,
        "epochs": 2,
        "loss": 0.5,
        "clean_accuracy": 0.9,
        "adversarial_accuracy": None,
        "eps": None,
    }
    result = {"kind": "train", "checkpoint_sha256": "a", "parameters": 10, "epochs": 2, "clean_accuracy": 0.9}
    with Bars(epochs=True) as bars:
        events = [
            Event("epoch", {**epoch, "lr": 0.1, "seconds": 1.0}),
            Event("finished", {"result": {**result, "seconds": 2.0}}),
        ]
        bars.follow(bars.add("natural-digits"), events)
    out = capsys.readouterr().out
    assert "1/2   0.5000  90.0%" in out
    assert "trained: 90.0% clean" in out
    assert "weights of" not in out


def test_recipes_are_listed_with_what_papers_report(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("natural-digits", "ikl-at-cifar100-wrn-34-10")
    console.print(recipes_table({name: RECIPES[name] for name in names}))
    [natural] = [line for line in capsys.readouterr().out.splitlines() if "natural-digits" in line]
    console.print(recipes_table({name: RECIPES[name] for name in names}))
    [published] = [line for line in capsys.readouterr().out.splitlines() if "wrn-34-10" in line]
    assert "%" not in natural
    assert published.split()[1:3] == ["65.76%", "31.91%"]


def test_a_recipe_takes_one_line_of_a_narrow_terminal() -> None:
    written = StringIO()
    narrow = Console(width=80, file=written)
    names = [name for name in RECIPES if name.startswith("lbgat-")]
    narrow.print(recipes_table({name: RECIPES[name] for name in names}))
    lines = written.getvalue().splitlines()
    assert [line.split()[0] for line in lines if line.startswith(" lbgat-")] == names
    assert len(lines) < len(names) + 8


def test_all_that_is_known_of_a_recipe() -> None:
    lines = list(recipe_words("lbgat-cifar100-wrn-34-10-beta6", RECIPES["lbgat-cifar100-wrn-34-10-beta6"]))
    assert lines[0].endswith(", train")
    assert "LBGAT-AWP" in lines[1]
    assert lines[2].startswith("published: 60.64% clean, 29.33% under AutoAttack")
    assert "https://" in lines[2]
    assert "to run it: dklbench submit lbgat-cifar100-wrn-34-10-beta6" in lines
    judge = list(recipe_words("autoattack-digits-linf", RECIPES["autoattack-digits-linf"]))
    assert "published: nothing" in judge
    assert "to run it: dklbench submit autoattack-digits-linf model.job=ID" in judge
    student = list(recipe_words("ikl-kd-digits", RECIPES["ikl-kd-digits"]))
    assert "to run it: dklbench submit ikl-kd-digits teacher.job=ID" in student


# --- jobs and workers -------------------------------------------------------------------------------------


def test_workers_come_and_go_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        Event("joined", {"worker": "box/[gpu1]"}),
        Event("left", {"worker": "box/[gpu1]"}),
        Event("left", {"worker": "box/gpu2", "reason": "its worker box/gpu2 went silent"}),
    ]
    for watched, lines in ((True, 3), (False, 0)):
        with Bars(epochs=watched) as bars:
            bars.follow(bars.add("a job"), events)
        out = capsys.readouterr().out
        assert out.count("joined") + out.count(" left") == lines
    with Bars(epochs=True) as bars:
        bars.follow(bars.add("a job"), events)
    assert "box/[gpu1] joined" in (out := capsys.readouterr().out)
    assert "box/gpu2 left: its worker box/gpu2 went silent" in out


def test_a_job_that_waits_again_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    status = Event("status", {"status": "queued", "reason": "its worker w went silent", "actor": "sweeper"})
    with Bars() as bars:
        assert bars.follow(bars.add("a job"), [status]) == "queued"
    assert "waits again: its worker w went silent" in capsys.readouterr().out


def test_jobs_are_listed_with_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    job = {
        **{"id": "0123456789ab", "name": "natural-digits", "kind": "train", "status": "queued", "reason": None},
        **{"progress": None, "result": None, "queue": "gpu", "priority": 5, "workers": []},
    }
    progress = {"done": 2, "total": 10, "phase": "epoch 3 of 10"}
    at_work = {**job, "status": "running", "progress": progress, "workers": ["box/gpu0", "box/gpu1", "box/gpu2"]}
    console.print(jobs_table([job, at_work]))
    out = capsys.readouterr().out
    assert "queue gpu, priority +5" in out
    assert "20% epoch 3 of 10 on box/gpu0 and 2 more" in out


def test_workers_are_listed_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 80)
    worker = {
        **{"name": "celery@node7.example.org/312", "state": "working", "jobs": ["0123456789ab"]},
        **{"device": "NVIDIA H200", "queues": ["gpu"], "gpu_use": 0.971, "seconds_since_beat": 3.2},
    }
    console.print(workers_table([worker, {**worker, "state": "silent", "seconds_since_beat": 7300}]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("working" in line and "97%" in line and "3 s ago" in line for line in lines)
    assert any("silent" in line and "2 h ago" in line and "97%" not in line for line in lines)
