"""The look at a model before any attack: each fault in a model that has just that, none in a healthy one."""

import random
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from trials import as_tensor, cnn

from dkl.architectures import PreActResNet
from dkl.datasets import load
from dkl.models import build
from dkl.preflight import ModelError, inspect
from dkl.preprocessing import Preprocessed

B, K = 32, 10


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    arrays = load("digits", "test", None)  # type: ignore[arg-type]
    return as_tensor(arrays.images[:B]), torch.from_numpy(arrays.labels[:B])


def look(model: nn.Module, images: tuple[Tensor, Tensor], **options: bool) -> tuple[str, ...]:
    return inspect(model, *images, classes=K, **options)


class Wrapped(nn.Module):
    """A healthy network and what a test does to it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = cnn()


def only(found: tuple[str, ...]) -> str:
    assert len(found) == 1, found
    return found[0]


# --- healthy ----------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """LayerNorm, dropout and GELU; in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 50), nn.GELU(), nn.Dropout(0.5), nn.Linear(50, K)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Named(Wrapped):
    """Calls methods that are named like the ones that differentiate."""

    def grad(self, x: Tensor) -> Tensor:
        return x

    def backward(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.backward(self.grad(x)))


HEALTHY = {
    "cnn": cnn,
    "channels_last": lambda: cnn().to(memory_format=torch.channels_last),
    "layer norm and dropout": lambda: Mixed().eval(),
    "method named grad": lambda: Named().eval(),
    "deep": lambda: build(PreActResNet(width=4), channels=1, classes=K).eval(),
    "normalises inside": lambda: Preprocessed(cnn(), (0.5,), (0.5,)).eval(),
    "compiled": lambda: torch.compile(cnn(), backend="eager"),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_gets_no_warning(name: str, digits: tuple[Tensor, Tensor]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HEALTHY[name]()
    x, y = digits
    if name == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    assert look(model, (x, y)) == ()


def _trained(normalise: nn.Module, images: tuple[Tensor, Tensor], steps: int = 60) -> nn.Module:
    """A network fitted to these few images as `normalise` shows them; without `normalise` in it."""
    x, y = images
    model = cnn().train().requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(normalise(x)), y).backward()
        optimizer.step()
    return model.eval()


def test_a_trained_model_gets_no_warning(digits: tuple[Tensor, Tensor]) -> None:
    assert look(_trained(nn.Identity(), digits), digits) == ()


# --- meaningless ------------------------------------------------------------------------------------------


class Returns(Wrapped):
    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor):
        return self.change(self.model(x))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda z: (z[:, :1], z), r"returns a tuple of 2 elements, expected one Tensor .* returns output\[1\]"),
        (lambda z: {"logits": z}, r"a dict with the keys 'logits', expected .* returns output\['logits'\]"),
        (lambda z: None, "returns a NoneType, expected one Tensor .* returns the logits alone"),
        (lambda z: z[:, :3], r"returns the shape \(32, 3\), expected \(32, 10\)"),
        (lambda z: z.mean(dim=0), r"returns the shape \(10,\), expected \(32, 10\)"),
        (lambda z: z.double(), "the logits are float64, expected float32"),
        (lambda z: z.half(), "the logits are float16, expected float32"),
        (lambda z: z * float("nan"), "the logits of all 32 clean images are NaN or infinite"),
        (lambda z: z.detach(), "the logits have no gradient with respect to the input"),
        (lambda z: torch.eye(K)[z.argmax(dim=1)], "the logits have no gradient with respect to the input"),
        (lambda z: z.reshape(-1, 7), r"fails on float32 images of shape \(32, 1, 8, 8\): RuntimeError: shape"),
    ],
)
def test_an_output_that_no_attack_can_use(change, sentence: str, digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ModelError, match=sentence):
        look(Returns(change).eval(), digits)


def test_where_no_gradient_is_needed_its_absence_is_fine(digits: tuple[Tensor, Tensor]) -> None:
    assert look(Returns(lambda z: z.detach().softmax(dim=1)).eval(), digits, needs_gradient=False) == ()


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "float64"), (torch.float16, "float16")])
def test_weights_of_another_precision(dtype: torch.dtype, name: str, digits: tuple[Tensor, Tensor]) -> None:
    model = cnn()
    model.linear.weight.data = model.linear.weight.data.to(dtype)
    with pytest.raises(ModelError, match=f"linear.weight is {name}, expected float32"):
        look(model, digits)


def test_training_mode_names_the_first_module(digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ModelError, match=r"the module bn1 \(BatchNorm2d\) is in training mode"):
        look(cnn().train(), digits)
    with pytest.raises(ModelError, match=r"the module layers.4 \(Dropout\) is in training mode"):
        look(Mixed().train(), digits)
    idle = Mixed().train()
    idle.layers[4].p = 0.0
    assert look(idle, digits) == ()
    assert look(Mixed().train(), digits, random_expected=True) == ()


class Counting(Wrapped):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return self.model(x)


class Replacing(Counting):
    def forward(self, x: Tensor) -> Tensor:
        self.asked = self.asked + 1
        return self.model(x)


