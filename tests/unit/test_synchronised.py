"""Batch norms over two processes, against torch's own over the whole batch in one.

Two real processes do everything once and leave what they found; the tests compare.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from dkl.models import batch_mode, eval_mode
from dkl.synchronised import synchronise_batch_norms

pytestmark = pytest.mark.long

Found = dict[str, Tensor]

SHAPES = {"1d": (9, 3), "1d-long": (9, 3, 4), "2d": (9, 3, 4, 5), "3d": (9, 3, 2, 3, 2)}
KINDS = {"1d": nn.BatchNorm1d, "1d-long": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}
SHARES = (slice(0, 2), slice(2, 9))
"""Of the nine images: two processes, unevenly."""


def images(shape: tuple[int, ...], seed: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2


def trained(norm: nn.Module, shape: tuple[int, ...], rows: slice) -> Found:
    """Outputs, gradients and buffers of three batches, under a loss that weighs every number differently."""
    found = {}
    for number in range(3):
        x = images(shape, number)[rows].requires_grad_()
        y = norm(x)
        (torch.sin(3 * y) * images(shape, 10 + number)[rows]).sum().backward()
        found |= {f"y{number}": y.detach(), f"dx{number}": x.grad}
    found |= {f"sum d{name}": parameter.grad for name, parameter in norm.named_parameters()}
    return found | {f"all {name}": value.clone() for name, value in norm.named_buffers()}


def with_scale(norm: nn.Module) -> nn.Module:
    for value, parameter in enumerate(norm.double().parameters()):
        parameter.data += (value + 1) * torch.tensor([0.5, -2.0, 0.25])
    return norm


class Net(nn.Module):
    """Two batch norms in a row: gradients flow through statistics of what statistics made."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        random = torch.Generator().manual_seed(3)
        for parameter in self.double().parameters():
            parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).tanh()


def attacked(net: nn.Module, rows: slice) -> Found:
    """The gradient of the images alone, as an attack in batch mode wants it."""
    x = images(SHAPES["2d"], 0)[rows].contiguous(memory_format=torch.channels_last).requires_grad_()
    with batch_mode(net.requires_grad_(False)):
        (dx,) = torch.autograd.grad((net(x) ** 3).sum(), x)
    return {"dx": dx} | {f"all {name}": value.clone() for name, value in net.named_buffers()}


def far_from_zero(norm: nn.Module, rows: slice) -> Found:
    """float32 images whose mean is 4,000 times their deviation."""
    x = (images(SHAPES["2d"], 0)[rows] + 12_000).float().requires_grad_()
    y = norm(x)
    y.square().sin().sum().backward()
    return {"y": y.detach(), "dx": x.grad, "all running_var": norm.running_var}


def in_bfloat16(norm: nn.Module, rows: slice) -> Found:
    x = images(SHAPES["2d"], 0)[rows].bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    (y * images(SHAPES["2d"], 1)[rows]).sum().backward()
    buffers = {f"all {name}": value.clone() for name, value in norm.named_buffers()}
    return {"y": y.detach(), "dx": x.grad, "sum dweight": norm.weight.grad, **buffers}


def with_momentum_one(norm: nn.Module, rows: slice) -> Found:
    norm.momentum = 1.0  # as dkl.models.first_update has it
    return trained(norm, SHAPES["2d"], rows)


def evaluated(net: nn.Module) -> Found:
    x = images(SHAPES["2d"], 0)
    with eval_mode(net):
        return {"y": net(x).detach()} | {f"all {name}": value for name, value in net.named_buffers()}


def synchronised(module: nn.Module) -> nn.Module:
    synchronise_batch_norms(module)
    return module


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, slice], Found]]] = {
    **{
        shape: (
            lambda shape=shape: with_scale(KINDS[shape](3)),
            lambda norm, rows, shape=shape: trained(norm, SHAPES[shape], rows),
        )
        for shape in SHAPES
    },
    **{
        name: (
            lambda options=options: with_scale(nn.BatchNorm2d(3, **options)),
            lambda norm, rows: trained(norm, SHAPES["2d"], rows),
        )
        for name, options in {
            "without-scale": {"affine": False},
            "without-shift": {"bias": False},
            "cumulative": {"momentum": None},
            "forgetful": {"track_running_stats": False},
        }.items()
    },
    "momentum-one": (lambda: with_scale(nn.BatchNorm2d(3)), with_momentum_one),
    "timm": (lambda: with_scale(BatchNormAct2d(3)), lambda norm, rows: trained(norm, SHAPES["2d"], rows)),
    "net": (Net, lambda net, rows: trained(net, SHAPES["2d"], rows)),
    "compiled": (
        Net,
        lambda net, rows: trained(torch.compile(net, backend="aot_eager"), SHAPES["2d"], rows),
    ),
    "attacked": (Net, attacked),
    "far-from-zero": (lambda: nn.BatchNorm2d(3), far_from_zero),
    "bfloat16": (lambda: nn.BatchNorm2d(3), in_bfloat16),
}


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, (make, use) in CASES.items():
        found[name] = use(synchronised(make()), SHARES[rank])
    if rank == 0:  # alone: in eval mode nobody is waited for
        found["evaluated"] = evaluated(synchronised(Net()))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What two processes found: rows one below the other, sums added, and what all must share once."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(work, (folder,), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    found = {
        case: {name: merged(name, first[case][name], second[case][name]) for name in first[case]} for case in CASES
    }
    return found | {"evaluated": first["evaluated"]}


def merged(name: str, first: Tensor, second: Tensor) -> Tensor:
    match name.split(" ", maxsplit=1)[0]:
        case "all":
            assert torch.equal(first, second), name
            return first
        case "sum":
            return first + second
        case _:
            return torch.cat([first, second])


LOOSE = {
    "far-from-zero": {"rtol": 1e-2, "atol": 1e-2},
    "bfloat16": {"rtol": 2e-2, "atol": 2e-2},
    "bfloat16 statistics": {"rtol": 1e-6, "atol": 1e-6},
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_as_one(case: str, two_processes: dict[str, Found]) -> None:
    make, use = CASES[case]
    alone = use(make(), slice(0, 9))
    assert two_processes[case].keys() == alone.keys()
    for name, expected in alone.items():
        kind = f"{case} statistics" if name.startswith("all") else case
        tolerances = LOOSE.get(kind, LOOSE.get(case, {"rtol": 1e-10, "atol": 1e-11}))
        torch.testing.assert_close(
            two_processes[case][name], expected, **tolerances, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_in_eval_mode_a_process_is_on_its_own(two_processes: dict[str, Found]) -> None:
    for name, expected in evaluated(Net()).items():
        torch.testing.assert_close(two_processes["evaluated"][name], expected, rtol=0, atol=0)


def test_parameters_and_buffers_stay_the_same_objects() -> None:
    net = Net()
    before = dict(net.state_dict(keep_vars=True))
    synchronise_batch_norms(net)
    synchronise_batch_norms(net)
    after = net.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    assert all(isinstance(module, nn.BatchNorm2d) for module in (net.bn1, net.bn2))


def test_a_foreign_batch_norm_is_refused() -> None:
    net = nn.Sequential(nn.Identity(), nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match=r"the batch norm 1 is a SyncBatchNorm, which several processes cannot"):
        synchronise_batch_norms(net)
