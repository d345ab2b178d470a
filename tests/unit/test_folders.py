"""Folders of image files: what is a data set, and how its pictures are decoded, cut out and batched."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dkl import datasets, folders
from dkl.architectures import CNN
from dkl.augment import augment
from dkl.batches import Draw, TrainingData, as_pixels, generator, training_data
from dkl.datasets import DatasetError
from dkl.objectives import Natural
from dkl.recipes import Augmentation, Generated, SecondView, Train, Validation

NAME = "folder:pets@16"
CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": (5, 3, 4), "val": (2, 2, 1)}


def picture(height: int, width: int, seed: int) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """pets: 12 training and 5 test pictures of all shapes in three classes."""
    for split, counts in COUNTS.items():
        for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (20 + 7 * label, 24 + 5 * number)
                picture(*shape, seed=100 * label + number).save(folder / f"{number}.{'png' if number else 'PNG'}")
    return tmp_path


def made(data_dir: Path, **changes: Any) -> TrainingData:
    fields = {
        "dataset": NAME,
        "model": CNN(width=4),
        "objective": Natural(),
        "augmentation": Augmentation(),
        "epochs": 1,
        "batch_size": 5,
    }
    second_view = changes.pop("second_view", None)
    recipe = Train.model_validate({**fields, **changes}).model_copy(update={"second_view": second_view})
    return training_data(recipe, data_dir, "cpu")


def judged(path: Path, side: int = 16) -> np.ndarray:
    """As torchvision shows a picture for judging."""
    short = round(side * 256 / 224)
    transform = v2.Compose([v2.Resize(short), v2.CenterCrop(side)])
    with Image.open(path) as file:
        return np.asarray(transform(file.convert("RGB")))


# --- names and files --------------------------------------------------------------------------------------


def test_names() -> None:
    assert datasets.check_name("folder:imagenet") == "folder:imagenet"
    assert datasets.check_name("folder:imagenet@64") == "folder:imagenet@64"
    assert datasets.check_name("folder:imagenet@224") == "folder:imagenet"  # one name for one data set
    assert datasets.show_name("folder:imagenet") == "imagenet, 224 x 224"
    assert datasets.show_name("folder:imagenet@64") == "imagenet, 64 x 64"
    for name in (
        "folder:",
        "folder:../x",
        "folder:a/b",
        "folder:a@",
        "folder:a@0",
        "folder:a@1000",
        "folder:a@64@64",
    ):
        with pytest.raises(ValueError, match="folder:NAME or folder:NAME@SIDE"):
            datasets.check_name(name)


def test_files_of_all_classes_take_turns(data_dir: Path) -> None:
    (data_dir / "pets" / "train" / "ant" / "notes.txt").write_text("not a picture")
    (data_dir / "pets" / "train" / "ant" / "._0.png").write_text("not a picture")
    (data_dir / "pets" / "train" / ".cache").mkdir()
    folder = datasets.open_folder(NAME, "train", data_dir)
    assert folder.class_names == CLASSES
    assert folder.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2, 0]
    assert folder.files[:4].tolist() == ["ant/0.PNG", "bee/0.PNG", "cat/0.PNG", "ant/1.png"]
    assert len(set(folder.files)) == 12
    assert folder.side == 16
    assert datasets.open_folder("folder:pets", "train", data_dir).side == 224


@pytest.mark.parametrize("side", [16, 40])
def test_test_pictures_are_those_of_torchvision(data_dir: Path, side: int) -> None:
    arrays = datasets.load(f"folder:pets@{side}", "test", data_dir)
    root = data_dir / "pets" / "val"
    files = ["ant/0.PNG", "bee/0.PNG", "cat/0.PNG", "ant/1.png", "bee/1.png"]
    assert (arrays.images.dtype, arrays.images.shape, arrays.classes) == (np.uint8, (5, side, side, 3), 3)
    assert (arrays.labels.dtype, arrays.labels.tolist()) == (np.int64, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(arrays.images, [judged(root / file, side) for file in files])


def test_the_test_split_may_be_called_test_and_stand_alone(data_dir: Path) -> None:
    expected = datasets.load(NAME, "test", data_dir)
    (data_dir / "pets" / "val").rename(data_dir / "pets" / "test")
    np.testing.assert_array_equal(datasets.load(NAME, "test", data_dir).images, expected.images)
    shutil.rmtree(data_dir / "pets" / "train")
    assert len(datasets.load(NAME, "test", data_dir).labels) == 5


def test_every_kind_of_picture_becomes_rgb(data_dir: Path) -> None:
    folder = data_dir / "pets" / "val" / "ant"
    grey = picture(30, 30, seed=1).convert("L")
    grey.save(folder / "0.PNG")
    arrays = datasets.load(NAME, "test", data_dir)
    assert (arrays.images[0] == arrays.images[0][..., :1]).all()
    picture(30, 30, seed=1).convert("CMYK").save(folder / "2.jpeg")
    assert len(datasets.load(NAME, "test", data_dir).labels) == 6


def test_missing_folders_and_classes(data_dir: Path) -> None:
    base = data_dir / "pets"
    with pytest.raises(DatasetError, match=r"dogs/val does not exist; put one folder of images per class there"):
        datasets.load("folder:dogs", "test", data_dir)
    (base / "train" / "dog").mkdir()
    with pytest.raises(DatasetError, match="must have the same class folders, found dog in one of them only"):
        made(data_dir)
    with pytest.raises(DatasetError, match="must have the same class folders, found dog in one of them only"):
        datasets.load(NAME, "test", data_dir)
    (base / "val" / "dog").mkdir()
    with pytest.raises(DatasetError, match="train/dog holds no images"):
        made(data_dir)
    (data_dir / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DatasetError, match="empty/train has no class folders"):
        made(data_dir, dataset="folder:empty")


@pytest.mark.parametrize("content", [b"", b"<html>", "truncated"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_cannot_be_decoded_is_named(data_dir: Path, split: str, content: Any) -> None:
    path = data_dir / "pets" / split / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:-40] if content == "truncated" else content)
    read: dict[str, Callable[[], Any]] = {
        "train": lambda: made(data_dir, batch_size=12).batches.batch(1, 0),
        "val": lambda: datasets.load(NAME, "test", data_dir),
    }
    with pytest.raises(
        DatasetError, match=r"bee/1\.png is not a picture that can be read: .*; replace or remove it"
    ):
        read[split]()


# --- rectangles -------------------------------------------------------------------------------------------


def test_rectangles_are_drawn_as_torchvision_draws_them() -> None:
    """Two samples of the same distribution: means of many draws agree."""
    random = np.random.default_rng(0)
    torch_picture = Image.new("RGB", (200, 100))
    ours, theirs = [], []
    transform = v2.RandomResizedCrop(16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(4000):
            left, top, right, bottom = folders._rectangle(200, 100, random)
            assert 0 <= left < right <= 200
            assert 0 <= top < bottom <= 100
            assert 0.07 < (right - left) * (bottom - top) / 20_000 < 1.01
            ours.append((left, top, right - left, bottom - top))
            drawn = transform.make_params([torch_picture])
            theirs.append((drawn["left"], drawn["top"], drawn["width"], drawn["height"]))
    mine, reference = np.array(ours, float), np.array(theirs, float)
    error = np.sqrt((mine.var(0) + reference.var(0)) / 4000)
    assert (np.abs(mine.mean(0) - reference.mean(0)) < 4 * error).all()
    assert mine.std(0) == pytest.approx(reference.std(0), rel=0.06)


def test_rectangles_are_as_often_wide_as_high_and_reach_every_edge() -> None:
    random = np.random.default_rng(1)
    large = np.array([folders._rectangle(900, 900, random) for _ in range(4000)])
    log_ratio = np.log((large[:, 2] - large[:, 0]) / (large[:, 3] - large[:, 1]))
    assert abs(log_ratio.mean()) < 4 * log_ratio.std() / math.sqrt(4000)
    assert log_ratio.min() == pytest.approx(math.log(3 / 4), abs=0.01)
    assert log_ratio.max() == pytest.approx(math.log(4 / 3), abs=0.01)
    small = {folders._rectangle(6, 6, random) for _ in range(4000)}
    fours = [box for box in small if box[2] - box[0] == box[3] - box[1] == 4]
    assert sorted(box[:2] for box in fours) == [(left, top) for left in range(3) for top in range(3)]


@pytest.mark.parametrize(
    ("width", "height", "box"), [(1000, 3, (498, 0, 502, 3)), (3, 1000, (0, 498, 3, 502)), (1, 1, (0, 0, 1, 1))]
)
def test_where_no_rectangle_fits_the_largest_in_the_middle_is_taken(
    width: int, height: int, box: tuple[int, ...]
) -> None:
    drawn = {folders._rectangle(width, height, np.random.default_rng(seed)) for seed in range(50)}
    assert box in drawn


# --- training batches -------------------------------------------------------------------------------------


def test_an_epoch_shows_every_picture_once(data_dir: Path) -> None:
    data = made(data_dir, augmentation=None)
    assert (len(data.batches), data.channels, data.classes, data.validation) == (3, 3, 3, None)
    batches = [data.batches.batch(1, index) for index in range(3)]
    assert [len(y) for _, y in batches] == [5, 5, 2]
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (12, 3, 16, 16))
    root = data_dir / "pets" / "train"
    expected = {judged(path).tobytes(): CLASSES.index(path.parent.name) for path in root.glob("*/*")}
    shown = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert {image.tobytes(): int(label) for image, label in zip(shown, y, strict=True)} == expected
    positions = torch.cat([data.batches.positions(1, index) for index in range(3)])
    assert data.labels[positions.numpy()].tolist() == y.tolist()
    assert sorted(positions.tolist()) == list(range(12))


def test_a_training_picture_is_cut_out_scaled_and_mirrored_as_torchvision_does(data_dir: Path) -> None:
    folder = datasets.open_folder(NAME, "train", data_dir)
    x, _ = made(data_dir, seed=4, batch_size=3).batches.batch(2, 1)
    position = torch.randperm(12, generator=generator("cpu", Draw.ORDER, 4, 2))[3:6].tolist()
    mirrored = 0
    for row, number in enumerate(position):
        random = np.random.default_rng((Draw.CROP, 4, 2, 3 + row, 0))
        with Image.open(folder.root / folder.files[number]) as file:
            left, top, right, bottom = folders._rectangle(*file.size, random)
            image = v2.functional.resized_crop(file, top, left, bottom - top, right - left, [16, 16])
        if random.random() < 0.5:
            image, mirrored = v2.functional.horizontal_flip(image), mirrored + 1
        assert torch.equal(x[row], as_pixels(v2.functional.pil_to_tensor(image)))
    assert 0 < mirrored < 3


def test_without_flip_nothing_is_mirrored_and_crop_is_no_matter(data_dir: Path) -> None:
    for path in (data_dir / "pets" / "train").glob("*/*"):  # dark on the left, bright on the right
        Image.fromarray(np.arange(0, 200, 4, np.uint8)[None].repeat(50, 0)).save(path)
    plain, padded, flipped = (
        torch.cat([made(data_dir, augmentation=a).batches.batch(epoch, 0)[0] for epoch in range(1, 6)])
        for a in (Augmentation(crop=0, flip=False), Augmentation(crop=9, flip=False), Augmentation())
    )
    assert torch.equal(plain, padded)
    assert (plain[..., 0] < plain[..., -1]).all()
    mirrored = (flipped[:, 0, 0, 0] > flipped[:, 0, 0, -1]).float().mean()
    assert 0.2 < mirrored < 0.8


def test_the_policy_acts_on_the_pictures_cut_out(data_dir: Path) -> None:
    x, y = made(data_dir, augmentation=Augmentation(policy="cutout", rotation=20)).batches.batch(1, 2)
    cut, labels = made(data_dir, augmentation=Augmentation()).batches.batch(1, 2)
    rest = Augmentation(crop=0, flip=False, policy="cutout", rotation=20)
    images = (cut * 255).round().byte()
    assert torch.equal(x, as_pixels(augment(images, rest, generator("cpu", Draw.AUGMENTATION, 0, 1, 2))))
    assert torch.equal(y, labels)


@pytest.mark.parametrize("second_view", [None, SecondView()])
def test_any_batch_can_be_made_alone_however_many_threads_decode(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, second_view: SecondView | None
) -> None:
    walked = made(data_dir, second_view=second_view).batches
    in_order = {(e, i): walked.batch(e, i) for e in (1, 2) for i in range(3)}
    assert not torch.equal(in_order[1, 0][0], in_order[2, 0][0])
    for cores in (1, 7):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        for key in [(2, 1), (1, 2), (2, 0)]:
            x, y = made(data_dir, second_view=second_view).batches.batch(*key)
            assert torch.equal(x, in_order[key][0])
            assert torch.equal(y, in_order[key][1])


def test_resuming_decodes_no_earlier_batch(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def read(path: Path) -> Image.Image:
        decoded.append(f"{path.parent.name}/{path.name}")
        return datasets.read_picture(path)

    monkeypatch.setattr(folders, "read_picture", read)
    batches = made(data_dir, batch_size=2).batches
    batches.batch(1, 4)
    batches.batch(1, 5)
    folder = datasets.open_folder(NAME, "train", data_dir)
    order = torch.randperm(12, generator=generator("cpu", Draw.ORDER, 0, 1)).numpy()
    assert set(decoded[:4]) == set(folder.files[order[8:]])


def test_two_views_of_a_picture_are_two_cuts(data_dir: Path) -> None:
    second = SecondView(augmentation=Augmentation())
    x, y = made(data_dir, second_view=second).batches.batch(1, 0)
    alone, labels = made(data_dir).batches.batch(1, 0)
    assert x.shape == (10, 3, 16, 16)
    assert torch.equal(y, labels.repeat(2))
    assert torch.equal(x[:5], alone)
    assert all(not torch.equal(a, b) for a, b in zip(x[:5], x[5:], strict=True))


def test_held_out_pictures_are_of_all_classes_and_shown_as_test_pictures(data_dir: Path) -> None:
    data = made(data_dir, augmentation=None, images=10, validation=Validation(images=3))
    assert data.validation is not None
    root = data_dir / "pets" / "train"
    expected = [judged(root / name / "0.PNG") for name in CLASSES]
    np.testing.assert_array_equal(data.validation.images, expected)
    assert data.validation.labels.tolist() == [0, 1, 2]
    y = torch.cat([data.batches.batch(1, index)[1] for index in range(len(data.batches))])
    assert y.bincount().tolist() == [3, 2, 2]  # 4, 3, 3 of the ten, but for one of each


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": 13}, "images is 13, but folder:pets@16 has 12 training images"),
        ({"validation": Validation(images=12)}, "validation.images is 12 of 12 training images"),
        ({"generated": Generated(file="edm")}, "generated images go with a data set that fits on the device"),
    ],
)
def test_numbers_that_do_not_suit_the_folder(data_dir: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        made(data_dir, **changes)