@pytest.mark.parametrize("kind", [Counting, Replacing])
def test_a_model_with_a_memory(kind: type[Counting], digits: tuple[Tensor, Tensor]) -> None:
    model = kind().eval()
    buffer = model.asked
    with pytest.raises(ModelError, match="the model changes its own asked in a forward pass"):
        look(model, digits)
    assert model.asked is buffer
    assert buffer == 0


class Strict(Wrapped):
    """Refuses what is no image."""

    def forward(self, x: Tensor) -> Tensor:
        assert 0 <= x.min() <= x.max() <= 1, "pixels are in [0, 1]"
        return self.model(x)


def test_no_question_but_that_of_normalised_pixels_leaves_the_range(digits: tuple[Tensor, Tensor]) -> None:
    assert look(Strict().eval(), digits) == ()
    with pytest.raises(ModelError, match=r"AssertionError: pixels are in \[0, 1\]"):
        look(Strict().eval(), (digits[0] * 255, digits[1]))


class Caching(Wrapped):
    """Makes a table at the first question and keeps it."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.ones(x.shape[2:]))
        return self.model(x * self.table)


def test_a_table_that_is_made_once_is_no_memory(digits: tuple[Tensor, Tensor]) -> None:
    assert look(Caching().eval(), digits) == ()


class InPlace(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.sub_(0.5))


def test_a_model_that_changes_its_input(digits: tuple[Tensor, Tensor]) -> None:
    before = digits[0].clone()
    with pytest.raises(ModelError, match="changes its input in place"):
        look(InPlace().eval(), digits)
    assert torch.equal(digits[0], before)


# --- misleading -------------------------------------------------------------------------------------------


def test_probabilities(digits: tuple[Tensor, Tensor]) -> None:
    found = only(look(Returns(lambda z: z.softmax(dim=1)).eval(), digits))
    assert found.startswith("the outputs are probabilities (from 0")
    assert look(Returns(lambda z: z.log_softmax(dim=1)).eval(), digits) == ()


def test_some_logits_are_not_finite(digits: tuple[Tensor, Tensor]) -> None:
    def spoil(z: Tensor) -> Tensor:
        return z.masked_fill((z.max(dim=1).values == z.max())[:, None], float("nan"))

    found = look(Returns(spoil).eval(), digits)
    assert "the logits of 1 of 32 clean images are NaN or infinite; these count as wrong" in found


class Noisy(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + 0.1 * torch.randn_like(x))


class NoisyElsewhere(Wrapped):
    """Draws from numpy and Python."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * (1 + random.random() + np.random.rand())


@pytest.mark.parametrize("kind", [Noisy, NoisyElsewhere])
def test_a_random_model(kind: type[Wrapped], digits: tuple[Tensor, Tensor]) -> None:
    found = only(look(kind().eval(), digits))
    assert found.startswith("the model is random: the same images asked twice gave logits that differ by up to")
    assert look(kind().eval(), digits, random_expected=True) == ()


class Centring(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x - x.mean(dim=0))


def test_a_batch_dependent_model(digits: tuple[Tensor, Tensor]) -> None:
    assert "depend on the other images of its batch" in only(look(Centring().eval(), digits))


class Purifying(Wrapped):
    """One step down the entropy before the answer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            clean = x.detach().clone().requires_grad_()
            entropy = -(self.model(clean).softmax(1) * self.model(clean).log_softmax(1)).sum()
            if self.how == "grad":
                (step,) = torch.autograd.grad(entropy, clean)
            elif self.how == "backward":
                entropy.backward()
                step = clean.grad
            elif self.how == "all backward":
                torch.autograd.backward([entropy])
                step = clean.grad
            else:
                step = torch.func.grad(lambda z: self.model(z).logsumexp(1).sum())(x.detach())
        return self.model(x - 0.01 * step)


@pytest.mark.parametrize("how", ["grad", "backward", "all backward", "func"])
def test_a_dynamic_model(how: str, digits: tuple[Tensor, Tensor]) -> None:
    model = Purifying(how).eval()
    assert "the forward pass computes gradients itself" in only(look(model, digits))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert look(cnn(), digits) == ()  # nothing is remembered of an earlier model


def test_zero_gradients(digits: tuple[Tensor, Tensor]) -> None:
    def flat(z: Tensor) -> Tensor:
        return (z - z.amax(dim=1, keepdim=True) - 1).relu() + z.argmax(dim=1)[:, None] * torch.arange(10.0)

    found = look(Returns(flat).eval(), digits)
    assert any(sentence.startswith("the input gradient is zero at 32 of 32 images") for sentence in found)


def test_a_saturated_cross_entropy(digits: tuple[Tensor, Tensor]) -> None:
    model = _trained(nn.Identity(), digits)
    model.linear.weight.data *= 1e3
    model.linear.bias.data *= 1e3
    found = only(look(model, digits))
    assert found.startswith("the cross-entropy's input gradient is zero at")
    assert "margin's is not" in found


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


def test_gradients_that_are_not_finite(digits: tuple[Tensor, Tensor]) -> None:
    found = only(look(Returns(_NaNGradient.apply).eval(), digits))
    assert found.startswith("the input gradient is NaN or infinite at 32 of 32 images")


class Shattering(Wrapped):
    """A fast ripple of the pixels, too small to be seen, with a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + 1e-3 * torch.sin(1e6 * x))


