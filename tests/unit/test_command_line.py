"""How `dklbench` starts, ends and completes, as far as no service is needed."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from service import cli, completion
from service.client import JobFailed, NoServiceError, NotAllowedError, ServiceError
from service.client_http import Connection
from service.handle import Job
from service.settings import settings

BIN = Path(sys.executable).parent
HEAVY = ("torch", "fastapi", "sqlalchemy", "numpy", "pydantic", "httpx2")
NOBODY = ["--url", "http://127.0.0.1:9"]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str, str]:
    """Exit code, standard output and standard error of the command, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return (ended.value.code, *capsys.readouterr())


def imported_by(module: str) -> set[str]:
    """The modules that a fresh interpreter has after importing this one."""
    code = f"import {module}, sys; print(*(name for name in sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_command_line_starts_without_what_it_may_not_need() -> None:
    assert imported_by("service.cli").isdisjoint(HEAVY)


def test_the_client_needs_no_torch_web_or_database() -> None:
    assert imported_by("service.client").isdisjoint({"torch", "fastapi", "sqlalchemy", "typer", "rich", "numpy"})


# --- exit codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        *(["jobs"], ["workers"], ["leaderboard"], ["submit", "natural-digits"], ["drain", "x"], ["resume", "x"]),
        *([name, "0123456789ab"] for name in ("watch", "log", "cancel", "resume-job", "rerun", "replay")),
        *(["evidence", "0123456789ab"], ["verify", "0123456789ab"], ["export", "robustbench", "out"]),
    ],
    ids=" ".join,
)
def test_3_where_no_service_answers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run([*words, *NOBODY], capsys)
    assert (code, out) == (3, "")
    assert err.startswith("error: no service answers at http://127.0.0.1:9 ")
    assert "start one with: dklbench up, or name another with --url" in err


@pytest.mark.parametrize(
    "words", [["subimt"], ["watch"], ["jobs", "--limit", "0"], ["jobs", "--nothing"]], ids=" ".join
)
def test_2_for_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(words, capsys)
    assert (code, out) == (2, "")
    assert "--help" in err


JOB = {"id": "0123456789ab", "name": None, "kind": "import", "status": "failed", "reason": "it is a web page"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoServiceError("nobody"), ("nobody", 3)),
        (NotAllowedError("another key"), ("another key", 4)),
        (ServiceError("refused"), ("refused", 1)),
        (ValueError("wrong"), ("wrong", 1)),
        (FileNotFoundError(2, "No such file or directory", "a.pt"), ("there is no file a.pt", 1)),
        (PermissionError(13, "Permission denied", "a.pt"), ("a.pt: Permission denied", 1)),
        (ConnectionError("the database is away"), ("the database is away", 1)),
        (MemoryError(), ("there is not enough memory", 1)),
        (
            JobFailed(Job(Connection("http://a", "", timeout=1), JOB)),
            ("job 0123456789ab (import) has failed: it is a web page; see dklbench log 0123456789ab", 1),
        ),
        (ModuleNotFoundError("no torch", name="torch"), ("pip install 'dkl-bench[worker]'", 1)),
    ],
)
def test_an_expected_error_is_a_sentence_and_a_code(error: Exception, told: tuple[str, int]) -> None:
    found = cli._told(error)
    assert found is not None
    assert found[1] == told[1]
    assert found[0].endswith(told[0])


@pytest.mark.parametrize(
    "error", [KeyError("x"), AttributeError("x"), ModuleNotFoundError("ours", name="service.x")]
)
def test_a_mistake_of_ours_is_not_dressed_up(error: Exception) -> None:
    assert cli._told(error) is None


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DKLBENCH_PORT", "web")
    settings.cache_clear()
    code, _, err = run(["jobs"], capsys)
    settings.cache_clear()
    assert code == 1
    assert re.match(r"error: DKLBENCH_PORT: .*integer.*; docs/operations.md lists the settings\n", err)


def test_the_help_names_every_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    told = re.findall(r"(\d+) (?:done|an error|wrong|no service|not allowed|interrupted)", " ".join(out.split()))
    assert told == ["0", "1", "2", "3", "4", "130"]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], capsys) == (0, f"dkl-bench {version('dkl-bench')}\n", "")


# --- completion -------------------------------------------------------------------------------------------


def completed(line: str, home: Path) -> list[str]:
    """What a real bash offers at the end of the line."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(home)}
    script = f"""
        eval "$(dklbench --show-completion bash 2>/dev/null || _DKLBENCH_COMPLETE=source_bash dklbench)"
        COMP_LINE='{line}'; COMP_WORDS=({line}); [[ "$COMP_LINE" == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        _dklbench_completion dklbench
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment["DKLBENCH_URL"] = "http://127.0.0.1:9"
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    answer = subprocess.run([bash, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    return answer.stdout.split()


def test_a_real_bash_completes(tmp_path: Path) -> None:
    assert completed("dklbench ev", tmp_path) == ["evaluate", "evidence"]
    assert completed("dklbench submit ikl-at-dig", tmp_path) == ["ikl-at-digits"]
    assert (tmp_path / "dkl-bench" / "names.json").is_file()
    assert completed("dklbench upload a.pt --architecture wide", tmp_path) == ["wide-resnet"]
    assert completed("dklbench watch 01", tmp_path) == []  # nobody answers, and nothing is said


def test_names_come_from_the_catalogue_and_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dkl.catalog import RECIPES

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert completion.recipes("") == list(RECIPES)
    assert completion.evaluations("auto") == [name for name in RECIPES if name.startswith("autoattack-")]
    assert completion.datasets("cifar") == ["cifar10", "cifar100"]
    monkeypatch.setattr(completion, "_read_names", lambda: pytest.fail("the cache was there"))
    assert completion.recipes("trades-dig") == ["trades-digits"]
    (tmp_path / "dkl-bench" / "names.json").write_text('{"stamp": ["another version"], "names": {}}')
    monkeypatch.setattr(completion, "_read_names", lambda: {"recipes": ["newer"]})
    assert completion.recipes("") == ["newer"]


def test_a_home_that_cannot_be_written_to_completes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert completion.datasets("dig") == ["digits"]
