"""What the type of the KV cache costs: KL divergence to the same model with an f32 cache.

    python bench/python/kv_kl.py MODEL.gguf [--text FILE] [--tokens 1024] [--kv f16,q8_0]

The prompt is run in chunks, so that most rows are read back from the cache. One JSON line per type:
mean, 99th percentile and largest KL of a position in nats, and how often the most likely token
stays the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

import moesaic

CHUNK = 64


def log_probs(path: Path, tokens: npt.NDArray[np.int32], kv_type: str) -> npt.NDArray[np.float64]:
    """Log-probabilities (n, vocab) of the next token behind every position."""
    with moesaic.Model(path, n_ctx=len(tokens) + CHUNK, kv_type=kv_type, progress=False) as model:
        session = model.session()
        logits = np.concatenate(
            [
                session.forward(tokens[i : i + CHUNK], logits="all")
                for i in range(0, len(tokens), CHUNK)
            ]
        ).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=Path(__file__).parents[2] / "README.md")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--kv", default="f16,q8_0")
    args = parser.parse_args()
    tokens = moesaic.Tokenizer(args.model).encode(args.text.read_text())[: args.tokens]
    exact = log_probs(args.model, np.asarray(tokens, np.int32), "f32")
    for kv_type in args.kv.split(","):
        other = log_probs(args.model, np.asarray(tokens, np.int32), kv_type)
        kl = (np.exp(exact) * (exact - other)).sum(axis=1)
        print(
            json.dumps(
                {
                    "model": args.model.stem,
                    "kv_type": kv_type,
                    "tokens": len(tokens),
                    "kl_mean": float(kl.mean()),
                    "kl_p99": float(np.quantile(kl, 0.99)),
                    "kl_max": float(kl.max()),
                    "same_top": float((exact.argmax(1) == other.argmax(1)).mean()),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
