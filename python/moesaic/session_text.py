"""Text out of a session: prompts behind what is cached, and generations that a session keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from moesaic import _core
from moesaic.errors import ArgumentError
from moesaic.generation import Checked, GenerateOptions, Item, follow
from moesaic.inputs import Tokens, is_batch, prompt_ids
from moesaic.results import Chunk, Generation

if TYPE_CHECKING:
    from moesaic.model_text import TextMethods
    from moesaic.session import Session


def session_ids(session: Session, prompt: Any, where: str) -> Tokens:
    """Return a prompt's token ids; begin-of-text comes in front in an empty session only."""
    model = session._model
    if not isinstance(prompt, str) or len(session) == 0:
        return model._ids(prompt, where)

    def encode(text: str) -> Tokens:
        return model.tokenizer.encode_prompt(text, begin=False)

    return prompt_ids(prompt, encode, model.config.vocab, where)


class Continuation:
    """One generation on a session: from its checks to what the session keeps of it."""

    def __init__(
        self, session: Session, prompt: Any, options: GenerateOptions, where: str, *, streams: bool
    ) -> None:
        session._check(where)
        self._session = session
        self._model = cast("TextMethods", session._model)
        self._where = where
        self._streams = streams
        self._options: Checked = self._model._check(options, where)
        if prompt is not None and is_batch(prompt):
            raise ArgumentError(
                f"[{where}] prompt: got a list of prompts, need one; fork() the session for each"
            )
        self._ids = None if prompt is None else session_ids(session, prompt, where)
        self._backup: _core.Session | None = None

    def chunks(self) -> Iterator[tuple[Item, Chunk]]:
        """Run it. However it ends, the session is settled before this returns."""
        session = self._session
        with session._lock:
            session._check(self._where)
            before = len(session)
            batch, item = self._submit()
        kept = before
        done = False
        try:
            if self._options.echo:
                yield item, Chunk(item.text, (), item.timings())
            for _, chunk in follow(
                batch, [item], self._options.logits_processor, self._model._progress
            ):
                yield item, chunk
            kept, done = self._length_with(item, before), True
        except GeneratorExit:
            if item.tokens:
                kept, done = self._length_with(item, before), True
            raise
        finally:
            batch.settle()
            with session._lock:
                self._settle(kept, failed=not done)

    def _length_with(self, item: Item, before: int) -> int:
        """How many tokens the session has when those of ``item`` are kept."""
        again = 0 if self._backup is None else 1  # its own last token was run again
        return before - again + len(item.prompt) + len(item.tokens)

    def _submit(self) -> tuple[_core.Batch, Item]:
        session = self._session
        ids = self._ids
        if ids is None:
            tokens = session._core.tokens
            if len(tokens) == 0:
                raise ArgumentError(
                    f"[{self._where}] prompt: got None for an empty session, need text or tokens"
                )
            # The logits behind the last token are not kept: it is run again.
            ids = tokens[-1:]
            self._backup = session._core.fork(len(tokens))
        try:
            if self._backup is not None:
                session._core.truncate(len(session) - 1)
            specs, items = self._model._requests(
                [ids], self._options, self._where, streams=self._streams, session=session._core
            )
            return _core.Batch(self._model._engine, specs), items[0]
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        if self._backup is None:
            return
        session, backup = self._session, self._backup
        self._backup = None
        session._core, old = backup, session._core
        if old.closed:  # close() came meanwhile
            backup.close()
        old.close()

    def _settle(self, kept: int, *, failed: bool) -> None:
        core = self._session._core
        if core.closed:
            if self._backup is not None:
                self._backup.close()
            return
        if failed:
            self._restore()
            core = self._session._core
        elif self._backup is not None:
            self._backup.close()
        # The engine may have ended before it heard that fewer tokens are wanted.
        if core.n_tokens > kept:
            core.truncate(kept)


def generate(session: Session, prompt: Any, options: GenerateOptions, where: str) -> Generation:
    """Run a generation on a session to its end; see :meth:`Session.generate`."""
    with session._lock:
        run = Continuation(session, prompt, options, where, streams=False)
        items = [item for item, _ in run.chunks()]
        return items[-1].result()


def stream(session: Session, prompt: Any, options: GenerateOptions, where: str) -> Iterator[Chunk]:
    """Run a generation on a session piece by piece; see :meth:`Session.stream`."""
    chunks = Continuation(session, prompt, options, where, streams=True).chunks()
    return (chunk for _, chunk in chunks)
