"""Data sets with a long tail: which images the CIFARs keep, and the lists of ImageNet-LT."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from dkl import datasets
from dkl.architectures import CNN
from dkl.batches import TrainingData, training_data
from dkl.datasets import DatasetError, known_dataset
from dkl.events import Finished, TrainResult
from dkl.longtail import class_sizes, first_of_each, rank_in_class, read_name
from dkl.objectives import Natural
from dkl.recipes import SGD, Train, Validation
from dkl.train import train


def natural(dataset: str, **changes: Any) -> Train:
    fields = {"model": CNN(width=4), "objective": Natural(), "epochs": 1, "batch_size": 64}
    return Train.model_validate({"dataset": dataset, **fields, **changes})


def made(data_dir: Path, dataset: str, **changes: Any) -> TrainingData:
    return training_data(natural(dataset, **changes), data_dir, "cpu")


# --- the profile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "classes", "factor", "total"),
    [
        # the totals of the data sets in use, with imb_factor 0.1, 0.02 and 0.01 of kaidic/LDAM-DRW
        (500, 100, 10, 19_573),
        (500, 100, 50, 12_608),
        (500, 100, 100, 10_847),
        (5000, 10, 10, 20_431),
        (5000, 10, 50, 13_996),
        (5000, 10, 100, 12_406),
        (500, 100, 1, 50_000),
    ],
)
def test_classes_fall_exponentially(largest: int, classes: int, factor: float, total: int) -> None:
    sizes = class_sizes(largest, classes, factor)
    assert sizes == tuple(int(largest * (1 / factor) ** (k / (classes - 1.0))) for k in range(classes))
    assert (sizes[0], sizes[-1], sum(sizes)) == (largest, largest // factor, total)
    name = f"cifar{classes}-lt@{factor}"
    known = known_dataset(name)
    assert known is not None
    assert (known.train_images, known.test_images, len(known.class_names)) == (total, 10_000, classes)


def test_no_class_is_without_images_and_whole_numbers_are_whole() -> None:
    assert class_sizes(500, 100, 1000)[-10:] == (1,) * 10
    assert class_sizes(5000, 10, 512) == tuple(max(1, 5000 // 2**k) for k in range(10))
    assert class_sizes(300, 2, 3) == (300, 100)


def test_the_first_images_of_each_class_are_kept_in_their_order() -> None:
    labels = np.array([1, 0, 1, 2, 1, 0, 2, 0, 1, 0])
    assert rank_in_class(labels).tolist() == [0, 0, 1, 0, 2, 1, 1, 2, 3, 3]
    assert first_of_each(labels, (3, 2, 1)).tolist() == [0, 1, 2, 3, 5, 7]
    assert first_of_each(labels, (9, 9, 9)).tolist() == list(range(10))


# --- names ------------------------------------------------------------------------------------------------


def test_a_data_set_has_one_name_and_a_title() -> None:
    for written in ("cifar100-lt@100", "cifar100-lt@100.0", "cifar100-lt@0100"):
        assert datasets.check_name(written) == "cifar100-lt@100"
    assert datasets.check_name("cifar10-lt@12.50") == "cifar10-lt@12.5"
    assert datasets.show_name("cifar10-lt@12.5") == "CIFAR-10-LT, imbalance 12.5"
    assert datasets.show_name("cifar100-lt@100") == "CIFAR-100-LT, imbalance 100"
    assert datasets.check_name("imagenet-lt@224") == "imagenet-lt"
    assert datasets.check_name("imagenet-lt@64") == "imagenet-lt@64"
    assert datasets.show_name("imagenet-lt") == "ImageNet-LT, 224 x 224"
    assert read_name("cifar100") is None
    assert known_dataset("npz:mine") is None
    assert known_dataset("folder:mine") is None


@pytest.mark.parametrize("factor", ["0.99", "0", "-1", "1000.1", "10000", "nan", "many", "1e2", "", "1_0", "٣"])
@pytest.mark.parametrize("base", ["cifar10", "cifar100"])
def test_a_factor_that_is_none(base: str, factor: str) -> None:
    with pytest.raises(
        ValueError, match=rf"must be a number from 1 to 1000 .* found .* write it as in {base}-lt@100"
    ):
        datasets.check_name(f"{base}-lt@{factor}")


def test_a_recipe_without_a_factor_is_refused() -> None:
    with pytest.raises(ValidationError, match="the imbalance factor must be a number from 1 to 1000"):
        natural("cifar100-lt")
    with pytest.raises(ValidationError, match=r"unknown dataset 'imagenet-lt@0'; choose from .* imagenet-lt@SIDE"):
        natural("imagenet-lt@0")


# --- CIFAR ------------------------------------------------------------------------------------------------

PER_CLASS = 120


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """cifar10, packed: 1200 training and 40 test images, told apart by brightness."""
    random = np.random.default_rng(0)
    for split, count in (("train", 10 * PER_CLASS), ("test", 40)):
        label = random.permutation(np.arange(count) % 10)
        image = (random.integers(0, 20, (count, 8, 8, 3)) + 23 * label[:, None, None, None]).astype(np.uint8)
        np.savez(tmp_path / f"cifar10_{split}.npz", image=image, label=label)
    return tmp_path


def test_a_tail_is_cut_out_of_the_training_images_only(cifar: Path) -> None:
    whole = datasets.load("cifar10", "train", cifar)
    tail = datasets.load("cifar10-lt@40", "train", cifar)
    sizes = class_sizes(PER_CLASS, 10, 40)
    assert tuple(np.bincount(tail.labels)) == sizes
    assert (sizes[0], sizes[-1], tail.classes) == (120, 3, 10)
    for label, size in enumerate(sizes):
        expected = whole.images[whole.labels == label][:size]
        np.testing.assert_array_equal(tail.images[tail.labels == label], expected)
    test = datasets.load("cifar10-lt@40", "test", cifar)
    np.testing.assert_array_equal(test.images, datasets.load("cifar10", "test", cifar).images)


def test_the_base_is_read_once_and_its_hash_is_that_of_what_was_used(
    cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[BinaryIO] = []
    load = np.load

    def counted(file: BinaryIO, **options: Any) -> Any:
        reads.append(file)
        return load(file, **options)

    monkeypatch.setattr(np, "load", counted)
    tail = made(cifar, "cifar10-lt@40")
    assert [Path(read.name) for read in reads] == [cifar / "cifar10_train.npz"]
    assert tail.class_counts == class_sizes(PER_CLASS, 10, 40)
    assert len({tail.sha256, made(cifar, "cifar10-lt@30").sha256, made(cifar, "cifar10").sha256}) == 3
    assert made(cifar, "cifar10-lt@1").sha256 == made(cifar, "cifar10").sha256


def test_missing_data_are_those_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(
        DatasetError, match=r"cifar100 is not in .* put cifar100_train\.npz and cifar100_test\.npz there"
    ):
        datasets.load("cifar100-lt@100", "train", tmp_path)


def trained(recipe: Train, workdir: Path, data_dir: Path) -> TrainResult:
    workdir.mkdir()
    *_, last = train(recipe, workdir, device="cpu", data_dir=data_dir)
    assert isinstance(last, Finished)
    assert isinstance(last.result, TrainResult)
    return last.result


def test_a_result_tells_the_groups_apart_where_there_is_a_tail(cifar: Path, tmp_path: Path) -> None:
    sgd = SGD(lr=0.1)
    tail = trained(natural("cifar10-lt@40", epochs=3, optimizer=sgd), tmp_path / "tail", cifar)
    sizes = class_sizes(PER_CLASS, 10, 40)
    groups = (
        (tail.many_accuracy, sum(size > 100 for size in sizes)),
        (tail.medium_accuracy, sum(20 <= size <= 100 for size in sizes)),
        (tail.few_accuracy, sum(size < 20 for size in sizes)),
    )
    assert all(count for _, count in groups)
    means = [accuracy for accuracy, _ in groups if accuracy is not None]
    assert len(means) == 3
    weights = [count / 10 for _, count in groups]  # every class has four test images
    assert np.dot(means, weights) == pytest.approx(tail.clean_accuracy)
    even = trained(natural("cifar10"), tmp_path / "even", cifar)
    assert (even.many_accuracy, even.medium_accuracy, even.few_accuracy) == (None, None, None)


def test_results_from_before_there_were_groups_are_read(cifar: Path, tmp_path: Path) -> None:
    old = trained(natural("cifar10"), tmp_path / "even", cifar).model_dump()
    for name in ("many_accuracy", "medium_accuracy", "few_accuracy"):
        del old[name]
    assert TrainResult.model_validate(old).few_accuracy is None


# --- ImageNet ---------------------------------------------------------------------------------------------

CLASSES = ("n01440764", "n01443537", "n01484850")
COUNTS = (3, 2, 1)


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def train_rows() -> list[tuple[str, int]]:
    return [
        (f"train/{name}/{name}_{number}.JPEG", label)
        for label, (name, count) in enumerate(zip(CLASSES, COUNTS, strict=True))
        for number in range(count)
    ]


def write_list(data_dir: Path, split: str, rows: Iterable[tuple[str, object]]) -> Path:
    path = data_dir / f"ImageNet_LT_{split}.txt"
    path.write_text("\n".join(f"{file} {label}" for file, label in rows))  # as published: no end of line at last
    return path


def val_file(number: int, *, by_class: bool) -> str:
    folder = f"{CLASSES[number % 3]}/" if by_class else ""
    return f"val/{folder}ILSVRC2012_val_{number:08}.JPEG"


@pytest.fixture(params=[True, False], ids=["by-class", "flat"])
def imagenet(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Six training and six test images of three classes; the training folders hold others, too."""
    write_list(tmp_path, "train", train_rows())
    for seed, (file, _) in enumerate([*train_rows(), (f"train/{CLASSES[2]}/{CLASSES[2]}_9.JPEG", 2)]):
        draw(tmp_path / "imagenet" / file, seed)
    for number in range(6):
        draw(tmp_path / "imagenet" / val_file(number, by_class=request.param), 100 + number)
    return tmp_path


