"""``moesaic run MODEL -p TEXT``: text in, text out."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from moesaic.cli import options as o
from moesaic.errors import ArgumentError
from moesaic.model import Model
from moesaic.results import Generation, Timings


def run(
    model: o.ModelPath,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to go on from; - reads stdin.")
    ] = None,
    max_tokens: o.MaxTokens = 128,
    temperature: o.Temperature = 0.8,
    top_k: o.TopK = 40,
    top_p: o.TopP = 0.95,
    min_p: o.MinP = 0.05,
    seed: o.Seed = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text.")] = None,
    n_ctx: o.ContextLength = 4096,
    threads: o.Threads = None,
    deterministic: o.Deterministic = False,
    as_json: o.Json = False,
) -> None:
    """Generate text from a prompt. The text goes to stdout, figures to stderr."""
    if prompt is None:
        raise ArgumentError(
            "[run] --prompt is missing: give -p TEXT, or -p - to read it from stdin"
        )
    text = sys.stdin.read() if prompt == "-" else prompt
    with o.open_model(model, n_ctx=n_ctx, threads=threads, deterministic=deterministic) as m:
        sampling: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
            "stop": tuple(stop or ()),
        }
        if as_json:
            o.print_json(report(m.generate(text, **sampling)))
        else:
            print_stream(m, text, **sampling)


def report(g: Generation) -> dict[str, object]:
    """What ``--json`` prints of a generation."""
    return {
        "text": g.text,
        "tokens": g.tokens,
        "finish_reason": g.finish_reason,
        "timings": g.timings,
    }


def print_stream(m: Model, prompt: str, **sampling: Any) -> None:
    """Print the prompt and what follows as it comes, then one line of figures on stderr."""
    sys.stdout.write(prompt)
    sys.stdout.flush()
    timings = None
    for chunk in m.stream(prompt, **sampling):
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
        timings = chunk.timings
    sys.stdout.write("\n")
    sys.stdout.flush()
    if timings is not None:
        print(figures(timings), file=sys.stderr)


def figures(timings: Timings) -> str:
    """Return one line of speed figures for people."""
    return (
        f"[prompt {timings.prompt_tokens} tokens, {timings.prefill_tokens_per_s:.0f} tok/s; "
        f"generated {timings.generated_tokens}, {timings.decode_tokens_per_s:.1f} tok/s]"
    )
