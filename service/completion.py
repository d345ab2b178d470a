"""What a shell offers after <TAB>: names of recipes, architectures and data sets, and ids of jobs.

Reading the catalogue takes half a second, which is long behind a key; so its names are kept in the user's cache
until a file of the catalogue changes. What cannot be known now is not offered, without a word.
"""

import json
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent / "dkl"


def recipes(incomplete: str) -> list[str]:
    return [name for name in _names()["recipes"] if name.startswith(incomplete)]


def evaluations(incomplete: str) -> list[str]:
    return [name for name in _names()["evaluations"] if name.startswith(incomplete)]


def architectures(incomplete: str) -> list[str]:
    return [name for name in _names()["architectures"] if name.startswith(incomplete)]


def datasets(incomplete: str) -> list[str]:
    return [name for name in _names()["datasets"] if name.startswith(incomplete)]


def threat_models(incomplete: str) -> list[str]:
    return [name for name in ("Linf", "L2", "L1", "corruptions") if name.startswith(incomplete)]


def jobs(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the newest jobs, each with what it is; none where no service answers within a quarter of a second."""
    from service.client import ServiceError
    from service.options import client_of

    try:
        with client_of(None, timeout=0.25) as client:
            found = client.jobs(limit=50)
    except (ServiceError, ValueError):  # ValueError: the settings are wrong, which a command will say
        return []
    return [(job.id, f"{job.title}, {job.status}") for job in found if job.id.startswith(incomplete)]


def _names() -> dict[str, list[str]]:
    """From the cache, or else from the catalogue and into the cache."""
    from platformdirs import user_cache_path

    sources = [*_ROOT.glob("catalog/*.py"), _ROOT / "architectures.py", _ROOT / "datasets.py"]
    stamp = [str(_ROOT), *sorted(f"{path.name} {path.stat().st_mtime_ns}" for path in sources)]
    path = user_cache_path("dkl-bench") / "names.json"
    try:
        kept = json.loads(path.read_bytes())
        if kept["stamp"] == stamp:
            return dict(kept["names"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is not readable: it is made anew
    names = _read_names()
    try:
        from dkl.files import replacing

        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps({"stamp": stamp, "names": names}).encode())
    except OSError:
        return names  # a home that cannot be written to: it is only slower
    return names


def _read_names() -> dict[str, list[str]]:
    from typing import get_args

    from dkl.architectures import Model
    from dkl.catalog import RECIPES
    from dkl.datasets import DATASETS
    from dkl.protocols import AnyProtocol

    kinds = [model.model_fields["kind"].default for model in get_args(get_args(Model)[0])]
    return {
        "recipes": list(RECIPES),
        "evaluations": [name for name, entry in RECIPES.items() if isinstance(entry.recipe, AnyProtocol)],
        "architectures": kinds,
        "datasets": list(DATASETS),
    }
