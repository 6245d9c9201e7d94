"""The ``moesaic`` command: one module per sub-command, put together here.

Errors are one line on stderr that says what to do next, never a traceback. Exit codes: 0 done, 1
failed (a bad file, not enough memory, ...), 2 wrong usage, 130 interrupted, 141 nobody reads on.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moesaic._version import __version__
from moesaic.cli import terminal
from moesaic.cli.chat import chat
from moesaic.cli.demo import demo
from moesaic.cli.doctor import doctor
from moesaic.cli.inspect import inspect
from moesaic.cli.run import run

__all__ = ["app", "main"]

app = typer.Typer(
    name="moesaic",
    help="Run mixture-of-experts language models from GGUF files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run)
app.command()(chat)
app.command()(inspect)
app.command()(demo)
app.command()(doctor)


def print_version(wanted: bool) -> None:
    """``--version``."""
    if wanted:
        print(f"moesaic {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Run mixture-of-experts language models from GGUF files."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    terminal.open_missing_streams()
    try:
        app()
    except KeyboardInterrupt:  # outside a command, which says it itself
        print("moesaic: interrupted", file=sys.stderr)
        sys.exit(terminal.INTERRUPTED)
    except OSError as error:  # help that cannot be written
        print(f"moesaic: {terminal.one_line(error)}", file=sys.stderr)
        terminal.drop_output()
        sys.exit(terminal.FAILED)
