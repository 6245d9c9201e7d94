"""Clusters on one machine: pipeline, hops, plan against measurement, loads; beside llama.cpp's RPC.

    python bench/python/cluster_bench.py MODEL.gguf [--repeats 5] [--no-rpc] [--link 1gbit]

Interleaved: each repetition measures every engine once; medians are compared. Workers and RPC
servers have one thread each, all links are TLS (RPC's are plain: it has nothing else). One JSON
line per figure, then a table. ``--link`` (root, Linux) adds two workers in network namespaces
behind links of that rate.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import llama_cpp
import numpy as np

import moesaic

PROMPT = 2048
GENERATE = 64
HOP_WIDTH = 2048
CLONE_NEWNET = 0x40000000
ROOT = Path(__file__).resolve().parents[2]


def emit(rows: list[dict[str, Any]], figure: str, value: float, unit: str, **more: Any) -> None:
    """Print one figure as a JSON line and keep it for the table."""
    row = {"figure": figure, "value": round(value, 4), "unit": unit} | more
    print(json.dumps(row), flush=True)
    rows.append(row)


class Prompts:
    """Fresh random prompts: an equal prefix would be taken from the cache."""

    def __init__(self, vocab: int) -> None:
        self._rng = np.random.default_rng(0)
        self._vocab = vocab

    def next(self, n: int) -> list[int]:
        """n tokens that were not used before."""
        return [int(t) for t in self._rng.integers(0, self._vocab, n)]


def prefill(model: moesaic.Model, prompts: Prompts) -> float:
    """Tokens/s of a prompt of PROMPT tokens."""
    run = model.generate(prompts.next(PROMPT), max_tokens=1, temperature=0)
    return float(run.timings.prefill_tokens_per_s)


def decode(model: moesaic.Model, prompts: Prompts) -> float:
    """Tokens/s of GENERATE tokens behind a short prompt."""
    run = model.generate(prompts.next(8), max_tokens=GENERATE + 1, temperature=0, ignore_eos=True)
    return float(run.timings.decode_tokens_per_s)


def interleaved(engines: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Each engine once per repetition, another one first each time.

    Whoever runs behind llama.cpp's servers is slower for a while.
    """
    runs: dict[str, list[float]] = {name: [] for name in engines}
    order = list(engines)
    for _ in range(repeats):
        for name in order:
            runs[name].append(engines[name]())
        order.append(order.pop(0))
    return runs


def both_at_once(pair: list[moesaic.Model], prompts: Prompts) -> float:
    """Tokens/s of each of two models that share nothing but the machine: what its cores lose."""
    with ThreadPoolExecutor(len(pair)) as pool:
        return statistics.fmean(pool.map(lambda model: prefill(model, prompts), pair))


def ceiling(
    rows: list[dict[str, Any]], runs: dict[str, list[float]], twin: list[float], micro_batch: int
) -> None:
    """What two workers could be at most beside one, on this machine at this time.

    n micro-batches take n + 1 turns of half the time each, and no turn is faster than two
    processes that know nothing of each other.
    """
    n = math.ceil(PROMPT / micro_batch)
    alone = statistics.median(runs["1 worker"])
    kept = statistics.median(twin) / alone
    emit(rows, "prefill, one of two single workers at once / alone", kept, "")
    emit(rows, "ceiling of 2 workers / 1 worker", 2 * n / (n + 1) * kept, "", n=n)


def report(
    rows: list[dict[str, Any]], what: str, runs: dict[str, list[float]], goals: dict[str, float]
) -> None:
    """The rates of one figure, and two workers' ratio to each of the others."""
    medians = {name: statistics.median(each) for name, each in runs.items()}
    for name, value in medians.items():
        more: dict[str, Any] = {"runs": [round(x, 1) for x in runs[name]]}
        if name in goals:
            more |= {"ratio": round(medians["2 workers"] / value, 3), "goal": goals[name]}
        emit(rows, f"{what}, {name}", value, "tok/s", **more)


def against_plan(
    rows: list[dict[str, Any]],
    plan: moesaic.Plan,
    model: moesaic.Model,
    prompts: Prompts,
    repeats: int,
) -> None:
    """Each prediction against what two workers reach: the same prompt, and decode behind it."""
    plan = moesaic.Plan.from_dict(plan.to_dict())
    for p in plan.predictions:
        n = min(p.prompt_tokens, plan.n_ctx - GENERATE - 1)
        runs = [
            model.generate(
                prompts.next(n), max_tokens=GENERATE + 1, temperature=0, ignore_eos=True
            ).timings
            for _ in range(repeats)
        ]
        for what, says, measured in (
            ("prefill", p.prefill_tokens_per_s, [r.prefill_tokens_per_s for r in runs]),
            ("decode behind", p.decode_tokens_per_s, [r.decode_tokens_per_s for r in runs]),
        ):
            ratio = says / statistics.median(measured)
            emit(rows, f"{what} {n}: plan / measured", ratio, "", goal="0.75-1.25")


