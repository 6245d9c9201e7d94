"""``moesaic version``: what ``moesaic --version`` says."""

from __future__ import annotations

from moesaic._version import __version__
from moesaic.cli.terminal import command


@command
def version() -> None:
    """Print the version."""
    print(f"moesaic {__version__}")
