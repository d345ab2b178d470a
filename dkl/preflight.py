"""What is wrong with a model, found on a few images before any attack runs.

What makes an evaluation meaningless is a ModelError; what may make it mislead is a warning, with the numbers that
were seen. Shapes: B images, K classes, C channels, H, W pixels.
"""

from collections.abc import Callable
from math import comb, isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from dkl.attacks.looks import margin
from dkl.custody import changes, in_custody, snapshot
from dkl.preprocessing import show_normalisation

RANDOM = 1e-4
"""Of the largest logit: by so much two passes of the same input may differ, as in AutoAttack's own check."""
ALONE = 1e-3
"""Of the largest logit: by so much an image's logits may differ between a batch and the image alone, since kernels
for other batch sizes add up in another order."""
PROBABILITY = 1e-4
"""How far the sum of a row of probabilities may be from one."""
FACTOR = 5.0
"""A slope that is measured and the slope that the gradient promises may differ by this factor, in the median."""
STEP = 2 / 255
"""Pixels, either way, over which slopes are measured; wide enough to cross the grey levels of 8-bit images."""
DIRECTIONS = 4
CHANCE = 1e-3
"""How improbable it has to be that a normalisation helps by accident."""


class ModelError(ValueError):
    """An evaluation of this model would be meaningless; the message says why and what to do."""


def inspect(
    model: nn.Module,
    x_BCHW: Tensor,
    y_B: Tensor,
    *,
    classes: int,
    random_expected: bool = False,
    needs_gradient: bool = True,
) -> tuple[str, ...]:
    """Warnings, sentences with evidence, about `model` as a function of images; none for a healthy one.

    `x_BCHW` is float32 in [0, 1] with labels `y_B`, at most 32 images, on the model's device. Costs about 25
    forward passes and 3 backward passes of them. `random_expected`: the suite averages over randomness, so
    randomness is no fault. `needs_gradient`: something follows that uses gradients; what matters to that alone is
    not asked otherwise.

    Random generators, autograd and autocast modes, and the model's weights, buffers, modes and gradients are
    afterwards what they were. A forward that differentiates in a thread of its own, or in compiled code, is not
    seen to do so.

    Raises ModelError where an evaluation would be meaningless.
    """
    with in_custody(model, x_BCHW.device):
        x, y = x_BCHW.detach().clone(), y_B.clone()
        _require_float32(model)
        _require_eval_mode(model, random_expected=random_expected)
        logits = _require_logits(model, x, classes)
        _require_no_memory(model, x)
        finite_B = logits.isfinite().all(dim=1)
        if not finite_B.any():
            raise ModelError(
                f"the logits of all {len(x)} clean images are NaN or infinite; expected finite numbers: check the "
                "weights, and the preprocessing that they were trained with"
            )
        warnings = _some_not_finite(finite_B)
        x, y, logits = x[finite_B], y[finite_B], logits[finite_B]
        random = _random(model, x, logits)
        warnings += [] if random_expected else random
        grouped = [] if random else _batch_dependent(model, x, logits)  # of chance nobody can tell
        warnings += grouped
        if needs_gradient:
            warnings += [*_probabilities(logits), *_dynamic(model, x)]
            warnings += _gradients(model, x, y, a_function=not random and not grouped)
        warnings += _normalised(model, x, y, logits)
    return tuple(warnings)


# --- meaningless ------------------------------------------------------------------------------------------


def _require_float32(model: nn.Module) -> None:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ModelError(
                f"{name} is {_show(value.dtype)}, expected float32, in which verdicts are made; convert the model "
                "with model.float()"
            )


def _require_eval_mode(model: nn.Module, *, random_expected: bool) -> None:
    """Dropout may be a defence where randomness is expected; statistics of the batch never are."""
    for name, module in model.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
        if batch_norm or (dropout and not random_expected):
            raise ModelError(
                f"the module {name or 'at the top'} ({type(module).__name__}) is in training mode, so an answer "
                "depends on the batch or on chance; call model.eval() before the evaluation"
            )


