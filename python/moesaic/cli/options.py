"""Options that several commands share, each said once, and opening a model from them.

Nothing here prints or ends the process; see ``terminal`` for that.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.cli.terminal import show_log
from moesaic.errors import ArgumentError, FormatError, IoError

if TYPE_CHECKING:
    from moesaic.cluster import Cluster
    from moesaic.model import Model
    from moesaic.overrides import Override
    from moesaic.plan import Plan

#: Most tokens of an answer in a conversation.
ANSWER_TOKENS = 1024


def complete_model(incomplete: str) -> list[str]:
    """Return what a shell offers for a model: folders and GGUF files here, and demo."""
    folder, _, begin = incomplete.rpartition("/")
    where = Path((folder or "/") if "/" in incomplete else ".").expanduser()
    stem = incomplete[: len(incomplete) - len(begin)]
    try:
        found = sorted(where.iterdir())
    except OSError:
        return []
    names = [f"{stem}{f.name}/" if f.is_dir() else f"{stem}{f.name}" for f in found]
    offered = [n for n in names if n.endswith("/") or n.lower().endswith(".gguf")]
    return [n for n in [*offered, "demo"] if n.startswith(incomplete)]


ModelPath = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, any part of a split set; or demo, the model of the package.",
        show_default=False,
        autocompletion=complete_model,
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
Workers = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Run on these workers: HOST:PORT,HOST:PORT or a name from clusters.toml.",
    ),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", help="The cluster's key file; also taken from $MOESAIC_KEY, its text."),
]
Local = Annotated[
    int | None, typer.Option("--local", help="Run on so many workers started on this machine.")
]
OnLoss = Annotated[
    str,
    typer.Option(
        "--on-loss",
        help="When a worker is lost: raise (an error), wait for it, or replan (others take its "
        "layers).",
    ),
]
KvType = Annotated[str, typer.Option("--kv-type", help="Type of the KV cache: f16, f32 or q8_0.")]
KvTokens = Annotated[
    int | None,
    typer.Option(
        "--kv-tokens",
        help="Cached tokens of all sequences together.  [default: n-ctx]",
        show_default=False,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        help="Who holds what: a file that `moesaic plan --json` printed for these workers.",
        show_default=False,
    ),
]
OverrideKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        metavar="KEY=VALUE",
        help="Another value for a key of the file, like expert_used_count=4; may be repeated.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@dataclass(frozen=True)
class Place:
    """Where a model is to run: here (all None), on workers, or on workers that are started."""

    cluster: str | None = None
    key: Path | None = None
    local: int | None = None
    on_loss: str = "raise"
    plan: Path | None = None
    kv_type: str = "f16"
    kv_tokens: int | None = None
    overrides: Mapping[str, Override] | None = None

    @property
    def here(self) -> bool:
        """Whether it is this process."""
        return self.cluster is None and self.local is None

    def memory_options(self) -> dict[str, Any]:
        """Return what a load here and one on workers have in common."""
        return {
            "kv_type": self.kv_type,
            "kv_tokens": self.kv_tokens,
            "overrides": self.overrides,
        }

    def check(self) -> None:
        """Refuse options that are for workers when there are none."""
        given = {
            "--key": self.key is not None,
            "--on-loss": self.on_loss != "raise",
            "--plan": self.plan is not None,
        }
        for name, is_given in given.items():
            if self.here and is_given:
                raise ArgumentError(f"[run] got {name} without --cluster, which it is for")


def override_values(texts: list[str] | None, where: str) -> dict[str, Override]:
    """Return what ``--override KEY=VALUE`` gave."""
    from moesaic.overrides import parsed

    return parsed(texts, where)


def read_plan(path: Path) -> Plan:
    """Read what ``moesaic plan --json`` printed.

    Raises
    ------
    FormatError, IoError
        It is something else, or cannot be read.
    """
    from moesaic.plan import Plan

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise IoError(f"[run] --plan {path}: {error.strerror}") from None
    except ValueError as error:
        raise FormatError(f"[run] --plan {path}: no JSON: {error}") from None
    if not isinstance(data, dict):
        raise FormatError(f"[run] --plan {path}: need what moesaic plan --json prints")
    return Plan.from_dict(data)


def cluster_key(file: Path | None) -> Path | bytes | None:
    """Return the key for a cluster: the file given, or the text in the environment.

    The variable is taken out of the environment in any case, so that no process started from here
    has it.
    """
    from moesaic import _core
    from moesaic.key_source import KEY_VARIABLE

    text = _core.take_environment(KEY_VARIABLE)
    os.environ.pop(KEY_VARIABLE, None)
    return file if file is not None else text or None


@contextmanager
def open_model(
    path: str,
    *,
    n_ctx: int | None,
    threads: int | None,
    deterministic: bool,
    place: Place | None = None,
) -> Iterator[Model]:
    """Open a model, with a progress bar where there is a terminal to show it on."""
    from moesaic.gguf import GGUF
    from moesaic.model import Model
    from moesaic.plan import trained_context

    place = place or Place()
    place.check()
    if place.here:
        if n_ctx is None:
            with GGUF(path) as file:
                n_ctx = trained_context(file, place.overrides or {})
        with Model(
            path,
            n_ctx=n_ctx,
            threads=threads,
            deterministic=deterministic,
            **place.memory_options(),
        ) as m:
            yield m
        return
    plan = None if place.plan is None else read_plan(place.plan)
    show_log()
    with open_cluster(place, threads) as cluster:
        if n_ctx is None and plan is None:
            with cluster._open(path, "run") as file:
                n_ctx = trained_context(file, place.overrides or {})
        with cluster.load(
            path,
            n_ctx=n_ctx,
            deterministic=deterministic,
            on_loss=place.on_loss,
            plan=plan,
            **place.memory_options(),
        ) as m:
            yield m


def open_cluster(place: Place, threads: int | None) -> Cluster:
    """Link to the workers that are there, or start some here."""
    from moesaic import _core
    from moesaic.cluster import Cluster
    from moesaic.folders import cache_folder, make_private

    if place.local is None:
        assert place.cluster is not None
        if threads is not None:
            raise ArgumentError(
                "[run] got --threads with --cluster, but each worker has threads of its own: "
                "moesaic worker --threads"
            )
        return Cluster(place.cluster, key=cluster_key(place.key))
    if place.cluster is not None or place.key is not None:
        raise ArgumentError("[run] got --local with --cluster or --key, need one of them")
    if threads is None:
        threads = max(1, _core.available_cpus() // max(1, place.local))
    # With a cache the digests of a file are made once and not at every start.
    return Cluster.local(place.local, threads=threads, cache=make_private(cache_folder()))


def chosen_seed(seed: int | None) -> int:
    """Return the seed, or a random one that is short enough to type."""
    return secrets.randbits(32) if seed is None else seed
