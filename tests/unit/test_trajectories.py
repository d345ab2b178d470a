"""Golden trajectories: from the same random numbers our attacks try the same images as pyautoattack, step by step.

The models compute in float64 and are smooth, so that rounding neither flips signs nor adds up, and both sides see
the same. Every image that the attack itself asks the model about is compared, whether broken or not.
"""

import logging
import types
from contextlib import contextmanager

import pytest
import torch
from pyautoattack import autopgd_base, fab_base
from pyautoattack import square as square_module
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import nn

from dkl.attacks.apgd import apgd
from dkl.attacks.fab import fab
from dkl.attacks.losses import ce, dlr, dlr_targeted
from dkl.attacks.noise import Noise
from dkl.attacks.search import Search
from dkl.attacks.square import QUERIES_PER_DRAW, square
from dkl.documents import ThreatModel

QUIET = logging.getLogger("quiet")
THREATS = [
    ThreatModel(norm="Linf", eps=0.06),
    ThreatModel(norm="L2", eps=0.6),
    ThreatModel(norm="L1", eps=5.0),
]


class Smooth(nn.Module):
    """A small network without kinks, in float64."""

    def __init__(self, classes=5, seed=0, bias=()):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, 6, 3, padding=1).double()
            self.conv2 = nn.Conv2d(6, 8, 3, stride=2).double()
            self.linear = nn.Linear(8 * 4, classes).double()
        with torch.no_grad():
            for layer in (self.conv1, self.conv2, self.linear):
                layer.weight *= 3
            for k, value in enumerate(bias):
                self.linear.bias[k] += value

    def forward(self, x):
        out = torch.tanh(self.conv1(x.double() - 0.5))
        out = nn.functional.softplus(self.conv2(out))
        return self.linear(nn.functional.adaptive_avg_pool2d(out, 2).flatten(1)).float()


class Recorder(nn.Module):
    """The model, and everything that it was asked."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.model(x)


def case(side=9, count=4, classes=5, **about):
    """Model, images with a few pixels at the sides of the box, the labels that the model sees, its search."""
    model = Smooth(classes, **about).eval().requires_grad_(False)
    x = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(7))
    x = ((x - 0.5) * 1.1 + 0.5).clamp(0, 1)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    return model, x, y, Search(model, x)


def noise_of(count):
    return Noise(3, torch.arange(count), torch.arange(count) + 11)


def looks(walk):
    """All looks of an attack that nobody shortens."""
    return list(walk)


@contextmanager
def numbers(module, **replacements):
    """`module` of pyautoattack sees a torch with other generators of random numbers."""
    seen = types.ModuleType("torch")
    seen.__dict__.update(vars(torch))
    seen.__dict__.update(replacements)
    original, module.torch = module.torch, seen
    try:
        yield
    finally:
        module.torch = original


NEAR = 1e-4
LONG = 20


def follow(asked, walk, search):
    """Every image at every step; past 20 steps one may go astray where rounding decides at a kink or a tie."""
    assert len(asked) == len(walk)
    difference = torch.stack(
        [(search.images(look.x_adv) - x).abs().flatten(1).amax(dim=1) for x, look in zip(asked, walk, strict=True)]
    )
    apart = difference > NEAR
    assert not apart[: LONG + 1].any(), f"apart from step {apart.any(dim=1).long().argmax()} on"
    assert apart.any(dim=0).sum() <= 1, f"apart from steps {apart.long().argmax(dim=0).tolist()} on"


# --- APGD --------------------------------------------------------------------------------------------------


def apgd_numbers(noise, search):
    n = search.shape.numel()

    def uniform(shape):
        return search.images(noise.uniform(0, n)).contiguous()

    def normal(shape):
        return search.images(noise.normal(0, n)).contiguous()

    return {"rand": uniform, "randn": normal, "randn_like": normal}


def count_support(v):
    """Pixels that differ; without those that differ by the rounding of pyautoattack's (x + y) + d where d = -y."""
    return (v.abs() > 2e-7).flatten(1).sum(dim=1)


@pytest.fixture
def steady_support(monkeypatch):
    monkeypatch.setattr(autopgd_base, "L0_norm", count_support)


LOSSES = {"ce": ce, "dlr": dlr, "dlr-targeted": dlr_targeted}


def adversary(kind, recorder, threat, steps, **about):
    make = APGDAttack_targeted if kind == "dlr-targeted" else APGDAttack
    settings = {"n_iter": steps, "norm": threat.norm, "eps": threat.eps, "device": "cpu", "logger": QUIET, **about}
    attack = make(recorder, **settings)
    attack.loss = kind
    return attack


