"""Two builds of Moesaic in turn, request by request: which is faster, and by how much.

A process of each build stays alive, and both answer the same requests one after the other, so that
a host whose speed drifts slows both alike. For each pair the ratio of the two times counts; its
median over all pairs is the result.

    builds_in_turn.py OLD_PYTHON NEW_PYTHON MODEL [--threads 2] [--prompt 512] [--tokens 32]

OLD_PYTHON and NEW_PYTHON are interpreters of environments in which the builds are installed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from pathlib import Path

SERVER = """
import sys, time
import moesaic
path, threads, n_prompt, n_tokens = sys.argv[1], *map(int, sys.argv[2:])
model = moesaic.Model(path, threads=threads, n_ctx=n_prompt + n_tokens + 16, progress=False)
vocab = model.config.vocab
print("ready", flush=True)
for k, line in enumerate(sys.stdin):
    tokens = [2 + (7 * i + 13 * k) % (vocab - 8) for i in range(n_prompt)]
    tokens[0] = 2 + k % (vocab - 8)  # nothing of an earlier prompt is found again
    if line.startswith("prefill"):
        begin = time.perf_counter()
        model.generate(tokens, max_tokens=1, temperature=0)
        seconds = (time.perf_counter() - begin) / n_prompt
    else:
        model.generate(tokens[:16], max_tokens=1, temperature=0)
        begin = time.perf_counter()
        made = model.generate(tokens[:16], max_tokens=n_tokens, temperature=0)
        seconds = (time.perf_counter() - begin) / max(len(made.tokens), 1)
    print(seconds, flush=True)
"""


class Build:
    """A process of one build that answers requests."""

    def __init__(self, python: str, model: Path, threads: int, n_prompt: int, n_tokens: int):
        numbers = [str(n) for n in (threads, n_prompt, n_tokens)]
        self.process = subprocess.Popen(
            [python, "-P", "-W", "ignore", "-c", SERVER, str(model), *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def answer(self) -> str:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} ended: see its error above")
        return line

    def seconds(self, kind: str) -> float:
        """Seconds a token of a request of this kind."""
        assert self.process.stdin is not None
        print(kind, file=self.process.stdin, flush=True)
        return float(self.answer())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=41)
    a = parser.parse_args()
    old, new = (Build(p, a.model, a.threads, a.prompt, a.tokens) for p in (a.old, a.new))
    print(f"{a.model.name}, threads {a.threads}, {a.pairs} pairs")
    for kind in ("prefill", "decode"):
        pairs = []
        for i in range(a.pairs + 3):
            if i % 2:
                second = new.seconds(kind)
                pairs.append((old.seconds(kind), second))
            else:
                pairs.append((old.seconds(kind), new.seconds(kind)))
        del pairs[:3]
        ratios = sorted(x / y for x, y in pairs)
        rates = [1 / statistics.median(column) for column in zip(*pairs, strict=True)]
        print(
            f"{kind:8} old {rates[0]:9.1f} tok/s  new {rates[1]:9.1f} tok/s  new / old: median "
            f"{statistics.median(ratios):.3f}, quartiles {ratios[len(ratios) // 4]:.3f} "
            f"{ratios[3 * len(ratios) // 4]:.3f}"
        )
    old.close()
    new.close()


if __name__ == "__main__":
    main()
