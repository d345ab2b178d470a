"""The `dklbench` command: every command, and how an error ends one."""

import typer
from rich.console import Console
from rich.markup import escape

from dkl.local import InterruptedRunError
from service import (
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
)
from service.client import ServiceError
from service.demo import DemoError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adversarial robustness benchmarking: train, attack, rank.",
)
for commands in (
    commands_service,
    commands_client,
    commands_local,
    commands_operations,
    commands_evidence,
    commands_files,
    commands_keys,
    commands_upload,
    commands_robustbench,
    commands_reproduce,
):
    app.add_typer(commands.app)


def main() -> None:
    """Entry point: every expected error is one sentence on stderr, and exit code 1."""
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app()
    except InterruptedRunError as error:
        stderr.print(escape(str(error)))
        raise SystemExit(130) from None
    except (ServiceError, DemoError, ValueError, OSError, FloatingPointError, MemoryError) as error:
        stderr.print(f"[red]error:[/] {escape(str(error))}")
        raise SystemExit(1) from None
