"""The ``moesaic`` command: one module per sub-command, put together here.

Errors are one line on stderr that says what to do next, never a traceback. Exit codes: 0 done, 1
failed (a bad file, not enough memory, ...), 2 wrong usage, 130 interrupted, 141 nobody reads on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from moesaic import _starting as starting
from moesaic._version import __version__
from moesaic.cli import terminal
from moesaic.cli.habits import HabitsGroup

__all__ = ["COMMANDS", "app", "main", "make_app"]

#: Each is a function of that name (or a Typer group called ``group``) in the module of that name.
COMMANDS = (
    "run",
    "chat",
    "inspect",
    "demo",
    "doctor",
    "plan",
    "bench",
    "worker",
    "keygen",
    "cluster",
    "version",
)


def make_app(commands: Sequence[str] = COMMANDS) -> typer.Typer:
    """Put commands together; only their modules are imported."""
    app = typer.Typer(
        name="moesaic",
        help="Run mixture-of-experts language models from GGUF files.",
        cls=HabitsGroup,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(global_options)
    for name in commands:
        module = import_module(f"moesaic.cli.{name}")
        if hasattr(module, "group"):
            app.add_typer(module.group, name=name)
        else:
            app.command(hidden=name == "version")(getattr(module, name))
    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return make_app()
    raise AttributeError(f"module 'moesaic.cli' has no attribute {name!r}")


def print_version(wanted: bool) -> None:
    """``--version``."""
    if wanted:
        print(f"moesaic {__version__}")
        raise typer.Exit


def global_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Run mixture-of-experts language models from GGUF files."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    terminal.open_missing_streams()
    named = [name for name in sys.argv[1:2] if name in COMMANDS]
    try:
        app = make_app(named or COMMANDS)  # a worker must not wait for what others import
        starting.end()
        app(prog_name="moesaic")
    except KeyboardInterrupt:  # outside a command, which says it itself
        terminal.say_interrupted()
        sys.exit(terminal.INTERRUPTED)
    except SystemExit as leave:
        if leave.code == terminal.INTERRUPTED:  # Typer ends so without a word
            terminal.say_interrupted()
        raise
    except OSError as error:  # help that cannot be written
        print(f"moesaic: {terminal.one_line(error)}", file=sys.stderr)
        terminal.drop_output()
        sys.exit(terminal.FAILED)
