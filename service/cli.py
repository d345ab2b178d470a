"""The `dklbench` command: every command, and how an error ends one."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from service import (
    commands_backup,
    commands_board,
    commands_client,
    commands_evidence,
    commands_files,
    commands_keys,
    commands_local,
    commands_operations,
    commands_reproduce,
    commands_robustbench,
    commands_service,
    commands_upload,
    commands_workers,
)

DONE, FAILED, NO_SERVICE, NOT_ALLOWED = 0, 1, 3, 4
"""Exit codes. 2 is wrong usage and 130 an interrupt, which typer knows."""
_EPILOG = (
    "Exit codes: 0 done; 1 an error, or a job that failed; 2 wrong usage; 3 no service answers; 4 not allowed, "
    "another API key is needed; 130 interrupted."
)
_PANELS = {
    "Service": (
        commands_service,
        commands_operations,
        commands_workers,
        commands_keys,
        commands_files,
        commands_backup,
    ),
    "Jobs": (commands_client, commands_upload),
    "Results": (commands_board, commands_evidence, commands_robustbench, commands_reproduce),
    "Without a service": (commands_local,),
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adversarial robustness benchmarking: train, attack, rank.",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for _panel, _modules in _PANELS.items():
    for _module in _modules:
        for _command in (*_module.app.registered_commands, *_module.app.registered_groups):
            _command.rich_help_panel = _panel
        app.add_typer(_module.app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dkl-bench {version('dkl-bench')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command."""


def main(words: Sequence[str] | None = None) -> None:
    """Entry point: every expected error is one sentence on stderr, and an exit code of its kind."""
    try:
        app(args=words)
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        sentence, code = told
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {escape(sentence)}")
        raise SystemExit(code) from None


def _told(error: Exception) -> tuple[str, int] | None:
    """What an error is called and the exit code that it ends with; None where it is no user's but ours."""
    from dkl.extras import what_to_install
    from service.client_http import NoServiceError, NotAllowedError, ServiceError
    from service.handle import JobFailed

    match error:
        case NoServiceError():
            return str(error), NO_SERVICE
        case NotAllowedError():
            return str(error), NOT_ALLOWED
        case ServiceError() | JobFailed() | FloatingPointError():
            return str(error), FAILED
        case ModuleNotFoundError():
            sentence = what_to_install(error)
            return (sentence, FAILED) if sentence else None
        case ValueError():
            return _of_settings(error) or str(error), FAILED
        case FileNotFoundError(filename=str(name)):
            return f"there is no file {name}", FAILED
        case OSError(filename=str(name), strerror=str(why)):
            return f"{name}: {why}", FAILED
        case OSError() | MemoryError():
            return str(error) or "there is not enough memory", FAILED
        case _:
            return None


def _of_settings(error: ValueError) -> str | None:
    """What is wrong with an environment variable, if that is it."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError) or error.title != "Settings":
        return None
    faults = []
    for fault in error.errors(include_url=False):
        name = "_".join(map(str, fault["loc"])).upper()
        variable = f"DKLBENCH_{name}: " if name else ""
        faults.append(variable + fault["msg"].removeprefix("Value error, "))
    return f"{'; '.join(faults)}; docs/operations.md lists the settings"
