"""The `dklbench` command of the wheel unpacked in the folder of the first argument, with nothing importable but
what installing it with the extras of the second brings ("", "service", "worker,s3"). All else is refused."""

import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def add(text, found):
    """What a requirement brings, with what that requires."""
    wanted = Requirement(text)
    name, extras = canonicalize_name(wanted.name), {"", *wanted.extras}
    if extras <= found.get(name, set()):
        return found
    found.setdefault(name, set()).update(extras)
    try:
        needs = requires(name) or []
    except PackageNotFoundError:  # of another platform
        return found
    for need in needs:
        marker = Requirement(need).marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            add(need.partition(";")[0], found)
    return found


site, extras = sys.argv.pop(1), sys.argv.pop(1)
allowed = add(f"dkl-bench[{extras}]" if extras else "dkl-bench", {}).keys()
kept = {module: set(map(canonicalize_name, names)) for module, names in packages_distributions().items()}


class Only:
    """A finder of modules, kept from all that is not allowed."""

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, module, path=None, target=None):
        owners = kept.get(module.partition(".")[0])
        return None if owners and not owners & allowed else self._finder.find_spec(module, path, target)


sys.meta_path[:] = map(Only, sys.meta_path)
try:
    import pytest  # noqa: F401
except ModuleNotFoundError:
    import service
else:
    raise AssertionError("nothing is refused")
from service.cli import main  # noqa: E402

assert service.__file__.startswith(site), service.__file__
main()
