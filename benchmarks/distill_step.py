"""Seconds per iteration of every distillation objective, on the same pair, in the same run.

    python benchmarks/distill_step.py            # resnet32x4 -> resnet8x4, batch 64, one core
    python benchmarks/distill_step.py --quick    # batch 16, within five minutes
    python benchmarks/distill_step.py --device cuda --rounds 200

An iteration is what the recipe METHOD-cifar100-PAIR does with a batch that is there: the teacher's pass, the
student's two, the loss, the optimiser's step, and whatever the objective keeps beside the student. Weights and
images are random, but alike for all; the data set has as many images as CIFAR-100 (with --quick a tenth), which is
the size of CRD's memory. Epoch 30: warm-ups are over, and the class prior is one that an epoch has made.

All take turns, in changing order, one step each; a ratio is the median over the rounds of the objective's time
over that of KD in the same round. KD takes part twice: how far `kd_again_over_kd` is from 1 is how far the others
may be by chance. Time is of the CPU on a CPU, since other processes may share the machine, and of the wall on a
GPU.

The loss alone (128 images, 1,000 classes, gradient included): GKL-KD over pairs of classes, as the authors write
it, against dkl.distillation.gkl_kd, each in a process of its own. Memory is what the peak exceeds the inputs and
all loaded code by.

The last line is one JSON object.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from loss_alone import now
from train_step import contest_of_losses

from dkl.architectures import Model, show_model
from dkl.batches import Batches, ResidentRows, TrainingData
from dkl.catalog import resolve
from dkl.datasets import Arrays
from dkl.execution import make_network
from dkl.feature_teaching import FeatureTeaching
from dkl.lessons import FeatureLesson
from dkl.method import Shown
from dkl.models import build
from dkl.recipes import Distill, Train
from dkl.teacher import Teacher
from dkl.teaching import Teaching
from dkl.weights import LoadedModel
from dkl.world import ALONE

KD, AGAIN = "kd", "kd-again"
METHODS = (KD, "dkd", "ikl-kd", "gkl-kd", "at-kd", "ofd", "crd", "reviewkd")
CLASSES, EPOCH = 100, 30


@dataclass
class Contestant:
    name: str
    step: Callable[[Shown], object]
    extra_parameters: int


# --- what takes part --------------------------------------------------------------------------------------


def the_recipe(method: str, pair: str, **changes: Any) -> Distill:
    recipe = resolve(f"{method}-cifar100-{pair}", {"teacher": {"checkpoint": "0" * 64}, **changes})
    assert isinstance(recipe, Distill)
    return recipe


def the_teacher(pair: str) -> Model:
    recipe = resolve(f"natural-cifar100-{pair.partition('-')[0]}", {})
    assert isinstance(recipe, Train)
    return recipe.model


def random_data(images: int, batch_size: int, device: str) -> TrainingData:
    random = np.random.default_rng(0)
    arrays = Arrays(
        random.integers(256, size=(images, 32, 32, 3), dtype=np.uint8),
        random.permutation(np.arange(images) % CLASSES),
        CLASSES,
    )
    rows = ResidentRows(arrays, batch_size=batch_size, seed=0, device=device)
    return TrainingData(
        Batches(rows, augmentations=(None,), seed=0),
        validation=None,
        channels=3,
        classes=CLASSES,
        smallest_batch=batch_size,
        labels=arrays.labels,
        class_counts=tuple(np.bincount(arrays.labels, minlength=CLASSES).tolist()),
        sha256="0" * 64,
    )


def contestant(name: str, recipe: Distill, teacher_model: Model, data: TrainingData, device: str) -> Contestant:
    """The iteration that `dkl.distill` makes of `recipe`, with networks of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher_network = build(teacher_model, channels=3, classes=CLASSES).to(device)
        student = build(recipe.model, channels=3, classes=CLASSES).to(device)
        loaded = LoadedModel(teacher_network, show_model(teacher_model), 3, CLASSES, "cifar100", "0" * 64)
        forward = make_network(teacher_network, recipe, device, ALONE).forward
        teacher = Teacher(loaded, forward, dataset="cifar100", channels=3, classes=CLASSES)
        method: Teaching | FeatureTeaching
        if isinstance(recipe.objective, FeatureLesson):
            method = FeatureTeaching(recipe, teacher, data, device=device)
        else:
            method = Teaching(recipe, teacher, classes=CLASSES, device=device)
        beside = list(method.meet(student))
    network = make_network(student, recipe, device, ALONE)
    asked = recipe.optimizer
    # A small rate: random images teach nothing, and nobody shall run away.
    optimizer = torch.optim.SGD(
        [*student.parameters(), *beside], lr=1e-4, momentum=asked.momentum, weight_decay=asked.weight_decay
    )

    step = partial(method.update, network, optimizer, micro_batch=None)
    step(shown(data, 0))
    method.end_epoch()
    return Contestant(name, step, method.extra_parameters)


