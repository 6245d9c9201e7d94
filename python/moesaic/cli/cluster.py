"""``moesaic cluster``: the workers of a cluster, what they hold, and freeing that."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesaic.cli import options as o
from moesaic.cli.terminal import FAILED, command, human_bytes, print_json, table
from moesaic.cluster_config import Key, named_clusters, resolve
from moesaic.errors import ArgumentError, MoesaicError, NetError

if TYPE_CHECKING:
    from moesaic.nodes import Node

group = typer.Typer(
    help="Look at a cluster, and free what it holds.", no_args_is_help=True, rich_markup_mode=None
)


@group.command()
@command
def status(
    workers: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            "-c",
            help="HOST:PORT,HOST:PORT or a name from clusters.toml.  [default: the only one there]",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", "-k", help="The cluster's key file; also taken from $MOESAIC_KEY, its text."
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure rates and links too; takes seconds.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Show every worker: state, memory, models held, sessions, rates, round trip.

    Ends with 1 when a worker cannot be reached.
    """
    from moesaic.nodes import node_rows

    addresses, chosen = resolve(workers or only_cluster(), o.cluster_key(key), "cluster status")
    nodes = ask(addresses, chosen, measure)
    if as_json:
        print_json({"nodes": nodes})
    else:
        print(table(node_rows(nodes)))
    if any(node.state == "lost" for node in nodes):
        raise typer.Exit(FAILED)


@group.command()
@command
def unload(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="The name of its file, or its identity.  [default: all that are not in use]",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            "-c",
            help="HOST:PORT,HOST:PORT or a name from clusters.toml.  [default: the only one there]",
            show_default=False,
        ),
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", "-k", help="The cluster's key file.")] = None,
) -> None:
    """Let the workers free weights that they hold and that no model uses.

    Prints the workers as they are then.
    """
    from moesaic.cluster import Cluster
    from moesaic.nodes import node_rows

    addresses, chosen = resolve(workers or only_cluster(), key, "cluster unload")
    with Cluster(addresses, key=chosen) as c:
        before = sum(held.weights_bytes for node in c.nodes for held in node.models)
        nodes = c.unload(model)
    after = sum(held.weights_bytes for node in nodes for held in node.models)
    print(table(node_rows(nodes)))
    print(f"[freed {human_bytes(before - after)}]", file=sys.stderr)


def only_cluster() -> str:
    """Return the name of the one cluster that the user has named."""
    names = sorted(named_clusters() or ())
    if len(names) == 1:
        return names[0]
    known = f"one of {', '.join(names)}" if names else "HOST:PORT,HOST:PORT"
    raise ArgumentError(f"[cluster status] need --cluster, with {known}")


def ask(addresses: list[str], key: Key, measure: bool) -> list[Node]:
    """Ask the workers all together, or one by one when not all of them can be reached."""
    from moesaic.cluster import Cluster

    def nodes(some: list[str]) -> list[Node]:
        with Cluster(some, key=key) as c:
            return list(c.measure() if measure else c.nodes)

    def one(address: str) -> Node:
        try:
            return nodes([address])[0]
        except (NetError, TimeoutError, ConnectionError) as error:
            return lost(address, error)

    try:
        return nodes(addresses)
    except (NetError, TimeoutError, ConnectionError) as error:
        if len(addresses) == 1:
            return [lost(addresses[0], error)]
    with ThreadPoolExecutor(max_workers=min(32, len(addresses))) as pool:
        return list(pool.map(one, addresses))


def lost(address: str, error: MoesaicError | OSError) -> Node:
    """Return what is known of a worker that cannot be reached."""
    from moesaic.nodes import Node

    return Node(
        address=address,
        host="",
        pid=0,
        release="",
        isa="",
        threads=0,
        memory=0,
        memory_free=0,
        rates=None,
        rtt=None,
        link=None,
        state="lost",
        error=str(error),
        encrypted=False,
        models=(),
        bytes_sent=0,
        bytes_received=0,
        bytes_read=0,
    )
