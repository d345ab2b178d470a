"""Common corruptions: where the images come from, that every number is the right one, and resuming."""

import random
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trials import SHA256, loaded

from dkl.architectures import CNN
from dkl.corrupted import corrupted_images
from dkl.corruptions import clustered_interval, evaluate_corruptions
from dkl.datasets import DatasetError, load
from dkl.engine import run
from dkl.events import CorruptionDone, CorruptionsResult, Event, Finished, Progress, Started
from dkl.explain import InvalidRecipeError, read_recipe
from dkl.local import Judged, prepare
from dkl.models import build
from dkl.protocols import CORRUPTIONS, CorruptionProtocol, EvaluateCorruptions
from dkl.weights import save_checkpoint

N, K = 6, 10
SOME = ("snow", "fog", "contrast")


class FirstPixel(nn.Module):
    """Answers with the class that the first pixel's grey level names."""

    def forward(self, x: Tensor) -> Tensor:
        level = 255 * x[:, 0, 0, 0]
        return -(level[:, None] - torch.arange(K)).square()


def recipe(**changes: Any) -> EvaluateCorruptions:
    document = {"kind": "corruptions", "dataset": "cifar10", "corruptions": SOME, "model": {"checkpoint": SHA256}}
    asked = read_recipe({**document, **changes})
    assert isinstance(asked, EvaluateCorruptions)
    return asked


