"""The processes that share every batch of a training run; usually one."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Process number `rank` (from 0) of `size`. The methods must be called by all of them, in the same order."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> slice:
        """Which of the `count` images of a batch are this process's: a run of neighbours, sizes differ by one.

        ValueError, in every process, where one of them would get none.
        """
        if count < self.size:
            raise ValueError(
                f"{self.size} processes cannot share a batch of {count} images, the smallest of an epoch; "
                f"change batch_size, or images, so that it has at least {self.size}"
            )
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place. All have the same type and device."""
        if self.size > 1 and tensors:
            # One message. Logical order: memory may be laid out differently in each process.
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, total in zip(tensors, parts, strict=True):
                tensor.copy_(total.view(tensor.shape))

    def any(self, flag: bool, device: str | torch.device) -> bool:
        """Whether `flag` is true in any process."""
        flags = torch.tensor([float(flag)], device=device)
        self.sum_(flags)
        return bool(flags.item() > 0)


ALONE = World()
