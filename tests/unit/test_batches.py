"""Batches: every image once per epoch, any batch on its own, two views, images held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dkl.architectures import CNN
from dkl.augment import augment
from dkl.batches import Draw, TrainingData, as_pixels, generator, on_device, training_data
from dkl.datasets import Arrays
from dkl.objectives import Natural
from dkl.recipes import Augmentation, SecondView, Train, Validation


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray:
    """The images of npz:tiny, random; image i has label i."""
    images = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "tiny_train.npz", image=images, label=np.arange(23))
    return images


def recipe(**changes: Any) -> Train:
    """Natural training on npz:tiny; fields that natural training does not take are set regardless."""
    fields = {
        "dataset": "npz:tiny",
        "model": CNN(width=4),
        "objective": Natural(),
        "augmentation": None,
        "epochs": 1,
        "batch_size": 5,
    }
    second_view = changes.pop("second_view", None)
    return Train.model_validate({**fields, **changes}).model_copy(update={"second_view": second_view})


def made(data_dir: Path, **changes: Any) -> TrainingData:
    return training_data(recipe(**changes), data_dir, "cpu")


def labels_of(data: TrainingData, epoch: int) -> list[int]:
    return torch.cat([data.batches.batch(epoch, index)[1] for index in range(len(data.batches))]).tolist()


def as_batch(images: np.ndarray) -> np.ndarray:
    return np.transpose(images, (0, 3, 1, 2)).astype(np.float32) / 255


@pytest.mark.usefixtures("pixels")
def test_an_epoch_shows_every_image_once_and_the_last_batch_is_smaller(tmp_path):
    b = made(tmp_path).batches
    assert len(b) == 5
    assert [len(b.batch(1, index)[1]) for index in range(5)] == [5, 5, 5, 5, 3]
    assert sorted(labels_of(made(tmp_path), 1)) == list(range(23))
    assert len(made(tmp_path, batch_size=23).batches) == 1
    assert len(made(tmp_path, batch_size=24).batches) == 1


@pytest.mark.usefixtures("pixels")
def test_every_epoch_and_every_seed_has_its_own_order(tmp_path):
    orders = {tuple(labels_of(made(tmp_path, seed=seed), epoch)) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4


def test_the_order_is_a_function_of_seed_and_epoch_that_stays(tmp_path, pixels):
    """Interrupted trainings go on with the order they began with: it must not change from version to version."""
    expected = torch.randperm(23, generator=generator("cpu", 1, 7, 2))
    assert labels_of(made(tmp_path, seed=7), 2) == expected.tolist()


def test_images_are_the_right_ones_in_0_to_1(tmp_path, pixels):
    data = made(tmp_path)
    x, y = data.batches.batch(1, 2)
    assert (data.channels, data.classes, data.validation) == (3, 23, None)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert (x.shape, y.shape) == ((5, 3, 8, 8), (5,))
    np.testing.assert_array_equal(x.numpy(), as_batch(pixels[y.numpy()]))


def test_pixels_are_fractions_of_255():
    images, _ = on_device(Arrays(np.array([[[[0], [51], [255]]]], np.uint8), np.array([0]), 1), "cpu")
    assert images.shape == (1, 1, 1, 3)
    assert as_pixels(images).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert images.dtype == torch.uint8
    assert images.max() == 255


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize(
    "changes",
    [{}, {"augmentation": Augmentation()}, {"augmentation": Augmentation(), "second_view": SecondView()}],
)
def test_any_batch_can_be_made_alone(tmp_path, changes):
    walked = made(tmp_path, **changes).batches
    in_order = {(e, i): walked.batch(e, i) for e in (1, 2) for i in range(len(walked))}
    for epoch, index in [(2, 3), (1, 4), (2, 0)]:
        x, y = made(tmp_path, **changes).batches.batch(epoch, index)
        assert torch.equal(x, in_order[epoch, index][0])
        assert torch.equal(y, in_order[epoch, index][1])


def test_the_augmentation_is_the_recipes(tmp_path, pixels):
    augmentation = Augmentation(crop=2, rotation=15, policy="cutout")
    x, y = made(tmp_path, augmentation=augmentation, seed=3).batches.batch(2, 4)
    images = torch.from_numpy(pixels[y.numpy()]).permute(0, 3, 1, 2)
    expected = augment(images, augmentation, generator("cpu", Draw.AUGMENTATION, 3, 2, 4))
    assert torch.equal(x, as_pixels(expected))
    assert not torch.equal(x, as_pixels(images))


def test_augmentation_differs_from_epoch_to_epoch_and_batch_to_batch(tmp_path):
    image = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1)
    np.savez(tmp_path / "same_train.npz", image=image.repeat(5, axis=0), label=np.zeros(5, int))
    b = made(tmp_path, dataset="npz:same", augmentation=Augmentation(), batch_size=1).batches
    pictures = {tuple(b.batch(epoch, index)[0].flatten().tolist()) for epoch in (1, 2, 3, 4) for index in range(5)}
    assert len(pictures) > 15


@pytest.mark.usefixtures("pixels")
def test_a_batch_outside_the_epoch_is_refused(tmp_path):
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"an epoch has 5 batches, there is no batch {index}"):
            made(tmp_path).batches.batch(1, index)


# --- two views --------------------------------------------------------------------------------------------


def test_the_second_views_come_after_the_first_in_the_same_order(tmp_path, pixels):
    second = SecondView(augmentation=Augmentation(crop=0, flip=False))
    x, y = made(tmp_path, second_view=second).batches.batch(1, 4)
    assert x.shape == (6, 3, 8, 8)
    assert torch.equal(y[:3], y[3:])
    np.testing.assert_array_equal(x.numpy(), as_batch(pixels[y.numpy()]))


@pytest.mark.usefixtures("pixels")
def test_the_views_are_augmented_independently_and_the_first_as_if_alone(tmp_path):
    alone, _ = made(tmp_path, augmentation=Augmentation(), batch_size=23).batches.batch(1, 0)
    alike = SecondView(augmentation=Augmentation())
    x, _ = made(tmp_path, augmentation=Augmentation(), second_view=alike, batch_size=23).batches.batch(1, 0)
    first, second = x.chunk(2)
    assert torch.equal(first, alone)
    same = [torch.equal(*views) for views in zip(first, second, strict=True)]
    assert sum(same) < 4  # each with probability 1/162


# --- parts of the data ------------------------------------------------------------------------------------


def test_the_first_images_are_held_out_and_never_trained_on(tmp_path, pixels):
    data = made(tmp_path, images=20, validation=Validation(images=6))
    assert data.validation is not None
    assert data.validation.labels.tolist() == list(range(6))
    np.testing.assert_array_equal(data.validation.images, pixels[:6])
    assert (data.validation.classes, data.classes) == (23, 23)
    assert sorted(labels_of(data, 1)) == list(range(6, 20))


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": 24}, "images is 24, but npz:tiny has 23 training images; leave it out"),
        (
            {"validation": Validation(images=23)},
            "validation.images is 23 of 23 training images, which leaves none",
        ),
        ({"images": 4, "validation": Validation(images=9)}, "validation.images is 9 of 4 training images"),
    ],
)
def test_numbers_that_leave_nothing_to_train_on(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(tmp_path, **changes)


def test_generators_follow_from_their_key():
    def draw(*key: int) -> list[float]:
        return torch.rand(4, generator=generator("cpu", *key)).tolist()

    assert draw(Draw.ORDER, 0, 1) == draw(Draw.ORDER, 0, 1)
    keys = [(draw, 0, 1) for draw in Draw] + [(Draw.ORDER, 1, 0), (Draw.ORDER, 2**62, 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys) == len(Draw) + 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("pixels")
def test_the_same_images_on_a_gpu(tmp_path):
    x, y = training_data(recipe(seed=5), tmp_path, "cuda").batches.batch(3, 1)
    expected, labels = training_data(recipe(seed=5), tmp_path, "cpu").batches.batch(3, 1)
    assert (x.device.type, y.device.type) == ("cuda", "cuda")
    assert torch.equal(x.cpu(), expected)
    assert torch.equal(y.cpu(), labels)
