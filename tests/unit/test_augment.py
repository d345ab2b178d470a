"""Augmentation: every shift, reflection, angle and hole there may be, as often as it should."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from dkl.augment import augment, crop_flip, cutout
from dkl.autoaugment import autoaugment
from dkl.recipes import Augmentation

NOTHING = {"crop": 0, "flip": False}


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def noise(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=seeded(1))


def key(image: Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


EVERYTHING = [
    Augmentation(),
    Augmentation(**NOTHING),
    Augmentation(padding="reflect"),
    Augmentation(crop=0),
    Augmentation(crop=2, flip=False, rotation=15.0),
    Augmentation(rotation=180.0, policy="cutout"),
    Augmentation(padding="reflect", rotation=15.0, policy="autoaugment"),
    Augmentation(**NOTHING, policy="autoaugment"),
]


@pytest.mark.parametrize("recipe", EVERYTHING, ids=lambda recipe: str(recipe.model_dump(exclude_defaults=True)))
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (513, 3, 32, 32), (7, 1, 28, 28), (5, 3, 8, 11), (3, 1, 11, 8)])
def test_shape_and_type_stay_and_a_seed_settles_the_result(recipe: Augmentation, shape: tuple[int, int, int, int]):
    images = noise(*shape)
    kept = images.clone()
    result = augment(images, recipe, seeded())
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert torch.equal(images, kept)
    assert torch.equal(result, augment(images, recipe, seeded()))
    if shape[0] > 100 and recipe != Augmentation(**NOTHING):
        other = augment(images, recipe, seeded(1))
        assert (other != result).flatten(1).any(1).double().mean() > 0.4
    elif recipe == Augmentation(**NOTHING):
        assert torch.equal(result, images)


@pytest.mark.parametrize("recipe", EVERYTHING, ids=lambda recipe: str(recipe.model_dump(exclude_defaults=True)))
def test_the_draws_depend_on_the_count_alone(recipe: Augmentation):
    def after(images: Tensor) -> list[float]:
        random = seeded()
        augment(images, recipe, random)
        return torch.rand(3, generator=random).tolist()

    assert after(noise(20)) == after(noise(20, 1, 8, 9))


@pytest.mark.parametrize(("padding", "torch_mode"), [("zeros", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize(("crop", "flip"), [(4, True), (1, False), (6, False), (0, True)])
def test_a_crop_is_any_window_of_the_padded_image(padding: str, torch_mode: str, crop: int, flip: bool):
    image = noise(1, 3, 8, 10)[0]
    padded = pad(image[None], (crop,) * 4, mode=torch_mode)[0]
    windows = {}
    for top in range(2 * crop + 1):
        for left in range(2 * crop + 1):
            window = padded[:, top : top + 8, left : left + 10]
            windows[key(window)] = (top, left, False)
            if flip:
                windows[key(window.flip(2))] = (top, left, True)
    assert len(windows) == (2 * crop + 1) ** 2 * (1 + flip)
    count = 40 * len(windows)
    recipe = Augmentation(crop=crop, flip=flip, padding=padding)
    seen = [windows[key(picture)] for picture in augment(image.expand(count, -1, -1, -1), recipe, seeded())]
    sizes = np.array([seen.count(window) for window in windows.values()])
    chi_square = ((sizes - 40) ** 2 / 40).sum()
    assert chi_square < len(windows) - 1 + 4 * math.sqrt(2 * max(len(windows) - 1, 1))


def test_without_padding_an_image_is_only_mirrored():
    images = noise(200)
    result = augment(images, Augmentation(crop=0), seeded())
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(result, images, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(result, images, strict=True)])
    assert (mirrored ^ same).all()
    assert 70 < mirrored.sum() < 130


def test_crop_and_flip_draw_as_ever():
    """The numbers of a seed are part of what a recipe means: top, left, mirrored, one of each per image."""
    images = noise(50)
    random = seeded(5)
    top, left = (torch.randint(0, 9, (50, 1), generator=random) for _ in range(2))
    mirrored = torch.randint(0, 2, (50, 1), generator=random, dtype=torch.bool)
    padded = pad(images, (4, 4, 4, 4))
    for i, picture in enumerate(crop_flip(images, 4, "zeros", True, seeded(5))):
        window = padded[i, :, top[i] : top[i] + 32, left[i] : left[i] + 32]
        assert torch.equal(picture, window.flip(2) if mirrored[i] else window)


def test_a_reflection_longer_than_the_image_is_refused():
    augment(noise(2, 3, 8, 12), Augmentation(crop=7, padding="reflect"), seeded())
    with pytest.raises(ValueError, match="crop is 8 and an image 8 x 12: a reflection reaches at most side - 1"):
        augment(noise(2, 3, 8, 12), Augmentation(crop=8, padding="reflect"), seeded())
    augment(noise(2, 3, 8, 12), Augmentation(crop=12), seeded())


@pytest.mark.parametrize("degrees", [15.0, 180.0])
def test_rotation_is_pillows_by_uniform_angles(degrees: float):
    image = noise(1)[0]
    result = augment(image.expand(2000, -1, -1, -1), Augmentation(**NOTHING, rotation=degrees), seeded(2))
    angles = degrees * (2 * torch.rand(2000, generator=seeded(2)) - 1)
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    for angle, ours in list(zip(angles.tolist(), result, strict=True))[:200]:
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.array(picture.rotate(angle)))
    # Kolmogorov-Smirnov at about 1e-3.
    uniform = (angles.sort().values / degrees + 1) / 2
    assert (uniform - torch.linspace(0, 1, 2000)).abs().max() < 1.95 / math.sqrt(2000)


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 16), (8, 12, 4), (28, 28, 14), (11, 11, 5)])
def test_cutout_is_one_square_around_any_pixel(height: int, width: int, side: int):
    count = 40 * height * width
    white = torch.full((1, 1, height, width), 255, dtype=torch.uint8).expand(count, -1, -1, -1)
    holes = cutout(white, seeded())[:, 0] == 0
    possible = {}
    for row in range(height):
        for column in range(width):
            hole = torch.zeros(height, width, dtype=torch.bool)
            top, left = row - side // 2, column - side // 2
            hole[max(top, 0) : top + side, max(left, 0) : left + side] = True
            possible[key(hole)] = 0
    assert len(possible) == height * width
    for hole in holes.numpy():
        possible[hole.tobytes()] += 1
    sizes = np.array(list(possible.values()))
    assert sizes.sum() == count
    assert ((sizes - 40) ** 2 / 40).sum() < len(sizes) - 1 + 4 * math.sqrt(2 * len(sizes))


def test_cutout_is_black_in_every_channel_and_leaves_the_rest():
    images = noise(100).clamp_min(1)
    result = augment(images, Augmentation(**NOTHING, policy="cutout"), seeded())
    hole = (result == 0).all(1, keepdim=True)
    assert torch.equal(hole, (result == 0).any(1, keepdim=True))
    assert torch.equal(result, images * ~hole)
    assert hole.flatten(1).sum(1).max() == 256


def test_the_order_is_crop_and_flip_then_rotation_then_policy():
    images = noise(60)
    recipe = Augmentation(rotation=15.0, policy="autoaugment")
    random = seeded()
    cropped = augment(images, Augmentation(), random)
    turned = augment(cropped, Augmentation(**NOTHING, rotation=15.0), random)
    assert torch.equal(augment(images, recipe, seeded()), autoaugment(turned, random))


def test_a_policy_may_come_before_all_else():
    images, random = noise(60), seeded()
    cropped = augment(autoaugment(images, random), Augmentation(), random)
    assert torch.equal(augment(images, Augmentation(policy="autoaugment-first"), seeded()), cropped)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", EVERYTHING, ids=lambda recipe: str(recipe.model_dump(exclude_defaults=True)))
def test_a_gpu_keeps_its_images_and_its_seeds(recipe: Augmentation):
    images = noise(65).cuda()
    result = augment(images, recipe, seeded(device="cuda"))
    assert result.is_cuda
    assert result.dtype == torch.uint8
    assert torch.equal(result, augment(images, recipe, seeded(device="cuda")))