@pytest.mark.usefixtures("steady_support")
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_apgd(kind, threat, steps):
    model, x, y, search = case()
    aim = (y + 1) % 5
    noise = noise_of(len(y))
    recorder = Recorder(model)
    attack = adversary(kind, recorder, threat, steps)
    attack.y_target = aim
    attack.init_hyperparam(x)
    with numbers(autopgd_base, **apgd_numbers(noise, search)):
        attack.attack_single_run(x, y)
    ours = looks(apgd(search, LOSSES[kind], search.rows(x), y, aim, threat=threat, steps=steps, noise=noise))
    assert [look.step for look in ours] == list(range(steps + 1))
    assert all(look.inside is None for look in ours)
    follow(recorder.asked, ours, search)


@pytest.mark.usefixtures("steady_support")
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("steps", [3, 10, 25, 100])
def test_apgd_through_larger_balls(kind, steps):
    threat = THREATS[2]
    model, x, y, search = case()
    aim = (y + 1) % 5
    noise = noise_of(len(y))
    recorder = Recorder(model)
    attack = adversary(kind, recorder, threat, steps, use_largereps=True)
    attack.y_target = aim
    attack.init_hyperparam(x)
    radii, shares = [3 * threat.eps, 2 * threat.eps, threat.eps], [0.3, 0.3, 0.4]
    budgets = [-int(-share * steps // 1) for share in shares]
    budgets[-1] = steps - sum(budgets[:-1])
    with numbers(autopgd_base, **apgd_numbers(noise, search)):
        attack.decr_eps_pgd(x, y, radii, budgets)
    walk = apgd(
        search, LOSSES[kind], search.rows(x), y, aim, threat=threat, steps=steps, noise=noise, large_eps=True
    )
    ours = looks(walk)
    assert len(ours) == steps + 3
    follow(recorder.asked, ours, search)
    outside = [not (look.inside is None or look.inside.any()) for look in ours]
    assert outside == [True] * (budgets[0] + budgets[1] + 2) + [False] * (budgets[2] + 1)
    assert [look.step for look in ours] == sorted(look.step for look in ours)
    assert ours[-1].step == steps


class Flickering(nn.Module):
    """A different network in every pass, in turn: randomness that both sides share."""

    def __init__(self):
        super().__init__()
        self.models = nn.ModuleList(Smooth(seed=seed) for seed in range(3)).eval().requires_grad_(False)
        self.passes = 0
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        self.passes += 1
        return self.models[self.passes % 3](x)


@pytest.mark.parametrize("threat", THREATS[:2], ids=str)
def test_gradients_are_averaged_over_passes(threat):
    """Of several passes per step: the mean of the gradients, the logits and the loss of the last."""
    _, x, y, _ = case()
    steps, eot = 12, 4
    recorder = Flickering()
    attack = adversary("ce", recorder, threat, steps, eot_iter=eot)
    attack.init_hyperparam(x)
    noise = noise_of(len(y))
    search = Search(recorder, x)
    search._body.passes, search._body.asked, recorder.passes = 0, [], 0
    recorder.asked = []
    with numbers(autopgd_base, **apgd_numbers(noise, search)):
        attack.attack_single_run(x, y)
    ours = looks(apgd(search, ce, search.rows(x), y, y, threat=threat, steps=steps, noise=noise, eot=eot))
    last = [asked for number, asked in enumerate(recorder.asked) if number % eot == 0]
    follow(last, ours, search)


def test_the_checks_of_the_step_size_are_autoattacks():
    from dkl.attacks.apgd import _check_steps

    assert sorted(_check_steps(100, "Linf")) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(_check_steps(50, "L2")) == [11, 21, 30, 38, 45]
    assert sorted(_check_steps(40, "L1")) == list(range(1, 41))
    assert sorted(_check_steps(100, "L1")) == list(range(4, 101, 4))
    assert sorted(_check_steps(1, "Linf")) == [1]


# --- FAB ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("start", ["image", "random"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_fab(threat, start, targeted):
    model, x, y, search = case(count=5)
    steps = 40
    recorder = Recorder(model)
    attack = FABAttack_PT(recorder, norm=threat.norm, n_iter=steps, eps=threat.eps, device="cpu")
    attack.target_class = 3  # second most likely wrong one
    with torch.no_grad():
        aim = model(x).argsort(dim=1)[:, -3] if targeted else None
    noise = noise_of(len(y))
    with numbers(fab_base, **apgd_numbers(noise, search)):
        attack.attack_single_run(x, y, use_rand_start=start == "random", is_targeted=targeted)
    asked = recorder.asked[2 if targeted else 1 :]  # without the checks before
    assert len(asked) == 2 * steps
    walk = fab(
        search,
        search.rows(x),
        y,
        aim,
        threat=threat,
        steps=steps,
        noise=noise if start == "random" else None,
    )
    ours = looks(walk)
    assert [look.step for look in ours] == list(range(1, steps + 1))
    follow(asked[1::2], ours, search)
    order = {"Linf": float("inf"), "L2": 2, "L1": 1}[threat.norm]
    for theirs, look in zip(asked[1::2], ours, strict=True):
        distance = (theirs - x).flatten(1).norm(order, dim=1)
        decided = (distance / threat.eps - 1).abs() > 1e-4
        assert torch.equal(look.inside[decided], (distance <= threat.eps)[decided])
    assert any(look.inside.any() and (look.margin < 0).any() for look in ours)
    assert not all(look.inside.all() for look in ours)


# --- Square ------------------------------------------------------------------------------------------------


class Stream:
    """Random numbers one after the other, in whatever shape they are asked for."""

    def __init__(self, pieces):
        self.numbers = torch.cat(pieces)
        self.used = 0

    def rand(self, shape):
        count = torch.Size(shape).numel()
        piece = self.numbers[self.used : self.used + count]
        self.used += count
        return piece.reshape(shape)


def square_numbers(noise, norm, side, queries):
    """The numbers of our Noise in the order in which pyautoattack draws them for one image."""
    channels = 3
    if norm == "Linf":
        start = noise.uniform(0, side * channels)[0].reshape(side, channels).T.flatten()
        used = [0, 1, 5, 6, 7]  # one window, signs
    else:
        cell = side // 5
        start = noise.uniform(0, (side // cell) ** 2 * (1 + channels))[0]
        used = list(range(5 + channels))  # two windows, transposed or not, signs
    draws = [noise.uniform(1 + draw, QUERIES_PER_DRAW * 8) for draw in range(-(-queries // QUERIES_PER_DRAW))]
    return Stream([start, *(draw.reshape(-1, 8)[:, used].flatten() for draw in draws)])


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("side", [8, 11])
def test_square(threat, side):
    """One image at a time: pyautoattack draws one window for the whole batch."""
    # Linf and L2: over the first four sizes of windows. In L1 rounding soon fills windows that should be empty.
    queries = 100 if threat.norm == "L1" else 230
    model, x, y, search = case(side=side, count=2, bias=(60.0,))
    assert (y == 0).all()
    accepted = 0
    for image in range(2):
        one = slice(image, image + 1)
        recorder = Recorder(model)
        noise = noise_of(2).take(torch.tensor([image]))
        attack = SquareAttack(
            recorder,
            norm=threat.norm,
            n_queries=queries,
            eps=threat.eps,
            resc_schedule=False,
            device="cpu",
        )
        attack.init_hyperparam(x)
        stream = square_numbers(noise, threat.norm, side, queries)
        with numbers(square_module, rand=stream.rand):
            attack.attack_single_run(x[one], y[one])
        assert stream.used >= len(stream.numbers) - QUERIES_PER_DRAW * 8
        ours = looks(square(search, search.rows(x[one]), y[one], threat=threat, queries=queries, noise=noise))
        assert [look.step for look in ours] == list(range(queries + 1))
        follow(recorder.asked, ours, search)
        margins = torch.cat([look.margin for look in ours])
        accepted += int((margins[1:] < margins.cummin(dim=0).values[:-1]).sum())
    assert accepted > 10  # the walk went somewhere


@pytest.mark.parametrize("threat", THREATS[1:], ids=str)
def test_square_on_images_that_are_not_square(threat):
    """pyautoattack warns of them and fails on some; here they work and stay in the ball."""
    model = Smooth(bias=(60.0,)).eval().requires_grad_(False)
    for height, width in ((12, 8), (7, 13)):
        x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        search, y = Search(model, x), torch.zeros(2, dtype=torch.long)
        noise = noise_of(2)
        for look in square(search, search.rows(x), y, threat=threat, queries=30, noise=noise):
            delta = look.x_adv - search.rows(x)
            assert delta.norm(2 if threat.norm == "L2" else 1, dim=1).max() <= threat.eps + 1e-5
            assert look.x_adv.min() >= 0
            assert look.x_adv.max() <= 1


def test_the_windows_shrink_as_in_autoattack():
    from dkl.attacks.square import _share

    attack = SquareAttack(None, n_queries=5000, eps=0.1, resc_schedule=False)
    assert [_share(query) for query in range(9000)] == [attack.p_selection(query) for query in range(9000)]
