"""Options that several commands share, each said once, and opening a model from them.

Nothing here prints or ends the process; see ``terminal`` for that.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moesaic.model import Model

_USUAL_CONTEXT = 4096

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A GGUF file, any part of a split set.", show_default=False
    ),
]
ContextLength = Annotated[
    int | None,
    typer.Option(
        "--n-ctx",
        "-c",
        help="Longest sequence, in tokens.  [default: 4096, or what the model was trained for]",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        help="CPU threads.  [default: all the process may use]",
        show_default=False,
    ),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same bytes whatever the threads and batches.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option("--temperature", "--temp", help="0 is greedy.")]
TopK = Annotated[int, typer.Option("--top-k", help="0 is off.")]
TopP = Annotated[float, typer.Option("--top-p", help="1 is off.")]
MinP = Annotated[float, typer.Option("--min-p", help="0 is off.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Same seed, same tokens.  [default: random, shown]", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def open_model(path: Path, *, n_ctx: int | None, threads: int | None, deterministic: bool) -> Model:
    """Open a model, with a progress bar where there is a terminal to show it on."""
    if n_ctx is None:
        n_ctx = usual_context(path)
    from moesaic.model import Model

    return Model(str(path), n_ctx=n_ctx, threads=threads, deterministic=deterministic)


def usual_context(path: Path) -> int:
    """Return a context length that suits most uses and that the model was trained for."""
    from moesaic.gguf import GGUF

    with GGUF(path) as file:
        arch = file.metadata.get("general.architecture")
        trained = file.metadata.get(f"{arch}.context_length")
    if isinstance(trained, int) and trained > 0:
        return min(_USUAL_CONTEXT, trained)
    return _USUAL_CONTEXT


def chosen_seed(seed: int | None) -> int:
    """Return the seed, or a random one that is short enough to type."""
    return secrets.randbits(32) if seed is None else seed