@pytest.mark.parametrize("listed_by_class", [True, False])
def test_the_images_of_the_lists_are_read_wherever_validation_images_lie(
    imagenet: Path, listed_by_class: bool
) -> None:
    write_list(imagenet, "test", [(val_file(n, by_class=listed_by_class), n % 3) for n in (3, 0, 1, 4, 5, 2)])
    folder = datasets.open_folder("imagenet-lt@16", "train", imagenet)
    assert folder.labels.tolist() == [0, 1, 2, 0, 1, 0]
    assert folder.files[:4].tolist() == [
        f"train/{c}/{c}_{n}.JPEG" for c, n in zip((*CLASSES, CLASSES[0]), "0001", strict=True)
    ]
    assert (len(folder.class_names), folder.side) == (1000, 16)
    test = datasets.open_folder("imagenet-lt", "test", imagenet)
    assert [Path(file).name[-6] for file in test.files] == ["3", "1", "5", "0", "4", "2"]
    assert (test.labels.tolist(), test.side) == ([0, 1, 2, 0, 1, 2], 224)
    arrays = datasets.load("imagenet-lt@16", "test", imagenet)
    assert (arrays.images.shape, arrays.classes) == ((6, 16, 16, 3), 1000)


def test_training_batches_come_from_the_listed_files(imagenet: Path) -> None:
    data = made(imagenet, "imagenet-lt@16", batch_size=4, validation=Validation(images=1))
    assert (data.classes, data.class_counts[:4], sum(data.class_counts)) == (1000, (2, 2, 1, 0), 5)
    assert data.validation is not None
    assert data.validation.labels.tolist() == [0]
    x, _ = data.batches.batch(1, 0)
    assert x.shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("train/n01440764/n01440764_0.JPEG", 1),
        ("train/n01440764/n01440764_0.JPEG 1000", 1),
        ("train/n01440764/n01440764_0.JPEG -1", 1),
        ("val/n01440764/ILSVRC2012_val_00000001.JPEG 0", 1),
        ("train/a/b/c.JPEG 0", 1),
        ("<html>quota exceeded</html>", 1),
        ("", 1),
        ("train/n01440764/n01440764_0.JPEG 0\nmore", 2),
    ],
)
def test_a_line_that_is_no_line_of_a_list(tmp_path: Path, line: str, number: int) -> None:
    (tmp_path / "ImageNet_LT_train.txt").write_text(f"{line}\n")
    with pytest.raises(
        DatasetError, match=rf"line {number} of .*_train\.txt must be train/CLASS/FILE and a label 0\.\.999"
    ):
        datasets.open_folder("imagenet-lt", "train", tmp_path)


def test_lists_and_images_that_are_missing(imagenet: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"ImageNet_LT_test\.txt cannot be read \(No such file.*put the list of"
    ):
        datasets.load("imagenet-lt", "test", imagenet)
    (imagenet / "ImageNet_LT_test.txt").write_text("")
    with pytest.raises(DatasetError, match=r"ImageNet_LT_test\.txt is empty"):
        datasets.load("imagenet-lt", "test", imagenet)
    write_list(imagenet, "test", [(val_file(n, by_class=False), 0) for n in range(1, 11)])
    with pytest.raises(DatasetError) as caught:
        datasets.load("imagenet-lt", "test", imagenet)
    first = ", ".join(val_file(n, by_class=False) for n in (6, 7, 8))
    assert "5 of the 10 images that" in str(caught.value)
    assert f"imagenet: {first}, ...; put ImageNet's" in str(caught.value)
    write_list(imagenet, "train", [*train_rows(), (f"train/{CLASSES[0]}/{CLASSES[2]}_9.JPEG", 0)])
    with pytest.raises(DatasetError, match=rf"1 of the 7 images .*: train/{CLASSES[0]}/{CLASSES[2]}_9\.JPEG; put"):
        made(imagenet, "imagenet-lt@16")
