"""``moesaic doctor``: what this machine and build are, for bug reports and settings."""

from __future__ import annotations

import os
import platform

from moesaic import __version__, _core
from moesaic.cli import options as o


def doctor(as_json: o.Json = False) -> None:
    """Say what this machine and build offer: CPU tables, threads, memory, backends."""
    report = {
        "moesaic": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "backends": _core.available_backends(),
        "isa": _core.isa(),
        "isa_available": _core.available_isas(),
        "isa_forced": os.environ.get("MOESAIC_ISA"),
        "cpus": _core.available_cpus(),
        "memory_free_bytes": _core.available_memory_bytes(),
    }
    if as_json:
        o.print_json(report)
        return
    report["memory_free_bytes"] = o.human_bytes(_core.available_memory_bytes())
    rows: list[tuple[str, ...]] = [
        (k.replace("_bytes", "").replace("_", " "), ", ".join(v) if isinstance(v, list) else str(v))
        for k, v in report.items()
        if v is not None
    ]
    print(o.table(rows))
