"""The ``moesaic`` command: one module per sub-command, put together here.

Errors are one line on stderr that says what to do next, never a traceback. Exit codes: 0 done, 1
a Moesaic error
(bad file, not enough memory, ...), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from moesaic.cli.chat import chat
from moesaic.cli.demo import demo
from moesaic.cli.doctor import doctor
from moesaic.cli.inspect import inspect
from moesaic.cli.run import run
from moesaic.errors import MoesaicError

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


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        app()
    except MoesaicError as error:
        print(f"moesaic: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `moesaic run ... | head`
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
