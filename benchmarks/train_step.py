"""How fast one update of IKL-AT is here, against a plain transcription of its authors' step, in the same run.

    python benchmarks/train_step.py            # WRN-16-2 and WRN-10-1 on one core
    python benchmarks/train_step.py --quick    # the same with fewer repeats, within five minutes
    python benchmarks/train_step.py --device cuda --model wrn-34-10 --batch 128 --compile default

The update is that of the recipe ikl-at-cifar100-wrn-34-10 at full radius: five attack steps, AWP, then an average
that moves with every step. `reference` is reference_step.py in float32; `float32` and `bfloat16` are dkl.updates
on a network as dkl.execution makes it, `bfloat16-default` and the like the same compiled. Images, labels, class
prior and start weights are random, but alike for all; running statistics are warmed up first.

First `reference` and `float32` take one step from the same start, in float64, and their weights after it are
compared: one step, not a trajectory. In float32 the same shows less: the attack begins where clean and adversarial
logits are almost equal, so its first gradients are differences of like numbers, sign() makes whole steps of their
last digits, and some pixels go the other way. How far that parts the weights is printed beside it.

Then all take turns, in changing order, one step each; a ratio is the median over the rounds of the reference's
time over the contestant's. Time is of the CPU on a CPU, since other processes may share the machine, and of the
wall on a GPU. There float32 is what torch makes of it: convolutions in TF32.

The loss alone (128 images, 1,000 classes, gradient included): pairs of classes against dkl.losses.ikl, each in a
process of its own. Memory is what the peak exceeds the inputs and all loaded code by.

The last line is one JSON object. Its ratios are of the first network, all others are under `settings`;
`disagreements` counts the settings in which the float64 steps differ, `ceiling_share` is the best rate over that
of large products.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from loss_alone import now
from step_contestants import REFERENCE, Contestant, Setting, all_contestants, allocated, inputs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dkl.architectures import WideResNet
from dkl.models import eval_mode
from dkl.verify import ieee_float32

HERE = Path(__file__).parent
CLASSES = (10, 100)
SAME = 1e-9
"""Within which losses and weights of one step in float64 agree."""


# --- one setting ------------------------------------------------------------------------------------------


def contest(setting: Setting, device: str, *, rounds: int, own: Sequence[str]) -> dict[str, Any]:
    """All contestants on one setting: whether they agree, their ratios and rates, and on a GPU their memory."""
    agreement, in_float32 = (compare(setting, device, dtype) for dtype in (torch.float64, torch.float32))
    start, prior_KK, batch = inputs(setting, device)
    contestants = all_contestants(setting, start, prior_KK, own)
    for contestant in contestants:
        before = allocated(device)
        for _ in range(2 if device == "cpu" else 5):  # the first steps allocate, compile and choose kernels
            contestant.step(*batch)
        contestant.resident += allocated(device) - before
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    peaks = dict.fromkeys(seconds, 0)
    for turn in range(rounds):
        for contestant in contestants if turn % 2 else reversed(contestants):
            taken, peak = _timed(contestant, batch)
            seconds[contestant.name].append(taken)
            peaks[contestant.name] = max(peaks[contestant.name], peak)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    pairs = {name: zip(seconds[REFERENCE], times, strict=True) for name, times in seconds.items()}
    flops = _flops(start, batch[0])
    result: dict[str, Any] = {
        "setting": f"{setting.network}, {setting.classes} classes",
        **agreement,
        **{f"{name}_float32": difference for name, difference in in_float32.items()},
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "ratios": {name: round(statistics.median(a / b for a, b in pair), 3) for name, pair in pairs.items()},
        "teraflops": {c.name: round(flops * c.passes / median[c.name] / 1e12, 4) for c in contestants},
    }
    if device != "cpu":
        result["peak_memory_gb"] = {c.name: round((c.resident + peaks[c.name]) / 2**30, 2) for c in contestants}
    return result


def compare(setting: Setting, device: str, dtype: torch.dtype) -> dict[str, float]:
    """One step of the reference and of ours from the same weights: their losses, and the weights after it."""
    start, prior_KK, (x_BCHW, y_B, noise_BCHW) = inputs(setting, device)
    start, prior_KK = start.to(dtype), prior_KK.to(dtype)
    batch = (x_BCHW.to(dtype), y_B, noise_BCHW.to(dtype))
    with ieee_float32():
        reference, own = all_contestants(setting, start, prior_KK, ("float32",))
        loss, own_loss = reference.step(*batch), own.step(*batch)
    before, after, own_after = (model.state_dict() for model in (start, reference.model, own.model))
    floating = [name for name, value in before.items() if value.is_floating_point()]
    return {
        "loss_difference": abs(own_loss / loss - 1),
        "weight_change": max((after[name] - before[name]).abs().max().item() for name in floating),
        "weight_difference": max((after[name] - own_after[name]).abs().max().item() for name in floating),
    }


def _timed(contestant: Contestant, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[float, int]:
    """Seconds of a step, and bytes of GPU memory by which it exceeds what lies there between steps."""
    device = batch[0].device.type
    before = allocated(device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    began = now(device)
    contestant.step(*batch)
    taken = now(device) - began
    return taken, 0 if device == "cpu" else torch.cuda.max_memory_allocated() - before


def _flops(model: nn.Module, x_BCHW: Tensor) -> int:
    """Of one forward pass over the batch; a multiplication with its addition counts two."""
    with eval_mode(model), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x_BCHW[:1])
    return int(counter.get_total_flops()) * len(x_BCHW)


def ceiling(device: str) -> float:
    """TFLOP/s of large bfloat16 products: as fast as the device gets."""
    side, repeats = (8192, 50) if device != "cpu" else (1024, 5)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        began = now(device)
        for _ in range(repeats):
            a @ b
        best = min(best, now(device) - began)
    return 2 * side**3 * repeats / best / 1e12


def contest_of_losses(device: str, threads: int, family: str = "") -> dict[str, Any]:
    """What the form over pairs of classes takes over what ours takes; `family` is "" or "kd-"."""
    measured = {}
    for form, repeats in (("pairs", 3), ("ours", 100)):
        options = ["--device", device, "--threads", str(threads), "--repeats", str(repeats)]
        command = [sys.executable, str(HERE / "loss_alone.py"), family + form, *options]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        measured[form] = json.loads(said.splitlines()[-1])
    return {
        "loss_k1000_time": round(measured["pairs"]["milliseconds"] / measured["ours"]["milliseconds"]),
        "loss_k1000_memory": round(measured["pairs"]["megabytes"] / measured["ours"]["megabytes"]),
        "loss_k1000": {name: {k: round(v, 3) for k, v in m.items()} for name, m in measured.items()},
    }


# --- all of it --------------------------------------------------------------------------------------------


def summary(results: list[tuple[Setting, dict[str, Any]]], ceiling_tflops: float) -> dict[str, Any]:
    """The numbers of the last line, but for those of the loss."""
    largest = results[0][0].model
    numbers: dict[str, Any] = {}
    for setting, result in results:
        if setting.model != largest:
            continue
        for name, ratio in result["ratios"].items():
            if name != REFERENCE:
                suffix = {"float32": "", "bfloat16": "_bf16"}.get(name, "_" + name.replace("bfloat16", "bf16"))
                numbers[f"ratio_k{setting.classes}{suffix.replace('-', '_')}"] = ratio
    every = [result for _, result in results]
    best = max(rate for r in every for name, rate in r["teraflops"].items() if name.startswith("bfloat16"))
    apart = [max(r["loss_difference"], r["weight_difference"]) > SAME for r in every]
    return {
        **numbers,
        "max_weight_difference": max(r["weight_difference"] for r in every),
        "max_weight_difference_float32": max(r["weight_difference_float32"] for r in every),
        "max_loss_difference_float32": max(r["loss_difference_float32"] for r in every),
        "disagreements": sum(apart),
        "ceiling_tflops": round(ceiling_tflops, 3),
        "ceiling_share": round(best / ceiling_tflops, 3),
        "settings": every,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within five minutes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--model", type=_wide_resnet, help="wrn-DEPTH-WIDTH instead of our two")
    parser.add_argument("--batch", type=int, default=128, help="images, with --model")
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--rounds", type=int, help="default: 15, with --quick 5")
    parser.add_argument("--compile", nargs="+", default=[], choices=("default", "cuda-graphs"), metavar="HOW")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = arguments.rounds or (5 if arguments.quick else 15)
    networks = [(WideResNet(depth=16, width=2), 32), (WideResNet(depth=10, width=1), 16)]
    if arguments.model:
        networks = [(arguments.model, arguments.batch)]
    print(f"{_processor(arguments.device)}, {arguments.threads} threads, {rounds} rounds")
    print(f"torch {torch.__version__}, dkl-bench {version('dkl-bench')}", flush=True)
    most = ceiling(arguments.device)
    print(f"ceiling: {most:.3g} TFLOP/s in bfloat16 products", flush=True)
    own = ["float32", "bfloat16", *(f"bfloat16-{how}" for how in arguments.compile)]
    results = []
    for model, batch in networks:
        for classes in arguments.classes:
            setting = Setting(model, batch, classes)
            results.append((setting, contest(setting, arguments.device, rounds=rounds, own=own)))
            _show(results[-1][1])
    print(json.dumps({**summary(results, most), **contest_of_losses(arguments.device, arguments.threads)}))


def _wide_resnet(name: str) -> WideResNet:
    found = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if not found:
        raise argparse.ArgumentTypeError(f"{name!r} is no wide ResNet; write wrn-DEPTH-WIDTH, such as wrn-34-10")
    return WideResNet(depth=int(found[1]), width=int(found[2]))


def _processor(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"


def _show(result: dict[str, Any]) -> None:
    print(
        f"{result['setting']}: one step changes weights by up to {result['weight_change']:.2g}; they lie "
        f"{result['weight_difference']:.1e} apart (in float32 {result['weight_difference_float32']:.1e}, "
        f"losses {result['loss_difference_float32']:.1e})"
    )
    for name, seconds in result["seconds"].items():
        memory = f"  {result['peak_memory_gb'][name]:6.2f} GB" if "peak_memory_gb" in result else ""
        rate = f"{result['teraflops'][name]:8.4g} TFLOP/s"
        print(f"  {name:22} {seconds:8.4f} s  {result['ratios'][name]:6.2f} x  {rate}{memory}", flush=True)


if __name__ == "__main__":
    main()
