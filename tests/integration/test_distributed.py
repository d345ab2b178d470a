"""A training run over two processes on the CPU, against the same run in one; and what happens when something dies.

Two processes that call the library directly do all that needs no agent at once, as starting them takes seconds.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import wait_until
from trainings import epochs_of, write_tiny

from dkl import recipes
from dkl.architectures import CNN
from dkl.distributed import run_distributed
from dkl.documents import ThreatModel
from dkl.events import Epoch, Event, Finished, Progress
from dkl.execution import make_network
from dkl.models import build
from dkl.objectives import AWP, GKL, IKL, MART, PGD, PGDAT, TRADES, Natural
from dkl.prior import ClassPrior
from dkl.train import train
from dkl.updates import Batch, Plan, goes_adversarial_first, update
from dkl.weights import load_state
from dkl.world import World

pytestmark = pytest.mark.long
LINF = ThreatModel(norm="Linf", eps=0.1)
L2 = ThreatModel(norm="L2", eps=0.5)


# --- one update, in float64 -------------------------------------------------------------------------------

PLANS = {
    "natural": Plan(Natural(label_smoothing=0.1)),
    "trades": Plan(TRADES(), PGD(loss="kl", steps=2), LINF),
    "trades-batch-mode": Plan(TRADES(), PGD(loss="kl", steps=2, mode="batch"), LINF),
    "at-train-mode-l2": Plan(PGDAT(), PGD(loss="ce", steps=2, mode="train"), L2),
    "mart-awp": Plan(MART(), PGD(loss="ce", steps=2), L2, AWP(gamma=0.05)),
    "ikl-awp": Plan(IKL(), PGD(steps=2), LINF, AWP(gamma=0.05)),
    "gkl-awp-two-views": Plan(GKL(gamma=0.5), PGD(steps=2), L2, AWP(gamma=0.05), view_weights=(1.0, 0.5)),
}


def updated(plan: Plan, world: World) -> dict[str, Any]:
    """All that three updates with batches of 17 images change, an epoch's end after the second."""
    plan = replace(plan, adversarial_first=goes_adversarial_first(plan.objective, plan.awp))
    recipe = natural(processes=world.size)
    torch.manual_seed(0)
    model = build(CNN(width=4), channels=1, classes=3).double()
    network = make_network(model, recipe, "cpu", world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    prior = ClassPrior(3, temperature=4.0)
    random = torch.Generator().manual_seed(1)
    views = len(plan.view_weights)
    seen = []
    for number in range(3):
        x = torch.rand(views, 17, 1, 8, 8, generator=random, dtype=torch.float64)
        start = 0.01 * torch.randn(x.shape, generator=random, dtype=torch.float64)
        y = torch.randint(0, 3, (17,), generator=random)
        batch = Batch(x, y, None if plan.attack is None else start)
        seen.append(update(network, optimizer, prior, plan, batch, world=world)._asdict())
        if number == 1:
            prior.end_epoch()
    return {"model": model.state_dict(), "prior": prior.state_dict(), "seen": seen}


# --- whole runs -------------------------------------------------------------------------------------------


def natural(**changes: Any) -> recipes.Train:
    fields = {
        "dataset": "npz:tiny",
        "model": CNN(width=4),
        "objective": Natural(),
        "epochs": 2,
        "batch_size": 17,
        "optimizer": recipes.SGD(lr=0.01),
        "validation": recipes.Validation(images=7, steps=2),
    }
    return recipes.Train(**{**fields, **changes})


def adversarial(loss: Literal["ce", "ikl"], **changes: Any) -> recipes.Train:
    """One whose trajectory hardly depends on rounding.

    Changing the weights by 1e-7 changes the loss of the first epoch by 3e-7 here, but by 1e-3 from a start of
    0.001, where the predictions differ by little more than rounding; in Linf signs of tiny gradients flip.
    """
    return natural(threat=L2, attack=PGD(loss=loss, steps=2, start="uniform"), **changes)


RECIPES = {
    "natural": natural(),
    "trades": adversarial("ce", objective=TRADES(), averaging=recipes.StepEMA()),
}
THE_RUN = adversarial("ikl", objective=IKL(), epochs=3, awp=AWP(first_epoch=2), select="best")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data"), 220)


def in_one(recipe: recipes.Train, workdir: Path, data_dir: Path) -> list[Event]:
    workdir.mkdir()
    return list(train(recipe.model_copy(update={"processes": 1}), workdir, device="cpu", data_dir=data_dir))


def in_two(recipe: recipes.Train, workdir: Path, data_dir: Path) -> Iterator[Event]:
    workdir.mkdir(exist_ok=True)
    return run_distributed(recipe.model_copy(update={"processes": 2}), workdir, device="cpu", data_dir=data_dir)


def each_once(epochs: list[Epoch]) -> list[Epoch]:
    """A run that a dead process interrupted says some epochs twice."""
    return list({epoch.epoch: epoch for epoch in epochs}.values())


def assert_same_curve(found: list[Epoch], expected: list[Epoch]) -> None:
    """Up to rounding in float32, which grows. Statistics of half a batch would change the loss by a hundredth."""
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        tolerance = 1e-4 if one.epoch == 1 else 1e-3
        assert one.loss == pytest.approx(other.loss, rel=tolerance)
        assert one.terms == pytest.approx(other.terms, abs=tolerance * other.loss)
        assert one.clean_accuracy == pytest.approx(other.clean_accuracy, abs=0.005)
        assert one.adversarial_accuracy == pytest.approx(other.adversarial_accuracy, abs=0.005)
        assert one.validation_accuracy == pytest.approx(other.validation_accuracy, abs=0.01)
        assert one.validation_robust_accuracy == pytest.approx(other.validation_robust_accuracy, abs=0.01)


def assert_same_weights(found: Path, expected: Path, tolerance: float) -> None:
    one, other = load_state(found / "last.pt"), load_state(expected / "last.pt")
    assert one is not None
    assert other is not None
    for part in ("model", "prior"):
        torch.testing.assert_close(one[part], other[part], rtol=tolerance, atol=tolerance)


# --- two processes ----------------------------------------------------------------------------------------


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2)
    found: dict[str, Any] = {name: updated(plan, world) for name, plan in PLANS.items()}
    for name, recipe in RECIPES.items():
        workdir = folder / name
        workdir.mkdir(exist_ok=True)
        shared = recipe.model_copy(update={"processes": 2})
        events = list(train(shared, workdir, device="cpu", data_dir=folder, world=world))
        found[f"{name} epochs"] = [event.model_dump() for event in epochs_of(events)]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes found, 0.pt and 1.pt, and the work directories of their runs."""
    folder = write_tiny(tmp_path_factory.mktemp("two"), 220)
    mp.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", PLANS)
def test_an_update_is_that_of_one_process(name: str, two: Path) -> None:
    alone = updated(PLANS[name], World())
    for rank in (0, 1):
        found = torch.load(two / f"{rank}.pt", weights_only=True)[name]
        for key in ("model", "prior"):
            torch.testing.assert_close(found[key], alone[key], rtol=1e-10, atol=1e-10)
        for one, other in zip(found["seen"], alone["seen"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-10)
            assert one["terms"] == pytest.approx(other["terms"], rel=1e-10)
            assert (one["correct_nat"], one["correct_adv"]) == (other["correct_nat"], other["correct_adv"])


@pytest.mark.parametrize("name", PLANS)
def test_all_processes_have_the_same_weights_to_the_bit(name: str, two: Path) -> None:
    first, second = (torch.load(two / f"{rank}.pt", weights_only=True)[name] for rank in (0, 1))
    for key in ("model", "prior"):
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_loss_curve_is_that_of_one_process(name: str, two: Path, tmp_path: Path, data_dir: Path) -> None:
    alone = in_one(RECIPES[name], tmp_path / "one", data_dir)
    for rank in (0, 1):
        found = torch.load(two / f"{rank}.pt", weights_only=True)[f"{name} epochs"]
        assert_same_curve([Epoch(**document) for document in found], epochs_of(alone))
    assert_same_weights(two / name, tmp_path / "one", tolerance=1e-4)


# --- under the agent --------------------------------------------------------------------------------------


def processes_of(workdir: Path) -> list[psutil.Process]:
    """Agent and processes that work in `workdir`, by their command lines."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(workdir) in (process.info["cmdline"] or []):
            found.append(process)
    return found


