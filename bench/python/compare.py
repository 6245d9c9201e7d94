"""Moesaic and llama.cpp on the same file and threads, interleaved in one run.

    python bench/python/compare.py MODEL.gguf [--threads 1,2] [--repeats 5] [--avx2]
        [--figures "decode 64,prefill 512"] [--save ROWS.jsonl]
    python bench/python/compare.py --show ROWS.jsonl [--plot OUT.png]

Per thread count: decode of 64 tokens at depth 0 and 4,096; prefill of 512, 2,048 and 8,192 tokens
(and so the time to the first token). Each repetition measures a figure with one engine and at once
with the other; medians are compared. llama.cpp runs with and without flash attention in the first
repetition, then with the better of the two. One JSON line per figure, then a table, with Moesaic's
share of the machine's ceiling of the same minute: for decode, memory's read bandwidth (weights that
a token reads; the KV cache is not counted); for prefill, int8 products (with weights; attention is
not counted). Both come from bench_kernels, which ``./dev bench`` builds or BENCH_KERNELS names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

GIB = 2**30


@dataclass(frozen=True)
class Figure:
    """What is measured: prompt tokens run, or 64 tokens generated after `depth`."""

    name: str
    prompt: int = 0
    generate: int = 0
    depth: int = 0

    @property
    def n_ctx(self) -> int:
        return self.prompt + self.generate + self.depth + 64


FIGURES = (
    Figure("decode 64", generate=64),
    Figure("decode 64 at 4096", generate=64, depth=4096),
    Figure("prefill 512", prompt=512),
    Figure("prefill 2048", prompt=2048),
    Figure("prefill 8192", prompt=8192),
)


def read_bandwidth(threads: int) -> float:
    """GB/s at which the threads together read memory far larger than any cache (best of 3)."""
    data = [np.ones(GIB // 8 // threads, np.float64) for _ in range(threads)]
    best = 0.0
    for _ in range(3):
        workers = [threading.Thread(target=np.add.reduce, args=(part,)) for part in data]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, GIB / (time.perf_counter() - start) / 1e9)
    return best


def ceilings(threads: int) -> dict[str, float]:
    """What that many cores reach at once in bare loops (bench/cpp), or at least numpy's reading."""
    built = Path(__file__).resolve().parents[2] / "build" / "release" / "bench_kernels"
    binary = os.environ.get("BENCH_KERNELS", str(built))
    if not Path(binary).exists():
        return {"read_gb_per_s": round(read_bandwidth(threads), 1)}
    command = [binary, "--type", "none"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(threads)]
    lines = []
    for run in runs:
        assert run.stdout is not None
        lines.append(json.loads(run.stdout.readline()))
    for run in runs:
        run.kill()
        run.communicate()
    return {
        "read_gb_per_s": round(sum(line["read_gb_per_s"] for line in lines), 1),
        "int8_gop_per_s": round(sum(line["int8_gop_per_s"] for line in lines)),
    }


