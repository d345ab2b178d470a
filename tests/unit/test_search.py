"""The search model: the model's answers from a faster copy, its slopes, its counts, and nothing else touched."""

import copy
import warnings

import pytest
import torch
from torch import nn
from trials import Linear, cnn

from dkl.architectures import CNN, PreActResNet, ResNet, SwishWideResNet, WideResNet
from dkl.attacks.graphs import Graphs
from dkl.attacks.losses import ce, dlr, dlr_targeted
from dkl.attacks.search import Search, _scaled, native_16_bit
from dkl.documents import Normalisation
from dkl.models import build


def halves(channels):
    return Normalisation(mean=(0.5,) * channels, std=(0.25,) * channels)


ARCHITECTURES = {
    "cnn": CNN(width=6),
    "resnet": ResNet(width=4),
    "preact": PreActResNet(width=4),
    "wide-relu": WideResNet(depth=10, width=1),
    "wide-silu": SwishWideResNet(depth=10, width=1, normalisation=halves(3)),
}


def network(name, channels=3, classes=7):
    """Freshly built, in eval mode, with batch norms that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = {"normalisation": halves(channels)} if name == "wide-silu" else {}
        architecture = ARCHITECTURES[name].model_copy(update=other)
        model = build(architecture, channels=channels, classes=classes).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def pixels(count=5, channels=3, height=12, width=12, seed=0):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def labels(count=5, classes=7):
    return torch.arange(count) % classes


# --- the model's answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 12, 12), (3, 16, 10)])
def test_logits_are_the_models(name, channels, height, width):
    model, x = network(name, channels), pixels(5, channels, height, width)
    search = Search(model, x)
    with torch.no_grad():
        torch.testing.assert_close(search.logits(search.rows(x)), model(x), rtol=1e-4, atol=1e-4)
        other = pixels(3, channels, height, width, seed=1)
        torch.testing.assert_close(search.logits(search.rows(other)), model(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "left"), [("cnn", 0), ("resnet", 0), ("preact", 9), ("wide-relu", 4)])
def test_batch_norms_after_convolutions_are_folded(name, left):
    """A pre-activation network keeps those that follow a sum."""
    body = Search(network(name), pixels())._body
    assert sum(isinstance(module, nn.BatchNorm2d) for module in body.modules()) == left


def test_rows_are_channels_last_and_cost_no_copy():
    x = pixels(2, 3, 4, 5)
    search = Search(nn.Sequential(nn.Flatten(), nn.Linear(60, 3)).eval(), x)
    rows = search.rows(x)
    assert rows.shape == (2, 60)
    assert torch.equal(rows[1, (2 * 5 + 3) * 3 + 1], x[1, 1, 2, 3])
    images = search.images(rows)
    assert torch.equal(images, x)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.data_ptr() == rows.data_ptr()


class Branching(nn.Module):
    """Cannot be traced: what it does depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 7)

    def forward(self, x):
        out = self.bn(self.conv(x))
        if out.mean() > 0:
            out = out.relu()
        return self.fc(out.mean((2, 3)))


def patched():
    """A model whose forward was replaced on the instance, where tracing looks at the class."""
    model = Linear(torch.randn(7, 432, generator=torch.Generator().manual_seed(0))).eval()
    model.forward = lambda x: Linear.forward(model, x) + torch.arange(7.0)
    return model


def hooked(size=1.0):
    """A model with a hook on its top, which tracing does not see."""
    model = network("cnn")
    with torch.no_grad():
        model.linear.weight *= size
        model.linear.bias *= size
    model.register_forward_hook(lambda module, args, out: out.flip(1))
    return model


MISTAKEN = {
    "branching": Branching().eval,
    "patched": patched,
    "hooked": hooked,
    "hooked, small logits": lambda: hooked(1e-3),
}


@pytest.mark.parametrize("build_model", MISTAKEN.values(), ids=MISTAKEN.keys())
def test_what_cannot_be_folded_is_used_as_it_is(build_model):
    model, x = build_model(), pixels()
    search = Search(model, x)
    with torch.no_grad():
        expected = model(x)
        assert (search.logits(search.rows(x)) - expected).abs().max() < 1e-4 * expected.abs().max()


