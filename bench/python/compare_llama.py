"""Decode and prefill speed of one GGUF: Moesaic and llama.cpp, interleaved in one run.

Each repetition starts llama-bench and then a fresh Moesaic process, so that both see the same
machine; medians are compared. Printed are one JSON line per figure and a table.

    LLAMA_BENCH=.../llama-bench python bench/python/compare_llama.py MODEL.gguf [--threads 2]

Decode is measured at the start of a context (llama-bench's tg), prefill on an empty cache (its pp).
llama.cpp's own repacking of weights is left as it is by default (on).
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
from pathlib import Path
from typing import Any

import numpy as np

DECODE_PROMPT = 8  # tokens in front of a decode measurement
GIB = 2**30


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


def run_llama(args: argparse.Namespace) -> dict[str, float]:
    """One llama-bench run: tokens/s of prefill and decode."""
    command = [args.llama_bench, "-m", args.model, "-t", str(args.threads), "-o", "json"]
    command += ["-p", str(args.prefill), "-n", str(args.decode), "-r", "1", "-ngl", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"llama-bench failed on {args.model}:\n{done.stderr[-2000:]}")
    rows = json.loads(done.stdout)
    return {("prefill" if r["n_gen"] == 0 else "decode"): float(r["avg_ts"]) for r in rows}


def moesaic_worker(args: argparse.Namespace) -> None:
    """Measure Moesaic in this process and print one JSON object."""
    import moesaic

    rng = np.random.default_rng(args.seed)
    n_ctx = args.prefill + args.decode + 64
    model = moesaic.Model(args.model, n_ctx=n_ctx, threads=args.threads, progress=False)

    def prompt(n: int) -> list[int]:
        # Fresh tokens every time: an equal prefix would be taken from the cache.
        return [int(t) for t in rng.integers(0, model.config.vocab, n)]

    with model:
        model.generate(prompt(64), max_tokens=4, temperature=0)  # touch the weights once
        timings = model.generate(prompt(args.prefill), max_tokens=1, temperature=0).timings
        out = {"prefill": float(timings.prefill_tokens_per_s)}
        for _ in range(8):  # a greedy run may end early: take the first that does not
            run = model.generate(prompt(DECODE_PROMPT), max_tokens=args.decode, temperature=0)
            if len(run.tokens) == args.decode:
                out["decode"] = float(run.timings.decode_tokens_per_s)
                break
        else:
            raise SystemExit(f"no greedy run of {args.decode} tokens in 8 prompts")
    print(json.dumps(out))


def run_moesaic(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """One Moesaic run in a process of its own."""
    command = [sys.executable, __file__, args.model, "--worker", "--seed", str(seed)]
    command += ["--threads", str(args.threads)]
    command += ["--prefill", str(args.prefill), "--decode", str(args.decode)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"Moesaic failed on {args.model}:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(args: argparse.Namespace, runs: dict[str, list[dict[str, float]]]) -> None:
    """Print the JSON lines and the table."""
    ceiling = read_bandwidth(args.threads)
    name = Path(args.model).name
    sizes = {"prefill": args.prefill, "decode": args.decode}
    table = []
    for figure, tokens in sizes.items():
        medians = {k: statistics.median(r[figure] for r in v) for k, v in runs.items()}
        line: dict[str, Any] = {"model": name, "figure": figure, "tokens": tokens}
        line |= {f"{k}_tokens_per_s": round(v, 2) for k, v in medians.items()}
        line |= {f"{k}_runs": [round(r[figure], 2) for r in v] for k, v in runs.items()}
        if "moesaic" in medians:
            line["ratio"] = round(medians["moesaic"] / medians["llama"], 3)
        line |= {"threads": args.threads, "repeats": args.repeats}
        line |= {"file_gb": round(Path(args.model).stat().st_size / 1e9, 3)}
        line |= {"machine_read_gb_per_s": round(ceiling, 1)}
        print(json.dumps(line), flush=True)
        ours = f"{medians['moesaic']:10.2f}" if "moesaic" in medians else f"{'-':>10}"
        ratio = f"{line['ratio']:7.3f}" if "ratio" in line else f"{'-':>7}"
        table.append(f"{figure:8} {tokens:6} {ours} {medians['llama']:10.2f} {ratio}")
    print(f"\n{name}, {args.threads} threads, tokens/s, medians of {args.repeats}")
    print(f"{'figure':8} {'tokens':>6} {'moesaic':>10} {'llama.cpp':>10} {'ratio':>7}")
    print("\n".join(table))


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description="Moesaic and llama.cpp on one GGUF, interleaved")
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH", "llama-bench"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prefill", type=int, default=512, help="tokens")
    parser.add_argument("--decode", type=int, default=64, help="tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--llama-only", action="store_true", help="leave Moesaic out")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        moesaic_worker(args)
        return
    if args.repeats < 3:
        parser.error("a median of fewer than 3 runs says nothing; give --repeats 3 or more")
    runs: dict[str, list[dict[str, float]]] = {"llama": []}
    if not args.llama_only:
        runs["moesaic"] = []
    for i in range(args.repeats):
        runs["llama"].append(run_llama(args))
        if not args.llama_only:
            runs["moesaic"].append(run_moesaic(args, args.seed + i))
    report(args, runs)


if __name__ == "__main__":
    main()