def _require_logits(model: nn.Module, x_BCHW: Tensor, classes: int) -> Tensor:
    asked = x_BCHW.clone()
    logits: Any = _forward(model, asked)
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"the model returns {_describe(logits)}, expected one Tensor of logits of shape "
            f"{(len(x_BCHW), classes)}; {_way_out(logits, (len(x_BCHW), classes))}"
        )
    if logits.shape != (len(x_BCHW), classes):
        raise ModelError(
            f"the model returns the shape {tuple(logits.shape)}, expected {(len(x_BCHW), classes)}: one row per "
            "image, one logit per class; reshape its output, or evaluate it on the data that it was made for"
        )
    if logits.dtype != torch.float32:
        raise ModelError(
            f"the logits are {_show(logits.dtype)}, expected float32, in which verdicts are made; let the model "
            "compute in float32 and return that"
        )
    if not torch.equal(asked, x_BCHW):
        raise ModelError(
            "the model changes its input in place, which would change the images under attack; write "
            "x = x - mean instead of x -= mean"
        )
    return logits


def _require_no_memory(model: nn.Module, x_BCHW: Tensor) -> None:
    """Asked after a first forward pass: what a model makes once and keeps, a table of positions, is there."""
    before = snapshot(model)
    _forward(model, x_BCHW)
    if changed := changes(model, before):
        raise ModelError(
            f"the model changes its own {changed[0]} in a forward pass ({len(changed)} tensors in all), so an "
            "answer depends on what was asked before; freeze them in eval mode"
        )


def _describe(output: Any) -> str:
    if isinstance(output, dict):
        return f"a {type(output).__name__} with the keys {', '.join(map(repr, output))}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)} elements"
    return f"a {type(output).__name__}"


def _way_out(output: Any, expected: tuple[int, int]) -> str:
    """Which element of the output to return instead."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(output, dict):
        entries = list(output.items())
    elif isinstance(output, list | tuple):
        entries = list(enumerate(output))
    fitting = [key for key, value in entries if isinstance(value, Tensor) and value.shape == expected]
    if fitting:
        return f"wrap it so that it returns output[{fitting[0]!r}], which has this shape"
    return "wrap it so that it returns the logits alone"


# --- misleading -------------------------------------------------------------------------------------------


def _some_not_finite(finite_B: Tensor) -> list[str]:
    bad = int((~finite_B).sum())
    if not bad:
        return []
    return [f"the logits of {bad} of {len(finite_B)} clean images are NaN or infinite; these count as wrong"]


def _probabilities(logits_BK: Tensor) -> list[str]:
    sums_B = logits_BK.sum(dim=1)
    if (logits_BK < 0).any() or ((sums_B - 1).abs() > PROBABILITY).any():
        return []
    return [
        f"the outputs are probabilities (from {logits_BK.min():.2g} to {logits_BK.max():.4g}, rows sum to one), "
        "whose gradients vanish where the model is sure; return the logits before the softmax"
    ]


def _random(model: nn.Module, x_BCHW: Tensor, logits_BK: Tensor) -> list[str]:
    difference = _largest_difference(_forward(model, x_BCHW), logits_BK)
    scale = float(logits_BK.abs().max())
    if difference <= RANDOM * scale:
        return []
    return [
        f"the model is random: the same images asked twice gave logits that differ by up to {difference:.3g} (the "
        f"largest logit is {scale:.3g}); use the suite rand, which averages over randomness"
    ]


def _batch_dependent(model: nn.Module, x_BCHW: Tensor, logits_BK: Tensor) -> list[str]:
    few = min(4, len(x_BCHW))
    alone_BK = torch.cat([_forward(model, x_BCHW[i : i + 1]) for i in range(few)])
    difference = _largest_difference(alone_BK, logits_BK[:few])
    scale = float(logits_BK.abs().max())
    if difference <= ALONE * scale:
        return []
    return [
        f"an image's logits depend on the other images of its batch: alone they differ by up to {difference:.3g} "
        f"(the largest logit is {scale:.3g}); verdicts will depend on how images are grouped"
    ]


class _SeesBackwardPasses(TorchDispatchMode):
    """Notes whether any operation inside it belongs to a backward pass. Of this thread alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen = self.seen or torch._C._current_graph_task_id() != -1
        return function(*args, **(kwargs or {}))


