"""``moesaic demo``: the first minute, with the small model that ships in the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from moesaic.cli import options as o
from moesaic.cli.run import print_stream, report
from moesaic.cli.terminal import command, print_json
from moesaic.cluster import Cluster
from moesaic.model import Model

DEFAULT_PROMPT = "It is a truth universally"
N_WORKERS = 2


@command
def demo(
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The text to go on from.")
    ] = DEFAULT_PROMPT,
    max_tokens: o.MaxTokens = 160,
    temperature: o.Temperature = 0.8,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same tokens.")] = 1,
    threads: o.Threads = None,
    as_json: o.Json = False,
) -> None:
    """Generate text with the small model of the package, then the same on two local workers."""
    # Deterministic: the second text is the first one, byte for byte.
    with Model.demo(threads=threads, deterministic=True) as m:
        if as_json:
            sampling: dict[str, Any] = {
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": seed,
            }
            g = m.generate(prompt, **sampling)
            with on_workers(m.path, m.n_ctx) as sharded:
                again = sharded.generate(prompt, **sampling)
            workers = {
                "workers": N_WORKERS,
                "same_tokens": again.tokens.tolist() == g.tokens.tolist(),
                "timings": again.timings,
            }
            print_json(report(prompt, g) | {"cluster": workers})
            return
        c = m.config
        print(
            f"{c.name or c.arch}: {c.n_layers} layers, {c.n_experts} experts of which {c.n_active} "
            f"work on a token, vocabulary of {c.vocab}",
            file=sys.stderr,
        )
        show(m, prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)


def show(m: Model, prompt: str, *, seed: int, **sampling: Any) -> None:
    """Print a text, the same text made on workers, and where to go from here."""
    tokens = print_stream(m, prompt, seed=seed, **sampling)
    print(f"\nThe same on {N_WORKERS} workers, started for it:", file=sys.stderr)
    with on_workers(m.path, m.n_ctx) as sharded:
        same = print_stream(sharded, prompt, seed=seed, **sampling) == tokens
    verdict = "the same tokens as" if same else "OTHER TOKENS, which is a bug, than"
    print(f"[{verdict} on one machine]", file=sys.stderr)
    print(
        "Next: moesaic demo --help; moesaic run MODEL.gguf -p TEXT; or in Python: "
        f"import moesaic; moesaic.Model.demo().generate({DEFAULT_PROMPT!r}).text",
        file=sys.stderr,
    )


@contextmanager
def on_workers(path: str, n_ctx: int) -> Iterator[Model]:
    """Load a model on workers that live as long as the block."""
    with (
        Cluster.local(N_WORKERS) as cluster,
        cluster.load(path, n_ctx=n_ctx, deterministic=True) as model,
    ):
        yield model
