"""Train the demo model: a small Kimi-shaped mixture of experts that writes like Jane Austen.

    apt-get install r-cran-janeaustenr
    python training/train_demo.py --out build/demo        # resumes where it was stopped

Leaves checkpoint.pt, tokenizer.json and log.jsonl in --out; export_demo.py makes the GGUF of them.
Runs on CPU in bfloat16 (a processor with AVX512-BF16 or AMX is several times faster) and needs
torch, tokenizers and numpy.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from dataclasses import asdict
from pathlib import Path

import austen
import corpus
import numpy as np
import torch
import torch.nn.functional as F
from moe_model import Attention, Mlp, Model, RmsNorm, Shape
from muon import Muon
from tokenizers import Tokenizer


def learning_rate(step: int, *, peak: float, warmup: int, steps: int, decay: int) -> float:
    """Warm up, hold, then fall linearly to zero over the last `decay` steps."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / decay)


@torch.no_grad()
def probe_nats(model: Model, probe: list[list[int]]) -> float:
    """Sum of -log p over the held-out chapters' first tokens (all: evaluate_demo.py)."""
    model.eval()
    nats = 0.0
    for text in probe:
        row = torch.tensor([text])
        with torch.autocast("cpu", torch.bfloat16):
            nats += float(
                F.cross_entropy(model(row[:, :-1])[0].float(), row[0, 1:], reduction="sum")
            )
    model.train()
    return nats


def parse() -> argparse.Namespace:
    """Read the command line; the defaults made the shipped model."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoint, tokenizer and log"
    )
    p.add_argument(
        "--text", type=Path, default=austen.DEFAULT_RDB, help=f"data file of {austen.PACKAGE}"
    )
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument(
        "--decay", type=int, default=800, help="steps at the end in which the rate falls to zero"
    )
    p.add_argument(
        "--long", type=int, default=300, help="steps at the end with windows of the whole context"
    )
    p.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--weight-decay", type=float, default=0.5)
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="needs a C++ compiler",
    )
    p.add_argument("--threads", type=int, default=1)
    return p.parse_args()


def main() -> None:
    """Train, log and checkpoint."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    shape = Shape()
    train, held = corpus.read_split(args.text)
    tokenizer_file = args.out / "tokenizer.json"
    if tokenizer_file.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    else:
        tokenizer = corpus.train_tokenizer(train, shape.vocab)
        tokenizer.save(str(tokenizer_file))
    stream = corpus.Stream(train, tokenizer, seed=args.seed)
    probe = [[stream.ids[corpus.BEGIN], *tokenizer.encode(c.text).ids[: shape.n_ctx]] for c in held]
    probe_bytes = sum(len(tokenizer.decode(t[1:]).encode()) for t in probe)

    model = Model(shape, dropout=args.dropout)
    if args.compile:  # a sixth faster
        for part in model.modules():
            if isinstance(part, Attention | Mlp | RmsNorm):
                part.compile(dynamic=False)
    optimiser = Muon(model, weight_decay=args.weight_decay)
    step, epoch, seconds, cpu_seconds = 0, 0.0, 0.0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, epoch = state["step"], state["epoch"]
        seconds, cpu_seconds = state["seconds"], state["cpu_seconds"]
    log = (args.out / "log.jsonl").open("a", buffering=1)
    parameters = sum(p.numel() for p in model.parameters())
    log.write(
        json.dumps(
            {"start": step, "parameters": parameters, **asdict(shape), **vars(args)}, default=str
        )
        + "\n"
    )

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "shape": asdict(shape),
        }
        state |= {"step": step, "epoch": epoch, "seconds": seconds, "cpu_seconds": cpu_seconds}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    windows, used = np.empty((0, 0), np.int64), 0
    losses: list[float] = []
    last, last_cpu = time.monotonic(), time.process_time()
    while step < args.steps:
        n = shape.n_ctx if step >= args.steps - args.long else shape.n_ctx // 2
        batch = args.tokens // n
        if not len(windows):  # the first of this run: go on inside the epoch
            windows = stream.windows(n, int(epoch))
            used = int(epoch % 1 * len(windows))
        elif windows.shape[1] != n + 1 or used + batch > len(windows):
            epoch = int(epoch) + 1
            windows, used = stream.windows(n, epoch), 0
        rows = torch.from_numpy(windows[used : used + batch])
        used += batch
        epoch = int(epoch) + min(used / len(windows), 0.999999)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = learning_rate(step, peak=args.lr, warmup=50, steps=args.steps, decay=args.decay)
        optimiser.step(lr)
        busiest = [layer.balance(0.003 * lr / args.lr) for layer in model.routers()]
        step += 1
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"[train_demo] the loss is {losses[-1]} at step {step}: lower --lr")
        if step % 50 == 0 or step == args.steps:
            now, now_cpu = time.monotonic(), time.process_time()
            seconds, cpu_seconds = seconds + now - last, cpu_seconds + now_cpu - last_cpu
            last, last_cpu = now, now_cpu
            row = {
                "step": step,
                "epoch": round(epoch, 2),
                "lr": round(lr, 6),
                "train": round(float(np.mean(losses)), 4),
            }
            losses.clear()
            if step % 100 == 0 or step == args.steps:
                nats = probe_nats(model, probe)
                row["held_out"] = round(nats / sum(len(t) - 1 for t in probe), 4)
                row["bits_per_byte"] = round(nats / math.log(2) / probe_bytes, 4)
                save()
            row |= {
                "busiest": round(max(busiest), 2),
                "seconds": round(seconds),
                "cpu_seconds": round(cpu_seconds),
            }
            row["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
