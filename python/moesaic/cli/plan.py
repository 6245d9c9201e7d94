"""``moesaic plan MODEL``: which machine would hold what, before anything is bought or fetched."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from moesaic.cli import options as o
from moesaic.cli.terminal import command
from moesaic.errors import ArgumentError
from moesaic.plan import Plan


@command
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, what `moesaic inspect FILE --json` printed of one, or kimi-k2.5.",
            show_default=False,
        ),
    ],
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            help="Plan for these workers, as they are: HOST:PORT,HOST:PORT or a name from "
            "clusters.toml. Without it, on paper.",
            show_default=False,
        ),
    ] = None,
    key: o.Key = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            "--nodes",
            help="How many, or their names with commas.  [default: 1]",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help="Of each node, like 128G; with commas one for each.  [default: as here]",
            show_default=False,
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            "--bandwidth",
            help="Bytes of memory read in a second, like 215G.  [default: measured here]",
            show_default=False,
        ),
    ] = None,
    matmul: Annotated[
        str | None,
        typer.Option(
            "--matmul",
            help="Int8 operations in a second, like 30T.  [default: measured here]",
            show_default=False,
        ),
    ] = None,
    rtt: Annotated[
        str | None,
        typer.Option(
            "--rtt", help="Round trip to the next node.  [default: 0.2ms]", show_default=False
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            "--link",
            help="Rate to the next node: 5Gb are bits, 600MB bytes.  [default: 1Gb]",
            show_default=False,
        ),
    ] = None,
    threads: o.Threads = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            help="How many for each node, with commas.  [default: the best cut]",
            show_default=False,
        ),
    ] = None,
    n_ctx: o.ContextLength = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            "--kv-tokens",
            help="Cached tokens of all sequences together.  [default: n-ctx]",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[str, typer.Option("--strategy", help="auto or pipeline.")] = "auto",
    wire: Annotated[str, typer.Option("--wire", help="Hidden rows travel as f32 or f16.")] = "f32",
    deterministic: o.Deterministic = False,
    override: o.OverrideKeys = None,
    as_json: o.Json = False,
) -> None:
    """Plan a model over a cluster, or over machines that need not be there; reads headers only."""
    paper: dict[str, Any] = {
        "nodes": nodes,
        "memory": memory,
        "bandwidth": bandwidth,
        "matmul": matmul,
        "rtt": rtt,
        "link": link,
        "threads": threads,
        "layers": layers,
        "deterministic": deterministic or None,
    }
    paper = {name: value for name, value in paper.items() if value is not None}
    options: dict[str, Any] = {
        "n_ctx": n_ctx, "kv_tokens": kv_tokens, "strategy": strategy, "wire": wire,
        "overrides": o.override_values(override, "plan"),
    }  # fmt: skip
    if cluster is not None:
        if paper:
            names = ", ".join(f"--{name}" for name in paper)
            raise ArgumentError(
                f"[plan] got {names} with --cluster, whose workers say that of themselves"
            )
        from moesaic.cluster import Cluster

        with Cluster(cluster, key=o.cluster_key(key)) as c:
            made = c.plan(model, **options)
    else:
        if key is not None:
            raise ArgumentError("[plan] got --key without --cluster, which it is for")
        if nodes is not None:
            paper["nodes"] = nodes
        if layers is not None:
            paper["layers"] = _counts(layers)
        made = Plan.on_paper(model, **paper, **options)
    if as_json:
        json.dump(made.to_dict(), sys.stdout, ensure_ascii=False)
        print()
    else:
        print(made)


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(
            f'[plan] layers: got "{text}", need whole numbers with commas, one for each node'
        ) from None
