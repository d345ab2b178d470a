"""Taking in an upload: out comes what a training would leave, and the process that reads it has no way out."""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dkl import engine
from dkl.architectures import Model, WideResNet
from dkl.archives import UploadError
from dkl.documents import Normalisation
from dkl.events import Event, Finished, ImportResult
from dkl.explain import InvalidRecipeError, read_recipe
from dkl.importing import _checked
from dkl.imports import Import
from dkl.models import build
from dkl.protocols import Checkpoint, JobResult
from dkl.sandbox import Reader, Taken, Task
from dkl.weights import CheckpointError, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parent.parent.parent
NETWORK = WideResNet(depth=10, width=1)
CIFAR10 = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))


@pytest.fixture
def network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(NETWORK, channels=3, classes=10).eval()


def recipe_for(upload: Path, model: Model = NETWORK, **changes: object) -> Import:
    sha256 = hashlib.sha256(upload.read_bytes()).hexdigest()
    document = {"kind": "import", "upload": sha256, "dataset": "cifar10", "model": model.model_dump(mode="json")}
    recipe = read_recipe({**document, **changes})
    assert isinstance(recipe, Import)
    return recipe


def run(recipe: Import, upload: Path) -> list[Event]:
    asked = []

    def fetch(source: JobResult | Checkpoint) -> Path:
        asked.append(source)
        return upload

    events = engine.run(recipe, upload.parent / "job", device="cpu", data_dir=upload.parent, fetch=fetch)
    said = list(events)
    assert asked == [Checkpoint(checkpoint=recipe.upload)]
    return said


def test_it_becomes_what_a_training_leaves(network: torch.nn.Module, tmp_path: Path) -> None:
    about = {"architecture": NETWORK, "channels": 3, "classes": 10, "dataset": "cifar10"}
    expected = save_checkpoint(tmp_path / "ours.safetensors", network, **about)  # type: ignore[arg-type]
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    content = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "ema": state,
        "net": {n: v + 1 for n, v in state.items()},
    }
    torch.save(content, tmp_path / "theirs.pt")
    events = run(recipe := recipe_for(tmp_path / "theirs.pt", entry="ema"), tmp_path / "theirs.pt")
    assert isinstance(events[-1], Finished)
    result = events[-1].result
    assert isinstance(result, ImportResult)
    assert (result.checkpoint_sha256, result.format, result.notes) == (expected, "pt", ())
    assert result.source_sha256 == recipe.upload == result.provenance.recipe["upload"]
    assert result.parameters == sum(p.numel() for p in network.parameters())
    assert result.provenance.checkpoint_sha256 == expected
    assert os.listdir(tmp_path / "job") == ["model.safetensors"]
    loaded = load_checkpoint(tmp_path / "job" / "model.safetensors")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded.model(x), network(x))


def test_safetensors_and_what_was_said_about_pixels(network: torch.nn.Module, tmp_path: Path) -> None:
    """Half the numbers, and the normalisation that RobustBench's files have in them."""
    constants = {"mu": torch.tensor(CIFAR10.mean), "sigma": torch.tensor(CIFAR10.std)}
    state = {**constants, **{name: value.bfloat16() for name, value in network.state_dict().items()}}
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors")
    normalised = NETWORK.model_copy(update={"normalisation": CIFAR10})
    events = run(recipe_for(tmp_path / "theirs.safetensors", normalised), tmp_path / "theirs.safetensors")
    assert isinstance(events[-1], Finished)
    result = events[-1].result
    assert isinstance(result, ImportResult)
    assert (result.format, result.notes) == (
        "safetensors",
        ("39 tensors were stored in bfloat16 and made float32",),
    )
    loaded = load_checkpoint(tmp_path / "job" / "model.safetensors")
    assert loaded.preprocessing == "normalise mean (0.4914, 0.4822, 0.4465) std (0.2471, 0.2435, 0.2616)"


def test_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"<html>")
    with pytest.raises(UploadError, match="the upload is a web page"):
        run(recipe_for(tmp_path / "page"), tmp_path / "page")
    assert os.listdir(tmp_path / "job") == []


def test_another_file_than_the_one_that_was_uploaded(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"<html>")
    recipe = recipe_for(tmp_path / "page").model_copy(update={"upload": "0" * 64})
    with pytest.raises(
        UploadError, match=r"the stored upload has sha256 \w{64}, expected 0{64}; upload the file again"
    ):
        run(recipe, tmp_path / "page")


def test_stopping_ends_the_process(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    task = Task(
        upload=tmp_path / "theirs.pt", target=tmp_path / "out", dataset="cifar10", model=NETWORK, entry=None
    )
    with Reader(task) as reader:
        assert not reader.wait(0.01)
        process = reader._process
    assert process.returncode == -signal.SIGKILL


def test_what_the_process_left_is_not_believed(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    recipe = recipe_for(tmp_path / "theirs.pt")
    taken = Taken(format="pt", notes=(), guards=("hook",))
    about = {"architecture": NETWORK, "channels": 3, "classes": 10, "dataset": "cifar10"}
    path = tmp_path / "left.safetensors"

    save_checkpoint(path, network, **about)  # type: ignore[arg-type]
    assert "no process can give up its network here" in _checked(recipe, path, taken).notes[0]
    save_checkpoint(path, network, **{**about, "dataset": "cifar100"})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="left a checkpoint of another network than the recipe's"):
        _checked(recipe, path, taken)
    save_checkpoint(path, build(NETWORK, channels=3, classes=11), **about)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="do not fit the architecture"):
        _checked(recipe, path, taken)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(UploadError, match="is a link"):
        _checked(recipe, path, taken)


