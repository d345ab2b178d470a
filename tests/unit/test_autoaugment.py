"""AutoAugment on batches against Pillow, image by image and pixel for pixel; what is drawn, and how often."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from dkl.autoaugment import OPERATIONS, POLICY, autoaugment, draws, rotated

# The 25 sub-policies as published: operation, probability in tenths, magnitude; twice.
PUBLISHED = """
    invert 1 7 contrast 2 6; rotate 7 2 translateX 3 9; sharpness 8 1 sharpness 9 3; shearY 5 8 translateY 7 9;
    autocontrast 5 8 equalize 9 2; shearY 2 7 posterize 3 7; color 4 3 brightness 6 7;
    sharpness 3 9 brightness 7 9; equalize 6 5 equalize 5 1; contrast 6 7 sharpness 6 5;
    color 7 7 translateX 5 8; equalize 3 7 autocontrast 4 8; translateY 4 3 sharpness 2 6;
    brightness 9 6 color 2 8; solarize 5 2 invert 0 3; equalize 2 0 autocontrast 6 0; equalize 2 8 equalize 6 4;
    color 9 9 equalize 6 6; autocontrast 8 4 solarize 2 8; brightness 1 3 color 7 0;
    solarize 4 5 autocontrast 9 3; translateY 9 9 translateY 7 9; autocontrast 9 2 solarize 8 3;
    equalize 8 8 invert 1 3; translateY 7 9 autocontrast 9 1
"""
SIGNED = ["shearY", "translateX", "translateY", "color", "contrast", "sharpness", "brightness"]


def published() -> list[list[tuple[str, float, int]]]:
    rows = [row.split() for row in PUBLISHED.split(";")]
    return [[(r[i], int(r[i + 1]) / 10, int(r[i + 2])) for i in (0, 3)] for r in rows]


def by_pillow(picture: Image.Image, operation: str, index: int, sign: int) -> Image.Image:
    """One operation as the public code calls Pillow."""
    width, height = picture.size
    grey = (128,) * 3 if picture.mode == "RGB" else 128
    affine = Image.Transform.AFFINE

    def level(first: float, last: float) -> float:
        return float(np.linspace(first, last, 10)[index])

    enhanced = 1 + level(0, 0.9) * sign
    moved = level(0, 150 / 331) * sign
    match operation:
        case "shearY":
            matrix = (1, 0, 0, level(0, 0.3) * sign, 1, 0)
            return picture.transform(picture.size, affine, matrix, Image.Resampling.BICUBIC, fillcolor=grey)
        case "translateX":
            return picture.transform(picture.size, affine, (1, 0, moved * width, 0, 1, 0), fillcolor=grey)
        case "translateY":
            return picture.transform(picture.size, affine, (1, 0, 0, 0, 1, moved * height), fillcolor=grey)
        case "rotate":
            turned = picture.convert("RGBA").rotate(level(0, 30))
            background = Image.new("RGBA", turned.size, (128,) * 4)
            return Image.composite(turned, background, turned).convert(picture.mode)
        case "color":
            return ImageEnhance.Color(picture).enhance(enhanced)
        case "contrast":
            return ImageEnhance.Contrast(picture).enhance(enhanced)
        case "sharpness":
            return ImageEnhance.Sharpness(picture).enhance(enhanced)
        case "brightness":
            return ImageEnhance.Brightness(picture).enhance(enhanced)
        case "posterize":
            return ImageOps.posterize(picture, round(level(8, 4)))
        case "solarize":
            return ImageOps.solarize(picture, level(256, 0))
        case "autocontrast":
            return ImageOps.autocontrast(picture)
        case "equalize":
            return ImageOps.equalize(picture)
        case "invert":
            return ImageOps.invert(picture)
    raise AssertionError(operation)


def as_picture(image: Tensor) -> Image.Image:
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def as_image(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def some_images(channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Noise, faint noise, few values, slopes, one value, two values, black and white."""
    rng = np.random.default_rng(height * width + channels)
    shape = (channels, height, width)
    slope = np.add.outer(np.arange(height), 3 * np.arange(width))
    kinds = [
        *rng.integers(0, 256, (6, *shape)),
        *rng.integers(90, 140, (2, *shape)),
        rng.integers(0, 4, shape) * 85,
        rng.integers(200, 202, shape),
        rng.normal(128, 40, shape).clip(0, 255),
        np.broadcast_to(slope, shape) % 256,
        np.stack([slope // (k + 2) for k in range(channels)]),
        np.full(shape, 77),
        np.where(np.arange(width) < 5, 10, np.full(shape, 240)),
        np.zeros(shape),
        np.full(shape, 255),
    ]
    return torch.from_numpy(np.stack([np.asarray(kind).astype(np.uint8) for kind in kinds]))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 9, 14), (1, 8, 8)])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_equal_pillow_at_every_magnitude(name: str, shape: tuple[int, int, int]):
    images = some_images(*shape)
    operation = OPERATIONS[name]
    for index in range(10):
        for sign in (1, -1) if operation.signed else (1,):
            level = torch.full((len(images),), sign * float(operation.levels[index]), dtype=torch.float64)
            ours = operation.apply(images, level)
            theirs = torch.stack([as_image(by_pillow(as_picture(image), name, index, sign)) for image in images])
            assert ours.dtype == torch.uint8
            assert torch.equal(ours, theirs), f"{name} {index} {sign}: {(ours != theirs).sum()} pixels differ"


