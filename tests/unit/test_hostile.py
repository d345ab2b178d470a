"""Files that were uploaded to do harm, or by mistake.

None runs anything, none takes more than its share, and each is refused with a sentence that says what it is.
"""

import ast
import contextlib
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import hostile
import hostile_archives
import pytest
from hostile import NETWORK

from dkl import sandbox
from dkl.archives import UploadError
from dkl.sandbox import Reader, Task

ROOT = Path(__file__).parent.parent.parent
MIB = 2**20
AT_FIRST = {**hostile.AT_FIRST, **hostile_archives.AT_FIRST}
ALL = {**AT_FIRST, **hostile_archives.BY_TORCH}

# The process of `python -m dkl.sandbox`, but for one upload after the other: importing torch takes seconds.
DRIVER = """
import json, os, re, sys, time
from dkl import confinement, sandbox

tasks = [sandbox.Task.model_validate(task) for task in json.load(sys.stdin)]
confinement.limit(sandbox.limits_for(2**20), data_now=sandbox.FIRST_LOOK)
folder = tasks[0].upload.parent
guards = confinement.confine(reads=[], writes=folder, parent=os.getppid())
for task in tasks:
    began = time.process_time()
    answer = sandbox.take(task, guards)
    status = open("/proc/self/status").read()
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024
    print(json.dumps({"answer": answer.model_dump(), "seconds": time.process_time() - began, "peak": peak}))
"""


def task(upload: Path) -> Task:
    return Task(upload=upload, target=upload.parent / "out", dataset="cifar10", model=NETWORK, entry=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def verdicts(folder: Path) -> dict[str, dict[str, Any]]:
    """What the process says of each file, with the seconds it computed and the most memory it ever had."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and zipfile, about what is made here
        for name, (make, _) in ALL.items():
            make(folder / name, str(folder / f"canary of {name}"))
    tasks = json.dumps([task(folder / name).model_dump(mode="json") for name in ALL])
    environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", DRIVER]
    said = subprocess.run(
        command, input=tasks, env=environment, capture_output=True, text=True, cwd=folder, check=False
    )
    assert said.returncode == 0, said.stderr
    return dict(zip(ALL, map(json.loads, said.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_it_is_refused_in_a_sentence(name: str, folder: Path, verdicts: dict[str, dict[str, Any]]) -> None:
    verdict = verdicts[name]
    sentence = verdict["answer"]["refused"]
    assert re.search(ALL[name][1], sentence), sentence
    assert str(folder) not in sentence
    assert verdict["seconds"] < 20
    assert verdict["peak"] < (200 * MIB if name in AT_FIRST else 1500 * MIB)
    assert not (folder / f"canary of {name}").exists()
    assert not (folder / "out").exists()


def test_the_sentences_are_their_own(verdicts: dict[str, dict[str, Any]]) -> None:
    sentences = {verdict["answer"]["refused"] for verdict in verdicts.values()}
    assert len(sentences) > 90


def test_the_bombs_are_bombs(tmp_path: Path) -> None:
    """What the canaries are for: unpickled as pickle does it, the same files do leave them behind."""
    for name in ("os.system", "code as a key", "code within code", "Path.touch"):
        canary = tmp_path / name
        AT_FIRST[name][0](tmp_path / "bomb", str(canary))
        with ZipFile(tmp_path / "bomb") as file:
            pickled = file.read("bomb/data.pkl")
        with contextlib.suppress(pickle.UnpicklingError, TypeError):  # of what comes after the harm
            pickle.loads(pickled)
        assert canary.exists(), name


# --- through the process that is thrown away --------------------------------------------------------------


def refusal(upload: Path) -> str:
    """What `Reader` says of the upload, which it reads with an empty folder of its own beside it."""
    own = upload.parent / "own"
    own.mkdir()
    try:
        with Reader(task(upload).model_copy(update={"target": own / "out"})) as reader:
            while not reader.wait(1):
                pass
            reader.answer()
    except UploadError as error:
        return str(error)
    raise AssertionError("it was taken")


@pytest.mark.parametrize(
    "name", ["a web page", "a pipe", "a link", "nothing", "a header of 2**63 bytes", "open", "NaN"]
)
def test_whoever_started_the_process_gets_the_sentence_and_no_more(name: str, tmp_path: Path) -> None:
    make, sentence = ALL[name]
    make(tmp_path / "upload", str(tmp_path / "own" / "canary"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert re.search(sentence, refusal(tmp_path / "upload"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024  # in KiB
    assert not {"out", "canary"} & set(os.listdir(tmp_path / "own"))


def test_an_upload_gets_so_much_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_seconds", lambda _: 0)
    (tmp_path / "upload").write_bytes(b"weights")
    assert re.match("reading the upload took more than 0 s; save its state dict", refusal(tmp_path / "upload"))


def test_a_process_that_dies_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"weights")
    with Reader(task(tmp_path / "upload")) as reader:
        reader._process.kill()
        while not reader.wait(1):
            pass
        with pytest.raises(UploadError, match="reading the upload broke off: it is damaged, or needs more time"):
            reader.answer()


# --- who may read files -----------------------------------------------------------------------------------


def calls(*folders: str) -> Iterator[tuple[Path, ast.Call]]:
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT), node


def test_torch_loads_weights_only_and_in_two_places() -> None:
    found = set()
    for path, call in calls("dkl", "service", "workers", "benchmarks", "tests"):
        name = ast.unparse(call.func)
        if name == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("weights_only") == "True", path
            found.add(str(path))
        assert name not in {"torch.jit.load", "torch.hub.load", "torch.serialization.load", "torch.package"}, path
    assert {path for path in found if not path.startswith("tests")} == {"dkl/foreign.py", "dkl/weights.py"}


def test_what_may_be_read_is_not_widened() -> None:
    """Every type that torch's reader is told to trust is named here too."""
    widened = [
        (path, call)
        for path, call in calls("dkl", "service", "workers")
        if "safe_globals" in ast.unparse(call.func)
    ]
    assert [(str(path), ast.unparse(call)) for path, call in widened] == [
        ("dkl/foreign.py", "torch.serialization.safe_globals(_HARMLESS)")
    ]