def test_networks_that_no_machine_could_hold(tmp_path: Path) -> None:
    """They are refused when they are built for their shapes, whether a user or a file names them."""
    from dkl.weights import outline

    for network, sentence in (
        (WideResNet(depth=6 * 10**9 + 4, width=1), "the network has more than 20000 tensors of weights"),
        (WideResNet(depth=10, width=10**10), "the network's weights are larger than any memory"),
        (WideResNet(depth=10, width=10**30), "the network's weights are larger than any memory"),
    ):
        with pytest.raises(ValueError, match=sentence):
            outline(network, channels=3, classes=10)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"upload": "../../etc/passwd"}, "upload: "),
        ({"upload": "A" * 64}, "upload: "),
        ({"dataset": "imagenet"}, "dataset: unknown dataset 'imagenet'"),
        ({"model": {"kind": "wide-resnet", "depth": 11}}, "depth must be 6n"),
        ({"entry": ""}, "entry: "),
        ({"seed": 1}, "seed: is no field here; the fields are dataset, entry, kind, model, upload"),
    ],
)
def test_what_is_no_import(changes: dict[str, object], sentence: str) -> None:
    document = {"kind": "import", "upload": "0" * 64, "dataset": "cifar10", "model": {"kind": "wide-resnet"}}
    read_recipe(document)
    with pytest.raises(InvalidRecipeError, match=sentence):
        read_recipe({**document, **changes})


# --- the walls --------------------------------------------------------------------------------------------

PROBE = """
import ctypes, json, os, socket, subprocess, sys
from pathlib import Path
from dkl import confinement, sandbox

confinement.limit(sandbox.limits_for(0), data_now=sandbox.FIRST_LOOK)
guards = confinement.confine(reads=[], writes=Path.cwd(), parent=os.getppid())
libc = ctypes.CDLL(None)

def tried(act):
    try:
        return act()
    except (OSError, MemoryError) as error:
        return type(error).__name__

said = {
    "guards": guards,
    "socket": tried(lambda: socket.socket()),
    "subprocess": tried(lambda: subprocess.run(["true"])),
    "system": tried(lambda: os.system("true")),
    "libc socket": libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0),
    "libc fork": libc.fork(),
    "libc kill": libc.kill(os.getppid(), 0),
    "libc system": libc.system(b"touch program"),
    "passwords": tried(lambda: Path("/etc/passwd").read_text()),
    "environment": tried(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
    "checkout": tried(lambda: os.listdir(Path(confinement.__file__).parent.parent)),
    "elsewhere": tried(lambda: Path("../elsewhere").write_text("x")),
    "here": tried(lambda: Path("here").write_text("x")),
    "gigabyte": tried(lambda: len(bytearray(2**30))),
    "large file": tried(lambda: os.posix_fallocate(os.open("large", os.O_CREAT | os.O_RDWR), 0, 2**30)),
    "secrets": [name for name in os.environ if "SECRET" in name],
}
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("walls") / "own"
    folder.mkdir()
    said = subprocess.run(
        [sys.executable, "-P", "-c", PROBE],
        env={"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (folder / "program").exists()
    return dict(json.loads(said.stdout))


def test_limits_and_the_hook_hold_everywhere(probed: dict[str, object]) -> None:
    assert [probed[act] for act in ("socket", "subprocess", "system")] == ["PermissionError"] * 3
    assert probed["here"] == 1
    assert (probed["gigabyte"], probed["large file"]) == ("MemoryError", "OSError")


def test_system_calls_are_refused(probed: dict[str, object]) -> None:
    if "syscalls" not in probed["guards"]:  # type: ignore[operator]
        pytest.skip("no seccomp on this machine")
    assert [probed[act] for act in ("libc socket", "libc fork", "libc kill")] == [-1, -1, -1]
    assert probed["libc system"] != 0


def test_files_are_out_of_sight(probed: dict[str, object]) -> None:
    if "files" not in probed["guards"]:  # type: ignore[operator]
        pytest.skip("no Landlock on this machine")
    acts = ("passwords", "environment", "checkout", "elsewhere")
    assert [probed[act] for act in acts] == ["PermissionError"] * 4


ORPHAN = """
import os, subprocess, sys
program = '''
import os, sys, time
from pathlib import Path
from dkl import confinement
confinement.confine(reads=[], writes=Path.cwd(), parent=int(sys.argv[1]))
print("confined", flush=True)
time.sleep(60)
'''
child = subprocess.Popen([sys.executable, "-P", "-c", program, str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parents are watched on Linux")
def test_it_dies_with_whoever_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", ORPHAN]
    environment = {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{int(said.stdout)}/cmdline").exists():
        if Path(f"/proc/{int(said.stdout)}/cmdline").read_bytes() == b"":
            break  # dead, and nobody has collected it
        assert time.monotonic() < deadline
        time.sleep(0.05)
