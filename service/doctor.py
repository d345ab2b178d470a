"""What is wrong with an installation: this machine, what it depends on, what the ledger tells. Changes nothing.

Each check is a generator of findings; what went well is a finding, too.
"""

import json
import platform
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

import psutil
import redis
from sqlalchemy import Engine, make_url

from dkl.catalog import RECIPES
from dkl.datasets import DATASETS
from service import doctor_ledger, health
from service.findings import Finding
from service.keys import somebody_may
from service.settings import Settings
from service.space import free_bytes, show_bytes

_TORCH = """
import json, torch
seen = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
gpus = [torch.cuda.get_device_name(number) for number in seen]
print(json.dumps({"torch": torch.__version__, "built": torch.version.cuda, "gpus": gpus}))
"""
_TORCH_SECONDS = 120
_NETWORK_DISKS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "fuse.s3fs", "ceph", "glusterfs", "lustre", "beegfs")
_SECRET_FILE = stat.S_IRWXG | stat.S_IRWXO


def examine(settings: Settings, db: Engine) -> Iterator[Finding]:
    """All findings, in the order in which one would put them right."""
    for check in (python, torch, disk, store, secret, access, broker, datasets, sqlite_place):
        yield from check(settings)
    reached = _of_health("database", partial(health.check_database, db), _database_way_out(settings))
    yield reached
    if reached.bad:
        return
    schema = _of_health("migrations", partial(health.check_migrations, db), "dklbench migrate")
    yield schema
    if schema.bad:
        return
    yield from administrators(settings, db)
    yield from doctor_ledger.examine(db, settings)


# --- this machine -----------------------------------------------------------------------------------------


def python(settings: Settings) -> Iterator[Finding]:
    yield Finding(
        "ok", "python", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    )


def torch(settings: Settings) -> Iterator[Finding]:
    """In a process of its own: a broken CUDA library may take the one that imports it with it."""
    if find_spec("torch") is None:
        yield Finding("info", "torch", "not installed: this machine can serve, and runs no jobs")
        return
    fix = "install it again: pip install --force-reinstall 'dkl-bench[worker]'"
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=_TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("error", "torch", f"importing it takes longer than {_TORCH_SECONDS} s", fix)
        return
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        yield Finding("error", "torch", f"it cannot be imported: {last[:300]}", fix)
        return
    found = json.loads(answer.stdout)
    if found["gpus"]:
        yield Finding("ok", "torch", f"{found['torch']}, sees {', '.join(found['gpus'])}")
    elif Path("/dev/nvidiactl").exists() and settings.device != "cpu":
        says = f"{found['torch']} sees no GPU, but this machine has a driver of NVIDIA"
        cuda = f"is made for CUDA {found['built']}" if found["built"] else "is made for processors only"
        yield Finding("error", "torch", says, f"torch {cuda}: compare with what nvidia-smi says")
    else:
        yield Finding("info", "torch", f"{found['torch']}, no GPU: jobs here run on the processor")


def disk(settings: Settings) -> Iterator[Finding]:
    free, least = free_bytes(settings), settings.min_free_bytes
    says = f"{show_bytes(free)} free under {settings.data_dir}"
    fix = "dklbench gc --dry-run says what could go; or lower DKLBENCH_MIN_FREE_BYTES"
    if free < least:
        yield Finding("error", "disk", f"{says}, less than the {show_bytes(least)} to be kept", fix)
    elif free < 5 * least:
        yield Finding("warning", "disk", f"{says}; below {show_bytes(least)} nothing is taken in", fix)
    else:
        yield Finding("ok", "disk", says)


def store(settings: Settings) -> Iterator[Finding]:
    where = settings.store or settings.artifacts_dir
    fix = f"make {where} writable for the user that runs the service"
    if settings.store:
        fix = (
            "check the bucket's name and the credentials (AWS_ACCESS_KEY_ID, ...), and pip install 'dkl-bench[s3]'"
        )
    try:
        yield _of_health("store", partial(health.check_storage, settings), fix)
    except ImportError as error:
        yield Finding("error", "store", f"{where} cannot be used: {error}", fix)


