"""Bits per byte of held-out Austen: torch model, shipped GGUF, and two plain bigrams beside them.

    python training/evaluate_demo.py --run build/demo --model python/moesaic/data/demo.gguf

The text is whole chapters that no step of the training saw, each opened by the begin token; windows
of the whole context move on by half of it, so that all but a chapter's first tokens are predicted
from at least half a context.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import austen
import corpus
import numpy as np
from tokenizers import Tokenizer

Logits = Callable[[list[int]], np.ndarray]  # token ids (n,) -> float32 (n, vocab)


def nats(logits_of: Logits, texts: Sequence[list[int]], n_ctx: int) -> float:
    """Sum of -log p over every token but the first of each text."""
    total, stride = 0.0, n_ctx // 2
    for text in texts:
        scored = 1  # tokens of this text whose probability is counted already, the first for free
        for start in range(0, len(text), stride):
            window = text[start : start + n_ctx + 1]
            fresh = scored - start - 1  # first row of this window whose target is new
            if len(window) - 1 <= fresh:
                break
            rows = logits_of(window[:-1])[fresh:].astype(np.float64)
            targets = np.array(window[1 + fresh :])
            top = rows.max(-1)
            total += float((np.log(np.exp(rows - top[:, None]).sum(-1)) + top).sum())
            total -= float(rows[np.arange(len(rows)), targets].sum())
            scored = start + len(window)
    return total


def torch_logits(run: Path, average: int) -> tuple[Logits, int]:
    """Return the trained model's forward pass in float32, and its context length."""
    import export_demo
    import moe_model
    import torch

    torch.set_num_threads(1)
    shape, state = export_demo.read_run(run, average)
    model = moe_model.Model(shape).eval()
    model.load_state_dict(state)
    model.stretch()

    def forward(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([tokens]))[0].numpy()

    return forward, shape.n_ctx


def main() -> None:
    """Print one JSON line per figure."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--run", type=Path, required=True, help="the --out of train_demo.py")
    p.add_argument(
        "--model",
        type=Path,
        action="append",
        default=[],
        help="a GGUF, run by moesaic; may be repeated",
    )
    p.add_argument("--average", type=int, default=2, help="as in export_demo.py")
    p.add_argument("--text", type=Path, default=austen.DEFAULT_RDB)
    args = p.parse_args()
    train, held = corpus.read_split(args.text)
    tokenizer = Tokenizer.from_file(str(args.run / "tokenizer.json"))
    begin = tokenizer.token_to_id(corpus.BEGIN)
    held_bytes = sum(len(c.text.encode()) for c in held)
    known, texts = (
        [[begin, *tokenizer.encode(c.text).ids] for c in part] for part in (train, held)
    )

    def show(what: str, bits_per_byte: float) -> None:
        print(json.dumps({"what": what, "bits_per_byte": round(bits_per_byte, 4)}), flush=True)

    print(
        json.dumps(
            {"held_out_chapters": len(held), "bytes": held_bytes, "tokens": sum(map(len, texts))}
        )
    )
    raw = [[c.text.encode() for c in part] for part in (train, held)]
    show("byte bigram", corpus.bigram_bits_per_byte(*raw, held_bytes))
    show("token bigram, same tokenizer", corpus.bigram_bits_per_byte(known, texts, held_bytes))
    forward, n_ctx = torch_logits(args.run, args.average)
    show("torch, float32", nats(forward, texts, n_ctx) / math.log(2) / held_bytes)
    sample = known[
        :: max(1, len(known) // len(texts))
    ]  # as many chapters that were trained on: how much is memory?
    sample_bytes = sum(len(tokenizer.decode(t[1:]).encode()) for t in sample)
    show(
        "torch, float32, training chapters",
        nats(forward, sample, n_ctx) / math.log(2) / sample_bytes,
    )
    for path in args.model:
        import moesaic

        with moesaic.Model(path, n_ctx=n_ctx) as model:
            show(path.name, nats(model.forward, texts, n_ctx) / math.log(2) / held_bytes)


if __name__ == "__main__":
    main()