def level(corruption: str, severity: int) -> int:
    """How many of the first images are right, in the folder that `data_dir` makes."""
    return (CORRUPTIONS.index(corruption) + 2 * severity) % (N + 1)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A CIFAR-10 of six test images, and its CIFAR-10-C as the authors lay theirs out."""
    folder = tmp_path / "data"
    (folder / "CIFAR-10-C").mkdir(parents=True)
    labels = np.arange(N) % K
    clean = np.zeros((N, 32, 32, 3), np.uint8)
    clean[:, 0, 0] = labels[:, None]
    np.savez(folder / "cifar10_test.npz", image=clean, label=labels)
    for corruption in SOME:
        stacked = np.concatenate([clean] * 5)
        for severity in range(1, 6):
            wrong = stacked[(severity - 1) * N + level(corruption, severity) : severity * N]
            wrong[:, 0, 0] = (wrong[:, 0, 0] + 1) % K
        np.save(folder / "CIFAR-10-C" / f"{corruption}.npy", stacked)
    np.save(folder / "CIFAR-10-C" / "labels.npy", np.tile(labels, 5))
    return folder


def judge(asked: EvaluateCorruptions, data_dir: Path, model: nn.Module | None = None, **about: Any) -> list[Event]:
    workdir = data_dir.parent / "work"
    workdir.mkdir(exist_ok=True)
    judged = loaded(model or FirstPixel(), channels=3, **about)
    return list(evaluate_corruptions(asked, judged, workdir, device="cpu", data_dir=data_dir))


def passes(events: list[Event]) -> list[CorruptionDone]:
    return [event for event in events if isinstance(event, CorruptionDone)]


def result(events: list[Event]) -> CorruptionsResult:
    last = events[-1]
    assert isinstance(last, Finished)
    assert isinstance(last.result, CorruptionsResult)
    return last.result


# --- published --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 512])
def test_every_cell_is_the_accuracy_on_its_own_images(batch_size: int, data_dir: Path) -> None:
    events = judge(recipe(batch_size=batch_size), data_dir)
    found = result(events)
    assert found.clean_accuracy == 1.0
    assert [row.corruption for row in found.table] == list(SOME)
    for row in found.table:
        expected = [level(row.corruption, severity) / N for severity in range(1, 6)]
        assert row.accuracies == pytest.approx(expected)
        assert row.mean == pytest.approx(np.mean(expected))
    assert found.corruption_accuracy == pytest.approx(np.mean([row.mean for row in found.table]))
    assert found.corruption_interval[0] < found.corruption_accuracy < found.corruption_interval[1]
    assert (found.source, found.images, found.checkpoint_sha256) == ("CIFAR-10-C", N, SHA256)
    assert (found.notes, found.warnings) == ((), ())
    assert [(event.corruption, event.severity) for event in passes(events)] == [
        ("clean", 0),
        *((name, severity) for name in SOME for severity in range(1, 6)),
    ]
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == sorted(event.done for event in progress)
    assert progress[-1].done == progress[-1].total == 16 * N


def test_the_first_images_and_some_severities(data_dir: Path) -> None:
    found = result(judge(recipe(images=2, severities=[5, 2]), data_dir))
    assert found.severities == (5, 2)
    for row in found.table:
        assert row.accuracies == tuple(min(level(row.corruption, severity), 2) / 2 for severity in (5, 2))


def test_missing_files_are_named_with_where_to_get_them(data_dir: Path) -> None:
    (data_dir / "CIFAR-10-C" / "fog.npy").unlink()
    (data_dir / "CIFAR-10-C" / "labels.npy").unlink()
    sentence = r"CIFAR-10-C lacks fog\.npy, labels\.npy; get them from the authors \(https://zenodo\.org/records/2535967\)"
    with pytest.raises(DatasetError, match=sentence):
        judge(recipe(), data_dir)


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        (
            "fog",
            np.zeros((N, 32, 32, 3), np.uint8),
            r"fog\.npy must be uint8 of shape \(30, 32, 32, 3\), .* found",
        ),
        ("fog", np.zeros((5 * N, 32, 32, 3), np.float32), r"fog\.npy must be uint8 .* found float32"),
        ("labels", np.zeros(N, np.int64), r"labels\.npy must be 30 labels, found \(6,\)"),
        ("labels", np.zeros(5 * N, np.int64), r"labels\.npy disagrees with the labels .* at 25 of 30 places"),
        ("fog", np.array([{}], dtype=object), r"fog\.npy is no \.npy file, or damaged: .*Python objects"),
    ],
)
def test_files_of_another_form(name: str, array: np.ndarray, sentence: str, data_dir: Path) -> None:
    np.save(data_dir / "CIFAR-10-C" / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match=sentence):
        judge(recipe(), data_dir)


def test_what_does_not_fit(data_dir: Path) -> None:
    with pytest.raises(ValueError, match="cifar10 has 6 test images, found images=7; ask for fewer"):
        judge(recipe(images=7), data_dir)
    with pytest.raises(ValueError, match="cifar10 has 10 classes, the model, trained on npz:tiny, tells 4 apart"):
        judge(recipe(), data_dir, classes=4)


def test_logits_that_are_not_finite_count_as_wrong(data_dir: Path) -> None:
    class Broken(FirstPixel):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill((255 * x[:, 0, 0, 0] < 1)[:, None], float("nan"))

    found = result(judge(recipe(corruptions=["snow"], severities=[1]), data_dir, Broken()))
    assert found.clean_accuracy == (N - 1) / N
    assert "1 images without corruption have logits that are NaN or infinite, and count as wrong" in found.warnings


# --- resuming ---------------------------------------------------------------------------------------------


def test_a_resumed_run_says_the_same(data_dir: Path, tmp_path: Path) -> None:
    whole = judge(recipe(), data_dir)
    other = tmp_path / "other"
    other.mkdir()

    def events():
        return evaluate_corruptions(
            recipe(), loaded(FirstPixel(), channels=3), other, device="cpu", data_dir=data_dir
        )

    stopped: list[Event] = []
    with closing(events()) as running:
        for event in running:
            stopped.append(event)
            if len(passes(stopped)) == 4:
                break
    resumed = list(events())
    assert resumed[:4] == passes(stopped)
    assert not any(isinstance(event, CorruptionDone) and event in resumed[:4] for event in resumed[4:])
    assert [e.key for e in passes(resumed)] == [e.key for e in passes(whole)]
    assert len({e.key for e in passes(whole)}) == 16
    timeless = {"seconds": 0.0}
    assert result(resumed).model_copy(update=timeless) == result(whole).model_copy(update=timeless)
    assert list(events()) == [*passes(resumed), resumed[-1]]


def test_the_files_of_another_question_are_an_error(data_dir: Path) -> None:
    judge(recipe(), data_dir)
    with pytest.raises(ValueError, match=r"corruption-clean-0\.json holds answers to another recipe"):
        judge(recipe(seed=1), data_dir)
    path = data_dir.parent / "work" / "corruption-snow-3.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"corruption-snow-3\.json is damaged; delete it"):
        judge(recipe(), data_dir)


# --- the interval -----------------------------------------------------------------------------------------


def test_the_interval_is_wilsons_where_the_passes_agree() -> None:
    """75 passes with one answer per image tell no more than one pass: 8 of 10."""
    right = np.tile(np.arange(10) < 8, (75, 1))
    assert clustered_interval(right) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert clustered_interval(right[:, :8])[1] == pytest.approx(1.0)
    assert clustered_interval(right[:, :8])[0] == pytest.approx(clustered_interval(right[:1, :8])[0])


def test_the_interval_covers_what_it_should() -> None:
    """Images with accuracies of their own, 20 passes each: the true mean is inside in 95 % of all samples."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        own = rng.beta(2, 1, size=60)  # mean 2/3
        low, high = clustered_interval(rng.random((20, 60)) < own)
        inside += low <= 2 / 3 <= high
    assert 0.92 <= inside / 400 <= 0.98


# --- generated --------------------------------------------------------------------------------------------


@pytest.fixture
def coloured(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "tiny_test.npz", image=images, label=np.arange(3))
    return tmp_path