class Dropping(nn.Module):
    """A randomised defence: dropout that is left on."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(432, 7)

    def forward(self, x):
        return self.fc(self.drop(x).flatten(1))


def test_a_dropout_that_was_left_on_stays_on():
    model = Dropping().eval()
    model.drop.train()
    x = pixels()
    search = Search(model, x)
    assert not torch.equal(search.logits(search.rows(x)), search.logits(search.rows(x)))


# --- directions --------------------------------------------------------------------------------------------


def power_of_two_multiples(ours, theirs):
    """The factor of each row, if every row is one power of two times the other; float64."""
    factors = []
    for a, b in zip(ours.double(), theirs.double(), strict=True):
        largest = b.abs().argmax()
        exponent = (a[largest] / b[largest]).log2().round()
        torch.testing.assert_close(a, b * 2**exponent, rtol=1e-3, atol=1e-5 * a.abs().max().item())
        factors.append(2 ** exponent.item())
    return factors


@pytest.mark.parametrize("loss", [ce, dlr, dlr_targeted])
@pytest.mark.parametrize("name", ["cnn", "wide-silu"])
def test_gradients_are_autograds_times_a_power_of_two(loss, name):
    model, x = network(name), pixels()
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    aim = (y + 2) % 7
    search = Search(model, x)
    logits, values, ours, exponents = search.gradient(search.rows(x), lambda z: loss(z, y, aim))
    leaf = x.clone().requires_grad_()
    expected = loss(model(leaf), y, aim)
    [theirs] = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, model(x).detach(), rtol=1e-4, atol=1e-4)
    assert power_of_two_multiples(ours, search.rows(theirs)) == (2.0**exponents).squeeze(1).tolist()
    assert not any(v.requires_grad for v in (logits, values, ours))


def affine(scale):
    """A linear model whose logits are `scale` apart on average."""
    return Linear(scale * torch.randn(7, 432, generator=torch.Generator().manual_seed(0))).eval()


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 0.5])
def test_the_largest_slope_of_a_logit_is_between_one_and_two(scale):
    model, x = affine(scale), pixels()
    search = Search(model, x)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    _, _, gradient, _ = search.gradient(search.rows(x), lambda z: ce(z, y, y))
    with torch.no_grad():
        weight = search.rows(model.weight.reshape(7, 3, 12, 12)).double()
    slopes = torch.linalg.lstsq(weight.T, gradient.double().T).solution.T
    assert ((slopes.abs().amax(dim=1) >= 1 - 1e-3) & (slopes.abs().amax(dim=1) < 2 + 1e-3)).all()


@pytest.mark.parametrize("largest", [1e-45, 1e-40, 2.0**-128, 2.0**-127, 2.0**-126, 1e-30, 1.0, 1e12])
def test_scaling_never_overflows(largest):
    """At a margin of 88 to 103 the softmax has denormal numbers, and so may the slopes of the cross-entropy."""
    slopes = torch.tensor([[largest, -largest, 0.0], [0.0, 0.0, 0.0]])
    scaled, exponents = _scaled(slopes)
    assert torch.equal(torch.ldexp(slopes, exponents), scaled)
    assert scaled.isfinite().all()
    assert (scaled[0].sign() == slopes[0].sign()).all()
    assert (scaled[1] == 0).all()
    if largest >= 2.0**-126:
        assert 1 <= scaled[0, 0] < 2
        assert scaled[0, 0].frexp()[0] == slopes[0, 0].frexp()[0]


def test_the_jacobian_is_autograds():
    model, x = network("preact"), pixels()
    search = Search(model, x)
    logits, gradient_of = search.jacobian(search.rows(x))
    for k in (0, 3):
        weights = nn.functional.one_hot(torch.full((5,), k), 7).float()
        leaf = x.clone().requires_grad_()
        [expected] = torch.autograd.grad(model(leaf)[:, k].sum(), leaf)
        torch.testing.assert_close(gradient_of(weights), search.rows(expected), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(logits, model(x).detach(), rtol=1e-4, atol=1e-4)


def test_gradients_work_where_gradients_are_off_and_leave_it_so():
    model, x, y = cnn(), pixels(4, 1, 8, 8), labels(4)
    search = Search(model, x)
    with torch.no_grad():
        _, _, off, _ = search.gradient(search.rows(x), lambda z: ce(z, y, y))
        _, gradient_of = search.jacobian(search.rows(x))
        gradient_of(torch.ones(4, 10))
        assert not torch.is_grad_enabled()
    _, _, on, _ = search.gradient(search.rows(x), lambda z: ce(z, y, y))
    assert torch.is_grad_enabled()
    assert torch.equal(on, off)
    assert off.abs().sum() > 0


# --- counts ------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    calls = 0  # of the class: the search has a copy

    def forward(self, x):
        Counted.calls += 1
        if x.mean() > 2:  # not to be traced
            return x.flatten(1)
        return x.flatten(1)[:, :3] * 2


def test_calls_are_counted():
    x = pixels(2, 1, 8, 8)
    search = Search(Counted().eval(), x)
    rows, y = search.rows(x), torch.zeros(2, dtype=torch.long)
    before = Counted.calls
    search.logits(rows)
    assert (search.forward_calls, search.backward_calls) == (1, 0)
    search.gradient(rows, lambda z: ce(z, y, y))
    assert (search.forward_calls, search.backward_calls) == (2, 1)
    _, gradient_of = search.jacobian(rows)
    assert (search.forward_calls, search.backward_calls) == (3, 1)
    gradient_of(torch.ones(2, 3))
    gradient_of(torch.ones(2, 3))
    assert (search.forward_calls, search.backward_calls) == (3, 3)
    assert Counted.calls - before == 3


# --- nothing else touched ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("build_model", [lambda: network("resnet"), Branching().eval], ids=["folded", "plain"])
def test_the_users_model_stays_as_it_was(build_model, precision):
    model = build_model()
    model.train(False)
    next(model.parameters()).requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    flags = [(name, p.requires_grad, p.grad, p.stride()) for name, p in model.named_parameters()]
    modes = [module.training for module in model.modules()]
    forwards = [vars(module).get("forward") for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    x = pixels()
    original = x.clone()
    random = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = Search(model, x, precision)
        search.gradient(search.rows(x), lambda z: ce(z, labels(), labels()))
        search.logits(search.rows(x))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [(name, p.requires_grad, p.grad, p.stride()) for name, p in model.named_parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(x, original)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    mine = {p.data_ptr() for p in search._body.parameters()}
    assert not mine & {p.data_ptr() for p in model.parameters()}
    assert not any(p.requires_grad for p in search._body.parameters())


def test_changing_the_model_afterwards_does_not_change_the_search():
    model, x = network("cnn"), pixels()
    search = Search(model, x)
    before = search.logits(search.rows(x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(search.logits(search.rows(x)), before)


# --- 16 bits -----------------------------------------------------------------------------------------------


def dtypes(search, x):
    """What each layer with weights got, computed with and gave, in the order of the pass."""
    seen = []

    def note(module, args, out):
        seen.append((args[0].dtype, out.dtype))

    layers = [m for m in search._body.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    search.logits(search.rows(x))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stem_and_head_compute_in_float32_and_the_body_does_not(name):
    model, x = network(name), pixels()
    search = Search(model, x, "bfloat16")
    seen = dtypes(search, x)
    stem, *body, head = seen
    assert stem == (torch.float32, torch.bfloat16)
    assert head[1] == torch.float32
    assert {out for _, out in body} <= {torch.bfloat16}
    assert len(body) == len(seen) - 2


def test_stem_and_head_have_all_of_float32():
    """A stem in bfloat16 would not tell 1 from 1 - 1/1024, a head would round its weights."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(-3.0)
        model[2].weight.fill_(1 + 2.0**-20)
        model[2].bias.zero_()
    x = torch.full((1, 3, 1, 1), 1 - 2.0**-12)
    search = Search(model, x, "bfloat16")
    with torch.no_grad():
        expected = model(x)
    assert expected.abs().min() > 0
    ours = search.logits(search.rows(x))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=2.0**-20, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_stays_near_float32(name):
    model, x, y = network(name), pixels(), labels()
    exact, rounded = Search(model, x), Search(model, x, "bfloat16")
    rows = exact.rows(x)
    a, b = exact.logits(rows), rounded.logits(rows)
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.03 * a.abs().max()
    _, _, ours, _ = exact.gradient(rows, lambda z: ce(z, y, y))
    _, _, theirs, _ = rounded.gradient(rows, lambda z: ce(z, y, y))
    assert theirs.dtype == torch.float32
    assert torch.cosine_similarity(ours, theirs, dim=1).min() > 0.97


