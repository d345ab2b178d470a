"""One training run over several processes on this machine, started by torchrun's elastic agent.

    run_distributed()  <-- pair of sockets -->  standard input of the agent and, inherited, of every process

The pair of sockets is all there is between them. Process 0 sends its events through it, any process the failure
that ended it, each as one JSON document. Nothing is sent to the processes: that our end closes, on purpose or
because we died, tells them to stop. That all of theirs are closed tells us that none is left. Linux only.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, Field, TypeAdapter

from dkl.datasets import DatasetError
from dkl.events import Event, Finished
from dkl.recipes import Train
from dkl.train import train
from dkl.weights import CheckpointError
from dkl.world import World

_PATIENCE_SECONDS = 120
"""How long processes that were asked to stop may take for the batch they are at, and to keep their state."""
_LONGEST_MESSAGE = 2**18
_RESTARTS = 3
"""After the death of a process all are started again so often, from what they kept."""

_EXPLAINED: dict[str, type[Exception]] = {
    "DatasetError": DatasetError,
    "CheckpointError": CheckpointError,
    "ValueError": ValueError,
    "FloatingPointError": FloatingPointError,
    "MemoryError": MemoryError,
}
"""What training raises with a sentence for the user; subclasses first."""


class _Failure(BaseModel):
    """The last words of a process that met an error which starting it again would not cure."""

    kind: Literal["failure"] = "failure"
    error: str
    sentence: str


_MESSAGE: TypeAdapter[Event | _Failure] = TypeAdapter(Annotated[Event | _Failure, Field(discriminator="kind")])


# --- the parent -------------------------------------------------------------------------------------------


def run_distributed(recipe: Train, workdir: Path, *, device: str, data_dir: Path) -> Generator[Event, None, None]:
    """`dkl.train.train` over `recipe.processes` processes: the same events, errors, files and way to stop.

    On "cuda" each process has a GPU of its own, on "cpu" an equal share of this one's threads. Where a process
    dies all go on from what they kept; events with a key are then said again. When the iterator ends, is closed or
    raises, no process is left. What they print is in `workdir/processes.log`.

    Raises what `train` raises; ValueError where there are too few GPUs; RuntimeError where the processes ended
    otherwise.
    """
    _require_devices(recipe.processes, device)
    log = workdir / "processes.log"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, tempfile.TemporaryDirectory(prefix=".agent-", dir=workdir) as notes:
        with theirs, log.open("wb") as output:
            agent = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--log-dir={notes}"),
                    *(f"--nproc-per-node={recipe.processes}", f"--max-restarts={_RESTARTS}"),
                    *("-m", "dkl.distributed", workdir, data_dir, device, recipe.model_dump_json()),
                ],
                stdin=theirs.fileno(),
                stdout=output,
                stderr=output,
                env=_environment(recipe.processes),
                start_new_session=True,  # Ctrl-C is ours to hear
            )
        last: Event | _Failure | None = None
        try:
            while not isinstance(last, Finished | _Failure) and (said := ours.recv(_LONGEST_MESSAGE)):
                last = _MESSAGE.validate_json(said)
                if not isinstance(last, Finished | _Failure):
                    yield last
        finally:
            # Whoever waits for a process that failed waits in vain.
            _end(agent, ours, seconds=0 if isinstance(last, _Failure) else _PATIENCE_SECONDS)
    if isinstance(last, _Failure):
        raise _EXPLAINED[last.error](last.sentence)
    if not isinstance(last, Finished):
        raise RuntimeError(
            f"the {recipe.processes} processes ended with code {agent.returncode} before the training did: "
            f"{_first_error(log)}; all they said is in {log}"
        )
    yield last


def _require_devices(processes: int, device: str) -> None:
    if device == "cpu":
        return
    if device != "cuda":
        raise ValueError(
            f"found the device {device!r} for {processes} processes, which need a GPU each; "
            "choose cuda, or set processes=1"
        )
    found = torch.cuda.device_count()
    if found < processes:
        raise ValueError(
            f"the recipe asks for {processes} processes with a GPU each, found {found} GPUs; "
            f"set processes={found or 1}"
        )


def _environment(processes: int) -> dict[str, str]:
    here = str(Path(__file__).parent.parent)
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)),
        "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)]),
    }


def _end(agent: subprocess.Popen[bytes], line: socket.socket, *, seconds: float) -> None:
    """Stop whoever still runs: for so long by asking, then by force."""
    try:
        line.shutdown(socket.SHUT_WR)
        _wait_for_the_last(line, seconds)
    finally:  # after an impatient Ctrl-C too
        agent.kill()
        _wait_for_the_last(line, 10)  # a process without its agent ends at once
        agent.wait()


def _wait_for_the_last(line: socket.socket, seconds: float) -> None:
    """Until all other ends of `line` are closed, or the time is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and select.select([line], [], [], left)[0]:
        if not line.recv(_LONGEST_MESSAGE):
            return


