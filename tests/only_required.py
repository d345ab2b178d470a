"""The `dklbench` command of an unpacked wheel, with nothing importable but what it and its extras require.

    python only_required.py SITE REFUSED WORD...

SITE is the folder with the wheel, REFUSED a file with a name of a module per line, made by `refused`.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distributions, packages_distributions, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def refused(site: Path, extras: str) -> list[str]:
    """The modules of this environment that the wheel in `site` does not need with extras such as "service,s3"."""
    (wheel,) = distributions(path=[str(site)])
    brought: dict[str, set[str]] = {"dkl-bench": set()}
    _add(wheel.requires or [], {"", *extras.split(",")}, brought)
    owners = {module: set(map(canonicalize_name, names)) for module, names in packages_distributions().items()}
    return sorted(module for module, names in owners.items() if not names & brought.keys())


def _add(needs: Iterable[str], extras: set[str], brought: dict[str, set[str]]) -> None:
    """Into `brought`: what the needs bring, with what those need, by distribution and its extras."""
    for wanted in map(Requirement, needs):
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name, asked = canonicalize_name(wanted.name), {"", *wanted.extras}
        if asked <= brought.get(name, set()):
            continue
        brought.setdefault(name, set()).update(asked)
        try:
            _add(requires(name) or [], asked, brought)
        except PackageNotFoundError:  # of another platform
            continue


class Only:
    """A finder of modules, kept from those that are refused."""

    def __init__(self, finder: Any, refused: set[str]) -> None:
        self._finder, self._refused = finder, refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, module: str, path: Any = None, target: Any = None) -> Any:
        return None if module.partition(".")[0] in self._refused else self._finder.find_spec(module, path, target)


if __name__ == "__main__":
    site, names = sys.argv.pop(1), set(Path(sys.argv.pop(1)).read_text().split())
    for module in names & sys.modules.keys():  # packaging, for the lines above
        del sys.modules[module]
    sys.meta_path[:] = [Only(finder, names) for finder in sys.meta_path]
    import service
    from service.cli import main

    assert service.__file__.startswith(site), service.__file__
    main()
