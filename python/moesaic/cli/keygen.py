"""``moesaic keygen FILE``: a new key for a cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from moesaic import _core
from moesaic.cli.terminal import command


@command
def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet.")],
) -> None:
    """Write a new cluster key: 256 random bits, readable by you alone.

    Copy the file to every machine of the cluster; who has it is a member.
    """
    _core.ClusterKey.generate(os.fsencode(file))
    print(
        f"{file}: a new key. Copy it to every machine of the cluster by a safe way (scp -p), mode "
        "0600; who has it is a member.\n"
        f"Next, on each machine: moesaic worker --listen 0.0.0.0:9777 --key {quote(str(file))}\n"
        f"then here: moesaic cluster status --cluster HOST:9777,HOST:9777 --key "
        f"{quote(str(file))}",
        file=sys.stderr,
    )