def hop_model(folder: Path) -> Path:
    """A model 2,048 wide with next to nothing in it: what its tokens cost is hops."""
    path = folder / "hop.gguf"
    heads, d_head, d_ff, vocab, layers = 16, 32, 32, 64, 2
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.context_length": 4096,
        "llama.embedding_length": HOP_WIDTH,
        "llama.block_count": layers,
        "llama.feed_forward_length": d_ff,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": d_head,
        "llama.attention.value_length": d_head,
        "llama.rope.dimension_count": d_head,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(vocab)],
        "tokenizer.ggml.scores": [0.0] * vocab,
        "tokenizer.ggml.token_type": [1] * vocab,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, HOP_WIDTH),
        "output_norm.weight": (HOP_WIDTH,),
    }
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HOP_WIDTH,),
            f"blk.{i}.ffn_norm.weight": (HOP_WIDTH,),
            f"blk.{i}.attn_q.weight": (heads * d_head, HOP_WIDTH),
            f"blk.{i}.attn_k.weight": (d_head, HOP_WIDTH),
            f"blk.{i}.attn_v.weight": (d_head, HOP_WIDTH),
            f"blk.{i}.attn_output.weight": (HOP_WIDTH, heads * d_head),
            f"blk.{i}.ffn_gate.weight": (d_ff, HOP_WIDTH),
            f"blk.{i}.ffn_up.weight": (d_ff, HOP_WIDTH),
            f"blk.{i}.ffn_down.weight": (HOP_WIDTH, d_ff),
        }
    rng = np.random.default_rng(1)
    tensors = {name: rng.normal(0, 0.02, s).astype(np.float32) for name, s in shapes.items()}
    moesaic.write_gguf(path, metadata, tensors)
    return path


def token_times(model: moesaic.Model, n: int) -> list[float]:
    """Seconds from token to token, as the coordinator sees them."""
    times = []
    before = 0.0
    for chunk in model.stream([1, 2, 3], max_tokens=n, temperature=0, ignore_eos=True):
        now = time.perf_counter()
        if before and len(chunk.tokens) == 1:
            times.append(now - before)
        before = now
    return times


def hops(rows: list[dict[str, Any]], repeats: int) -> None:
    """A token of two workers takes two hops more than one of one worker: rows there, tokens back.

    The stream of tokens hides what the coordinator itself costs: the ring does not wait for it.
    """
    with TemporaryDirectory() as folder, ExitStack() as stack:
        path = hop_model(Path(folder))
        models = {}
        for n in (1, 2):
            cluster = stack.enter_context(moesaic.Cluster.local(n, models=folder))
            models[n] = stack.enter_context(cluster.load(path, n_ctx=4096, progress=False))
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(repeats):
            for n, model in models.items():
                times[n] += token_times(model, 1000)[50:]
    base = statistics.median(times[1])
    costs = np.sort((np.array(times[2]) - base) / 2)
    emit(
        rows, f"hop of a row of {HOP_WIDTH}, median", 1e6 * float(np.median(costs)), "us", goal=150
    )
    emit(rows, "hop, p99", 1e6 * float(np.quantile(costs, 0.99)), "us")


