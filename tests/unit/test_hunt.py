"""The hunt: exact where that is known, honest in its records, the same for every batch, and pyautoattack's."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from trials import KINDS, Linear, cnn, quick_adversary, quick_suite, standing

import dkl.attacks.hunt
from dkl.attacks.hunt import _start, hunt, passes, rounds
from dkl.attacks.lanes import GPU_LOOKS_EVERY, Lanes, Round
from dkl.attacks.looks import margin
from dkl.attacks.noise import Noise
from dkl.attacks.outcome import UNTARGETED
from dkl.attacks.search import Search
from dkl.documents import ThreatModel
from dkl.protocols import Protocol
from dkl.verify import verify

NORMS = ["Linf", "L2", "L1"]
EPS = {"Linf": 0.012, "L2": 0.12, "L1": 0.7}  # about half of the images fall to cnn()
THREATS = {norm: ThreatModel(norm=norm, eps=eps) for norm, eps in EPS.items()}
ENGINES = ["apgd-ce", "apgd-t", "fab", "fab-t", "square"]
QUICK = {attack["kind"]: attack for attack in quick_suite(steps=8, targets=3, queries=60, restarts=2)}


def one(attack, threat=THREATS["Linf"]):
    [attack] = Protocol(dataset="npz:tiny", threat=threat, suite=[attack]).attacks()
    return attack


def finish(run):
    """The outcome, after all reports."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


def images(model, count=20, seed=0, side=8):
    x = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, model(x).argmax(dim=1)


def chase(
    attack, model, x, y, threat, *, numbers=None, search=None, classes=10, seed=3, use=1, lanes=512, **about
):
    """A hunt, not yet begun."""
    return hunt(
        one(attack, threat),
        model,
        search or Search(model, x[:4]),
        x,
        y,
        threat,
        images=torch.arange(len(x)) if numbers is None else numbers,
        classes=classes,
        seed=seed,
        use=use,
        lanes=lanes,
        **about,
    )


# --- exact answers -----------------------------------------------------------------------------------------

DUAL = {"Linf": 1, "L2": 2, "L1": float("inf")}


def nearest_border(model, x, y):
    """Distance to the nearest other class: min_k (z_y - z_k) / ||w_y - w_k||_dual, of all norms."""
    logits = model(x).double()
    gaps = logits.gather(1, y[:, None]) - logits
    own = nn.functional.one_hot(y, logits.shape[1]).bool()
    widths = model.weight[y][:, None] - model.weight
    return {
        norm: (gaps / torch.linalg.vector_norm(widths, dual, dim=2).double()).masked_fill(own, torch.inf).amin(1)
        for norm, dual in DUAL.items()
    }