def _dynamic(model: nn.Module, x_BCHW: Tensor) -> list[str]:
    eye = _SeesBackwardPasses()
    with torch.enable_grad(), eye:  # as during an attack: a defence that differentiates can
        model(x_BCHW[:2].clone())
    if not eye.seen:
        return []
    return [
        "the forward pass computes gradients itself (a dynamic defence: it optimises or adapts at test time), "
        "which attacks through its gradient do not follow; only an attack made for it can judge it"
    ]


def _gradients(model: nn.Module, x_BCHW: Tensor, y_B: Tensor, *, a_function: bool) -> list[str]:
    """`a_function`: an image's logits depend on that image alone, so that slopes can be measured."""
    of_ce_BCHW = _input_gradient(model, x_BCHW, lambda logits: cross_entropy(logits, y_B, reduction="sum"))
    of_margin_BCHW = _input_gradient(model, x_BCHW, lambda logits: margin(logits, y_B).sum())
    bad_B = ~(of_ce_BCHW.isfinite() & of_margin_BCHW.isfinite()).flatten(1).all(dim=1)
    flat_B = (of_margin_BCHW == 0).flatten(1).all(dim=1)
    saturated_B = (of_ce_BCHW == 0).flatten(1).all(dim=1) & ~flat_B
    count, found = len(y_B), []
    if bad_B.any():
        found.append(
            f"the input gradient is NaN or infinite at {int(bad_B.sum())} of {count} images; attacks cannot "
            "follow it there, and robust accuracy may come out too high"
        )
    if flat_B.any():
        found.append(
            f"the input gradient is zero at {int(flat_B.sum())} of {count} images, for the cross-entropy and for "
            "the margin: gradients are masked there, and robust accuracy may come out too high"
        )
    if saturated_B.any():
        found.append(
            f"the cross-entropy's input gradient is zero at {int(saturated_B.sum())} of {count} images while the "
            "margin's is not: the model is too sure for float32, and attacks on the cross-entropy fail there"
        )
    clear_B = ~(bad_B | flat_B)
    if a_function and clear_B.any():
        found += _shattered(model, x_BCHW[clear_B], y_B[clear_B])
    return found


def _shattered(model: nn.Module, x_BCHW: Tensor, y_B: Tensor) -> list[str]:
    """Whether the margin rises and falls as its gradient says, along random directions u with entries of +-1.

        measured = |m(x + h u) - m(x - h u)| / 2h          promised = |<gradient, u>|

    Both summed over the directions, h = STEP. A smooth model has a ratio near one; the median over the images
    is taken, so that a few kinks do not count.
    """
    x_BCHW = x_BCHW.clamp(STEP, 1 - STEP)  # no step leaves [0, 1]
    gradient_BCHW = _input_gradient(model, x_BCHW, lambda logits: margin(logits, y_B).sum())
    random = torch.Generator().manual_seed(0)
    measured_B, promised_B = torch.zeros(len(y_B), dtype=torch.float64), torch.zeros(len(y_B), dtype=torch.float64)
    for _ in range(DIRECTIONS):
        u_CHW = (torch.randint(0, 2, x_BCHW.shape[1:], generator=random) * 2 - 1).to(x_BCHW)
        up_B, down_B = (margin(_forward(model, x_BCHW + h * u_CHW), y_B).double() for h in (STEP, -STEP))
        measured_B += ((up_B - down_B).abs() / (2 * STEP)).cpu()
        promised_B += (gradient_BCHW.double() * u_CHW).flatten(1).sum(dim=1).abs().cpu()
    ratio = float((measured_B / promised_B.clamp(min=1e-30)).nanmedian())
    if 1 / FACTOR <= ratio <= FACTOR:
        return []
    return [
        f"the input gradient says little about the model: over steps of {STEP * 255:.0f}/255 the margin changes "
        f"{ratio:.2g} times as much as its gradient promises (median of {len(y_B)} images), as where the input is "
        "quantised or gradients are shattered; robust accuracy may come out too high"
    ]


