"""Time and memory of one form of a loss, gradient included; others run it once for each form.

    python benchmarks/loss_alone.py pairs|ours              # IKL, for train_step.py
    python benchmarks/loss_alone.py kd-pairs|kd-ours        # GKL-KD, for distill_step.py

Memory is what the peak exceeds the inputs and all loaded code by: of the process (Linux), or of the GPU. Prints
one JSON line.

Shapes: B batch, K classes.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reference_kd import pairwise_gkl_kd
from reference_step import pairwise_ikl
from torch import Tensor

from dkl import distillation, losses

BATCH = 128
KD = {"gamma": 0.6, "temperature": 1.0}
"""As ResNet34 -> ResNet18 on ImageNet is distilled."""


def distilled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`loss`, called with what is to be learnt first and without a gradient for it."""
    return lambda teacher_BK, student_BK, *prior, **weights: loss(
        student_BK, teacher_BK.detach(), *prior, **KD, **weights
    )


LOSSES: dict[str, Callable[..., Tensor]] = {
    "pairs": pairwise_ikl,
    "ours": losses.ikl,
    "kd-pairs": distilled(pairwise_gkl_kd),
    "kd-ours": distilled(distillation.gkl_kd),
}


def measure(name: str, device: str, *, classes: int, repeats: int) -> dict[str, float]:
    """Milliseconds of the loss and its gradient, and megabytes by which its peak exceeds what was there before.

    In a process of its own: what an earlier call gave back would be taken again unseen.
    """

    def once(batch: int, classes: int) -> Callable[[], None]:
        nat_BK, adv_BK = (torch.randn(batch, classes, device=device, requires_grad=True) for _ in range(2))
        prior_BK = torch.randn(batch, classes, device=device).softmax(1)
        return lambda: torch.autograd.backward(
            LOSSES[name](nat_BK, adv_BK, prior_BK, wmse_weight=20.0, ce_weight=5.0)
        )

    once(16, 10)()  # loads the code
    call = once(BATCH, classes)
    with _Peak(device) as peak:
        call()
    times = []
    for _ in range(repeats):
        began = now(device)
        call()
        times.append(now(device) - began)
    return {"milliseconds": statistics.median(times) * 1000, "megabytes": peak.bytes / 1e6}


class _Peak:
    """How many bytes the peak inside exceeds what was taken at the beginning by; of the process, or of the GPU."""

    def __init__(self, device: str) -> None:
        self.cpu = device == "cpu"
        self.bytes = 0

    def __enter__(self) -> "_Peak":
        if self.cpu:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, starts again from VmRSS
            self.bytes = -_kilobytes("VmRSS") * 1024
        else:
            torch.cuda.reset_peak_memory_stats()
            self.bytes = -torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes += _kilobytes("VmHWM") * 1024 if self.cpu else torch.cuda.max_memory_allocated()


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def now(device: str) -> float:
    """Seconds: of CPU time, or of wall time once the GPU has done all it was asked to."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=LOSSES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    numbers = measure(arguments.form, arguments.device, classes=arguments.classes, repeats=arguments.repeats)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
