"""``moesaic doctor``: what this machine and build are, for bug reports and settings."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from moesaic import __version__, _core
from moesaic.cli import options as o
from moesaic.cli.terminal import command, human_bytes, print_json, table

_PACKAGES = ("numpy", "tokenizers", "jinja2")


@command
def doctor(as_json: o.Json = False) -> None:
    """Say what this machine and build offer."""
    report: dict[str, Any] = {
        "moesaic": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "backends": _core.available_backends(),
        "isa": _core.isa(),
        "isa_available": _core.available_isas(),
        "isa_forced": os.environ.get("MOESAIC_ISA"),
        "cpus": _core.available_cpus(),
        "memory_free_bytes": _core.available_memory_bytes(),
    }
    if as_json:
        print_json(report)
        return
    report["memory_free_bytes"] = human_bytes(report["memory_free_bytes"])
    print(
        table(
            [
                (
                    name.replace("_bytes", "").replace("_", " "),
                    ", ".join(value) if isinstance(value, list) else str(value),
                )
                for name, value in report.items()
                if value is not None
            ]
        )
    )


def version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
