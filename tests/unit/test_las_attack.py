"""Projected gradient ascent with a strategy of each image's own, against plain PGD."""

import pytest
import torch

from dkl.architectures import CNN
from dkl.attacks import draw_start, perturb, perturb_per_image
from dkl.attacks.per_image import Strategies, pgd_linf_per_image
from dkl.attacks.pgd import pgd_linf
from dkl.documents import ThreatModel
from dkl.models import build
from dkl.objectives import PGD

LINF = ThreatModel(norm="Linf", eps=0.1)
COUNT, CLASSES = 7, 5


@pytest.fixture
def model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(CNN(width=4), channels=3, classes=CLASSES).eval().requires_grad_(False)


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.rand(COUNT, 3, 8, 8, generator=random), torch.randint(0, CLASSES, (COUNT,), generator=random)


def cross_entropy(logits, y):
    return torch.nn.functional.cross_entropy(logits, y, reduction="sum")


def equal(eps: float, steps: int, step_size: float) -> Strategies:
    return Strategies(torch.full((COUNT,), eps), torch.full((COUNT,), steps), torch.full((COUNT,), step_size))


MIXED = Strategies(
    torch.tensor([0.02, 0.3, 0.1, 0.05, 0.1, 0.2, 0.1]),
    torch.tensor([3, 1, 6, 2, 6, 4, 3]),
    torch.tensor([0.01, 0.2, 0.03, 0.05, 0.02, 0.1, 0.04]),
)


@pytest.mark.parametrize("start", ["gaussian", "uniform"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equal_strategies_are_plain_pgd_to_the_bit(model, images, start, layout):
    x, y = images
    model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
    pgd = PGD(loss="ce", steps=4, relative_step_size=0.25, start=start)
    begin = draw_start(pgd, x, LINF, torch.Generator().manual_seed(2))
    plain = perturb(pgd, model, x, LINF, loss=lambda logits: cross_entropy(logits, y), start_BCHW=begin)
    own = perturb_per_image(
        pgd,
        model,
        x,
        equal(LINF.eps, 4, 0.25 * LINF.eps),
        loss=lambda rows, logits: cross_entropy(logits, y[rows]),
        start_BCHW=begin,
    )
    assert torch.equal(own, plain)


def test_every_image_is_attacked_as_its_strategy_says(model, images):
    x, y = images[0].double(), images[1]
    model = model.double()
    begin = 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = pgd_linf_per_image(
        model, x, lambda rows, logits: cross_entropy(logits, y[rows]), MIXED, start=begin
    )
    for place in range(COUNT):
        one = slice(place, place + 1)
        eps, steps, step_size = (float(values[place]) for values in MIXED)
        alone = pgd_linf(
            model,
            x[one],
            lambda logits, label=y[one]: cross_entropy(logits, label),
            eps=eps,
            step_size=step_size,
            steps=int(steps),
            start=begin[one],
        )
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-12)
    assert ((together - x).abs().amax(dim=(1, 2, 3)) <= MIXED.eps_B + 1e-7).all()
    assert 0 <= together.min() <= together.max() <= 1


def test_an_image_costs_its_own_steps_only(model, images):
    x, y = images
    passed = []

    def forward(some):
        passed.append(len(some))
        return model(some)

    pgd_linf_per_image(
        forward, x, lambda rows, logits: cross_entropy(logits, y[rows]), MIXED, start=torch.zeros_like(x)
    )
    assert sum(passed) == MIXED.steps_B.sum()
    assert passed == sorted(passed, reverse=True)


def test_the_images_given_stay_as_they_are(model, images):
    x, y = images
    before = x.clone()
    pgd_linf_per_image(
        model, x, lambda rows, logits: cross_entropy(logits, y[rows]), MIXED, start=torch.zeros_like(x)
    )
    assert torch.equal(x, before)