def shown(data: TrainingData, turn: int) -> Shown:
    number = turn % len(data.batches)
    x_BCHW, y_B = data.batches.batch(EPOCH, number)
    return Shown(EPOCH, number, x_BCHW.contiguous(memory_format=torch.channels_last), y_B)


# --- how they are measured --------------------------------------------------------------------------------


def contest(contestants: Sequence[Contestant], data: TrainingData, device: str, *, rounds: int) -> dict[str, Any]:
    """Seconds per iteration, and ratios to KD. The first rounds choose kernels and allocate, and do not count."""
    seconds: dict[str, list[float]] = {each.name: [] for each in contestants}
    warm = 1 if device == "cpu" else 10
    for turn in range(warm + rounds):
        batch = shown(data, turn)
        for each in contestants if turn % 2 else reversed(contestants):
            began = now(device)
            each.step(batch)
            if turn >= warm:
                seconds[each.name].append(now(device) - began)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, seconds[KD], strict=True))
        for name, times in seconds.items()
    }
    return {
        **{f"{name.replace('-', '_')}_over_kd": round(r, 4) for name, r in ratios.items() if name != KD},
        "seconds": {name: round(statistics.median(times), 5) for name, times in seconds.items()},
        "extra_parameters": {each.name: each.extra_parameters for each in contestants},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller batches, fewer images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--pair", default="resnet32x4-resnet8x4", metavar="TEACHER-STUDENT")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="KD always takes part")
    parser.add_argument("--batch", type=int, help="images; default: 64, with --quick 16")
    parser.add_argument("--rounds", type=int, help="default: 20")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, quick = arguments.device, arguments.quick
    batch, rounds = arguments.batch or (16 if quick else 64), arguments.rounds or 20
    data = random_data(5_000 if quick else 50_000, batch, device)
    name = platform.machine() if device == "cpu" else torch.cuda.get_device_name()
    capability = f" with {torch.backends.cpu.get_cpu_capability()}" if device == "cpu" else ""
    print(f"{name}{capability}, {arguments.threads} threads, {rounds} rounds")
    print(f"torch {torch.__version__}, dkl-bench {version('dkl-bench')}")
    print(f"{arguments.pair}, batch {batch}, {CLASSES} classes, {arguments.precision}", flush=True)
    teacher = the_teacher(arguments.pair)
    methods = [KD, *(method for method in arguments.methods if method != KD)]
    changes = {"batch_size": batch, "precision": arguments.precision}
    recipes = {method: the_recipe(method, arguments.pair, **changes) for method in methods}
    recipes[AGAIN] = recipes[KD]
    entered = [contestant(method, recipe, teacher, data, device) for method, recipe in recipes.items()]
    result = contest(entered, data, device, rounds=rounds)
    for method, seconds in result["seconds"].items():
        ratio = result.get(f"{method.replace('-', '_')}_over_kd", 1.0)
        extra = result["extra_parameters"][method]
        print(f"  {method:10} {seconds:9.5f} s  {ratio:7.3f} x KD  {extra:12,} extra parameters", flush=True)
    losses = contest_of_losses(device, arguments.threads, "kd-")
    print(json.dumps({"pair": arguments.pair, "batch": batch, **result, **losses}))


if __name__ == "__main__":
    main()
