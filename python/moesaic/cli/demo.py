"""``moesaic demo``: the first minute, with the small model that ships in the package."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moesaic.cli import options as o
from moesaic.cli.run import print_stream, report
from moesaic.cli.terminal import command, print_json
from moesaic.model import Model

DEFAULT_PROMPT = "It is a truth universally"


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
    """Generate text with the small model that ships in the package."""
    with Model.demo(threads=threads) as m:
        if as_json:
            g = m.generate(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
            print_json(report(prompt, g))
            return
        c = m.config
        print(
            f"{c.name or c.arch}: {c.n_layers} layers, {c.n_experts} experts of which {c.n_active} "
            f"work on a token, vocabulary of {c.vocab}",
            file=sys.stderr,
        )
        print_stream(m, prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
        print(
            "Next: moesaic demo --help; moesaic run MODEL.gguf -p TEXT; or in Python: "
            f"import moesaic; moesaic.Model.demo().generate({DEFAULT_PROMPT!r}).text",
            file=sys.stderr,
        )
