"""Full memory: fewer images pass at once, the verdicts stay, and it is said; or that not even one image fits."""

import gc
import weakref
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trials import SHA256, batches, evaluation, judge, loaded, quick_suite, result

from dkl.corruptions import evaluate_corruptions
from dkl.events import Adjusted, CorruptionsResult, Event, Finished, Progress
from dkl.evidence import read_evidence
from dkl.explain import read_recipe
from dkl.memory import Room, out_of_memory, required

SUITE = quick_suite(steps=4, targets=3, queries=20)
GPU_IS_FULL = "CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words"


class Cramped(nn.Module):
    """A linear model with memory for a few images; each answer has the same bits in every batch."""

    room: ClassVar[int]
    """Images."""
    seen: ClassVar[int]
    """The most that have passed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError(GPU_IS_FULL)
        type(self).seen = max(self.seen, len(x))
        return ((x.flatten(1) - 0.5)[:, None] * self.weight).sum(dim=2)


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: "float32")
    monkeypatch.setattr(Cramped, "room", 1000, raising=False)
    monkeypatch.setattr(Cramped, "seen", 0, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> Cramped:
    """Beside images that it classifies correctly."""
    model = Cramped()
    images = np.random.default_rng(0).integers(110, 146, (16, 8, 8, 1), np.uint8)
    with torch.no_grad():
        labels = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(dim=1)
    np.savez(tmp_path / "tiny_test.npz", image=images, label=labels.numpy())
    Cramped.seen = 0
    return model


def said(events: list[Event]) -> list[Adjusted]:
    return [event for event in events if isinstance(event, Adjusted)]


def same_evidence(one: Path, other: Path) -> None:
    records = [read_evidence(folder / "evidence.safetensors") for folder in (one, other)]
    for name in vars(records[0]):
        np.testing.assert_array_equal(getattr(records[0], name), getattr(records[1], name), name)


# --- an evaluation -----------------------------------------------------------------------------------------


def test_fewer_images_at_once_change_nothing_but_what_is_said(
    model: Cramped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = evaluation(eps=0.003, suite=SUITE, chunk_size=8)
    whole = judge(recipe, model, tmp_path, tmp_path / "whole")
    assert Cramped.seen == 16
    assert said(whole) == []
    monkeypatch.setattr(Cramped, "room", 4)
    monkeypatch.setattr(Cramped, "seen", 0)
    events = judge(recipe, model, tmp_path)
    assert Cramped.seen == 4
    assert [event.micro_batch for event in said(events)] == [8, 4]
    assert said(events)[0].sentence == (
        "16 images at once did not fit into memory (CUDA out of memory. Tried to allocate 2.00 GiB.); from the "
        "first look at the model on 8 pass at a time"
    )
    assert result(events).notes == tuple(event.sentence for event in said(events))
    assert [batch.standing for batch in batches(events)] == [batch.standing for batch in batches(whole)]
    assert [batch.forwards for batch in batches(events)] == [batch.forwards for batch in batches(whole)]
    same_evidence(tmp_path / "whole", tmp_path / "work")
    assert 1 < len(batches(whole)[-1].images) < 16


@pytest.mark.long
@pytest.mark.parametrize("room", [1, 2])
def test_the_classes_that_an_attack_aims_at_may_come_one_after_the_other(
    room: int, model: Cramped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = evaluation(eps=0.002, suite=[SUITE[3], SUITE[4]], chunk_size=8)
    whole = judge(recipe, model, tmp_path, tmp_path / "whole")
    monkeypatch.setattr(Cramped, "room", room)
    events = judge(recipe, model, tmp_path)
    assert said(events)[-1].micro_batch == room
    assert [batch.standing for batch in batches(events)] == [batch.standing for batch in batches(whole)]
    assert 1 <= result(events).robust_accuracy * 16 <= 15


def test_memory_may_become_scarce_later(model: Cramped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit begins again from its start, the bar stays where it is, and a resumed run says it again."""
    monkeypatch.setattr("dkl.attacks.loan.SECONDS_PER_TURN", 0.0)
    recipe = evaluation(eps=0.003, suite=SUITE, chunk_size=8)
    whole = judge(recipe, model, tmp_path, tmp_path / "whole")
    inside, calls = Cramped.forward, 0

    def forward(self: Cramped, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 60:
            Cramped.room = 5
        return inside(self, x)

    monkeypatch.setattr(Cramped, "forward", forward)
    events = judge(recipe, model, tmp_path)
    [adjusted] = said(events)
    assert adjusted.sentence.startswith("8 images at once did not fit into memory")
    assert ", batch " in adjusted.sentence
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == sorted(done)
    same_evidence(tmp_path / "whole", tmp_path / "work")
    assert said(judge(recipe, model, tmp_path)) == [adjusted]
    assert [batch.standing for batch in batches(events)] == [batch.standing for batch in batches(whole)]


def test_pyautoattack_sees_fewer_images_at_once(
    model: Cramped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cramped, "room", 4)
    suite = quick_suite(steps=4, targets=3, queries=30)
    events = judge(evaluation(eps=0.003, suite=suite, chunk_size=8, engine="pyautoattack"), model, tmp_path)
    assert Cramped.seen == 4
    assert [event.micro_batch for event in said(events)] == [8, 4]
    assert 0 < result(events).robust_accuracy < 1


@pytest.mark.long
@pytest.mark.parametrize("engine", ["dkl", "pyautoattack"])
def test_one_image_that_does_not_fit_is_the_end(
    engine: str, model: Cramped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cramped, "room", 0)
    with pytest.raises(
        MemoryError, match=r"not even one image at a time fits .*2\.00 GiB.*; take a smaller model"
    ):
        judge(evaluation(suite=SUITE, engine=engine), model, tmp_path)


def test_other_errors_of_the_model_are_not_about_memory(model: Cramped, tmp_path: Path) -> None:
    def forward(x: Tensor) -> Tensor:
        raise RuntimeError("something else")

    model.forward = forward
    with pytest.raises(ValueError, match=r"the model fails on float32 images .* something else"):
        judge(evaluation(suite=SUITE), model, tmp_path)


# --- common corruptions ------------------------------------------------------------------------------------


def corrupted(data_dir: Path, workdir: Path, model: nn.Module) -> list[Event]:
    recipe = read_recipe(
        {
            "kind": "corruptions",
            "dataset": "npz:tiny",
            "source": "generated",
            "corruptions": ["brightness", "contrast"],
            "severities": [1, 5],
            "batch_size": 8,
            "model": {"checkpoint": SHA256},
        }
    )
    workdir.mkdir(exist_ok=True)
    return list(evaluate_corruptions(recipe, loaded(model), workdir, device="cpu", data_dir=data_dir))


def outcome(events: list[Event]) -> CorruptionsResult:
    assert isinstance(events[-1], Finished)
    assert isinstance(events[-1].result, CorruptionsResult)
    return events[-1].result


@pytest.mark.long
def test_passes_go_on_in_smaller_parts(model: Cramped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outcome(corrupted(tmp_path, tmp_path / "whole", model))
    monkeypatch.setattr(Cramped, "room", 2)
    events = corrupted(tmp_path, tmp_path / "work", model)
    assert [event.micro_batch for event in said(events)] == [8, 4, 2]
    notes = tuple(event.sentence for event in said(events))
    assert outcome(events).notes == (*whole.notes, *notes)
    assert outcome(events).table == whole.table
    assert outcome(events).provenance == whole.provenance  # the same images, however many at once
    assert 0.1 < whole.corruption_accuracy < 1
    again = corrupted(tmp_path, tmp_path / "work", model)
    assert said(again) == said(events)
    assert outcome(again) == outcome(events)
    monkeypatch.setattr(Cramped, "room", 0)
    with pytest.raises(MemoryError, match="not even one image at a time fits"):
        corrupted(tmp_path, tmp_path / "other", model)


# --- the parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError(GPU_IS_FULL), "CUDA out of memory. Tried to allocate 2.00 GiB."),
        (MemoryError(), "MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "DefaultCPUAllocator: can't allocate",
        ),
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_what_is_about_memory(error: Exception, words: str | None) -> None:
    found = out_of_memory(error)
    assert found is None if words is None else (found or "").startswith(words)


def test_what_is_required_is_named() -> None:
    sentence = r"the model does not fit into memory \(no room\); take a smaller model"
    with pytest.raises(MemoryError, match=sentence), required("the model"):
        raise torch.OutOfMemoryError("no room")
    with pytest.raises(RuntimeError, match="another"), required("the model"):
        raise RuntimeError("another")


def test_what_filled_the_memory_is_gone_before_the_next_try() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def work(images: int) -> int:
        assert all(ref() is None for ref in kept)
        tensor = torch.zeros(images)
        kept.append(weakref.ref(tensor))
        if images > 2:
            raise torch.OutOfMemoryError("no room")
        return images

    gc.disable()
    try:
        room = Room(6)
        assert room.fitting(9, "here", work) == 2
    finally:
        gc.enable()
    assert room.images == 2
    assert [each.micro_batch for each in room.take_adjusted()] == [4, 2]
    assert room.take_adjusted() == ()
