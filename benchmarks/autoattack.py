"""How fast and how faithful our AutoAttack is: our policies against pyautoattack, same images, weights and run.

    python benchmarks/autoattack.py            # all of it, half an hour on one core
    python benchmarks/autoattack.py --quick    # a part of it, within ten minutes
    python benchmarks/autoattack.py --device cuda --checkpoint FILE --dataset cifar10 --data-dir DIR

Every contestant runs in a process of its own, one after the other: pyautoattack with two seeds, called as its
users call it, and our engine through `dkl.evaluate`, everything included. What a first call costs once (imports,
kernels) is paid before the clock starts. Ratios are of CPU time on a CPU, since other processes may share the
machine, and of wall time on a GPU. The reference's own spread, the images on which its two seeds disagree, is the
yardstick for the others' disagreement with its first seed.

The models lie in benchmarks/models; benchmarks/README.md says how they were trained. The last line is one JSON
object; `ratio_*` are over all robust models together, `ratio_*_not_robust` over the others.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REFERENCES = ("reference-0", "reference-1")
POLICIES = ("exact", "fast", "audited", "screen")
# References first and last, so that a machine that grows slower or faster in between favours neither.
CONTESTANTS = (REFERENCES[0], *POLICIES, REFERENCES[1])


@dataclass(frozen=True)
class Case:
    """A model, and what it is judged on."""

    name: str
    checkpoint: str
    dataset: str
    norm: str
    eps: float
    images: int
    quick_images: int
    robust: bool = True


CASES = (
    Case(
        "WRN-10-1, IKL-AT on CIFAR-10",
        str(HERE / "models" / "wrn-10-1-ikl-at-cifar10.safetensors"),
        "npz:cifar10-subset",
        "Linf",
        8 / 255,
        images=100,
        quick_images=24,
    ),
    Case(
        "CNN, IKL-AT on digits",
        str(HERE / "models" / "cnn-32-ikl-at-digits.safetensors"),
        "digits",
        "Linf",
        0.2,
        images=360,
        quick_images=200,
    ),
    Case(
        "WRN-10-1, natural, on CIFAR-10",
        str(HERE / "models" / "wrn-10-1-natural-cifar10.safetensors"),
        "npz:cifar10-subset",
        "Linf",
        8 / 255,
        images=500,
        quick_images=100,
        robust=False,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What one contestant found, and what it cost."""

    contestant: str
    standing: str
    """One character per image, "1" for robust."""
    clean_accuracy: float
    wall_seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    forwards: int
    backwards: int
    flops: int
    """Of one image in one forward pass; a backward pass to the image takes as many."""
    notes: tuple[str, ...] = ()

    @property
    def teraflops(self) -> float:
        """Per second of wall time, verification and all else included."""
        return self.flops * (self.forwards + self.backwards) / self.wall_seconds / 1e12

    @property
    def robust_accuracy(self) -> float:
        return self.standing.count("1") / len(self.standing)


# --- in a process of its own -------------------------------------------------------------------------------