class Moesaic:
    """A process of ours that loads the model once and measures on request."""

    def __init__(self, model: Path, threads: int, n_ctx: int, isa: str | None) -> None:
        command = [sys.executable, __file__, str(model), "--worker", "--threads", str(threads)]
        command += ["--n-ctx", str(n_ctx)]
        env = os.environ | ({"MOESAIC_ISA": isa} if isa else {})
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        assert self._process.stdout is not None
        # Of weights: bytes that a token of decode reads, operations that any token takes.
        self.bytes_per_token, self.ops_per_token = map(
            float, self._process.stdout.readline().split()
        )

    def tokens_per_s(self, figure: Figure) -> float:
        """One measurement."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(figure.prompt, figure.generate, figure.depth, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def ops_per_token(model: Any) -> float:
    """Products and sums of one row with the weights that work on it; the head is for the last."""
    c = model.config
    ops = 0.0
    for name, tensor in model.tensors.items():
        if name not in ("token_embd.weight", "output.weight") and len(tensor.shape) > 1:
            share = c.n_active / c.n_experts if "_exps." in name and c.n_experts else 1.0
            ops += 2 * float(np.prod(tensor.shape)) * share
    return ops


def worker(model_path: str, threads: int, n_ctx: int) -> None:
    """The measuring process: lines of three numbers in, a rate out."""
    import moesaic
    from moesaic.cli.bench import weights_per_token

    rng = np.random.default_rng(0)
    model = moesaic.Model(model_path, n_ctx=n_ctx, threads=threads, progress=False)
    print(weights_per_token(model), ops_per_token(model), flush=True)

    def prompt(n: int) -> list[int]:
        # Fresh tokens every time: an equal prefix would be taken from the cache.
        return [int(t) for t in rng.integers(0, model.config.vocab, n)]

    model.generate(prompt(64), max_tokens=4, temperature=0)  # touch the weights once
    for line in sys.stdin:
        n_prompt, n_generate, depth = map(int, line.split())
        if n_generate == 0:
            timings = model.generate(prompt(n_prompt), max_tokens=1, temperature=0).timings
            print(timings.prefill_tokens_per_s, flush=True)
        else:
            run = model.generate(
                prompt(max(depth, 8)), max_tokens=n_generate + 1, temperature=0, ignore_eos=True
            )
            print(run.timings.decode_tokens_per_s, flush=True)


def measure(args: argparse.Namespace, model: Path, threads: int) -> list[dict[str, Any]]:
    """All figures of one thread count."""
    peer = llama_cpp.llama_bench(avx2=args.avx2)
    figures = [f for f in FIGURES if f.name in args.figures]
    ours = Moesaic(model, threads, max(f.n_ctx for f in figures), "avx2" if args.avx2 else None)
    rows = []
    for figure in figures:
        options: dict[str, Any] = {"threads": threads, "prompt": figure.prompt}
        options |= {"generate": figure.generate, "depth": figure.depth}
        by_flash = {
            flash: llama_cpp.tokens_per_s(peer, model, **options, flash_attention=flash)
            for flash in (True, False)
        }
        flash = by_flash[True] >= by_flash[False]
        mine, theirs = [ours.tokens_per_s(figure)], [by_flash[flash]]
        for _ in range(args.repeats - 1):
            theirs.append(llama_cpp.tokens_per_s(peer, model, **options, flash_attention=flash))
            mine.append(ours.tokens_per_s(figure))
        row: dict[str, Any] = {
            "model": model.stem,
            "figure": figure.name,
            "threads": threads,
            "isa": "avx2" if args.avx2 else "best",
            "moesaic_tokens_per_s": round(statistics.median(mine), 2),
            "llama_tokens_per_s": round(statistics.median(theirs), 2),
            "ratio": round(statistics.median(mine) / statistics.median(theirs), 2),
            "llama_flash_attention": flash,
            "moesaic_runs": [round(x, 1) for x in mine],
            "llama_runs": [round(x, 1) for x in theirs],
        } | ceilings(threads)
        mine_per_s = row["moesaic_tokens_per_s"]
        if figure.generate:
            row["share"] = round(ours.bytes_per_token * mine_per_s / row["read_gb_per_s"] / 1e9, 2)
        elif "int8_gop_per_s" in row:
            row["share"] = round(ours.ops_per_token * mine_per_s / row["int8_gop_per_s"] / 1e9, 2)
        if figure.prompt:
            row["time_to_first_token_s"] = round(figure.prompt / row["moesaic_tokens_per_s"], 3)
        print(json.dumps(row), flush=True)
        if args.save:
            with args.save.open("a") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
    ours.close()
    return rows


def setting_of(row: dict[str, Any]) -> str:
    """Threads and instruction set."""
    return f"{'AVX2, ' if row['isa'] == 'avx2' else ''}{row['threads']}"


def ceiling_of(row: dict[str, Any]) -> str:
    """What the share in a row is of."""
    if "share" not in row:
        return ""
    if row["figure"].startswith("decode"):
        return f"{row['read_gb_per_s']:.1f} GB/s"
    return f"{row['int8_gop_per_s']:,} GOP/s"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| model | figure | threads | Moesaic tok/s | llama.cpp tok/s | ratio | ceiling | share |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    lines += [
        f"| {r['model']} | {r['figure']} | {setting_of(r)} | {r['moesaic_tokens_per_s']:.1f} "
        f"| {r['llama_tokens_per_s']:.1f} | {r['ratio']:.2f} | {ceiling_of(r)} "
        f"| {r.get('share', '')} |"
        for r in rows
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratio of each figure, a panel for each thread count and instruction set."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((r["isa"], r["threads"]) for r in rows))
    figure, grid = plt.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 1 + 0.28 * len(rows) / len(panels)),
        layout="constrained", squeeze=False, sharex=True,
    )  # fmt: skip
    for axes, (isa, threads) in zip(grid[0], panels, strict=True):
        shown = [r for r in rows if (r["isa"], r["threads"]) == (isa, threads)][::-1]
        bars = axes.barh(
            [f"{r['model']}, {r['figure']}" for r in shown], [r["ratio"] for r in shown]
        )
        axes.bar_label(bars, [f"{r['ratio']:.2f}" for r in shown], padding=2, fontsize=8)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_title(f"threads: {setting_of(shown[0])}", fontsize=9)
        axes.tick_params(axis="y", labelsize=8)
        axes.margins(x=0.15)
    figure.supxlabel("times llama.cpp's tokens/s")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    names = [f.name for f in FIGURES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--figures", help="only these: " + ", ".join(names))
    parser.add_argument("--avx2", action="store_true", help="both engines for AVX2")
    parser.add_argument("--save", type=Path, help="add each row to this file")
    parser.add_argument("--show", type=Path, help="measure nothing: table and plot of such a file")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--n-ctx", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.figures = args.figures.split(",") if args.figures else names
    if unknown := set(args.figures) - set(names):
        parser.error(f"--figures: got {sorted(unknown)}, need some of {names}")
    if args.worker:
        worker(str(args.models[0]), int(args.threads), args.n_ctx)
        return
    rows = [
        row
        for model in args.models
        for threads in map(int, args.threads.split(","))
        for row in measure(args, model, threads)
    ]
    if args.show:
        rows = [json.loads(line) for line in args.show.read_text().splitlines()]
    print("\n" + table(rows))
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
