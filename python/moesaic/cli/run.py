"""``moesaic run MODEL -p TEXT``: text in, text out."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from moesaic.cli import options as o
from moesaic.cli.terminal import command, print_json
from moesaic.errors import ArgumentError
from moesaic.model import Model
from moesaic.results import Generation, Timings


@command
def run(
    model: o.ModelPath,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The text to go on from; - reads stdin.")
    ],
    max_tokens: o.MaxTokens = 128,
    temperature: o.Temperature = 0.8,
    top_k: o.TopK = 40,
    top_p: o.TopP = 0.95,
    min_p: o.MinP = 0.05,
    seed: o.Seed = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text.")] = None,
    n_ctx: o.ContextLength = None,
    threads: o.Threads = None,
    deterministic: o.Deterministic = False,
    cluster: o.Workers = None,
    key: o.Key = None,
    local: o.Local = None,
    as_json: o.Json = False,
) -> None:
    """Generate text from a prompt. The text goes to stdout, figures to stderr."""
    text = read_stdin() if prompt == "-" else prompt
    place = o.Place(cluster, key, local)
    with o.open_model(
        model, n_ctx=n_ctx, threads=threads, deterministic=deterministic, place=place
    ) as m:
        sampling: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": o.chosen_seed(seed),
            "stop": tuple(stop or ()),
        }
        if as_json:
            print_json(report(text, m.generate(text, **sampling)))
        else:
            print_stream(m, text, **sampling)


def read_stdin() -> str:
    """Return everything on stdin."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"[run] stdin: got a byte that is no UTF-8 at place {error.start}, need text in UTF-8; "
            "convert it with iconv"
        ) from None


def report(prompt: str, g: Generation) -> dict[str, object]:
    """What ``--json`` prints of a generation."""
    return {
        "prompt": prompt,
        "text": g.text,
        "tokens": g.tokens,
        "finish_reason": g.finish_reason,
        "stop": g.stop,
        "seed": g.seed,
        "timings": g.timings,
    }


def print_stream(m: Model, prompt: str, *, seed: int, **sampling: Any) -> list[int]:
    """Print the prompt and what follows as it comes, then one line of figures on stderr.

    Returns the tokens that followed.
    """
    timings = None
    tokens: list[int] = []
    chunks = m.stream(prompt, seed=seed, **sampling)  # options are checked before text appears
    try:
        for chunk in chunks:
            if timings is None:  # not earlier: a bar of the prefill would write over the prompt
                sys.stdout.write(prompt)
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
            timings = chunk.timings
            tokens.extend(int(token) for token in chunk.tokens)
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    if timings is not None:
        print(f"[{figures(timings)}; seed {seed}]", file=sys.stderr)
    return tokens


def figures(timings: Timings) -> str:
    """Return speed figures for people."""
    t = timings
    reused = f" ({t.cached_tokens} reused)" if t.cached_tokens else ""
    return (
        f"prompt {t.prompt_tokens} tokens{reused}, {t.prefill_tokens_per_s:.0f} tok/s; "
        f"generated {t.generated_tokens}, {t.decode_tokens_per_s:.1f} tok/s"
    )
