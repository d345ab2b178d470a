"""Philox by its published answers; numbers that depend on the image, its use, the step and the place alone."""

import math

import pytest
import torch
from scipy import stats

from dkl.attacks.noise import Noise, philox


def noise(images=(0, 1, 2), seed=0, use=0):
    images = torch.tensor(images)
    return Noise(seed, images, torch.full_like(images, use) if isinstance(use, int) else torch.tensor(use))


# --- the generator -----------------------------------------------------------------------------------------

# Random123, kat_vectors, philox4x32 with 10 rounds: counter, key -> answer.
ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_known_answers(counter, key, answer):
    result = philox(tuple(torch.tensor(word) for word in words(counter)), tuple(words(key)))
    assert [int(word) for word in result] == words(answer)


def test_the_counter_is_place_step_image_use_and_the_key_the_seed():
    """The pi digits once more, as an image's numbers: 0x13198a2e is the image, 0x03707344 the use."""
    place, step, image, use = words("00000001 85a308d3 13198a2e 03707344")
    key = words("a4093822 299f31d0")
    ours = noise((image,), key[1] << 32 | key[0], use).bits(step, 8)
    expected = philox(tuple(torch.tensor(word) for word in (place, step, image, use)), tuple(key))
    assert ours[0, 4:].tolist() == [int(word) for word in expected]


# --- numbers belong to an image ----------------------------------------------------------------------------

KINDS = ["bits", "uniform", "sign", "normal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 75])
def test_the_batch_does_not_matter(kind, n):
    images, uses = (5, 9, 2, 5), (1, 1, 2, 2)
    together = getattr(noise(images, use=uses), kind)(3, n)
    assert together.shape == (4, n)
    for row, (image, use) in enumerate(zip(images, uses, strict=True)):
        assert torch.equal(getattr(noise((image,), use=use), kind)(3, n)[0], together[row])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_taken_keep_their_numbers(kind):
    keep = torch.tensor([2, 0])
    everything = noise((5, 9, 2), use=(3, 4, 5))
    some = everything.take(keep)
    assert torch.equal(getattr(some, kind)(1, 10), getattr(everything, kind)(1, 10)[keep])


@pytest.mark.parametrize("kind", ["bits", "uniform", "sign"])
def test_asking_for_more_numbers_does_not_change_the_first(kind):
    assert torch.equal(getattr(noise(), kind)(1, 9), getattr(noise(), kind)(1, 40)[:, :9])


def test_the_global_generator_is_not_used():
    state = torch.get_rng_state()
    first = noise().normal(0, 50)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(noise().normal(0, 50), first)


def test_nothing_is_shared():
    """Blocks of 128 bits: of many places, steps, images, uses and seeds no two are the same."""
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**33, 2**63 - 1, 2**62]
    uses = [0, 1, 65535, 65536, 2**31, 2**32 - 1]
    seen = [
        noise((0, 1, 255, 49_999, 2**31, 2**32 - 1), seed, use).bits(step, 16).view(-1, 4)
        for seed in seeds
        for use in uses
        for step in (0, 1, 2, 5000)
    ]
    blocks = torch.cat(seen)
    assert len(blocks.unique(dim=0)) == len(blocks) == len(seeds) * len(uses) * 4 * 6 * 4


def test_every_bit_of_the_seed_counts():
    seeds = [0] + [1 << bit for bit in range(63)]
    firsts = {tuple(noise((0,), seed).bits(0, 4)[0].tolist()) for seed in seeds}
    assert len(firsts) == 64


# --- distributions -----------------------------------------------------------------------------------------

MANY = 40_000
LEAST_P = 1e-4


def flat(kind, n=MANY // 4):
    return getattr(noise((0, 1, 2, 3), seed=12), kind)(2, n).flatten().double().numpy()


def test_bits_are_32_fair_ones():
    bits = noise((0, 1, 2, 3)).bits(0, MANY // 4).flatten()
    assert bits.dtype == torch.int64
    assert bits.min() >= 0
    assert bits.max() < 2**32
    share = torch.stack([(bits >> bit & 1).double().mean() for bit in range(32)])
    assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(MANY)


def test_uniform_numbers():
    u = flat("uniform")
    assert u.min() >= 0
    assert u.max() < 1
    assert ((u * 2**24) % 1 == 0).all()
    assert stats.kstest(u, "uniform").pvalue > LEAST_P


def test_the_largest_uniform_number_is_below_one():
    """Rounding 2**32 - 1 to float32 would give 1; the eight lowest bits are cut instead."""
    assert torch.tensor([2**32 - 1]).float() * 2.0**-32 == 1
    assert (torch.tensor([2**32 - 1]) >> 8).float() * 2.0**-24 == 1 - 2.0**-24
    assert noise(tuple(range(64))).uniform(0, 30_000).max() < 1


def test_signs():
    signs = flat("sign")
    assert set(signs) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / math.sqrt(MANY)


def test_normal_numbers():
    z = flat("normal")
    assert z.dtype == "float64"
    assert stats.kstest(z, "norm").pvalue > LEAST_P
    assert abs((z**4).mean() - 3) < 0.25
    assert noise().normal(0, 4).dtype == torch.float32


def test_the_two_normal_numbers_of_a_pair_are_independent():
    z = noise((3,)).normal(0, MANY)[0].double()
    first, second = z[: MANY // 2], z[MANY // 2 :]
    for a, b in [(first, second), (first.square(), second.square()), (first[:-1], first[1:])]:
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 5 / math.sqrt(MANY // 2)


def test_images_and_steps_are_independent():
    rows = torch.cat([noise(tuple(range(8))).normal(step, 5000) for step in range(4)]).double()
    correlations = torch.corrcoef(rows) - torch.eye(32)
    assert correlations.abs().max() < 6 / math.sqrt(5000)


def test_normal_numbers_stay_finite():
    """Where u is 0 its logarithm would not be; -2 log(1 - u) is at most 2 * 24 log 2."""
    z = noise(tuple(range(64))).normal(0, 20_000)
    assert z.isfinite().all()
    assert z.abs().max() <= math.sqrt(48 * math.log(2)) + 1e-5