class Quantising(Wrapped):
    """Grey levels of 1/16, with a gradient that is almost none."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(((x * 64).round() / 64 - x).detach() + 0.99 * x.detach() + 0.01 * x)


@pytest.mark.parametrize(("kind", "low", "high"), [(Shattering, 0.0, 0.05), (Quantising, 20.0, 200.0)])
def test_masked_gradients(kind: type[Wrapped], low: float, high: float, digits: tuple[Tensor, Tensor]) -> None:
    found = only(look(kind().eval(), digits))
    assert found.startswith("the input gradient says little about the model")
    ratio = re.search(r"the margin changes (\S+) times", found)
    assert ratio is not None
    assert low < float(ratio[1]) < high


@pytest.mark.parametrize(
    ("mean", "std", "shown"),
    [
        (0.5, 0.5, "normalise mean (0.5) std (0.5) (centred)"),
        (0.1307, 0.3081, "normalise mean (0.1307) std (0.3081) (MNIST)"),
        (0.0, 1 / 255, "normalise mean (0) std (0.003922) (grey levels 0 to 255)"),
    ],
)
def test_a_model_that_expects_normalised_pixels(mean: float, std: float, shown: str) -> None:
    """The classes are levels of brightness, and the model knows them in its own units."""
    y = torch.arange(B) % K
    x = (y / K + 0.04)[:, None, None, None].expand(B, 1, 8, 8)

    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            levels = (torch.arange(K) / K + 0.05 - mean) / std
            return 2 * x.mean(dim=(1, 2, 3))[:, None] * levels - levels**2  # up to a constant -(x - level)^2

    found = only(tuple(w for w in inspect(Brightness(), x, y, classes=K) if "normalised" in w))
    assert found.startswith("the model seems to expect normalised pixels: ")
    assert f"32 of 32 with {shown}; give its source this preprocessing" in found
    mended = inspect(Preprocessed(Brightness(), (mean,), (std,)).eval(), x, y, classes=K)
    assert not any("normalised" in sentence for sentence in mended)


def test_normalisation_of_coloured_images() -> None:
    """Colours decide here: the classes are told apart by which channels are above CIFAR-10's mean."""
    bits = torch.arange(B)[:, None] // torch.tensor([1, 2, 4]) % 2
    x = (torch.tensor([0.4914, 0.4822, 0.4465]) + (bits - 0.5) * 0.05)[:, :, None, None].expand(B, 3, 4, 4)
    y = torch.arange(B) % 8

    class Signs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            means = x.mean(dim=(2, 3))
            codes = torch.arange(8)[:, None] // torch.tensor([1, 2, 4]) % 2 * 2.0 - 1
            return means @ codes.T

    found = only(inspect(Signs(), x, y, classes=8))
    assert "4 of 32 images are classified correctly as they are, 32 of 32 with normalise mean (0.4914" in found


# --- no trace ---------------------------------------------------------------------------------------------


class Meddling(Wrapped):
    """Leaves a trace wherever it can: generators, gradients, modes, weights."""

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(torch.randint(1000, ()).item())
        np.random.seed(1)
        random.seed(1)
        with torch.enable_grad():
            self.model(x.detach()).sum().backward()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(0.1)
                    parameter.requires_grad_(False)
        self.model.train()
        self.model.requires_grad_()
        torch.set_grad_enabled(False)
        return self.model(x)


def _traces(model: nn.Module) -> list[object]:
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[union-attr, index]
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        [module.training for module in model.modules()],
        [(p.requires_grad, id(p.grad), id(p), p.tolist()) for p in model.parameters()],
        [p.grad.tolist() for p in model.parameters() if p.grad is not None],
        [(id(b), b.tolist()) for b in model.buffers()],
        list(warnings.filters),
        id(sys.gettrace()),
        torch.autograd.grad,
        torch.autograd.backward,
        Tensor.backward,
    ]


@pytest.mark.parametrize("kind", [cnn, Meddling, Noisy, lambda: Purifying("backward")])
@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference"])
def test_no_trace_is_left(kind, mode: str, digits: tuple[Tensor, Tensor]) -> None:
    model = kind().eval()
    first, second, *_ = model.parameters()
    second.requires_grad_(False)
    first.grad = torch.ones_like(first)
    with torch.set_grad_enabled(mode == "plain"), torch.inference_mode(mode == "inference"):
        before = _traces(model)
        if kind is Meddling:
            with pytest.raises(ModelError, match=r"changes its own model\."):
                look(model, digits)
        else:
            assert len(look(model, digits)) == (0 if kind is cnn else 1)
        assert _traces(model) == before


def test_autocast_of_the_caller_changes_nothing(digits: tuple[Tensor, Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert look(cnn(), digits) == ()
        assert torch.is_autocast_enabled("cpu")