def kill_one(workdir: Path) -> None:
    ranks = [process for process in processes_of(workdir) if "torch.distributed.run" not in process.cmdline()]
    assert len(ranks) == 2
    next(process for process in ranks if process.environ()["RANK"] == "1").kill()


@pytest.mark.slow
def test_a_run_under_the_agent_is_that_of_one_process_whatever_happens(tmp_path: Path, data_dir: Path) -> None:
    alone = in_one(THE_RUN, tmp_path / "one", data_dir)
    whole = list(in_two(THE_RUN, tmp_path / "whole", data_dir))
    assert not processes_of(tmp_path / "whole")
    assert [event.done for event in whole if isinstance(event, Progress)] == list(range(1, 40))
    assert_same_curve(epochs_of(whole), epochs_of(alone))
    assert isinstance(whole[-1], Finished)

    # Stopped in mid-epoch, gone on with, and then a process dies.
    workdir = tmp_path / "troubled"
    events = in_two(THE_RUN, workdir, data_dir)
    assert isinstance(next(events), Progress)
    events.close()
    assert not processes_of(workdir)
    kept = load_state(workdir / "last.pt")
    assert kept is not None
    assert 0 < kept["batch"] < 13

    troubled = []
    for event in in_two(THE_RUN, workdir, data_dir):
        if not troubled:
            kill_one(workdir)
        troubled.append(event)
    assert not processes_of(workdir)
    assert troubled[0].done == kept["batch"] + 1
    assert "failed (exitcode" in (workdir / "processes.log").read_text()  # the agent saw a process die
    assert isinstance(troubled[-1], Finished)
    assert troubled[-1].result.checkpoint_sha256 == whole[-1].result.checkpoint_sha256
    assert [epoch.loss for epoch in each_once(epochs_of(troubled))] == [epoch.loss for epoch in epochs_of(whole)]


