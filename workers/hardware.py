"""What this machine's worker has to offer, asked of the driver: nothing here imports torch or touches CUDA."""

import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pynvml

from dkl import plugins
from service.registry import Description, Use
from service.settings import Settings

_GIB = 2**30


def describe(name: str, settings: Settings) -> Description:
    """This worker, under this name."""
    versions = {"python": platform.python_version(), **_versions("dkl-bench", "torch", "numpy")}
    with _gpus(settings) as gpus:
        names = [pynvml.nvmlDeviceGetName(gpu) for gpu in gpus]
        memory = [pynvml.nvmlDeviceGetMemoryInfo(gpu).total / _GIB for gpu in gpus]
        if gpus:
            versions["driver"] = pynvml.nvmlSystemGetDriverVersion()
    return Description(
        name=name,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=_show(names) or _processor(),
        gpus=len(names),
        gpu_memory=round(min(memory, default=0.0), 1),
        processes=len(names) or os.cpu_count() or 1,
        versions=versions,
        queues=settings.queues,
        plugins=plugins.installed(),
    )


def use(settings: Settings) -> Use:
    """How busy its GPUs are."""
    with _gpus(settings) as gpus:
        if not gpus:
            return Use()
        busy = [pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100 for gpu in gpus]
        memory = [pynvml.nvmlDeviceGetMemoryInfo(gpu).used / _GIB for gpu in gpus]
    return Use(sum(busy) / len(busy), round(sum(memory), 1))


@contextmanager
def _gpus(settings: Settings) -> Iterator[list[Any]]:
    """The GPUs that the worker's jobs see, as the driver's handles."""
    if settings.device == "cpu":
        yield []
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver here
        yield []
        return
    try:
        yield _chosen(settings)
    finally:
        pynvml.nvmlShutdown()


def _chosen(settings: Settings) -> list[Any]:
    if settings.cuda_visible_devices is None:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    else:
        names = [name.strip() for name in settings.cuda_visible_devices.split(",")]
        handles = [_handle(name) for name in names if name not in {"", "-1"}]
    _, _, pinned = settings.device.partition(":")
    return handles[int(pinned) :][:1] if pinned else handles


def _handle(name: str) -> Any:
    """Of a GPU as CUDA_VISIBLE_DEVICES names it: a number, or a UUID."""
    return (
        pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
    )


def _show(names: list[str]) -> str:
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
