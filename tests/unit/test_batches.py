"""Batches: every image once per epoch, any batch on its own, and what augmentation may do."""

import numpy as np
import pytest
import torch

from dkl.batches import Batches, Draw, as_pixels, crop_flip, generator, on_device
from dkl.datasets import Arrays


def arrays(count: int = 23, side: int = 8, channels: int = 3) -> Arrays:
    """Images of random pixels; image i has label i."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return Arrays(pixels, np.arange(count, dtype=np.int64), classes=count)


def batches(*, seed: int = 0, augmentation: str = "none", batch_size: int = 5) -> Batches:
    return Batches(arrays(), batch_size=batch_size, augmentation=augmentation, seed=seed, device="cpu")


def labels_of(b: Batches, epoch: int) -> list[int]:
    return torch.cat([b.batch(epoch, index)[1] for index in range(len(b))]).tolist()


def test_an_epoch_shows_every_image_once_and_the_last_batch_is_smaller():
    b = batches()
    assert len(b) == 5
    assert [len(b.batch(1, index)[1]) for index in range(5)] == [5, 5, 5, 5, 3]
    assert sorted(labels_of(b, 1)) == list(range(23))
    assert len(batches(batch_size=23)) == 1
    assert len(batches(batch_size=24)) == 1


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = {tuple(labels_of(batches(seed=seed), epoch)) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4


def test_images_are_the_right_ones_in_0_to_1():
    data = arrays()
    x, y = batches().batch(1, 2)
    assert x.dtype == torch.float32
    assert x.shape == (5, 3, 8, 8)
    expected = np.transpose(data.images[y.numpy()], (0, 3, 1, 2)).astype(np.float32) / 255
    np.testing.assert_array_equal(x.numpy(), expected)


def test_pixels_are_fractions_of_255():
    images, _ = on_device(Arrays(np.array([[[[0], [51], [255]]]], np.uint8), np.array([0]), 1), "cpu")
    assert images.shape == (1, 1, 1, 3)
    assert as_pixels(images).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert images.dtype == torch.uint8
    assert images.max() == 255


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_any_batch_can_be_made_alone(augmentation):
    walked = batches(augmentation=augmentation)
    in_order = {(e, i): walked.batch(e, i) for e in (1, 2) for i in range(len(walked))}
    for epoch, index in [(2, 3), (1, 4), (2, 0)]:
        x, y = batches(augmentation=augmentation).batch(epoch, index)
        assert torch.equal(x, in_order[epoch, index][0])
        assert torch.equal(y, in_order[epoch, index][1])


def test_augmentation_differs_from_epoch_to_epoch_and_batch_to_batch():
    images = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(5, 1, 8, 8)
    same = Arrays(images.permute(0, 2, 3, 1).numpy(), np.zeros(5, np.int64), 1)
    b = Batches(same, batch_size=1, augmentation="crop-flip", seed=0, device="cpu")
    pictures = {tuple(b.batch(epoch, index)[0].flatten().tolist()) for epoch in (1, 2, 3, 4) for index in range(5)}
    assert len(pictures) > 15


def test_a_batch_outside_the_epoch_is_refused():
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"an epoch has 5 batches, there is no batch {index}"):
            batches().batch(1, index)


def test_crop_flip_shifts_by_up_to_4_and_mirrors_half():
    height, width = 10, 12
    image = torch.arange(1, 1 + 3 * height * width).reshape(3, height, width).int()
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    shifted = {
        tuple(picture.flatten().tolist()): (top, left, mirrored)
        for top in range(9)
        for left in range(9)
        for mirrored in (False, True)
        for picture in [padded[:, top : top + height, left : left + width]]
        for picture in [picture.flip(2) if mirrored else picture]
    }
    assert len(shifted) == 162
    augmented = crop_flip(image.expand(4000, -1, -1, -1), generator("cpu", 0))
    seen = [shifted[tuple(picture.flatten().tolist())] for picture in augmented]
    assert set(seen) == set(shifted.values())
    assert 0.45 < sum(mirrored for _, _, mirrored in seen) / len(seen) < 0.55


def test_generators_follow_from_their_key():
    def draw(*key: int) -> list[float]:
        return torch.rand(4, generator=generator("cpu", *key)).tolist()

    assert draw(Draw.ORDER, 0, 1) == draw(Draw.ORDER, 0, 1)
    keys = [(Draw.ORDER, 0, 1), (Draw.ORDER, 1, 0), (Draw.ATTACK_START, 0, 1), (Draw.ORDER, 2**62, 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
