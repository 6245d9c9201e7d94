"""From chapters to token windows: tokenizer, training stream, and the bigram that must be beaten.

The tokenizer is byte-level BPE with GPT-2's pre-tokenizer, so that every UTF-8 text can be written
in it. Not a general data loader: the whole corpus is a million tokens and lives in memory.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import austen
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BEGIN, END, USER, REPLY = "<|begin|>", "<|end|>", "<|user|>", "<|reply|>"
SPECIALS = (BEGIN, END, USER, REPLY)  # ids 0 to 3


def train_tokenizer(chapters: Sequence[austen.Chapter], vocab: int) -> Tokenizer:
    """Train byte-level BPE: the special tokens come first, then 256 bytes, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([c.text for c in chapters], trainer)
    return tokenizer


class Stream:
    """Training windows without end: each epoch the same text, cut and ordered anew."""

    def __init__(
        self, chapters: Sequence[austen.Chapter], tokenizer: Tokenizer, *, seed: int
    ) -> None:
        self.ids = {name: tokenizer.token_to_id(name) for name in SPECIALS}
        self.gap = tokenizer.encode("\n\n").ids
        self.chapters = [
            [e.ids for e in tokenizer.encode_batch(list(c.paragraphs))] for c in chapters
        ]
        self.talks = [
            [e.ids for e in tokenizer.encode_batch(run)]
            for c in chapters
            for run in austen.dialogues(c)
        ]
        first = chapters[0]
        whole = self._piece(self.chapters[0])[1:]  # the cut may not change a token
        if whole != tokenizer.encode(first.text).ids:
            raise ValueError(
                "[corpus] paragraphs tokenised apart differ from the chapter tokenised whole"
            )
        self.seed = seed

    def _piece(self, paragraphs: Sequence[list[int]]) -> list[int]:
        """Token ids of consecutive paragraphs, opened by BEGIN."""
        out = [self.ids[BEGIN]]
        for i, p in enumerate(paragraphs):
            out += (self.gap if i else []) + p
        return out

    def _documents(self, rng: random.Random) -> Iterator[list[int]]:
        for chapter in self.chapters:
            # BEGIN also stands before later paragraphs: a prompt need not be a chapter's opening.
            cuts = (
                sorted(rng.sample(range(1, len(chapter)), min(3, len(chapter) - 1)))
                if rng.random() < 0.7
                else []
            )
            edges = [0, *cuts, len(chapter)]
            for start, stop in pairwise(edges):
                piece = self._piece(chapter[start:stop])
                yield piece + ([self.ids[END]] if stop == len(chapter) else self.gap)
        for talk in self.talks:
            turns = talk[rng.randrange(2) :] if len(talk) > 2 else talk
            turns = turns[: len(turns) // 2 * 2]
            out = [self.ids[BEGIN]]
            for i, turn in enumerate(turns):
                out += [self.ids[REPLY if i % 2 else USER], *turn, self.ids[END]]
            yield out

    def windows(self, n: int, epoch: int) -> np.ndarray:
        """Return this epoch's windows, int64 (count, n + 1), shuffled; the seed and it fix them."""
        rng = random.Random(f"{self.seed}/{epoch}/{n}")
        documents = list(self._documents(rng))
        rng.shuffle(documents)
        flat = [t for d in documents for t in d][rng.randrange(n) :]
        count = (len(flat) - 1) // n
        rows = [flat[i * n : i * n + n + 1] for i in range(count)]
        rng.shuffle(rows)
        return np.array(rows, dtype=np.int64)


def read_split(path: Path) -> tuple[list[austen.Chapter], list[austen.Chapter]]:
    """Return (training, held-out) chapters of the packaged text."""
    return austen.split(austen.chapters(path))


def bigram_bits_per_byte(
    train: Sequence[Sequence[int]], held: Sequence[Sequence[int]], held_bytes: int
) -> float:
    """Bits per byte of a bigram with a unigram fallback.

    The fallback's weight is the best one for the held-out text itself, which favours the bigram.
    """
    unigram: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    before: Counter[int] = Counter()
    for text in train:
        unigram.update(text)
        pairs.update(pairwise(text))
        before.update(text[:-1])
    total = unigram.total() + 4096  # room for symbols never seen

    def bits(weight: float) -> float:
        nats = 0.0
        for text in held:
            for a, b in pairwise(text):
                p1 = (unigram[b] + 1) / total
                nats -= math.log((pairs[a, b] + weight * p1) / (before[a] + weight))
        return nats / math.log(2) / held_bytes

    return min(bits(weight) for weight in (1.0, 3.0, 10.0, 30.0, 100.0, 300.0))
