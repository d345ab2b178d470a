"""LBGAT and DAJAT in two processes on the CPU: what is learnt beside the network is shared, too."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dkl.architectures import CNN
from dkl.dajat import DiverseViews
from dkl.documents import ThreatModel
from dkl.execution import make_network
from dkl.lbgat import BoundaryGuided
from dkl.method import Method, Shown
from dkl.models import build
from dkl.objectives import AWP, DAJAT, LBGAT, PGD
from dkl.recipes import Train
from dkl.world import World

pytestmark = pytest.mark.long

OBJECTIVES: dict[str, LBGAT | DAJAT] = {
    "lbgat": LBGAT(beta=6.0, teacher=CNN(width=3)),
    "dajat": DAJAT(views=2, beta=5.0, consistency=2.0),
}


def updated(objective: LBGAT | DAJAT, world: World) -> dict[str, Any]:
    """All that three updates with batches of 17 images change, in float64, with AWP."""
    recipe = Train(
        dataset="npz:tiny",
        model=CNN(width=4),
        objective=objective,
        threat=ThreatModel(norm="L2", eps=0.5),
        attack=PGD(loss="kl", steps=2, start="uniform", eps_schedule="constant"),
        awp=AWP(gamma=0.05, first_epoch=1),
        epochs=2,
        processes=world.size,
    )
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = build(recipe.model, channels=1, classes=3)
    method: Method = (
        BoundaryGuided(recipe, channels=1, classes=3, device="cpu", world=world)
        if isinstance(objective, LBGAT)
        else DiverseViews(recipe, device="cpu", world=world)
    )
    beside = list(method.meet(model))
    network = make_network(model, recipe, "cpu", world)
    optimizer = torch.optim.SGD([*model.parameters(), *beside], lr=0.05, momentum=0.9)
    views = 1 + objective.views if isinstance(objective, DAJAT) else 1
    random, seen = torch.Generator().manual_seed(1), []
    for number in range(3):
        x = torch.rand(views * 17, 1, 8, 8, generator=random)
        y = torch.randint(0, 3, (17,), generator=random).repeat(views)
        update = method.update(network, optimizer, Shown(1, number, x, y), micro_batch=None)
        seen.append(update._asdict())
    torch.set_default_dtype(torch.float32)
    return {"model": model.state_dict(), "beside": method.state_dict(), "seen": seen}


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {name: updated(objective, World(rank, 2)) for name, objective in OBJECTIVES.items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes found, 0.pt and 1.pt."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_processes_have_the_same_weights_to_the_bit(name: str, two: Path) -> None:
    first, second = (torch.load(two / f"{rank}.pt", weights_only=True)[name] for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_update_is_that_of_one_process(name: str, two: Path) -> None:
    alone = updated(OBJECTIVES[name], World())
    found = torch.load(two / "0.pt", weights_only=True)[name]
    torch.testing.assert_close(found["model"], alone["model"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["beside"], alone["beside"], rtol=1e-9, atol=1e-9)
    for one, other in zip(found["seen"], alone["seen"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-9)
        for count in ("correct_nat", "correct_adv", "correct_teacher"):
            assert one[count] == other[count]
