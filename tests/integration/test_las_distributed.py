"""Learnt attack strategies over two processes on the CPU, against the same in one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dkl import recipes
from dkl.architectures import CNN
from dkl.documents import ThreatModel
from dkl.execution import make_network
from dkl.las import LearntStrategy
from dkl.method import Shown
from dkl.models import build
from dkl.objectives import AWP, LASAT, LASTRADES, PGD
from dkl.strategy import Reward, Strategy
from dkl.world import World

pytestmark = pytest.mark.long

STRATEGY = Strategy(
    network=CNN(width=2),
    eps=(0.05, 0.1, 0.2),
    steps=(1, 3),
    step_sizes=(0.05, 0.1),
    every=2,
    lr=0.01,
    reward=Reward(restarts=1),
)
OBJECTIVES = {"las-awp": LASAT(strategy=STRATEGY), "las-trades": LASTRADES(strategy=STRATEGY)}


def recipe(name: str, processes: int) -> recipes.Train:
    trades = name == "las-trades"
    return recipes.Train(
        dataset="digits",
        model=CNN(width=4),
        objective=OBJECTIVES[name],
        threat=ThreatModel(norm="Linf", eps=0.1),
        attack=PGD(
            loss="kl" if trades else "ce",
            steps=2,
            start="gaussian" if trades else "uniform",
            eps_schedule="constant",
        ),
        awp=None if trades else AWP(gamma=0.05, first_epoch=1),
        epochs=2,
        processes=processes,
    )


def updated(name: str, world: World) -> dict[str, Any]:
    """All that three updates with batches of 17 images change, in float64."""
    asked = recipe(name, world.size)
    torch.manual_seed(0)
    model = build(asked.model, channels=1, classes=3).double()
    method = LearntStrategy(asked, channels=1, classes=3, device="cpu", world=world)
    method.meet(model)
    method.network.double()
    network = make_network(model, asked, "cpu", world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    random = torch.Generator().manual_seed(1)
    seen = []
    for number in range(3):
        x = torch.rand(17, 1, 8, 8, generator=random, dtype=torch.float64)
        y = torch.randint(0, 3, (17,), generator=random)
        update = method.update(network, optimizer, Shown(1, number, x, y), micro_batch=None)
        seen.append([update.loss, *update.terms.values()])
    return {
        "model": model.state_dict(),
        "network": method.network.state_dict(),
        "seen": torch.tensor(seen, dtype=torch.float64),
        "said": method.end_epoch().model_dump(),
    }


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: updated(name, World(rank, 2)) for name in OBJECTIVES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", OBJECTIVES)
def test_updates_of_both_networks_are_those_of_one_process(name: str, two: Path) -> None:
    alone = updated(name, World())
    assert alone["said"]["updates"] == 2
    first, second = (torch.load(two / f"{rank}.pt", weights_only=True)[name] for rank in (0, 1))
    for key in ("model", "network", "seen"):
        torch.testing.assert_close(first[key], alone[key], rtol=1e-9, atol=1e-9)
    assert first["said"]["choices"] == alone["said"]["choices"]
    assert first["said"]["rewards"] == pytest.approx(alone["said"]["rewards"], rel=1e-9)
    for key in ("model", "network"):  # the processes agree to the bit
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
    assert first["said"] == second["said"]
