"""What the house promises about itself: who starts without torch, who reads the environment, what is kept out."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
SOURCES = [*(ROOT / "dkl").rglob("*.py"), *(ROOT / "service").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]


def test_the_service_starts_without_torch() -> None:
    heavy = {"torch", "torchvision", "sklearn"}
    program = f"import service.app, service.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_celery_parent_never_imports_torch() -> None:
    program = "import workers.app, sys; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def calls() -> Iterator[tuple[Path, str, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, ast.unparse(node.func), node


def test_nothing_unpickles() -> None:
    for path, name, call in calls():
        if name == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("weights_only") == "True", path
        if name == "np.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("allow_pickle") == "False", path
        assert not name.startswith(("pickle.", "marshal.", "joblib.", "dill.")), path
        assert name not in {"eval", "exec"}, path


def test_settings_are_read_in_one_place() -> None:
    for path in SOURCES:
        reads = [line for line in path.read_text().splitlines() if "os.environ" in line or "os.getenv" in line]
        reads = [line for line in reads if "**os.environ" not in line]  # handed on to a child as it is
        reads = [line for line in reads if "os.environ.setdefault" not in line]  # written, for libraries to read
        reads = [line for line in reads if "TORCHELASTIC_" not in line]  # torchrun's words to what it started
        assert reads == [], path


def test_a_heartbeat_must_fit_into_the_lease() -> None:
    with pytest.raises(ValidationError, match="at most half of lease_seconds"):
        Settings(lease_seconds=10, heartbeat_seconds=6)


def test_children_read_the_same_settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