def _first_error(log: Path) -> str:
    """What Python or torch said first: the errors after it follow from it."""
    found = re.search(
        r"^(?:\[rank\d+\]: )?([\w.]*(?:Error|Exception)\b.*)$", log.read_text(errors="replace"), re.M
    )
    return found[1] if found else "without a word"


# --- each process -----------------------------------------------------------------------------------------


class _Line:
    """This process's end of the line to the parent."""

    def __init__(self) -> None:
        # Away from standard input, which processes that we start would inherit and keep open.
        self._socket = socket.socket(fileno=os.dup(0))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        self.stopping = False
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True).start()

    def send(self, message: Event | _Failure) -> None:
        try:
            self._socket.send(message.model_dump_json().encode())
        except ConnectionError:  # reset, where it died with messages unread
            self._stop()

    def _stop(self) -> None:
        self.stopping = True

    def _watch(self, agent: int) -> None:
        """Stop when the parent asks for it; end at once without an agent, or where stopping takes too long."""
        asked_at: float | None = None
        while os.getppid() == agent and (asked_at is None or time.monotonic() - asked_at < _PATIENCE_SECONDS):
            if asked_at is not None:
                time.sleep(0.5)
            elif select.select([self._socket], [], [], 0.5)[0]:  # nothing is ever sent: it was closed
                asked_at = time.monotonic()
                self._stop()
        os._exit(1)


def main() -> None:
    """Be one of the processes: what the agent starts."""
    workdir, data_dir, device, document = sys.argv[1:]
    line, code = _Line(), 0
    try:
        _train(line, Train.model_validate_json(document), Path(workdir), device=device, data_dir=Path(data_dir))
    except tuple(_EXPLAINED.values()) as error:
        name = next(name for name, kind in _EXPLAINED.items() if isinstance(error, kind))
        line.send(_Failure(error=name, sentence=str(error)))
    except BaseException:
        traceback.print_exc()
        code = 1  # the agent starts all processes again
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # tidying up would wait for the other processes, which may be gone or wait for us


def _meet(device: str) -> World:
    """Find the other processes of this attempt."""
    # The agent's store outlives an attempt, and still has the addresses of the dead.
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    attempt = f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    if device == "cpu":
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    else:
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", store=store, rank=rank, world_size=size, device_id=torch.device(device))
    return World(rank, size)


def _train(line: _Line, recipe: Train, workdir: Path, *, device: str, data_dir: Path) -> None:
    device = device if device == "cpu" else f"cuda:{dist.get_node_local_rank()}"
    world = _meet(device)

    def all_stop() -> bool:  # together, as each waits for the others in every batch
        return world.any(line.stopping, device)

    if all_stop():
        return
    events = train(recipe, workdir, device=device, data_dir=data_dir, world=world)
    for event in events:
        if world.rank == 0:
            line.send(event)
        if not isinstance(event, Finished) and all_stop():
            events.close()
            return


if __name__ == "__main__":
    main()