def made(data_dir: Path, dataset: str = "npz:tiny", seed: int = 0, **changes: Any) -> Callable[..., np.ndarray]:
    pytest.importorskip("imagecorruptions")
    protocol = CorruptionProtocol(dataset=dataset, source="generated", seed=seed, **changes)
    return corrupted_images(protocol, load(dataset, "test", data_dir), data_dir).read


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_generated_images_follow_from_seed_image_corruption_and_severity(corruption: str, coloured: Path) -> None:
    read = made(coloured)
    before = [*random.getstate(), *np.random.get_state()[1].tolist()]  # type: ignore[union-attr, index]
    both = read(corruption, 3, range(3))
    assert both.dtype == np.uint8
    assert both.shape == (3, 32, 32, 3)
    assert [*random.getstate(), *np.random.get_state()[1].tolist()] == before  # type: ignore[union-attr, index]
    np.random.rand()  # the caller's state has no say
    assert np.array_equal(read(corruption, 3, range(1, 2))[0], both[1])
    clean = load("npz:tiny", "test", coloured).images
    assert not np.array_equal(both, clean)
    assert not np.array_equal(read(corruption, 5, range(3)), both)


def test_another_seed_is_other_noise(coloured: Path) -> None:
    for corruption in ("gaussian_noise", "impulse_noise", "glass_blur", "snow"):
        one, other = (made(coloured, seed=seed)(corruption, 1, range(1)) for seed in (0, 1))
        assert not np.array_equal(one, other), corruption


def test_small_grey_images_have_the_corruptions_that_need_no_size(tmp_path: Path) -> None:
    names = ("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast")
    read = made(tmp_path, "digits", corruptions=names)
    clean = load("digits", "test", tmp_path).images[:40]
    for name in names:
        images = read(name, 3, range(40))
        assert images.shape == (40, 8, 8, 1)
        assert not np.array_equal(images, clean)
    noise = read("gaussian_noise", 1, range(40)) / 255 - clean / 255
    middle = (clean > 80) & (clean < 175)  # where nothing is clipped
    assert noise[middle].std() == pytest.approx(0.08, rel=0.15)  # of the paper, for severity 1
    means = clean.mean(axis=(1, 2, 3), keepdims=True)
    faded = read("contrast", 3, range(40))
    assert np.abs(faded - (clean - means) * 0.2 - means).max() <= 1.01  # 0.2 at severity 3, about the mean


def test_what_is_not_defined_for_small_images_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match="snow cannot be generated for images of 8 x 8 pixels: they need 32 x 32"
    ):
        made(tmp_path, "digits", corruptions=("brightness", "snow"))


def test_without_the_package_the_way_out_is_named(coloured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    protocol = CorruptionProtocol(dataset="npz:tiny", source="generated")
    with pytest.raises(DatasetError, match=r"pip install 'dkl-bench\[corruptions\]'"):
        corrupted_images(protocol, load("npz:tiny", "test", coloured), coloured)


# --- the recipe -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"dataset": "digits"},
            "no published corruptions of digits, only of cifar10 and cifar100; ask for the source",
        ),
        ({"corruptions": ["snow", "fog", "snow"]}, "corruptions names snow twice; give each once"),
        ({"severities": [1, 1]}, "severities names 1 twice"),
        ({"severities": [0]}, "severities.0: must be 1, 2, 3, 4 or 5, found 0"),
        ({"corruptions": ["rain"]}, "corruptions.0: must be 'gaussian_noise', 'shot_noise'"),
        ({"corruptions": []}, "corruptions"),
        ({"model": {"zoo": "cifar100/corruptions/Hendrycks2020AugMix_ResNeXt"}}, "tells 100 apart"),
        ({"model": {}}, "say which model to judge"),
    ],
)
def test_bad_recipes(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRecipeError, match=sentence):
        recipe(**changes)


def test_a_zoo_model_for_corruptions_is_judged_by_them() -> None:
    zoo = "cifar10/corruptions/Hendrycks2020AugMix_WRN"
    local = prepare("corruptions-cifar10", [], judged=Judged(zoo=zoo), workdir=None)
    assert isinstance(local.recipe, EvaluateCorruptions)
    assert len(local.recipe.corruptions) == 15


def test_through_the_engine(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(CNN(width=2), channels=1, classes=K)
    path = tmp_path / "model.safetensors"
    sha256 = save_checkpoint(path, model, architecture=CNN(width=2), channels=1, classes=K, dataset="digits")
    asked = recipe(
        dataset="digits",
        source="generated",
        corruptions=["brightness"],
        severities=[1],
        images=20,
        model={"checkpoint": sha256},
    )

    def events() -> list[Event]:
        return list(run(asked, tmp_path / "work", device="cpu", data_dir=tmp_path, fetch=lambda _: path))

    first = events()
    assert isinstance(first[0], Started)
    assert first[0].versions["imagecorruptions-imaug"]
    assert not first[0].resumed
    found = result(first)
    assert found.checkpoint_sha256 == sha256
    assert found.source.startswith("imagecorruptions-imaug ")
    assert "not with those on published sets" in found.notes[0]
    again = events()
    assert again[0].resumed
    assert result(again) == found