_USUAL: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10, std of batches": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "MNIST": ((0.1307,), (0.3081,)),
    "centred": ((0.5,), (0.5,)),
    "grey levels 0 to 255": ((0.0,), (1 / 255,)),
}
"""Normalisations that training scripts use, mean and std of pixels in [0, 1]; one number: for all channels."""


def _normalised(model: nn.Module, x_BCHW: Tensor, y_B: Tensor, logits_BK: Tensor) -> list[str]:
    """A hint where one of the usual normalisations makes the model right far more often.

    A sign test on the images where the two disagree; `CHANCE` is its one-sided level for all candidates together.
    """
    channels, count = x_BCHW.shape[1], len(y_B)
    as_is_B = logits_BK.argmax(dim=1) == y_B
    candidates = {
        title: (mean * (channels // len(mean)), std * (channels // len(std)))
        for title, (mean, std) in _USUAL.items()
        if len(mean) in {1, channels} and (title != "MNIST" or channels == 1)
    }
    hints = []
    for title, (mean, std) in candidates.items():
        mean_C11, std_C11 = (x_BCHW.new_tensor(values)[:, None, None] for values in (mean, std))
        try:
            right_B = _forward(model, (x_BCHW - mean_C11) / std_C11).argmax(dim=1) == y_B
        except ModelError:
            continue  # it takes nothing outside [0, 1], so this is not what it expects
        gained, lost = int((right_B & ~as_is_B).sum()), int((as_is_B & ~right_B).sum())
        if _sign_test(gained, lost) * len(candidates) < CHANCE:
            hints.append((int(right_B.sum()), title, show_normalisation(mean, std)))
    if not hints:
        return []
    right, title, shown = max(hints, key=lambda hint: hint[0])
    return [
        f"the model seems to expect normalised pixels: {int(as_is_B.sum())} of {count} images are classified "
        f"correctly as they are, {right} of {count} with {shown} ({title}); give its source this preprocessing"
    ]


def _sign_test(gained: int, lost: int) -> float:
    """P(at least `gained` of all that changed), were gains and losses equally likely."""
    changed = gained + lost
    return sum(comb(changed, k) for k in range(gained, changed + 1)) / 2**changed


# --- asking the model -------------------------------------------------------------------------------------


@torch.no_grad()
def _forward(model: nn.Module, x_BCHW: Tensor) -> Any:
    """What the model answers; ModelError where it cannot."""
    try:
        return model(x_BCHW)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise ModelError(
            f"the model fails on float32 images of shape {tuple(x_BCHW.shape)}: {_first_line(error)}; it has to "
            "take images of the data set"
        ) from error


def _input_gradient(model: nn.Module, x_BCHW: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of each image's loss at that image, shape (B, C, H, W). ModelError where there is none."""
    x_BCHW = x_BCHW.clone().requires_grad_()
    gradient = None
    with torch.enable_grad():
        logits_BK = model(x_BCHW)
        if logits_BK.requires_grad:
            try:
                (gradient,) = torch.autograd.grad(loss(logits_BK), x_BCHW, allow_unused=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ModelError(
                    f"the gradient of the logits cannot be computed: {_first_line(error)}; attacks need it, so "
                    "make the forward pass differentiable"
                ) from error
    if gradient is None:
        raise ModelError(
            "the logits have no gradient with respect to the input, which the attacks need; remove detach(), "
            "no_grad() and steps that cannot be differentiated from the forward pass, or attack with square alone"
        )
    return gradient


def _largest_difference(a: Tensor, b: Tensor) -> float:
    difference = float((a - b).abs().max())
    return float("inf") if isnan(difference) else difference


def _show(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'without a message'}"
