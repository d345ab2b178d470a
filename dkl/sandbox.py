"""Reading an upload in a process that is thrown away: `Reader` starts it, `python -m dkl.sandbox` is it.

The process gets a path to read and a path to write, no environment, and the limits and walls of `dkl.confinement`.
First it looks at the file's tables of contents, with little memory and without torch; most of what is no
checkpoint ends there. Whoever started it believes nothing that it says or writes, and checks it again.
"""

import contextlib
import errno
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dkl import confinement, plugins
from dkl.architectures import Model, PluginModel, normalisation_of
from dkl.archives import SAVE_STATE, UploadError
from dkl.datasets import known_dataset
from dkl.formats import Format, check_upload, open_plainly

_log = logging.getLogger(__name__)
_MIB = 2**20
FIRST_LOOK = 512 * _MIB
"""Of memory, while only tables of contents are read."""
_BASE = 1536 * _MIB
"""Of memory beside the weights; torch with timm takes 850 MiB by being imported."""
_ADDRESSES = 8192 * _MIB
"""Mapped beside the weights; a CUDA build of torch with timm maps 3.4 GiB."""
_MOST_WORDS = 2**16
"""Bytes that are heard of what the process says."""
_MOST_TIMES = 16
"""The weights beside which a training keeps its optimiser, averages, and the same again."""


class Task(BaseModel):
    """What to read, and as what."""

    model_config = ConfigDict(frozen=True)

    upload: Path
    target: Path
    """The checkpoint to write, in an empty folder of its own."""
    dataset: str
    model: Model
    entry: str | None


def _plain(sentence: str) -> str:
    """The sentence, which may quote the upload, without what could move a terminal's cursor, and not endless."""
    return "".join(character if character.isprintable() else "?" for character in sentence[:1000])


Sentence = Annotated[str, AfterValidator(_plain)]


class Taken(BaseModel):
    """The upload is a checkpoint now."""

    format: Format
    notes: Annotated[tuple[Sentence, ...], Field(max_length=20)]
    guards: Annotated[tuple[str, ...], Field(max_length=10)]
    """What of `dkl.confinement` was in force."""


class Refused(BaseModel):
    refused: Sentence


class Broken(BaseModel):
    """Not the upload is to blame, but this installation."""

    broken: Sentence
    number: int | None = None
    """The operating system's, such as of a full disk."""


_ANSWER: TypeAdapter[Taken | Refused | Broken] = TypeAdapter(Taken | Refused | Broken)


# --- whoever starts it ------------------------------------------------------------------------------------


