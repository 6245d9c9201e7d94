"""``moesaic run MODEL TEXT``: text in, text out; without a text on a terminal, a conversation."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from moesaic.cli import options as o
from moesaic.cli.terminal import command, print_json
from moesaic.errors import ArgumentError
from moesaic.model import Model
from moesaic.results import Generation, Timings

_MAX_TOKENS = 128


@command
def run(
    model: o.ModelPath,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT]...",
            help="The text to go on from. Without one, what is piped in; on a terminal, a "
            "conversation where the model has a chat template.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            help="The text to go on from; - reads stdin.",
            show_default=False,
        ),
    ] = None,
    max_tokens: o.MaxTokens = _MAX_TOKENS,
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
    on_loss: o.OnLoss = "raise",
    plan: o.PlanFile = None,
    kv_type: o.KvType = "f16",
    kv_tokens: o.KvTokens = None,
    override: o.OverrideKeys = None,
    as_json: o.Json = False,
) -> None:
    """Generate text from a prompt. The text goes to stdout, figures to stderr."""
    text = given_prompt(words, prompt)
    overrides = o.override_values(override, "run")
    place = o.Place(cluster, key, local, on_loss, plan, kv_type, kv_tokens, overrides)
    sampling: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    with o.open_model(
        model, n_ctx=n_ctx, threads=threads, deterministic=deterministic, place=place
    ) as m:
        if text is None:
            if as_json:
                raise ArgumentError(
                    "[run] --json: got no prompt, need one; a conversation has none"
                )
            from moesaic.cli.chat import talk

            if max_tokens == _MAX_TOKENS:  # not said: an answer may be longer than a text
                sampling["max_tokens"] = o.ANSWER_TOKENS
            talk(m, None, sampling | {"seed": seed, "stop": tuple(stop or ())})
            return
        sampling |= {"seed": o.chosen_seed(seed), "stop": tuple(stop or ())}
        if as_json:
            print_json(report(text, m.generate(text, **sampling)))
        else:
            print_stream(m, text, **sampling)


def given_prompt(words: list[str] | None, prompt: str | None) -> str | None:
    """Return the prompt, from wherever it comes; None on a terminal where none was given."""
    if words and prompt is not None:
        raise ArgumentError(
            f"[run] prompt: got {' '.join(words)!r} and --prompt, need one of them; quote a text "
            "of several words"
        )
    if words:
        prompt = " ".join(words)
    if prompt is not None:
        return read_stdin() if prompt == "-" else prompt
    if sys.stdin is not None and sys.stdin.isatty():
        return None
    text = "" if sys.stdin is None else read_stdin()
    if not text:
        raise typer.BadParameter(
            'none given; say it behind the model (moesaic run MODEL "text"), by -p, or on stdin',
            param_hint="PROMPT",
        )
    return text


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
    finish = None
    chunks = m.stream(prompt, seed=seed, **sampling)  # options are checked before text appears
    try:
        for chunk in chunks:
            if timings is None:  # not earlier: a bar of the prefill would write over the prompt
                sys.stdout.write(prompt)
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
            timings, finish = chunk.timings, chunk.finish_reason
            tokens.extend(int(token) for token in chunk.tokens)
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    if timings is not None:
        note = full_context(m, timings, finish, sampling.get("max_tokens"))
        print(f"[{figures(timings)}; seed {seed}{note}]", file=sys.stderr)
    return tokens


def full_context(m: Model, timings: Timings, finish: str | None, max_tokens: int | None) -> str:
    """Say that a text was cut because the context is full, if it was."""
    if finish != "length" or (max_tokens is not None and timings.generated_tokens >= max_tokens):
        return ""
    return f"; cut where the context of {m.n_ctx} tokens is full, --n-ctx makes it longer"


def figures(timings: Timings) -> str:
    """Return speed figures for people."""
    t = timings
    reused = f" ({t.cached_tokens} reused)" if t.cached_tokens else ""
    return (
        f"prompt {t.prompt_tokens} tokens{reused}, {t.prefill_tokens_per_s:.0f} tok/s; "
        f"generated {t.generated_tokens}, {t.decode_tokens_per_s:.1f} tok/s"
    )