def loads(rows: list[dict[str, Any]], path: Path) -> None:
    """Cold (digests are made), warm with local copies, and warm for a new coordinator."""
    with (
        TemporaryDirectory() as cache,
        moesaic.Cluster.local(2, models=path.parent, cache=cache) as first,
    ):
        for name in ("cold load, local copies", "warm load, the workers hold it"):
            begin = time.perf_counter()
            first.load(path, progress=False).close()
            emit(rows, name, time.perf_counter() - begin, "s")
        nodes = first.nodes
        share = sum(n.bytes_read for n in nodes) / sum(
            m.weights_bytes for n in nodes for m in n.models
        )
        emit(rows, "bytes read / bytes held", share, "", goal=1.02)
        begin = time.perf_counter()
        launcher = first.launcher
        assert launcher is not None
        with moesaic.Cluster(first.addresses, key=launcher.key.text()) as second:
            second.load(path, progress=False).close()
        emit(
            rows,
            "new coordinator on workers that hold it",
            time.perf_counter() - begin,
            "s",
            goal=0.3,
        )
        with moesaic.Cluster.local(2, models=path.parent, cache=cache) as third:
            begin = time.perf_counter()
            third.load(path, progress=False).close()
            emit(
                rows,
                "warm load, new workers with digests",
                time.perf_counter() - begin,
                "s",
                goal=1.0,
            )


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Make this thread's new sockets (and new threads) belong to a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as away:
        if libc.setns(away.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(home.fileno(), CLONE_NEWNET)


@contextmanager
def behind_links(rate: str, models: Path) -> Iterator[moesaic.Cluster]:
    """Two workers and a coordinator on three machines of their own, who send at most at `rate`."""
    sys.path.insert(0, str(ROOT / "tests" / "python" / "cluster"))
    from netns import room  # the tests' namespaces

    desk, *hosts = addresses = [f"10.77.3.{i}" for i in (1, 11, 12)]
    with room(addresses) as net, TemporaryDirectory() as folder, ExitStack() as stack:
        key = Path(folder) / "key"
        command = [sys.executable, "-m", "moesaic"]
        subprocess.run([*command, "keygen", str(key)], check=True, stdout=subprocess.DEVNULL)
        for address in addresses:
            net.limit(address, rate)
        for host in hosts:
            worker = [*command, "worker", "--listen", f"{host}:9777", "--key", str(key)]
            worker += ["--models", str(models), "--threads", "1"]
            process = subprocess.Popen(net.on(host, *worker), stderr=subprocess.DEVNULL)
            stack.callback(process.wait, timeout=20)
            stack.callback(process.terminate)
        with inside(net.on(desk)[3]):
            for host in hosts:
                llama_cpp.wait_for_port(f"{host}:9777")
            cluster = moesaic.Cluster([f"{host}:9777" for host in hosts], key=key)
        with cluster:
            yield cluster


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-rpc", action="store_true")
    parser.add_argument("--micro-batch", type=int, default=0, help="rows; default: the plan's")
    parser.add_argument("--link", help="also behind links of this rate (tc's words: 1gbit)")
    args = parser.parse_args()
    path = args.model.resolve()
    rows: list[dict[str, Any]] = []
    n_ctx = PROMPT + GENERATE + 64

    with ExitStack() as stack:
        plans = {}
        models = {}
        micro_batch = args.micro_batch
        for name, n in (("2 workers", 2), ("1 worker", 1), ("twin", 1)):
            cluster = stack.enter_context(moesaic.Cluster.local(n, models=path.parent))
            plan = cluster.plan(path, n_ctx=n_ctx)
            micro_batch = micro_batch or plan.micro_batch_rows
            plan = replace(plan, micro_batch_rows=micro_batch)
            plans[name] = plan
            models[name] = stack.enter_context(cluster.load(path, plan=plan, progress=False))
        models["Model(threads=1)"] = stack.enter_context(
            moesaic.Model(path, n_ctx=n_ctx, threads=1, progress=False)
        )
        models["Model(threads=2)"] = stack.enter_context(
            moesaic.Model(path, n_ctx=n_ctx, threads=2, progress=False)
        )
        if args.link:
            models[f"2 workers, {args.link}"] = stack.enter_context(
                stack.enter_context(behind_links(args.link, path.parent)).load(
                    path, plan=None, n_ctx=n_ctx, progress=False
                )
            )
        twins = [models["1 worker"], models.pop("twin")]
        prompts = Prompts(models["2 workers"].config.vocab)
        for model in (*models.values(), twins[1]):
            model.generate(prompts.next(64), max_tokens=4, temperature=0)
        emit(rows, "micro-batch", micro_batch, "rows")

        def engines(what: Callable[[moesaic.Model, Prompts], float]) -> dict[str, Any]:
            return {name: (lambda m=m: what(m, prompts)) for name, m in models.items()}

        prefills, decodes = engines(prefill), engines(decode)
        if not args.no_rpc:
            binary = llama_cpp.llama_bench(rpc=True)
            servers = stack.enter_context(llama_cpp.rpc_servers(binary, 2))
            options: dict[str, Any] = {"threads": 1, "servers": servers}
            prefills["llama.cpp RPC"] = lambda: llama_cpp.tokens_per_s(
                binary, path, prompt=PROMPT, **options
            )
            decodes["llama.cpp RPC"] = lambda: llama_cpp.tokens_per_s(
                binary, path, generate=GENERATE, **options
            )
        goals = {"1 worker": 1.8, "Model(threads=2)": 0.85, "llama.cpp RPC": 3.0}
        prefills["twins"] = lambda: both_at_once(twins, prompts)
        prefill_runs = interleaved(prefills, args.repeats)
        twin_runs = prefill_runs.pop("twins")
        report(rows, f"prefill {PROMPT}", prefill_runs, goals)
        ceiling(rows, prefill_runs, twin_runs, micro_batch)
        goals = {"Model(threads=1)": 0.95, "llama.cpp RPC": 1.3}
        decode_runs = interleaved(decodes, args.repeats)
        report(rows, f"decode {GENERATE}", decode_runs, goals)
        if not args.micro_batch:  # predictions are of the plan's own size
            against_plan(rows, plans["2 workers"], models["2 workers"], prompts, args.repeats)
    hops(rows, max(1, args.repeats // 2))
    loads(rows, path)
    print("\n| figure | value | unit | ratio of 2 workers | goal |\n|---|---:|---|---:|---|")
    for row in rows:
        value, ratio, goal = row["value"], row.get("ratio", ""), row.get("goal", "")
        print(f"| {row['figure']} | {value:.4g} | {row['unit']} | {ratio} | {goal} |")


if __name__ == "__main__":
    main()