def grey(classes, count=60):
    """A linear model and images far from black and white, so that the box never matters."""
    g = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(classes, 64, generator=g)).eval().requires_grad_(False)
    x = 0.43 + 0.14 * torch.rand(count, 1, 8, 8, generator=g)
    return model, x, model(x).argmax(dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("attack", "classes"),
    [
        ({"kind": "apgd-ce"}, 2),
        ({"kind": "apgd-dlr"}, 2),
        ({"kind": "apgd-t"}, 2),
        ({"kind": "apgd-t"}, 5),
        ({"kind": "apgd-t"}, 3),
        ({"kind": "fab", "steps": 20, "restarts": 1}, 5),
        ({"kind": "fab", "steps": 20, "restarts": 2}, 2),
        ({"kind": "fab-t", "steps": 20}, 5),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_linear_model_has_the_verdicts_of_the_closed_form(norm, attack, classes):
    if norm == "L1" and attack["kind"] == "apgd-t":
        attack = {
            **attack,
            "large_eps": True,
        }  # from the ball alone APGD gets stuck on some images, as the authors'
    model, x, y = grey(classes)
    distance = nearest_border(model, x, y)[norm]
    threat = ThreatModel(norm=norm, eps=distance.median().item())
    outcome = finish(chase(attack, model, x, y, threat, classes=classes))
    decided = (distance / threat.eps - 1).abs() > 0.02  # APGD in L1 comes near the border, not to it
    assert decided.sum() > len(x) / 2
    assert torch.equal(outcome.broken[decided], (distance < threat.eps)[decided])
    assert not outcome.broken[distance > threat.eps * (1 + 1e-5)].any()
    assert outcome.finite
    assert outcome.rejected == 0


@pytest.mark.parametrize("norm", NORMS)
def test_square_breaks_what_is_easy_and_nothing_that_is_impossible(norm):
    model, x, y = grey(5)
    distance = nearest_border(model, x, y)[norm]
    threat = ThreatModel(norm=norm, eps=distance.median().item())
    outcome = finish(chase({"kind": "square", "queries": 400}, model, x, y, threat, classes=5))
    assert not outcome.broken[distance > threat.eps].any()
    assert outcome.broken[distance < threat.eps / 8].all()
    assert outcome.broken.sum() >= 3


# --- what is recorded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ENGINES)
def test_the_record_is_true(kind, norm):
    """Running the recorded restart and target alone up to the recorded step gives x_adv, and no earlier a find."""
    model, threat = cnn(), THREATS[norm]
    x, y = images(model, 12)
    search = Search(model, x[:4])
    attack = one(QUICK[kind], threat)
    outcome = finish(chase(QUICK[kind], model, x, y, threat, search=search))
    assert verify(model, x, outcome.x_adv, y, threat).broken[outcome.broken].all()
    assert 2 <= outcome.broken.sum() <= 11
    ranked = search.logits(search.rows(x)).argsort(dim=1, descending=True)
    for image in outcome.broken.nonzero().squeeze(1).tolist():
        restart, target, step = (int(v[image]) for v in (outcome.restart, outcome.target, outcome.step))
        rank = 0
        if kind in ("apgd-t", "fab-t"):
            rank = ranked[image].tolist().index(target) - 1
            assert 0 <= rank < 3
        else:
            assert target == UNTARGETED
        row = slice(image, image + 1)
        replay = _start(
            attack,
            search,
            search.rows(x)[row],
            y[row],
            torch.tensor([target]),
            threat,
            Noise(3, torch.tensor([image]), torch.tensor([1 << 16 | restart << 8 | rank])),
            Round(restart, ()),
        )
        for look in replay:
            found = look.margin <= 0 if look.inside is None else (look.margin <= 0) & look.inside
            if look.step == step:
                break
            assert not found
        assert found
        torch.testing.assert_close(search.images(look.x_adv), outcome.x_adv[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_has_no_record(kind):
    model = cnn()
    x, y = images(model, 6)
    threat = ThreatModel(norm="Linf", eps=1e-6)
    outcome = finish(chase(QUICK[kind], model, x, y, threat))
    assert not outcome.broken.any()
    for value in (outcome.restart, outcome.target, outcome.step):
        assert (value == -1).all()
    assert (outcome.forwards == passes(one(QUICK[kind]), 10)).all()
    clean = margin(model(x), y)
    if kind.startswith("fab"):  # it leaves so small a ball at once
        assert (outcome.margin > 0).all()
    else:
        torch.testing.assert_close(outcome.margin, clean, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "attack",
    [
        *QUICK.values(),
        {"kind": "apgd-ce", "steps": 5, "eot": 3},
        {"kind": "apgd-dlr", "steps": 10, "restarts": 2, "large_eps": True},
        {"kind": "apgd-ce", "steps": 10, "eot": 3, "large_eps": True},
        {"kind": "apgd-t", "steps": 4, "targets": 99},
        {"kind": "square", "queries": 7, "restarts": 3},
    ],
    ids=lambda attack: "-".join(map(str, attack.values())),
)
def test_what_stands_costs_what_was_expected(attack):
    model = cnn(classes=5)
    x, y = images(model, 3)
    threat = ThreatModel(norm="L1", eps=1e-6)
    outcome = finish(chase(attack, model, x, y, threat, classes=5))
    assert (outcome.forwards == passes(one(attack, threat), 5)).all()


@pytest.mark.parametrize("kind", ["apgd-ce", "apgd-t", "fab", "fab-t", "square"])
def test_work_stops_where_an_image_falls(kind):
    """Each image costs its steps to the first find times its lanes; what passed the search is what is billed."""
    model, threat = cnn(), THREATS["L2"]
    x, y = images(model, 16)
    search = Search(model, x[:4])
    rows = []
    search._body.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    attack = {**QUICK[kind]}
    if "restarts" in attack:
        attack["restarts"] = 1
    reports = []
    run = chase(attack, model, x, y, threat, search=search)
    while True:
        try:
            reports.append(next(run))
        except StopIteration as end:
            outcome = end.value
            break
    lanes = 3 if kind in ("apgd-t", "fab-t") else 1
    each = 2 * outcome.step if kind.startswith("fab") else outcome.step + 1
    expected = torch.where(outcome.broken, each * lanes, passes(one(attack, threat), 10))
    assert torch.equal(outcome.forwards, expected)
    assert outcome.broken.any()
    assert not outcome.broken.all()
    ranking = len(x) if lanes > 1 else 0
    assert sum(rows) == outcome.forwards.sum() + ranking
    assert reports == sorted(reports)
    assert reports[-1] == outcome.forwards.sum()


def test_backward_passes_are_counted():
    model = cnn()
    x, y = images(model, 4)
    threat = ThreatModel(norm="Linf", eps=1e-6)
    backwards = {
        kind: set(
            finish(
                chase({**QUICK[kind], "restarts": 1} if kind != "fab-t" else QUICK[kind], model, x, y, threat)
            ).backwards.tolist()
        )
        for kind in KINDS
    }
    # APGD: no gradient after the last step. FAB: one per class and step, or one.
    assert backwards == {
        "apgd-ce": {8},
        "apgd-dlr": {8},
        "apgd-t": {24},
        "fab": {80},
        "fab-t": {24},
        "square": {0},
    }


def test_flat_gradients_are_noticed():
    class Steps(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot((x.flatten(1)[:, 0] * 9.99).long(), 10).float() + 0 * x.flatten(1)[:, :10]

    x, y = images(Steps(), 6)
    outcome = finish(chase(QUICK["apgd-ce"], Steps().eval(), x, y, ThreatModel(norm="Linf", eps=1e-4)))
    assert outcome.flat.all()
    model = cnn()
    x, y = images(model, 6)
    assert not finish(chase(QUICK["apgd-ce"], model, x, y, THREATS["Linf"])).flat.any()


# --- nothing counts without the verifier -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_model_that_lies_breaks_nothing(kind):
    class Liar(nn.Module):
        """Always another class, with gradients that mean nothing."""

        def forward(self, x):
            wrong = torch.nn.functional.one_hot((torch.zeros(len(x), dtype=torch.long) + 9), 10) * 50
            return wrong + x.flatten(1)[:, :10]

    model, x, y = grey(10)
    x, y = x[y != 9][:6], y[y != 9][:6]
    search = Search(model, x)
    search._body = Liar()
    threat = ThreatModel(norm="Linf", eps=1e-4)
    assert nearest_border(model, x, y)["Linf"].min() > 1e-4
    outcome = finish(chase(QUICK[kind], model, x, y, threat, search=search))
    assert not outcome.broken.any()
    assert outcome.rejected == (6 if not kind.startswith("fab") else outcome.rejected)
    assert outcome.inadmissible == 0
    assert (outcome.step == -1).all()


def test_finds_outside_the_ball_are_not_made():
    """FAB goes out of the ball; what it finds there is no find, and larger balls of APGD count for nothing."""
    model, x, y = grey(5)
    distance = nearest_border(model, x, y)["L1"]
    threat = ThreatModel(norm="L1", eps=distance.min().item() * 0.9)
    for attack in ({"kind": "fab-t", "steps": 10}, {"kind": "apgd-t", "steps": 20, "large_eps": True}):
        outcome = finish(chase(attack, model, x, y, threat, classes=5))
        assert not outcome.broken.any()
        assert outcome.rejected == 0
        assert (outcome.margin > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_logits_break_nothing_and_are_said(kind):
    class Nan(nn.Module):
        """Not a number off the clean images."""

        def forward(self, x):
            clean = (x.flatten(1)[:, None] == CLEAN.flatten(1)).all(dim=2).any(dim=1)
            return torch.where(clean[:, None], x.flatten(1)[:, :10], torch.nan)

    CLEAN = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = CLEAN.flatten(1)[:, :10].argmax(dim=1)
    outcome = finish(chase(QUICK[kind], Nan().eval(), CLEAN, y, THREATS["L2"]))
    assert not outcome.broken.any()
    assert not outcome.finite


# --- the batch does not matter -----------------------------------------------------------------------------


class Rowwise(nn.Module):
    """Smooth, of operations whose result for a row cannot depend on the other rows."""

    def __init__(self, classes=10):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(torch.randn(12, 64, generator=g), requires_grad=False)
        self.outer = nn.Parameter(torch.randn(classes, 12, generator=g), requires_grad=False)

    def forward(self, x):
        hidden = ((x.flatten(1) - 0.5)[:, None] * self.inner).sum(dim=2).tanh()
        return (hidden[:, None] * self.outer).sum(dim=2)


def assert_same(a, b, order, *, exactly):
    """`b` is `a` with its rows in `order`."""
    for name in ("broken", "restart", "target", "step", "forwards", "backwards", "flat"):
        assert torch.equal(getattr(a, name)[order], getattr(b, name)), name
    broken = b.broken
    if exactly:
        assert torch.equal(a.x_adv[order][broken], b.x_adv[broken])
        assert torch.equal(a.margin[order], b.margin)
    else:
        torch.testing.assert_close(a.x_adv[order][broken], b.x_adv[broken], rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ENGINES)
def test_x_adv_does_not_depend_on_the_batch(kind, norm):
    """Bit for bit where the model's own kernels give a row the same answer in every batch: ours do."""
    model = Rowwise().eval()
    x, y = images(model, 14)
    eps = {"Linf": 0.008, "L2": 0.08, "L1": 0.35}[norm]
    run = partial(chase, QUICK[kind], model, threat=ThreatModel(norm=norm, eps=eps), search=None)
    numbers = 100 + torch.arange(14)
    whole = finish(run(x=x, y=y, numbers=numbers))
    assert 2 <= whole.broken.sum() <= 13
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    shuffled = finish(run(x=x[order], y=y[order], numbers=numbers[order]))
    assert_same(whole, shuffled, order, exactly=True)
    for part in (slice(0, 1), slice(0, 7), slice(7, 14)):
        piece = finish(run(x=x[part], y=y[part], numbers=numbers[part]))
        assert_same(whole, piece, torch.arange(14)[part], exactly=True)
    assert_same(whole, finish(run(x=x, y=y, numbers=numbers, lanes=5)), torch.arange(14), exactly=True)


@pytest.mark.parametrize("kind", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_verdicts_of_a_network_do_not_depend_on_the_batch(kind):
    """Kernels of convolutions and products may round differently for other batch sizes: x_adv to 1e-5."""
    model = cnn()
    x, y = images(model, 14)
    run = partial(chase, QUICK[kind], model, threat=THREATS["L2"])
    whole = finish(run(x=x, y=y))
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    assert_same(whole, finish(run(x=x[order], y=y[order], numbers=order)), order, exactly=False)
    for part in (slice(0, 1), slice(3, 10)):
        numbers = torch.arange(14)[part]
        assert_same(whole, finish(run(x=x[part], y=y[part], numbers=numbers)), numbers, exactly=False)


@pytest.mark.parametrize("change", [{"seed": 4}, {"use": 2}, {"numbers": torch.arange(14) + 1}])
@pytest.mark.parametrize("kind", ["apgd-ce", "apgd-t", "square"])
def test_seed_use_and_image_decide(kind, change):
    model = Rowwise().eval()
    x, y = images(model, 14)
    threat = ThreatModel(norm="L2", eps=0.08)
    outcomes = [finish(chase(QUICK[kind], model, x, y, threat, **about)) for about in ({}, change)]
    both = outcomes[0].broken & outcomes[1].broken
    assert both.any()
    assert not (outcomes[0].x_adv == outcomes[1].x_adv)[both].flatten(1).all(dim=1).any()


@pytest.mark.parametrize("attack", [{**QUICK["fab"], "restarts": 1}, QUICK["fab-t"]], ids=["fab", "fab-t"])
def test_the_first_restart_of_fab_begins_at_the_image(attack):
    model = Rowwise().eval()
    x, y = images(model, 8)
    threat = ThreatModel(norm="L2", eps=0.08)
    one_seed, other = (finish(chase(attack, model, x, y, threat, seed=seed)) for seed in (0, 1))
    assert one_seed.broken.any()
    assert_same(one_seed, other, torch.arange(8), exactly=True)


# --- as a GPU would do it ----------------------------------------------------------------------------------


def allowed_sizes():
    return {size for power in range(12) for size in (1 << power, 3 << power)}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ENGINES)
def test_looking_less_often_gives_the_same_verdicts(kind, norm, monkeypatch):
    """On a GPU finds are collected over ten looks and batches are rounded up; tried here on the CPU."""
    model = Rowwise().eval()
    x, y = images(model, 13)
    threat = ThreatModel(norm=norm, eps={"Linf": 0.008, "L2": 0.08, "L1": 0.35}[norm])
    attack = {**QUICK[kind], **({"queries": 75} if kind == "square" else {"steps": 17})}
    cpu = finish(chase(attack, model, x, y, threat))
    monkeypatch.setattr(dkl.attacks.hunt, "Lanes", partial(Lanes, gpu=True))
    search = Search(model, x[:4])
    sizes, asked = set(), []
    search._body.register_forward_hook(lambda module, args, out: sizes.add(len(out)))
    model.register_forward_hook(lambda module, args, out: asked.append(len(out)))
    gpu = finish(chase(attack, model, x, y, threat, search=search))
    for name in ("broken", "predicted", "restart", "target", "step", "flat"):
        assert torch.equal(getattr(cpu, name), getattr(gpu, name)), name
    assert torch.equal(cpu.x_adv[cpu.broken], gpu.x_adv[cpu.broken])
    assert (gpu.margin <= cpu.margin).all()
    standing = ~cpu.broken
    assert torch.equal(gpu.margin[standing], cpu.margin[standing])
    assert torch.equal(gpu.forwards[standing], cpu.forwards[standing])
    assert (gpu.forwards >= cpu.forwards).all()
    assert gpu.rejected == 0
    assert sizes - {13} <= allowed_sizes()  # 13: the clean logits that targets are ranked by
    assert 1 <= len(asked) <= 3 * 80 / GPU_LOOKS_EVERY


@pytest.mark.parametrize(
    ("needed", "size"),
    [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (6, 6), (7, 8), (9, 12), (13, 16), (385, 512)],
)
def test_sizes_of_batches(needed, size):
    lanes = Lanes.__new__(Lanes)
    lanes.gpu = True
    assert lanes._size(needed) == size
    lanes.gpu = False
    assert lanes._size(needed) == needed


# --- manners -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_closing_stops_it(kind):
    model = cnn()
    x, y = images(model, 4)
    search = Search(model, x)
    run = chase(QUICK[kind], model, x, y, ThreatModel(norm="Linf", eps=1e-6), search=search)
    for _ in range(3):
        next(run)
    before = search.forward_calls
    run.close()
    assert search.forward_calls == before
    with pytest.raises(StopIteration):
        next(run)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad", [True, False])
def test_it_touches_nothing(kind, grad):
    model = cnn()
    x, y = images(model, 6)
    clean, state = x.clone(), copy.deepcopy(model.state_dict())
    random, filters = torch.get_rng_state(), list(warnings.filters)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("error")
        run = chase(QUICK[kind], model, x, y, THREATS["L1"])
        while True:
            try:
                next(run)
            except StopIteration as end:
                outcome = end.value
                break
            assert torch.is_grad_enabled() == grad
            assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(torch.get_rng_state(), random)
    assert list(warnings.filters) == filters
    assert torch.equal(x, clean)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not outcome.x_adv.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_asked_about_nothing(kind):
    """Many models cannot flatten an empty batch; when all have fallen, the next restart does not begin."""

    class Picky(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)[:, :10] * 1.0

    model = Picky().eval()
    x, y = images(model, 5)
    attack = {**QUICK[kind], **({} if kind == "fab-t" else {"restarts": 3})}
    outcome = finish(
        chase(
            {**attack, "targets": 9} if "targets" in attack else attack,
            model,
            x,
            y,
            ThreatModel(norm="Linf", eps=0.9),
        )
    )
    assert outcome.broken.all()


def test_a_single_image_and_many_lanes():
    model = cnn()
    x, y = images(model, 1)
    outcome = finish(
        chase({**QUICK["apgd-t"], "targets": 9}, model, x, y, ThreatModel(norm="Linf", eps=0.3), lanes=2)
    )
    assert outcome.broken.all()
    assert outcome.x_adv.shape == x.shape


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_few_classes(kind, classes):
    model = Rowwise(classes).eval()
    x, y = images(model, 8)
    attack = {**QUICK[kind], **({"targets": 9} if "targets" in QUICK[kind] else {})}
    outcome = finish(chase(attack, model, x, y, ThreatModel(norm="Linf", eps=0.2), classes=classes))
    assert outcome.broken.any()
    wrong = outcome.target[outcome.broken]
    if kind in ("apgd-t", "fab-t"):
        assert ((wrong >= 0) & (wrong < classes) & (wrong != y[outcome.broken])).all()


def test_rounds():
    assert rounds(one({"kind": "apgd-t", "targets": 9, "restarts": 2}), 4) == [
        Round(0, (0, 1, 2)),
        Round(1, (0, 1, 2)),
    ]
    assert rounds(one({"kind": "fab-t"}), 100) == [Round(0, tuple(range(9)))]
    assert rounds(one({"kind": "square", "restarts": 2}), 10) == [Round(0, ()), Round(1, ())]


# --- pyautoattack ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_breaks_what_pyautoattack_breaks(kind, norm):
    """Each attack alone: it differs from pyautoattack by at most an image more than two seeds of that do."""
    effort = {"steps": 20, "targets": 3, "queries": 150}
    model, threat = cnn(seed=2), THREATS[norm]
    x, y = images(model, 40, seed=5)
    [attack] = [attack for attack in quick_suite(**effort) if attack["kind"] == kind]
    outcome = finish(chase(attack, model, x, y, threat))
    ours = {image for image in range(40) if outcome.broken[image]}
    theirs = []
    for seed in (0, 1):
        adversary = quick_adversary(model, norm, threat.eps, seed, **effort)
        adversary.attacks_to_run = [kind]
        theirs.append({image for image, flag in enumerate(standing(adversary, x, y)) if flag == "0"})
    assert 2 <= len(ours) <= 36
    spread = len(theirs[0] ^ theirs[1])
    assert max(len(ours ^ theirs[0]), len(ours ^ theirs[1])) <= spread + 1