def compete(case: Case, contestant: str, device: str, threads: int, data_dir: Path) -> Outcome:
    """Run one contestant. The image batch is the whole set, up to 512 images."""
    import torch

    torch.set_num_threads(threads)
    run = _reference if contestant in REFERENCES else _ours
    warm_up = replace(case, images=2, eps=1e-3)
    run(warm_up, contestant, device, data_dir, warm=True)
    before = _peak_memory(device)
    wall, cpu = time.perf_counter(), time.process_time()
    standing, clean, forwards, backwards, notes = run(case, contestant, device, data_dir, warm=False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = _peak_memory(device) - before
    flops = _flops(case)
    return Outcome(contestant, standing, clean, wall, cpu, peak, forwards, backwards, flops, notes)


Found = tuple[str, float, int, int, tuple[str, ...]]


def _reference(case: Case, contestant: str, device: str, data_dir: Path, *, warm: bool) -> Found:
    import torch
    from pyautoattack import AutoAttack

    from dkl.batches import as_pixels, on_device
    from dkl.datasets import load
    from dkl.weights import load_checkpoint

    model = load_checkpoint(Path(case.checkpoint)).model.to(device)
    images, y = on_device(load(case.dataset, "test", data_dir), device)
    x, y = as_pixels(images[: case.images]).contiguous(), y[: case.images]
    counted = _count_passes(model)
    options: dict[str, Any] = {"version": "custom", "attacks": ["apgd-ce"]} if warm else {"version": "standard"}
    adversary = AutoAttack(model, norm=case.norm, eps=case.eps, seed=int(contestant[-1]), device=device, **options)
    with torch.no_grad():
        clean = (model(x).argmax(1) == y).float().mean().item()
    _, y_adv = adversary.run_standard_evaluation(x, y, batch_size=512)
    standing = "".join("1" if flag else "0" for flag in (y_adv == y).tolist())
    return standing, clean, counted["forwards"], counted["backwards"], ()


def _count_passes(model: Any) -> dict[str, int]:
    """Images that pass `model`, counted from now on."""
    counted = {"forwards": 0, "backwards": 0}

    def backward(gradient: Any) -> None:
        counted["backwards"] += len(gradient)

    def forward(_module: Any, _inputs: Any, logits: Any) -> None:
        counted["forwards"] += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)

    model.register_forward_hook(forward)
    return counted


