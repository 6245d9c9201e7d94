"""SentencePiece BPE: merging by score, exact.

The pair whose joint token has the highest score is merged first, the leftmost of equals. A table of
ranked merges, as the ``tokenizers`` library wants it, cannot say "of equals": two ways to build one
token, or two tokens of one score, get two ranks. Real vocabularies have such ties (runs of spaces
in Llama's, 353 tokens in Baichuan's), so this is done here, over words that no token spans, with a
cache of words. Takes plain text without special tokens. Algorithm: Kudo and Richardson,
SentencePiece (arXiv:1808.06226), as BPE models of that library apply it.
"""

from __future__ import annotations

import heapq
from itertools import pairwise

import numpy as np

from moesaic.tokenizer.vocabulary import TokenType, Vocabulary

SPACE = "\u2581"
_CACHE_WORDS = 65536
_CACHE_LENGTH = 64


class SpmEngine:
    """Merges by score.

    Parameters
    ----------
    vocabulary
        One whose ``model`` is ``llama``.

    Notes
    -----
    Control, unknown and byte tokens take no part in merging: plain text cannot become one by
    spelling it. A character without a token is written as its UTF-8 bytes, ``<0x00>`` to
    ``<0xFF>``; where the vocabulary lacks those, as the unknown token.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        outside = set(np.flatnonzero(vocabulary.types == TokenType.BYTE).tolist())
        outside |= set(vocabulary.special_texts.values())
        scores = vocabulary.scores.tolist()
        self._ids = {t: i for t, i in vocabulary.ids.items() if i not in outside}
        self._costs = {t: -scores[i] for t, i in self._ids.items() if len(t) > 1}
        # Two neighbouring characters that no token holds: no merge crosses there, so words end
        # there.
        self._joined = {a + b for t in self._costs for a, b in pairwise(t)}
        self._bytes = [self._byte_token(vocabulary, b) for b in range(256)]
        self._cache: dict[str, list[int]] = {}

    def _byte_token(self, vocabulary: Vocabulary, byte: int) -> list[int]:
        found = vocabulary.ids.get(f"<0x{byte:02X}>")
        if found is None and byte < 0x80:
            found = self._ids.get(chr(byte))
        if found is None:
            found = vocabulary.unk_id
        return [] if found is None else [found]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; blanks are written U+2581, none is added in front."""
        text = text.replace(" ", SPACE)
        joined, cache = self._joined, self._cache
        ids: list[int] = []
        begin = 0
        for end in range(1, len(text) + 1):
            if end < len(text) and text[end - 1 : end + 1] in joined:
                continue
            word = text[begin:end]
            begin = end
            known = cache.get(word)
            if known is None:
                known = self._merge(word)
                if len(word) <= _CACHE_LENGTH:
                    if len(cache) >= _CACHE_WORDS:
                        cache.clear()
                    cache[word] = known
            ids += known
        return ids

    def _merge(self, word: str) -> list[int]:
        costs = self._costs
        parts = list(word)  # parts[i] == "" once it has been merged into its left neighbour
        n = len(parts)
        after = list(range(1, n + 1))
        before = list(range(-1, n - 1))
        queue = [
            (cost, i, 2)
            for i in range(n - 1)
            if (cost := costs.get(parts[i] + parts[i + 1])) is not None
        ]
        heapq.heapify(queue)
        while queue:
            _, left, length = heapq.heappop(queue)
            right = after[left]
            # Parts only grow: an entry is out of date exactly when the lengths no longer add up.
            if not parts[left] or right >= n or len(parts[left]) + len(parts[right]) != length:
                continue
            parts[left] += parts[right]
            parts[right] = ""
            after[left] = after[right]
            if after[left] < n:
                before[after[left]] = left
            for i in (before[left], left):
                if i >= 0 and after[i] < n:
                    text = parts[i] + parts[after[i]]
                    cost = costs.get(text)
                    if cost is not None:
                        heapq.heappush(queue, (cost, i, len(text)))
        ids: list[int] = []
        for part in parts:
            if not part:
                continue
            token = self._ids.get(part)
            if token is not None:
                ids.append(token)
            else:
                for byte in part.encode("utf-8"):
                    ids += self._bytes[byte]
        return ids
