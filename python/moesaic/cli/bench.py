"""``moesaic bench MODEL``: how fast a model runs here or on workers, beside what the machine could.

Prompts are random tokens, fresh every time, so that nothing is reused. Not for comparing with other
programs: bench/python/compare.py does that.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from moesaic import _core
from moesaic.cli import options as o
from moesaic.cli.terminal import command, print_json
from moesaic.errors import ArgumentError
from moesaic.gguf import GGUF

if TYPE_CHECKING:
    from moesaic.model import Model

_READ_BYTES = 2**28  # far beyond caches, soon read
_WARM_UP = 16
_USUAL = (512, 4096, 8192, 16384)


@command
def bench(
    model: o.ModelPath,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            help="Prompt lengths in tokens, by commas.  [default: 512,4096,8192,16384, those that "
            "the model was trained for]",
            show_default=False,
        ),
    ] = None,
    generate: Annotated[
        int, typer.Option("--generate", "-n", help="Tokens to generate behind each prompt.", min=2)
    ] = 64,
    repeats: Annotated[
        int, typer.Option("--repeats", "-r", help="Runs of each; medians are shown.", min=1)
    ] = 3,
    threads: o.Threads = None,
    deterministic: o.Deterministic = False,
    cluster: o.Workers = None,
    key: o.Key = None,
    local: o.Local = None,
    override: o.OverrideKeys = None,
    as_json: o.Json = False,
) -> None:
    """Measure time to first token, prefill and decode by prompt length, beside the ceilings."""
    place = o.Place(cluster, key, local, overrides=o.override_values(override, "bench"))
    wanted = usual_lengths(model, place, generate) if prompt is None else lengths(prompt)
    n_ctx = max(wanted) + generate + 1
    start = time.perf_counter()
    with o.open_model(
        model, n_ctx=n_ctx, threads=threads, deterministic=deterministic, place=place
    ) as m:
        load_seconds = time.perf_counter() - start
        rows = measure(m, wanted, generate, repeats)
        report = {
            "model": m.config.name or m.config.arch,
            "device": m.device,
            "load_seconds": round(load_seconds, 3),
            "memory": m.memory,
            "weights_read_per_token": weights_per_token(m),
            "rows": rows,
        }
    if cluster is None and local is None:
        report["ceilings"] = ceilings(threads or _core.available_cpus())
    if as_json:
        print_json(report)
    else:
        print_table(report)


def usual_lengths(path: str, place: o.Place, n_generate: int) -> list[int]:
    """Return the usual prompt lengths that fit what the model was trained for."""
    if place.cluster is not None and not Path(path).exists():  # a name that workers have
        return [_USUAL[0]]
    with GGUF(path) as file:
        arch = file.metadata.get("general.architecture")
        trained = file.metadata.get(f"{arch}.context_length")
    room = (trained if isinstance(trained, int) else max(_USUAL) * 2) - n_generate - 1
    return [n for n in _USUAL if n <= room] or [max(1, room // 2)]


def lengths(text: str) -> list[int]:
    """``"512,4096"`` as numbers."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ArgumentError(f"[bench] --prompt: got {text!r}, need lengths like 512,4096")
    return numbers


def measure(m: Model, prompts: list[int], n_generate: int, repeats: int) -> list[dict[str, Any]]:
    """Medians by prompt length."""
    rng = np.random.default_rng(0)

    def run(n_prompt: int) -> Any:
        tokens = rng.integers(0, m.config.vocab, n_prompt)
        g = m.generate(tokens, max_tokens=n_generate, temperature=0, ignore_eos=True)
        return g.timings

    run(_WARM_UP)
    rows = []
    for n in prompts:
        timings = [run(n) for _ in range(repeats)]
        row: dict[str, Any] = {"prompt_tokens": n}
        for name in ("time_to_first_token", "prefill_tokens_per_s", "decode_tokens_per_s"):
            row[name] = statistics.median(getattr(t, name) for t in timings)
        rows.append(row)
        print(f"prompt of {n}: done", file=sys.stderr)
    return rows


def weights_per_token(m: Model) -> int:
    """Bytes of weights that one decoded token reads: all but the experts that do not work on it."""
    c = m.config
    total = 0.0
    tied = "output.weight" not in m.tensors
    for name, tensor in m.tensors.items():
        if name == "token_embd.weight" and not tied:
            continue  # one row of it
        share = c.n_active / c.n_experts if "_exps." in name and c.n_experts else 1.0
        total += tensor.nbytes * share
    return int(total)


def ceilings(threads: int) -> dict[str, float]:
    """What this machine reaches: plain reading of memory, and matmuls of many rows."""
    parts = [np.ones(_READ_BYTES // threads // 8) for _ in range(threads)]
    best = 0.0
    for _ in range(3):
        readers = [threading.Thread(target=np.add.reduce, args=(part,)) for part in parts]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, _READ_BYTES / (time.perf_counter() - start))
    weights, matmuls = _core.measure(threads=threads)
    return {
        "threads": threads,
        "read_bytes_per_s": best,
        "decode_read_bytes_per_s": weights,
        "matmul_ops_per_s": matmuls,
    }


def print_table(report: dict[str, Any]) -> None:
    """The table a person wants."""
    per_token = report["weights_read_per_token"]
    memory = report["memory"]["total_bytes"]
    print(f"{report['model']} on {report['device']}")
    print(
        f"loaded in {report['load_seconds']:.2f} s; needs {memory / 1e9:.2f} GB; a token reads "
        f"{per_token / 1e6:,.1f} MB of weights"
    )
    print(
        f"\n{'prompt':>8} {'first token':>12} {'prefill':>12} {'decode':>12} {'weights read':>13}"
    )
    for row in report["rows"]:
        decode = row["decode_tokens_per_s"]
        print(
            f"{row['prompt_tokens']:>8,} {row['time_to_first_token']:>10.2f} s "
            f"{row['prefill_tokens_per_s']:>6,.0f} tok/s {decode:>6.1f} tok/s "
            f"{decode * per_token / 1e9:>8.1f} GB/s"
        )
    if "ceilings" in report:
        c = report["ceilings"]
        print(
            f"\nthis machine, {c['threads']:.0f} threads: memory is read at "
            f"{c['read_bytes_per_s'] / 1e9:.1f} GB/s, weights of one row at "
            f"{c['decode_read_bytes_per_s'] / 1e9:.1f} GB/s, matmuls of many rows reach "
            f"{c['matmul_ops_per_s'] / 1e9:,.0f} GOP/s"
        )