def _ours(case: Case, contestant: str, device: str, data_dir: Path, *, warm: bool) -> Found:
    from dkl.evaluate import evaluate
    from dkl.events import Finished
    from dkl.evidence import read_evidence
    from dkl.protocols import Evaluate
    from dkl.weights import load_checkpoint

    loaded = load_checkpoint(Path(case.checkpoint))
    recipe = Evaluate.model_validate(
        {
            "dataset": case.dataset,
            "threat": {"norm": case.norm, "eps": case.eps},
            "model": {"checkpoint": loaded.sha256},
            "images": case.images,
            "policy": contestant,
            **({"suite": [{"kind": "apgd-ce", "steps": 2}], "policy": "exact"} if warm else {}),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        for event in evaluate(recipe, loaded, Path(folder), device=device, data_dir=data_dir):
            last = event
        assert isinstance(last, Finished)
        evidence = read_evidence(Path(folder) / "evidence.safetensors")
    result = last.result
    standing = "".join("1" if flag else "0" for flag in evidence.standing(len(evidence.radii) - 1).tolist())
    notes = (f"search in {result.precision}", *result.notes, *result.warnings)
    return standing, result.clean_accuracy, result.forwards, result.backwards, notes


def _flops(case: Case) -> int:
    """Floating-point operations of one image in one forward pass, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dkl.weights import load_checkpoint

    loaded = load_checkpoint(Path(case.checkpoint))
    side = 8 if case.dataset == "digits" else 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded.model(torch.zeros(1, loaded.channels, side, side))
    return counter.get_total_flops()


def _peak_memory(device: str) -> float:
    """Megabytes: of the process, or of the GPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- all of them -------------------------------------------------------------------------------------------


def measure(case: Case, contestants: Sequence[str], arguments: argparse.Namespace) -> list[Outcome]:
    """All contestants on one case, each in a fresh process."""
    outcomes = []
    for contestant in contestants:
        command = [
            sys.executable,
            __file__,
            *("--one", json.dumps([asdict(case), contestant])),
            *("--device", arguments.device),
            *("--threads", str(arguments.threads)),
            *("--data-dir", str(arguments.data_dir)),
        ]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        outcomes.append(Outcome(**json.loads(said[-1])))
        _show(outcomes[-1])
    return outcomes


def _show(outcome: Outcome) -> None:
    print(
        f"  {outcome.contestant:12} clean {outcome.clean_accuracy:6.2%} robust {outcome.robust_accuracy:6.2%}"
        f"  wall {outcome.wall_seconds:8.1f} s  CPU {outcome.cpu_seconds:8.1f} s"
        f"  memory {outcome.peak_memory_mb:6.0f} MB"
        f"  forwards {outcome.forwards:>10,}  backwards {outcome.backwards:>10,}"
        f"  {outcome.teraflops:.3g} TFLOP/s",
        flush=True,
    )
    for note in outcome.notes:
        print(f"  {'':12} {note}", flush=True)


def disagreement(a: Outcome, b: Outcome) -> int:
    """Images with different verdicts."""
    return sum(x != y for x, y in zip(a.standing, b.standing, strict=True))


def summary(
    cases: Sequence[Case], measured: Sequence[dict[str, Outcome]], cost: Callable[[Outcome], float]
) -> dict[str, Any]:
    """The numbers of the last line."""
    robust = [m for case, m in zip(cases, measured, strict=True) if case.robust]
    others = [m for case, m in zip(cases, measured, strict=True) if not case.robust]

    def ratio(group: list[dict[str, Outcome]], policy: str) -> float:
        reference = sum(cost(m[name]) for m in group for name in REFERENCES) / len(REFERENCES)
        return round(reference / sum(cost(m[policy]) for m in group), 2)

    def disagree(policy: str) -> int:
        return sum(disagreement(m[policy], m[REFERENCES[0]]) for m in measured)

    return {
        "n": sum(len(m["exact"].standing) for m in measured),
        **{f"disagree_{policy}": disagree(policy) for policy in POLICIES},
        "reference_spread": sum(disagreement(m[REFERENCES[0]], m[REFERENCES[1]]) for m in measured),
        "robust_accuracy": {name: _mean_robust(measured, name) for name in CONTESTANTS},
        **{f"ratio_{policy}": ratio(robust, policy) for policy in POLICIES if robust},
        **{f"ratio_{policy}_not_robust": ratio(others, policy) for policy in POLICIES if others},
    }


def _mean_robust(measured: Sequence[dict[str, Outcome]], name: str) -> float:
    flags = "".join(m[name].standing for m in measured)
    return round(flags.count("1") / len(flags), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images, within ten minutes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--data-dir", type=Path, default=HERE / "data")
    parser.add_argument("--images", type=int, help="so many in every case")
    parser.add_argument("--checkpoint", help="judge this model instead of our own")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, contestant = json.loads(arguments.one)
        outcome = compete(
            Case(**case), contestant, arguments.device, arguments.threads, arguments.data_dir.resolve()
        )
        print(json.dumps(asdict(outcome)))
        return
    cases = list(CASES)
    if arguments.checkpoint:
        own = (arguments.checkpoint, arguments.dataset, arguments.norm, arguments.eps)
        cases = [Case(Path(arguments.checkpoint).stem, *own, images=1000, quick_images=100)]
    print(f"{platform.processor() or platform.machine()}, {arguments.device}, {arguments.threads} threads")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "pyautoattack", "dkl-bench")))
    measured = []
    for case in cases:
        images = arguments.images or (case.quick_images if arguments.quick else case.images)
        print(f"{case.name}: {images} images of {case.dataset}, {case.norm} {case.eps:.4g}", flush=True)
        outcomes = measure(replace(case, images=images), CONTESTANTS, arguments)
        measured.append({outcome.contestant: outcome for outcome in outcomes})
        first, second = (measured[-1][name] for name in REFERENCES)
        differ = ", ".join(f"{policy} {disagreement(measured[-1][policy], first)}" for policy in POLICIES)
        print(f"  images judged otherwise than by {first.contestant}: {differ}; by {second.contestant}: ", end="")
        print(disagreement(first, second), flush=True)
    on_gpu = arguments.device != "cpu"
    numbers = summary(cases, measured, lambda outcome: outcome.wall_seconds if on_gpu else outcome.cpu_seconds)
    for policy in POLICIES:
        print(f"{policy:8} {numbers.get(f'ratio_{policy}', '-')} times as fast on robust models, ", end="")
        print(f"{numbers.get(f'ratio_{policy}_not_robust', '-')} on others")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
