"""Train the demo model: a small Kimi-shaped mixture of experts that writes like Jane Austen.

    apt-get install r-cran-janeaustenr
    python training/train_demo.py --out build/demo        # resumes where it was stopped

Leaves checkpoint.pt, a snapshot of the weights every hundred steps, tokenizer.json and log.jsonl in
--out; export_demo.py averages the last snapshots, which stands in for a falling learning rate.
Runs on CPU in bfloat16 (a processor with AVX512-BF16 or AMX is several times faster) and needs
torch, tokenizers and numpy.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import austen
import corpus
import torch
import torch.nn.functional as F
from moe_model import Attention, Mlp, Model, RmsNorm, Shape
from muon import Muon
from tokenizers import Tokenizer
from torch import Tensor


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
    p.add_argument("--steps", type=int, default=700)
    p.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--warmup", type=int, default=50, help="steps; after them the rate is constant")
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


class Run:
    """One training run in a folder: model, optimiser, position in the text, time spent."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out, self.shape = args, args.out, Shape()
        train, held = corpus.read_split(args.text)
        tokenizer_file = self.out / "tokenizer.json"
        if tokenizer_file.exists():
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        else:
            tokenizer = corpus.train_tokenizer(train, self.shape.vocab)
            tokenizer.save(str(tokenizer_file))
        self.stream = corpus.Stream(train, tokenizer, seed=args.seed)
        begin, n = self.stream.ids[corpus.BEGIN], self.shape.n_train
        self.probe = [[begin, *tokenizer.encode(c.text).ids[:n]] for c in held]
        self.probe_bytes = sum(len(tokenizer.decode(t[1:]).encode()) for t in self.probe)
        self.model = Model(self.shape, dropout=args.dropout)
        self.optimiser = Muon(self.model, weight_decay=args.weight_decay)
        self.progress = {"step": 0, "epoch": 0.0, "seconds": 0.0, "cpu_seconds": 0.0}
        self._clock = time.monotonic(), time.process_time()

    def restore(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""
        checkpoint = self.out / "checkpoint.pt"
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=False)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.progress = state["progress"]

    def save(self) -> None:
        """Write the checkpoint, and a snapshot of the weights alone."""
        step = self.progress["step"]
        torch.save(self.model.state_dict(), self.out / f"weights-{step:06d}.pt")
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        temporary = self.out / "checkpoint.tmp"
        torch.save(state | {"progress": self.progress}, temporary)
        temporary.replace(self.out / "checkpoint.pt")

    def batches(self) -> Iterator[Tensor]:
        """Yield token ids (batch, n_train + 1) without end, from where the run stands."""
        n = self.shape.n_train
        batch = self.args.tokens // n
        while True:
            epoch = int(self.progress["epoch"])
            windows = torch.from_numpy(self.stream.windows(n, epoch))
            at = int(self.progress["epoch"] % 1 * len(windows))
            while at + batch <= len(windows):
                at += batch
                self.progress["epoch"] = epoch + at / (len(windows) + 1)
                yield windows[at - batch : at]
            self.progress["epoch"] = epoch + 1.0

    def update(self, rows: Tensor) -> float:
        """Take one step on these rows; returns their mean loss in nats per token."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(rows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.progress["step"] += 1
        warm = min(1.0, self.progress["step"] / self.args.warmup)
        self.optimiser.step(self.args.lr * warm)
        return float(loss.detach())

    def report(self, losses: list[float], busiest: float, *, probe: bool) -> dict[str, float]:
        """Return one row of the log."""
        now = time.monotonic(), time.process_time()
        self.progress["seconds"] += now[0] - self._clock[0]
        self.progress["cpu_seconds"] += now[1] - self._clock[1]
        self._clock = now
        row = {**self.progress, "train_nats": sum(losses) / len(losses), "busiest": busiest}
        if probe:
            nats = probe_nats(self.model, self.probe)
            row["held_out_nats"] = nats / sum(len(t) - 1 for t in self.probe)
            row["bits_per_byte"] = nats / math.log(2) / self.probe_bytes
        row["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return {key: round(value, 4) for key, value in row.items()}


def main() -> None:
    """Train, log and checkpoint."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    run = Run(args)
    run.restore()
    if args.compile:  # a sixth faster
        for part in run.model.modules():
            if isinstance(part, Attention | Mlp | RmsNorm):
                part.compile(dynamic=False)
    log = (args.out / "log.jsonl").open("a", buffering=1)
    log.write(json.dumps({**asdict(run.shape), **vars(args)}, default=str) + "\n")
    losses: list[float] = []
    for rows in run.batches():
        step = run.progress["step"]
        if step >= args.steps:
            break
        losses.append(run.update(rows))
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"[train_demo] the loss is {losses[-1]} at step {step}: lower --lr")
        busiest = max(layer.balance(0.003) for layer in run.model.routers())
        last = step + 1 == args.steps
        if (step + 1) % 50 == 0 or last:
            save = (step + 1) % 100 == 0 or last
            row = run.report(losses, busiest, probe=save)
            losses.clear()
            if save:
                run.save()
            log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
