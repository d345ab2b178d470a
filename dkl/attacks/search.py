"""The model as attacks search with it: fast, and good enough to find adversarial images with, not to judge them.

It is a copy of the model, frozen, with batch norms folded into the convolutions before them, in channels_last
order, and on request with a 16-bit body between a float32 stem and head. What it finds counts only after the
untouched model has confirmed it in float32 (dkl/verify.py), so nothing in here can make an image count as broken.

Attacks hold images as rows: n = H * W * C pixels, channels last.
Shapes: B batch, K classes, C channels, H, W pixels, n pixels of an image.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.optimization import fuse

from dkl.attacks.graphs import Graphs

Precision = Literal["float32", "float16", "bfloat16"]
Loss = Callable[[Tensor], Tensor]
"""logits_BK -> loss_B, the larger the more adversarial"""

SAME = 1e-3
"""Of the range of the logits: by so much folding may change one."""
PASSES = 5
"""In which the model is compared with its folded form: tracing fixes what a model would choose at random."""


class Search:
    """Logits and input gradients of rows of pixels, counted."""

    def __init__(self, model: nn.Module, example_BCHW: Tensor, precision: Precision = "float32") -> None:
        """`model` is in eval mode; `example_BCHW` shows it the shape of its images."""
        self.shape = example_BCHW.shape[1:]
        self.precision = precision
        self.device = example_BCHW.device
        self.forward_calls = 0
        self.backward_calls = 0
        self._sum = torch.zeros((), device=self.device)  # of all logits; reading it would wait for a GPU
        self._body = _rebuilt(model, example_BCHW)
        if precision != "float32":
            self._body = _in_16_bits(self._body, example_BCHW, getattr(torch, precision))
        recordable = self.device.type == "cuda" and isinstance(self._body, GraphModule)  # nothing random in it
        self._run = Graphs(self._pass) if recordable else self._pass

    def rows(self, x_BCHW: Tensor) -> Tensor:
        """Images as rows of pixels."""
        return x_BCHW.permute(0, 2, 3, 1).flatten(1)

    def images(self, x_Bn: Tensor) -> Tensor:
        """Rows of pixels as images, in channels_last order; no copy."""
        channels, height, width = self.shape
        return x_Bn.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def logits(self, x_Bn: Tensor) -> Tensor:
        """logits_BK in float32."""
        self.forward_calls += 1
        logits_BK = self._run(self.images(x_Bn))
        return self._watched(logits_BK.clone() if self.device.type == "cuda" else logits_BK)

    def gradient(self, x_Bn: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """logits_BK, loss_B, 2**e d loss / d x of shape (B, n), and the whole numbers e, int (B, 1).

        The factor makes the largest loss gradient of a logit 1 to 2, so that 16 bits suffice on the way back; it
        is a power of two, which changes no digit. For signs and directions it does not matter; sums need it.
        """
        x_BCHW = self.images(x_Bn.detach()).requires_grad_()
        with torch.enable_grad():
            logits_BK = self._run(x_BCHW)
            seed_BK = logits_BK.detach().requires_grad_()
            loss_B = loss(seed_BK)
            (d_BK,) = torch.autograd.grad(loss_B.sum(), seed_BK)
        scaled_BK, exponent_B1 = _scaled(d_BK)
        gradient_Bn = self._backward(logits_BK, x_BCHW, scaled_BK, keep=False)
        self.forward_calls += 1
        return self._watched(logits_BK.detach()), loss_B.detach(), gradient_Bn, exponent_B1

    def jacobian(self, x_Bn: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """logits_BK, and a function: weights_BK of the logits -> gradient (B, n) of their weighted sum."""
        x_BCHW = self.images(x_Bn.detach()).requires_grad_()
        with torch.enable_grad():
            logits_BK = self._run(x_BCHW)
        self.forward_calls += 1
        return self._watched(logits_BK.detach()), lambda weights_BK: self._backward(
            logits_BK, x_BCHW, weights_BK, keep=True
        )

    def watch(self) -> None:
        """From here on `finite` is about new logits only."""
        self._sum = torch.zeros_like(self._sum)

    @property
    def finite(self) -> bool:
        """Whether all logits since `watch` were finite numbers."""
        return bool(self._sum.isfinite())

    def _pass(self, x_BCHW: Tensor) -> Tensor:
        if self.precision == "float32":
            return self._body(x_BCHW)
        with torch.autocast(self.device.type, dtype=getattr(torch, self.precision), cache_enabled=False):
            return self._body(x_BCHW).float()

    def _watched(self, logits_BK: Tensor) -> Tensor:
        self._sum += logits_BK.sum()
        return logits_BK

    def _backward(self, logits_BK: Tensor, x_BCHW: Tensor, weights_BK: Tensor, *, keep: bool) -> Tensor:
        self.backward_calls += 1
        (gradient_BCHW,) = torch.autograd.grad(logits_BK, x_BCHW, weights_BK, retain_graph=keep)
        return self.rows(gradient_BCHW.clone() if self.device.type == "cuda" else gradient_BCHW)


def native_16_bit(device: torch.device) -> Precision:
    """The 16-bit format that `device` computes in faster than in float32; "float32" where there is none."""
    if device.type == "cuda":
        return "float16" if torch.cuda.get_device_capability(device) >= (7, 0) else "float32"
    described = Path("/proc/cpuinfo")
    flags = described.read_text().split() if described.exists() else []
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"


def _scaled(d_BK: Tensor) -> tuple[Tensor, Tensor]:
    """2**e d_BK and e, of shape (B, 1)."""
    _, size_B1 = d_BK.abs().amax(dim=1, keepdim=True).frexp()
    exponent_B1 = 1 - size_B1.clamp_min(-126)  # 2**128, for denormal numbers, were infinite
    return torch.ldexp(d_BK, exponent_B1), exponent_B1


# --- rebuilding the model ----------------------------------------------------------------------------------


def _rebuilt(model: nn.Module, example_BCHW: Tensor) -> nn.Module:
    """A frozen copy in channels_last order; with folded batch norms where that leaves the logits as they are."""
    plain = copy.deepcopy(model).requires_grad_(False).to(memory_format=torch.channels_last)
    try:
        folded = fuse(plain).requires_grad_(False)
        with torch.no_grad():
            expected_PBK = torch.stack([model(example_BCHW) for _ in range(PASSES)])
            difference = (folded(example_BCHW) - expected_PBK).abs().amax()
            spread = (expected_PBK.amax(dim=2) - expected_PBK.amin(dim=2)).amax()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # tracing meets whatever a foreign model does; its plain form always works
        return plain
    return folded if difference <= SAME * spread else plain


def _in_16_bits(model: nn.Module, example_BCHW: Tensor, dtype: torch.dtype) -> nn.Module:
    """`model` whose first and last layer with weights compute in float32; autocast does what lies between.

    In 16 bits a pixel near 1 is rounded by half a grey level, a sixteenth of a usual Linf radius.
    """
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(example_BCHW)
    for handle in handles:
        handle.remove()
    if len(order) >= 2:
        _keep_in_float32(model.get_submodule(order[0]), dtype)
        _keep_in_float32(model.get_submodule(order[-1]), torch.float32)
    return model


def _keep_in_float32(layer: nn.Module, out: torch.dtype) -> None:
    inside = layer.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return inside(x.float()).to(out)

    layer.forward = forward
