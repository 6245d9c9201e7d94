"""The public tokenizer: ids from text, text from ids, by the vocabulary of one GGUF file.

Joins the parts: vocabulary.py says what the file holds, special.py cuts out special tokens, bpe.py
or spm.py turns the text between them into ids. Building the merge tables waits for the first text.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moesaic.errors import ArgumentError
from moesaic.tokenizer.bpe import BpeEngine, byte_level_piece
from moesaic.tokenizer.special import SpecialSplitter
from moesaic.tokenizer.spm import SPACE, SpmEngine
from moesaic.tokenizer.stream import StreamDecoder
from moesaic.tokenizer.vocabulary import TokenType, Vocabulary


class Tokenizer:
    """Text to token ids and back, as the model in a GGUF file was trained.

    Byte-level BPE (``tokenizer.ggml.model`` ``gpt2``, with the word rule that
    ``tokenizer.ggml.pre`` names), SentencePiece BPE (``llama``) and Gemma 4's BPE. One object may
    be used by any number of threads.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file; one that holds only a vocabulary will do.

    Raises
    ------
    FormatError
        The file is not a GGUF file, or its vocabulary is broken or of another kind.

    Examples
    --------
    >>> import moesaic
    >>> tokenizer = moesaic.Model.demo().tokenizer
    >>> ids = tokenizer.encode("In the beginning")
    >>> ids.dtype.name, tokenizer.decode(ids)
    ('int32', 'In the beginning')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from moesaic.gguf import GGUF

        self._set_up(GGUF(path).metadata)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Make a tokenizer from the metadata of an open file.

        Parameters
        ----------
        metadata : Mapping of str to value
            GGUF key -> value: numbers, strings, and sequences of them. It is kept, and read when
            first needed.

        Returns
        -------
        Tokenizer
            Merge tables are built at the first text.

        Raises
        ------
        FormatError
            There is no vocabulary, or one that is broken or of an unknown kind.

        Examples
        --------
        >>> import moesaic
        >>> m = moesaic.Model.demo()
        >>> moesaic.Tokenizer.from_metadata(m.metadata).vocab_size
        2048
        """
        self = cls.__new__(cls)
        self._set_up(metadata)
        return self

    def _set_up(self, metadata: Mapping[str, Any]) -> None:
        self._vocabulary = Vocabulary(metadata)
        self._lock = threading.Lock()
        self._engine: BpeEngine | SpmEngine | None = None
        self._splitters: dict[str, SpecialSplitter] = {}

    def __repr__(self) -> str:
        v = self._vocabulary
        return f"Tokenizer({v.model}{', ' + v.pre if v.pre else ''}, {v.size} tokens)"

    # -- what the vocabulary holds ---------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._vocabulary.size

    @property
    def bos_id(self) -> int | None:
        """Begin of text."""
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """End of text."""
        return self._vocabulary.eos_id

    @property
    def eot_id(self) -> int | None:
        """End of a turn in a chat."""
        return self._vocabulary.eot_id

    @property
    def pad_id(self) -> int | None:
        """Padding."""
        return self._vocabulary.pad_id

    @property
    def unk_id(self) -> int | None:
        """Unknown."""
        return self._vocabulary.unk_id

    @property
    def eog_ids(self) -> frozenset[int]:
        """Every token that ends a generation, by the file's keys or by known texts."""
        return self._vocabulary.eog_ids

    @property
    def add_bos(self) -> bool:
        """Whether ``add_special`` puts BOS in front."""
        return self._vocabulary.add_bos

    @property
    def add_eos(self) -> bool:
        """Whether ``add_special`` puts EOS behind."""
        return self._vocabulary.add_eos

    @property
    def suppress_ids(self) -> frozenset[int]:
        """Tokens that a model must never write (``tokenizer.ggml.suppress_tokens``)."""
        return self._vocabulary.suppress_ids

    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its text as stored.

        Parameters
        ----------
        token : str
            As in the file: ``Ġthe`` or ``▁the``, not `` the``.

        Returns
        -------
        int or None
            None when there is no such token.

        Raises
        ------
        ArgumentError
            Not a str.

        Examples
        --------
        >>> import moesaic
        >>> tokenizer = moesaic.Model.demo().tokenizer
        >>> tokenizer.token_to_id("<|begin|>"), tokenizer.token_to_id("no such token")
        (0, None)
        """
        if not isinstance(token, str):
            raise ArgumentError(
                f"[Tokenizer.token_to_id] token: got {type(token).__name__}, need str"
            )
        return self._vocabulary.ids.get(token)

    def id_to_token(self, token_id: int) -> str:
        """Text of a token as stored in the file.

        Parameters
        ----------
        token_id : int
            Of the vocabulary.

        Returns
        -------
        str
            ``Ġthe`` or ``▁the``; bytes that are not UTF-8 are U+FFFD.

        Raises
        ------
        ArgumentError
            No integer, or outside the vocabulary.

        Examples
        --------
        >>> import moesaic
        >>> tokenizer = moesaic.Model.demo().tokenizer
        >>> [tokenizer.id_to_token(i) for i in tokenizer.encode("In the")]
        ['<|begin|>', 'In', 'Ġthe']
        """
        token = self._vocabulary.tokens[self._checked(token_id, "id_to_token")]
        return token.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether a token is no text: control, unknown or unused.

        Parameters
        ----------
        token_id : int
            Of the vocabulary.

        Returns
        -------
        bool
            True for what :meth:`decode` leaves out.

        Raises
        ------
        ArgumentError
            No integer, or outside the vocabulary.

        Examples
        --------
        >>> import moesaic
        >>> tokenizer = moesaic.Model.demo().tokenizer
        >>> [tokenizer.is_special(i) for i in tokenizer.encode("In the")]
        [True, False, False]
        """
        return self._checked(token_id, "is_special") in self._vocabulary.hidden_ids

    def id_to_piece(self, token_id: int) -> bytes:
        r"""Bytes that a token stands for; a special token stands for its name.

        Parameters
        ----------
        token_id : int
            Of the vocabulary.

        Returns
        -------
        bytes
            Often part of a character only.

        Raises
        ------
        ArgumentError
            No integer, or outside the vocabulary.

        Examples
        --------
        >>> import moesaic
        >>> tokenizer = moesaic.Model.demo().tokenizer
        >>> [tokenizer.id_to_piece(i) for i in tokenizer.encode("In the é")[1:]]
        [b'In', b' the', b' ', b'\xc3', b'\xa9']
        """
        return self._piece(self._checked(token_id, "id_to_piece"))

    def _checked(self, token_id: int, where: str) -> int:
        if isinstance(token_id, bool) or not isinstance(token_id, int | np.integer):
            raise ArgumentError(
                f"[Tokenizer.{where}] token id: got {type(token_id).__name__}, need an integer"
            )
        if not 0 <= token_id < self.vocab_size:
            raise ArgumentError(
                f"[Tokenizer.{where}] token id: got {token_id}, need 0 to {self.vocab_size - 1}"
            )
        return int(token_id)

    def _piece(self, token_id: int) -> bytes:
        v = self._vocabulary
        # int: a scalar of numpy's, compared with an enum, looks up attributes of its class in
        # Python code and drops what that raises: a Ctrl-C at that moment would be lost.
        token, kind = v.tokens[token_id], int(v.types[token_id])
        if kind == TokenType.BYTE and len(token) == 6 and token.startswith("<0x"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        elif kind == TokenType.NORMAL and token_id not in v.hidden_ids:
            if v.is_byte_level:
                return byte_level_piece(token)
            if v.escapes_spaces:
                token = token.replace(SPACE, " ")
        return token.encode("utf-8", "surrogateescape")

    # -- text to ids -----------------------------------------------------------------------------

    def encode(
        self, text: str, add_special: bool = True, parse_special: bool = False
    ) -> npt.NDArray[np.int32]:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
            Any text without lone surrogates.
        add_special : bool
            Put BOS in front and EOS behind where the model was trained so (see ``add_bos``,
            ``add_eos``).
        parse_special : bool
            Recognise control tokens written in the text. Off, ``"<|im_end|>"`` in a user's words
            stays words.

        Returns
        -------
        int32 array (n,)
            Owned by the caller.

        Raises
        ------
        ArgumentError
            ``text`` is not a string or holds lone surrogates.

        Notes
        -----
        A few vocabularies (Falcon, StarCoder) lack tokens for bytes that their training text never
        had; characters written with those are lost, as in the model's own tokenizer.

        Examples
        --------
        >>> import moesaic
        >>> tokenizer = moesaic.Model.demo().tokenizer
        >>> len(tokenizer.encode("In the<|end|>", parse_special=True))
        4
        """
        v = self._vocabulary
        ids = self._text_ids(text, parse_special, frozenset())
        if add_special and v.add_bos and v.bos_id is not None:
            ids = [v.bos_id, *ids]
        if add_special and v.add_eos and v.eos_id is not None:
            ids.append(v.eos_id)
        return np.array(ids, dtype=np.int32)

    def encode_prompt(self, text: str, *, begin: bool = True) -> npt.NDArray[np.int32]:
        """Turn a text that a model is to continue into token ids.

        Control tokens written in it are recognised (but for those that messages spell in a text
        of ``render_chat``). BOS is put in front where the model was trained so, and never twice: a
        text that begins with it gets no second one. EOS is never put behind.

        Parameters
        ----------
        text : str
            Any text without lone surrogates.
        begin : bool
            It begins the sequence. Off, it goes on after other tokens, and gets no BOS.

        Returns
        -------
        int32 array (n,)
            Owned by the caller.

        Raises
        ------
        ArgumentError
            ``text`` is not a string or holds lone surrogates.

        Examples
        --------
        >>> import moesaic
        >>> tokenizer = moesaic.Model.demo().tokenizer
        >>> twice = tokenizer.encode_prompt("<|begin|>In the")
        >>> twice.tolist() == tokenizer.encode_prompt("In the").tolist()
        True
        """
        v = self._vocabulary
        ids = self._text_ids(text, True, getattr(text, "literal", frozenset()))
        if begin and v.add_bos and v.bos_id is not None and ids[:1] != [v.bos_id]:
            ids = [v.bos_id, *ids]
        return np.array(ids, dtype=np.int32)

    def find_control(self, text: str) -> list[int]:
        """Return the places where a text spells control tokens.

        Parameters
        ----------
        text : str
            Any text.

        Returns
        -------
        list of int
            Indices of their first characters, in order.

        Raises
        ------
        FormatError
            The vocabulary is broken.

        Examples
        --------
        >>> import moesaic
        >>> moesaic.Model.demo().tokenizer.find_control("What is <|end|>?")
        [8]
        """
        return self._ready("control")[1].starts(text)

    def _text_ids(self, text: str, parse_special: bool, literal: frozenset[int]) -> list[int]:
        if not isinstance(text, str):
            raise ArgumentError(
                f"[Tokenizer.encode] text: got {type(text).__name__}, need a string"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ArgumentError(
                f"[Tokenizer.encode] text: got a lone surrogate at index {error.start}, need text"
                " that can be written as UTF-8; decode bytes with errors='replace'"
            ) from None
        v = self._vocabulary
        engine, splitter = self._ready("all" if parse_special else "user")
        others = self._ready("user")[1] if literal else None
        ids: list[int] = []
        after_special = True
        for part in splitter.split(text, literal, others):
            if isinstance(part, int):
                ids.append(part)
            else:
                plain = unicodedata.normalize("NFC", part) if v.pre_tokenizer.nfc else part
                # SentencePiece was trained on texts that begin with a blank.
                ids += engine.encode(" " + plain if v.add_space_prefix and after_special else plain)
            after_special = isinstance(part, int)
        return ids

    def _ready(self, kind: str) -> tuple[BpeEngine | SpmEngine, SpecialSplitter]:
        """Build what encoding needs, once; ``kind`` of special tokens: all, control or user."""
        v = self._vocabulary
        with self._lock:
            if self._engine is None:
                self._engine = SpmEngine(v) if v.model == "llama" else BpeEngine(v)
            if kind not in self._splitters:
                ids = {} if kind == "user" else v.special_texts
                ids = ids if kind == "control" else {**ids, **v.user_defined_texts}
                self._splitters[kind] = SpecialSplitter(ids, v.right_strip_ids)
            return self._engine, self._splitters[kind]

    # -- ids to text -----------------------------------------------------------------------------

    def decode(
        self,
        ids: Sequence[int] | npt.NDArray[Any],
        *,
        skip_special: bool = True,
        continuation: bool = False,
    ) -> str:
        """Turn token ids into text.

        ``decode(encode(text)) == text`` for byte-level vocabularies, whatever the text; those whose
        models were trained on composed text (NFC), such as Qwen's, give it composed.

        Parameters
        ----------
        ids : sequence of int or integer array (n,)
            Of the vocabulary.
        skip_special : bool
            Leave out control, unknown and unused tokens; off, they are written by name.
        continuation : bool
            The ids go on after other text. It matters to SentencePiece, which adds a blank in front
            of every text: the blank is dropped at the beginning of a text, and kept in its
            continuation.

        Returns
        -------
        str
            Bytes that are not UTF-8 are U+FFFD.

        Raises
        ------
        ArgumentError
            An id is not an integer or lies outside the vocabulary.

        Examples
        --------
        >>> import moesaic
        >>> tokenizer = moesaic.Model.demo().tokenizer
        >>> ids = tokenizer.encode("In the")
        >>> tokenizer.decode(ids), tokenizer.decode(ids, skip_special=False)
        ('In the', '<|begin|>In the')
        """
        decoder = self.stream_decoder(skip_special=skip_special, continuation=continuation)
        return decoder.feed(self._id_list(ids)) + decoder.flush()

    def stream_decoder(
        self, *, skip_special: bool = True, continuation: bool = False
    ) -> StreamDecoder:
        """Make a decoder for ids that come one by one; joined, it gives what :meth:`decode` gives.

        In a continuation ids past the vocabulary are no text: a model may have more rows than its
        file has tokens.

        Parameters
        ----------
        skip_special, continuation : bool
            As for :meth:`decode`. Tokens generated after a prompt are its continuation.

        Returns
        -------
        StreamDecoder
            With ``feed(ids)`` and ``flush()``; for one stream only.

        Raises
        ------
        ArgumentError
            From ``feed``: an id is not an integer or lies outside the vocabulary.

        Examples
        --------
        >>> import moesaic
        >>> tokenizer = moesaic.Model.demo().tokenizer
        >>> decoder = tokenizer.stream_decoder()
        >>> [decoder.feed(int(i)) for i in tokenizer.encode("In é")], decoder.flush()
        (['', 'In', ' ', '', 'é'], '')
        """
        hidden = self._vocabulary.hidden_ids if skip_special else frozenset()

        def piece(token_id: int) -> bytes:
            if continuation and token_id >= self.vocab_size:
                return b""
            checked = self._checked(token_id, "decode")
            return b"" if checked in hidden else self._piece(checked)

        return StreamDecoder(
            piece, strip_space=self._vocabulary.add_space_prefix and not continuation
        )

    def _id_list(self, ids: Sequence[int] | npt.NDArray[Any]) -> list[int]:
        if isinstance(ids, str | bytes):
            raise ArgumentError(
                f"[Tokenizer.decode] ids: got {type(ids).__name__}, need integers (n,)"
            )
        array = np.asarray(ids)
        if array.size == 0 and array.ndim == 1:
            return []
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ArgumentError(
                f"[Tokenizer.decode] ids: got {array.dtype} {array.shape}, need integers (n,)"
            )
        return array.tolist()  # type: ignore[no-any-return]
