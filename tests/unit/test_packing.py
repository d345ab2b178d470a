"""What is kept of a batch: 8 bits where the rounded image is still adversarial inside the ball, else float32."""

from typing import Any

import numpy as np
import pytest
import torch
from trials import Linear

from dkl.attacks.outcome import Outcome
from dkl.batches import as_pixels
from dkl.documents import ThreatModel
from dkl.packing import of_attack, of_clean_pass, pack
from dkl.verify import allowed, classify, verify

THREATS = [
    ThreatModel(norm="Linf", eps=8 / 255),
    ThreatModel(norm="Linf", eps=0.0305),
    ThreatModel(norm="L2", eps=0.5),
    ThreatModel(norm="L1", eps=12.0),
]


def linear(seed: int = 0, side: int = 16) -> Linear:
    return Linear(torch.randn(3, 3 * side * side, generator=torch.Generator().manual_seed(seed)) / 50)


def grey(count: int, side: int = 16, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=random)


def on_the_sphere(x: torch.Tensor, direction: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """As far from `x` as the ball reaches, before the pixel range cuts it off."""
    flat = direction.flatten(1).double()
    match threat.norm:
        case "Linf":
            delta = flat.sign()
        case "L2":
            delta = flat / flat.norm(dim=1, keepdim=True)
        case "L1":
            delta = flat / flat.norm(p=1, dim=1, keepdim=True)
    return (x + threat.eps * delta.view(x.shape)).clamp(0, 1).float()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_packed_images_are_adversarial_inside_the_ball(threat: ThreatModel) -> None:
    model, x = linear(), as_pixels(grey(40))
    y = model(x).argmax(dim=1).detach()
    worst = model.weight.detach()[(y + 1) % 3] - model.weight.detach()[y]
    x_adv = on_the_sphere(x, worst.view(x.shape), threat)
    fallen = verify(model, x, x_adv, y, threat).broken
    storable, rounded, predicted = pack(model, x, x_adv, y, threat)
    assert rounded.dtype == torch.uint8
    assert torch.equal(storable, verify(model, x, as_pixels(rounded), y, threat).broken)
    assert torch.equal(predicted, model(as_pixels(rounded)).argmax(dim=1))
    assert allowed(x, as_pixels(rounded), threat).all()
    assert fallen.sum() > 3
    assert not storable[~fallen].any()
    assert (storable & fallen).sum() > 0.6 * fallen.sum()
    # float32 is kept where an image lies nearer to the border than a grey level
    assert (as_pixels(rounded) - x_adv).abs().max() <= 1 / 255


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_rounding_gives_away_little_of_the_radius(norm: Any) -> None:
    threat = next(threat for threat in THREATS if threat.norm == norm)
    x = as_pixels(torch.full((20, 3, 16, 16), 128, dtype=torch.uint8))
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(20, dtype=torch.long)
    rounded = pack(linear(), x, on_the_sphere(x, direction, threat), y, threat).rounded
    kept = torch.linalg.vector_norm((as_pixels(rounded) - x).flatten(1), {"L2": 2, "L1": 1}[norm], dim=1)
    assert ((kept > 0.97 * threat.eps) & (kept < 1.0001 * threat.eps)).all()


def test_an_image_on_the_grid_stays_as_it_is() -> None:
    model, images = linear(), grey(8)
    x = as_pixels(images)
    y = (model(x).argmax(dim=1).detach() + 1) % 3  # misclassified as they are
    shift = torch.randint(-8, 9, images.shape, generator=torch.Generator().manual_seed(3))
    moved = (images.long() + shift).clamp(0, 255).to(torch.uint8)
    storable, rounded, _ = pack(model, x, as_pixels(moved), y, THREATS[0])
    assert torch.equal(rounded, moved)
    assert torch.equal(storable, ~classify(model, as_pixels(moved), y)[0])


def test_an_image_that_rounding_would_mend_is_not_stored_in_8_bits() -> None:
    weight = torch.zeros(2, 3)
    weight[1, 0] = 1.0  # class 1 where the first pixel is above 1/2
    images = torch.full((2, 1, 1, 3), 127, dtype=torch.uint8)
    x_adv = as_pixels(images)
    x_adv[:, 0, 0, 0] = torch.tensor([0.5001, 0.5005])
    storable, rounded, predicted = pack(Linear(weight), as_pixels(images), x_adv, torch.tensor([0, 0]), THREATS[0])
    assert storable.tolist() == [True, True]  # 128
    assert rounded[:, 0, 0, 0].tolist() == [128, 128]
    assert predicted.tolist() == [1, 1]
    tight = ThreatModel(norm="Linf", eps=0.003)  # 128 is 1/255 away
    storable, rounded, predicted = pack(Linear(weight), as_pixels(images), x_adv, torch.tensor([0, 0]), tight)
    assert storable.tolist() == [False, False]
    assert rounded[:, 0, 0, 0].tolist() == [127, 127]
    assert predicted.tolist() == [0, 0]


# --- a batch -----------------------------------------------------------------------------------------------


def outcome(x_adv: torch.Tensor, broken: list[bool]) -> Outcome:
    count = len(broken)
    return Outcome(
        x_adv=x_adv,
        broken=torch.tensor(broken),
        predicted=torch.tensor([9 if fell else -1 for fell in broken]),
        restart=torch.arange(count),
        target=torch.arange(count) + 10,
        step=torch.arange(count) + 100_000,
        margin=torch.arange(count) - 1.5,
        flat=torch.tensor([True] + [False] * (count - 1)),
        forwards=torch.zeros(count),
        backwards=torch.zeros(count),
        rejected=0,
        inadmissible=0,
        finite=True,
    )


def test_each_broken_image_is_kept_once_in_the_smallest_form_that_proves_it() -> None:
    weight = torch.zeros(2, 3)
    weight[1, 0] = 1.0  # class 1 where the first pixel is above 1/2
    x = as_pixels(torch.full((4, 1, 1, 3), 127, dtype=torch.uint8))
    x_adv = x.clone()
    x_adv[:, 0, 0, 0] = torch.tensor([0.5018, 0.5001, 0.3, 0.5018])
    tight = ThreatModel(norm="Linf", eps=0.0039)  # not quite a grey level
    wide = ThreatModel(norm="Linf", eps=0.005)
    y = torch.zeros(4, dtype=torch.long)
    for threat, in_8_bits in ((wide, [True, True, False, False]), (tight, [False, False, False, False])):
        claims = outcome(x_adv, [True, True, False, False])
        found = of_attack(np.arange(4) + 7, claims, Linear(weight), x, y, threat, at_once=4)
        assert found.rows.tolist() == [7, 8, 9, 10]
        assert found.broken.tolist() == [True, True, False, False]
        assert found.in_8_bits.tolist() == in_8_bits
        assert len(found.x8) == sum(in_8_bits)
        assert len(found.x8) + len(found.x32) == 2
        assert found.x8[:, 0, 0, 0].tolist() == [128] * len(found.x8)
        assert found.x32[:, 0, 0, 0].tolist() == pytest.approx([0.5018, 0.5001][: len(found.x32)])
        assert found.restart.tolist() == [0, 1, 2, 3]
        assert found.target.tolist() == [10, 11, 12, 13]
        assert found.step.tolist() == [100_000, 100_001, 100_002, 100_003]
        assert found.margin.tolist() == [-1.5, -0.5, 0.5, 1.5]
        assert found.flat.tolist() == [True, False, False, False]
        assert found.predicted.dtype == np.int32
        # Of the image as it is stored: the rounded one's, else what the attack's verification said.
        assert found.predicted.tolist() == ([1, 1, -1, -1] if in_8_bits[0] else [9, 9, -1, -1])


def test_nothing_broken_keeps_nothing() -> None:
    x = as_pixels(grey(3))
    y = torch.zeros(3, dtype=torch.long)
    found = of_attack(np.arange(3), outcome(x, [False] * 3), linear(), x, y, THREATS[0], at_once=4)
    assert found.x8.shape == found.x32.shape == (0, 3, 16, 16)


def test_the_clean_pass_keeps_flags_only() -> None:
    found = of_clean_pass(np.arange(3), torch.tensor([2, 5, -1]), torch.tensor([3, 5, 0]), (1, 8, 8))
    assert found.broken.tolist() == [True, False, True]
    assert found.predicted.tolist() == [2, 5, -1]
    assert found.x8.shape == found.x32.shape == (0, 1, 8, 8)
    assert np.isinf(found.margin).all()
    assert (found.step == -1).all()