def test_each_image_has_its_own_level():
    images = some_images()
    for operation in OPERATIONS.values():
        levels = torch.from_numpy(np.resize(operation.levels, len(images)))
        together = operation.apply(images, levels)
        alone = [operation.apply(images[i : i + 1], levels[i : i + 1])[0] for i in range(len(images))]
        assert torch.equal(together, torch.stack(alone))


def test_colour_leaves_grey_images_as_they_are():
    images = some_images(channels=1)
    level = torch.full((len(images),), 0.9, dtype=torch.float64)
    assert torch.equal(OPERATIONS["color"].apply(images, level), images)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 9, 14)])
def test_rotations_equal_pillow_at_any_angle(shape: tuple[int, int, int]):
    angles = [0.0, 90.0, -90.0, 180.0, -180.0, 45.0, *np.random.default_rng(0).uniform(-180, 180, 60)]
    image = some_images(*shape)[0]
    turned = rotated(image.expand(len(angles), -1, -1, -1), torch.tensor(angles, dtype=torch.float64), fill=0)
    for angle, ours in zip(angles, turned, strict=True):
        assert torch.equal(ours, as_image(as_picture(image).rotate(angle, fillcolor=0))), angle


def test_the_policy_is_the_published_one():
    assert [[tuple(step) for step in pair] for pair in POLICY] == published()
    assert sorted(name for name, operation in OPERATIONS.items() if operation.signed) == sorted(SIGNED)
    assert set(OPERATIONS) == {name for pair in published() for name, _, _ in pair}


@pytest.mark.parametrize(
    ("count", "shape"), [(513, (3, 32, 32)), (64, (1, 28, 28)), (1, (3, 8, 8)), (1, (1, 9, 14))]
)
def test_a_batch_is_what_pillow_makes_of_each_image(count: int, shape: tuple[int, int, int]):
    for seed in (0, 1):
        images = torch.randint(
            0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(9)
        )
        kept = images.clone()
        ours = autoaugment(images, torch.Generator().manual_seed(seed))
        chosen, taken, signs = draws(count, torch.Generator().manual_seed(seed))
        for i, image in enumerate(images):
            picture = as_picture(image)
            for step, (name, _, index) in enumerate(published()[chosen[i]]):
                if taken[i, step]:
                    picture = by_pillow(picture, name, index, int(signs[i, step]))
            assert torch.equal(ours[i], as_image(picture)), f"image {i}, sub-policy {chosen[i]}"
        assert torch.equal(images, kept)


def test_everything_is_drawn_as_often_as_published():
    count = 100_000
    chosen, taken, signs = draws(count, torch.Generator().manual_seed(0))
    sizes = torch.bincount(chosen, minlength=25)
    assert len(sizes) == 25
    chi_square = float(((sizes - count / 25) ** 2 / (count / 25)).sum())
    assert chi_square < 24 + 4 * math.sqrt(48)
    for i, pair in enumerate(published()):
        for step, (_, probability, _) in enumerate(pair):
            deviation = math.sqrt(probability * (1 - probability) / int(sizes[i]))
            assert abs(taken[chosen == i, step].double().mean() - probability) <= 4 * deviation
    assert set(signs.flatten().tolist()) == {-1, 1}
    assert abs(signs.double().mean()) < 4 / math.sqrt(2 * count)
    # The two steps are independent of each other: of sub-policy 8, the equalisations with p = 0.6 and 0.5.
    both = taken[chosen == 8].all(1).double().mean()
    assert abs(both - 0.3) < 4 * math.sqrt(0.3 * 0.7 / int(sizes[8]))
    assert abs((signs[:, 0] * signs[:, 1]).double().mean()) < 4 / math.sqrt(count)


def test_the_draws_depend_on_the_count_alone():
    def after(shape: tuple[int, int, int], fill: int) -> list[float]:
        random = torch.Generator().manual_seed(3)
        autoaugment(torch.full((40, *shape), fill, dtype=torch.uint8), random)
        return torch.rand(3, generator=random).tolist()

    assert after((3, 32, 32), 0) == after((1, 8, 8), 200)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_are_the_same_on_a_gpu(name: str):
    images = some_images()
    operation = OPERATIONS[name]
    for index in range(10):
        for sign in (1, -1) if operation.signed else (1,):
            level = torch.full((len(images),), sign * float(operation.levels[index]), dtype=torch.float64)
            on_gpu = operation.apply(images.cuda(), level.cuda())
            assert on_gpu.is_cuda
            assert torch.equal(on_gpu.cpu(), operation.apply(images, level))