@pytest.mark.slow
def test_an_error_comes_out_as_in_one_process(tmp_path: Path, data_dir: Path) -> None:
    diverging = natural(optimizer=recipes.SGD(lr=1e30))
    with pytest.raises(FloatingPointError) as alone:
        in_one(diverging, tmp_path / "one", data_dir)
    with pytest.raises(FloatingPointError, match=f"^{re.escape(str(alone.value))}$"):
        list(in_two(diverging, tmp_path / "two", data_dir))
    assert not processes_of(tmp_path / "two")


PARENT = """
import sys
import time
from pathlib import Path
from dkl.distributed import run_distributed
from dkl.recipes import Train

recipe, workdir, data_dir = sys.stdin.read(), Path(sys.argv[1]), Path(sys.argv[2])
for event in run_distributed(Train.model_validate_json(recipe), workdir, device="cpu", data_dir=data_dir):
    time.sleep(0.5)  # the next ones are waiting to be read
    print(event.kind, flush=True)
"""


@pytest.mark.slow
def test_nothing_outlives_the_parent(tmp_path: Path, data_dir: Path) -> None:
    recipe = natural(processes=2, epochs=100_000)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path, data_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(recipe.model_dump_json())
        parent.stdin.close()
        assert parent.stdout.readline() == "progress\n"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not processes_of(tmp_path), 60, "the processes to end")
    assert (tmp_path / "last.pt").exists()
    assert "Traceback" not in (tmp_path / "processes.log").read_text()  # they stopped in order


# --- what cannot be ---------------------------------------------------------------------------------------


def test_every_process_needs_a_gpu(tmp_path: Path) -> None:
    recipe = natural(processes=64)
    found = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"asks for 64 processes with a GPU each, found {found} GPUs"):
        list(run_distributed(recipe, tmp_path, device="cuda", data_dir=tmp_path))
    with pytest.raises(ValueError, match="found the device 'cuda:0' for 64 processes"):
        list(run_distributed(recipe, tmp_path, device="cuda:0", data_dir=tmp_path))


def test_every_process_needs_an_image() -> None:
    shares = [World(rank, 3).share(4) for rank in range(3)]
    assert shares == [slice(0, 1), slice(1, 2), slice(2, 4)]
    with pytest.raises(ValueError, match="3 processes cannot share a batch of 2 images"):
        World(0, 3).share(2)