def test_one_layer_alone_is_computed_in_16_bits():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(432, 7)).eval(), pixels()
    search = Search(model, x, "bfloat16")
    assert search.logits(search.rows(x)).dtype == torch.float32


def test_native_16_bit_on_a_cpu():
    assert native_16_bit(torch.device("cpu")) in ("bfloat16", "float32")


# --- not finite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("ask", ["logits", "gradient", "jacobian"])
def test_logits_that_are_not_finite_are_noticed(value, ask):
    class Spoilt(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3].where(x.flatten(1)[:, :3] < 0.9, value)

    x = torch.full((4, 1, 2, 2), 0.5)
    search = Search(Spoilt().eval(), x)
    y = torch.zeros(4, dtype=torch.long)
    calls = {
        "logits": search.logits,
        "gradient": lambda rows: search.gradient(rows, lambda z: ce(z, y, y)),
        "jacobian": search.jacobian,
    }
    calls[ask](search.rows(x))
    assert search.finite
    x[2, 0, 0, 1] = 0.95
    calls[ask](search.rows(x))
    assert not search.finite
    x.fill_(0.5)
    calls[ask](search.rows(x))
    assert not search.finite
    search.watch()
    calls[ask](search.rows(x))
    assert search.finite


# --- on a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_recordings_answer_as_the_model_does(precision):
    """Batch sizes in turn, so that recordings are used again; what was returned stays what it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(WideResNet(depth=10, width=1), channels=3, classes=10).eval().cuda()
        x = torch.rand(64, 3, 32, 32, device="cuda")
    y = torch.zeros(64, dtype=torch.long, device="cuda")
    search = Search(model, x[:8], precision)
    assert isinstance(search._run, Graphs)
    kept = []
    for count in (64, 16, 64, 16, 1):
        rows = search.rows(x[:count])
        logits = search.logits(rows)
        same, _, gradient, _ = search.gradient(rows, lambda z, n=count: ce(z, y[:n], y[:n]))
        with torch.no_grad():
            expected = model(x[:count])
        tolerance = 2e-2 * expected.abs().max()
        assert (logits - expected).abs().max() < tolerance
        assert (same - expected).abs().max() < tolerance
        kept.append((logits, logits.clone(), gradient, gradient.clone()))
    for logits, logits_then, gradient, gradient_then in kept:
        assert torch.equal(logits, logits_then)
        assert torch.equal(gradient, gradient_then)
    assert torch.equal(kept[0][2], kept[2][2])