class Reader:
    """The process at work: `with Reader(task) as reader: while not reader.wait(1): ...; reader.answer()`.

    Leaving the block ends it and whatever it started.
    """

    def __init__(self, task: Task) -> None:
        with open_plainly(task.upload) as file:
            self._seconds = 2 * _seconds(os.fstat(file.fileno()).st_size)
        self._task = task
        self._said = {"stdout": b"", "stderr": b""}

    def __enter__(self) -> Self:
        folder = self._task.target.parent
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        places = [Path(__file__).parent.parent, *_plugin_places(self._task.model)]
        package = {"PYTHONPATH": os.pathsep.join(map(str, places))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dkl.sandbox", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**package, **threads, "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
        self._deadline = time.monotonic() + self._seconds
        self._pipes = selectors.DefaultSelector()
        for name in self._said:
            self._pipes.register(getattr(self._process, name), selectors.EVENT_READ, name)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self._task.model_dump_json().encode())
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._pipes.close()
        for name in self._said:
            getattr(self._process, name).close()

    def wait(self, seconds: float) -> bool:
        """Whether it is over within so many seconds; UploadError when it has had its time."""
        until = time.monotonic() + seconds
        while self._pipes.get_map():
            if time.monotonic() > self._deadline:
                raise UploadError(f"reading the upload took more than {self._seconds:.0f} s; {SAVE_STATE}")
            if time.monotonic() > until:
                return False
            for key, _ in self._pipes.select(max(0.0, until - time.monotonic())):
                self._listen(key.fd, key.data)
        self._end()
        return True

    def _listen(self, pipe: int, name: str) -> None:
        said = os.read(pipe, _MOST_WORDS)
        self._said[name] += said[: _MOST_WORDS - len(self._said[name])]  # it may say more: nobody hears it
        if not said:
            self._pipes.unregister(pipe)

    def _end(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def answer(self) -> Taken:
        """What it made of the upload; UploadError with the sentence that it refuses it with.

        OSError where the disk is full or broken, RuntimeError where it could not even try.
        """
        if words := self._said["stderr"].decode(errors="replace").strip():
            _log.warning("reading an upload: %r", words[-4000:])
        try:
            answer = _ANSWER.validate_json(self._said["stdout"])
        except ValidationError:
            raise UploadError(
                "reading the upload broke off: it is damaged, or needs more time or memory than its size allows; "
                "write it again with safetensors.torch.save_file and upload that"
            ) from None
        match answer:
            case Refused():
                raise UploadError(answer.refused)
            case Broken():
                raise OSError(answer.number, answer.broken) if answer.number else RuntimeError(answer.broken)
            case Taken():
                return answer


def _plugin_places(model: Model) -> list[Path]:
    """The folder that a plugin's package is imported from; PluginError where it is not installed."""
    if not isinstance(model, PluginModel):
        return []
    package = plugins.find("model", model.name).entry.dist
    assert package is not None  # find() saw it
    return [Path(str(package.locate_file("")))]


def _seconds(size: int) -> int:
    """Of computing that an upload of so many bytes gets: what importing torch may take, and 20 MB/s."""
    return 120 + size // 20_000_000


# --- the process itself -----------------------------------------------------------------------------------


def main() -> None:
    """Read a Task from standard input, do it within the walls, and answer on standard output."""
    task = Task.model_validate_json(sys.stdin.buffer.read(_MOST_WORDS))
    confinement.limit(limits_for(task.upload.lstat().st_size), data_now=FIRST_LOOK)
    reads = [task.upload, *_plugin_places(task.model)]
    guards = confinement.confine(reads=reads, writes=task.target.parent, parent=int(sys.argv[1]))
    print(take(task, guards).model_dump_json())


def limits_for(size: int) -> confinement.Limits:
    """Of the process that reads an upload of so many bytes."""
    return confinement.Limits(
        address_space=_ADDRESSES + 4 * size,
        data=_BASE
        + 4 * size,  # the file is mapped, and 16-bit weights twice their size as float32: 3, and a reserve
        file=64 * _MIB + 2 * size,
        cpu_seconds=_seconds(size),
    )


def take(task: Task, guards: tuple[str, ...]) -> Taken | Refused | Broken:
    """Do it, here. Whatever goes wrong while somebody's file is read is a refusal."""
    try:
        kind = check_upload(task.upload)
        confinement.raise_data()
        if problem := _import_torch():
            return problem
        return Taken(format=kind, notes=_convert(task), guards=guards)
    except MemoryError:
        return Refused(refused=f"reading the upload needs more memory than its size allows; {SAVE_STATE}")
    except ValueError as error:
        return Refused(refused=str(error).replace(str(task.upload), "the upload"))
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            return Broken(broken=f"the checkpoint cannot be written: {error.strerror}", number=error.errno)
        return Refused(refused=f"the upload cannot be read ({type(error).__name__}): it is damaged; {SAVE_STATE}")


def _import_torch() -> Broken | None:
    try:
        import_module("dkl.foreign")
    except Exception as error:
        traceback.print_exc()
        return Broken(broken=f"torch cannot be imported where uploads are read: {type(error).__name__}: {error}")
    return None


def _convert(task: Task) -> tuple[str, ...]:
    from dkl.foreign import convert
    from dkl.weights import outline

    own = normalisation_of(task.model)
    known = known_dataset(task.dataset)
    classes = len(known.class_names) if known else 1000
    network = outline(task.model, channels=len(own.mean) if own else 3, classes=classes)
    needed = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    found = task.upload.lstat().st_size
    if found > _MOST_TIMES * needed + 64 * _MIB:
        raise UploadError(
            f"the upload has {found / 1e6:.0f} MB, the weights of its network take {needed / 1e6:.1f} MB; "
            f"{SAVE_STATE}"
        )
    return convert(task.upload, task.target, architecture=task.model, dataset=task.dataset, entry=task.entry).notes


if __name__ == "__main__":
    main()
