"""Batch norms whose statistics are those of the whole batch, wherever its images are.

torch's own SyncBatchNorm takes tensors on a GPU only. This one works on both, so that what is tested on a CPU is
what trains on GPUs. All the work per pixel is done by torch's fused kernels; what is added is per channel.

Shapes: B batch, C channels, S everything else; N processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norms(model: nn.Module) -> None:
    """Let the batch norms of `model` see the batches of all processes in training mode; nothing else changes.

    Parameters, buffers and their names stay the same objects. Every process must then call the model equally
    often, with at least one image each time, and go backwards equally often; in eval mode each is on its own. A
    gradient is that of the sum of all processes' losses. Raises ValueError for a foreign kind of batch norm.
    """
    for name, module in model.named_modules():
        if (kind := _synchronised_kind(module)) is not None:
            module.__class__ = kind  # adds no state
            # Compilers do not know that the processes meet there. Not a decorator: to import them takes seconds.
            module._shared = torch.compiler.disable(module._shared)  # type: ignore[no-untyped-call]
        elif isinstance(module, _BatchNorm) and not isinstance(module, _Synchronised):
            raise ValueError(
                f"the batch norm {name} is a {type(module).__name__}, which several processes cannot share; "
                "train with processes=1, or take another model"
            )


class _Synchronised(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        return self._shared(input) if self.training else super().forward(input)

    def _shared(self, x_BCS: Tensor) -> Tensor:
        self._check_input_dim(x_BCS)  # type: ignore[no-untyped-call]
        mean_C, var_C, count = _statistics(x_BCS.detach())
        if self.track_running_stats and self.running_mean is not None:
            self._keep(mean_C, var_C * (count / (count - 1)))
        kind = torch.promote_types(x_BCS.dtype, torch.float32)
        y_BCS: Tensor = _Normalise.apply(
            x_BCS, self.weight, self.bias, mean_C.to(kind), var_C.to(kind), count, self.eps
        )
        return y_BCS

    @torch.no_grad()
    def _keep(self, mean_C: Tensor, unbiased_var_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running_C, fresh_C in ((self.running_mean, mean_C), (self.running_var, unbiased_var_C)):
            running_C.copy_((1 - momentum) * running_C + momentum * fresh_C)


class _Synchronised1d(_Synchronised, nn.BatchNorm1d):
    pass


class _Synchronised2d(_Synchronised, nn.BatchNorm2d):
    pass


class _Synchronised3d(_Synchronised, nn.BatchNorm3d):
    pass


class _SynchronisedWithActivation(_Synchronised2d):
    """timm's BatchNormAct2d, which most of its newer networks are made of."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        x_BCHW: Tensor = self.act(self.drop(super().forward(input)))
        return x_BCHW


def _synchronised_kind(module: nn.Module) -> type[_Synchronised] | None:
    """What `module` becomes; None for what stays as it is, or cannot be synchronised."""
    kind = type(module)
    if kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm."):
        return _SynchronisedWithActivation
    kinds: dict[type[nn.Module], type[_Synchronised]] = {
        nn.BatchNorm1d: _Synchronised1d,
        nn.BatchNorm2d: _Synchronised2d,
        nn.BatchNorm3d: _Synchronised3d,
    }
    return kinds.get(kind)


def _statistics(x_BCS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of values per channel of all processes' images, in float64.

        var = sum_n count_n * (var_n + (mean_n - mean)**2) / sum_n count_n

    Centred in both steps: E[x^2] - E[x]^2 would lose digits. One meeting of the processes.
    """
    others = [axis for axis in range(x_BCS.ndim) if axis != 1]
    var_C, mean_C = torch.var_mean(x_BCS.to(torch.promote_types(x_BCS.dtype, torch.float32)), others, correction=0)
    own = torch.cat([mean_C, var_C, mean_C.new_tensor([x_BCS.numel() // x_BCS.shape[1]])]).double()
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own)
    table_NX, channels = torch.stack(rows), len(mean_C)
    mean_NC, var_NC, count_N1 = table_NX[:, :channels], table_NX[:, channels:-1], table_NX[:, -1:]
    share_N1 = count_N1 / count_N1.sum()
    mean_C = (share_N1 * mean_NC).sum(0)
    return mean_C, (share_N1 * (var_NC + (mean_NC - mean_C).square())).sum(0), count_N1.sum()


class _Normalise(torch.autograd.Function):
    """x_BCS -> weight * x_hat + bias, x_hat = (x - mean) / sqrt(var + eps), with mean and var functions of all x.

        dx = weight / sqrt(var + eps) * (dy - mean(dy) - x_hat * mean(dy * x_hat))

    The means are over all processes; the gradients of weight and bias are this process's part, as for any layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BCS: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        mean_C: Tensor,
        var_C: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x_BCS, weight_C, mean_C, var_C, count)
        ctx.eps = eps
        return batch_norm(x_BCS, mean_C, var_C, weight_C, bias_C, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BCS: Tensor) -> tuple[Tensor | None, ...]:
        x_BCS, weight_C, mean_C, var_C, count = ctx.saved_tensors
        scale_C = torch.ones_like(mean_C) if weight_C is None else weight_C.to(mean_C.dtype)
        invstd_C = (var_C + ctx.eps).rsqrt()
        # Of a batch norm whose statistics are constants: what flows through them is added below. Kernels for CPUs
        # look at mean and variance, those for GPUs at mean and invstd.
        dx_BCS, dweight_C, dbias_C = torch.ops.aten.native_batch_norm_backward(
            dy_BCS, x_BCS, scale_C, mean_C, var_C, mean_C, invstd_C, False, ctx.eps, [True, True, True]
        )
        if ctx.needs_input_grad[0]:
            sums_2C = torch.stack([dbias_C, dweight_C]).double()
            dist.all_reduce(sums_2C)
            through_2C = (-sums_2C / count).to(mean_C.dtype) * scale_C * invstd_C
            dx_BCS = dx_BCS + batch_norm(x_BCS, mean_C, var_C, through_2C[1], through_2C[0], False, 0.0, ctx.eps)
        wants = ctx.needs_input_grad
        return (
            dx_BCS if wants[0] else None,
            dweight_C.to(weight_C.dtype) if wants[1] else None,
            dbias_C.to(weight_C.dtype) if wants[2] else None,
            None,
            None,
            None,
            None,
        )