def secret(settings: Settings) -> Iterator[Finding]:
    given, kept = settings.secret_key.get_secret_value(), settings.data_dir / "secret"
    if given and len(given) < 32:
        says = f"DKLBENCH_SECRET_KEY has {len(given)} characters, expected at least 32"
        yield Finding("error", "secret", says, "set it to what `openssl rand -hex 32` prints")
    elif given:
        yield Finding("ok", "secret", "from DKLBENCH_SECRET_KEY")
    elif not kept.exists():
        yield Finding("info", "secret", f"none yet: the first start makes one in {kept}")
    elif kept.stat().st_mode & _SECRET_FILE:
        yield Finding("error", "secret", f"other users of this machine may read {kept}", f"chmod 600 {kept}")
    else:
        yield Finding("ok", "secret", f"in {kept}")


def access(settings: Settings) -> Iterator[Finding]:
    outside = bool(settings.allowed_hosts) or not _is_loopback(settings.host)
    if settings.anonymous == "submit" and outside:
        says = "anybody who can reach the service may submit jobs without a key"
        yield Finding("error", "access", says, "unset DKLBENCH_ANONYMOUS, or set it to leaderboard")
    elif settings.anonymous == "read" and outside:
        says = "anybody who can reach the service may read all jobs and download all models without a key"
        yield Finding("warning", "access", says, "if that is not meant, unset DKLBENCH_ANONYMOUS")
    else:
        may = settings.anonymous or ("leaderboard" if outside else "submit here, leaderboard elsewhere")
        yield Finding("ok", "access", f"without a key one may: {may}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def datasets(settings: Settings) -> Iterator[Finding]:
    files = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    wanted = sorted({entry.recipe.dataset for entry in RECIPES.values()} & DATASETS.keys() & files.keys())
    here = settings.datasets_dir
    missing = [
        name for name in wanted if not ((here / files[name]).exists() or (here / f"{name}_train.npz").exists())
    ]
    if missing:
        yield Finding("info", "data sets", f"{', '.join(missing)} not in {here}: downloaded by the first job")
    else:
        yield Finding("ok", "data sets", f"{', '.join(wanted)} in {here}")


# --- what it depends on -----------------------------------------------------------------------------------


def broker(settings: Settings) -> Iterator[Finding]:
    fix = "start Redis, and check DKLBENCH_BROKER_URL (redis://:password@host:6379/0)"
    found = _of_health("broker", partial(health.check_broker, settings), fix)
    yield found
    if settings.broker_url and not found.bad:
        with redis.Redis.from_url(settings.broker_url, socket_timeout=health.CHECK_SECONDS) as connection:
            policy = connection.info("memory").get("maxmemory_policy")
        if policy != "noeviction":
            says = f"Redis drops messages when its memory is full (maxmemory-policy {policy})"
            yield Finding("warning", "broker", says, "start it with --maxmemory-policy noeviction")


def _database_way_out(settings: Settings) -> str:
    if not settings.database_url:
        return f"make {settings.data_dir} writable for the user that runs the service"
    return "start the database, and check DKLBENCH_DATABASE_URL (postgresql://user:password@host/name)"


def sqlite_place(settings: Settings) -> Iterator[Finding]:
    url = make_url(settings.database)
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    kind = _file_system(Path(url.database).absolute())
    if kind.startswith(_NETWORK_DISKS):
        says = f"SQLite on a network disk ({kind}) loses data: its locks do not hold there"
        yield Finding("error", "database", says, "set DKLBENCH_DATA_DIR to a local disk, or use PostgreSQL")
    if settings.broker_url:
        says = "SQLite serves one machine; workers on others need PostgreSQL"
        yield Finding("warning", "database", says, "set DKLBENCH_DATABASE_URL to postgresql://...")


def _file_system(path: Path) -> str:
    mounts = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    return next((mounts[place] for place in path.parents if place in mounts), "")


def administrators(settings: Settings, db: Engine) -> Iterator[Finding]:
    """Whether anybody could use it who is not on this machine."""
    if _is_loopback(settings.host) and not settings.allowed_hosts:
        return
    if not somebody_may(db, "submit", "admin"):
        says = "nobody has an API key yet, so nobody can submit jobs"
        yield Finding("warning", "access", says, "dklbench keys create NAME --scope admin")


def _of_health(name: str, check: Callable[[], str], fix: str) -> Finding:
    try:
        return Finding("ok", name, check())
    except health.UnwellError as error:
        return Finding("error", name, str(error), fix)
