"""GGUF files on their own: metadata and tensors of any architecture, read without copying.

Nothing here knows what a model is; :class:`moesaic.Model` runs one.
"""

from __future__ import annotations

import html
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesaic import _core
from moesaic.errors import ArgumentError, ClosedError
from moesaic.gguf_write import (
    Typed,
    checked_qtype,
    checked_threads,
    qtypes,
    quantize,
    write_gguf,
)
from moesaic.model_names import located

if TYPE_CHECKING:
    from moesaic.tokenizer import Tokenizer

__all__ = ["GGUF", "Tensor", "Typed", "dequantize", "qtypes", "quantize", "write_gguf"]

#: A metadata value: an array of numbers is a read-only NumPy array, one of strings a list.
MetadataValue = bool | int | float | str | list[str] | npt.NDArray[Any]


class Tensor:
    """One tensor of a GGUF file: what it is, and its bytes where they lie.

    Made by :class:`GGUF`; has no constructor of its own to call.
    """

    __slots__ = ("_file", "_index", "name", "nbytes", "qtype", "shape")

    name: str
    """Its name in the file, like ``blk.0.attn_norm.weight``."""
    shape: tuple[int, ...]
    """Shape in NumPy order: the last axis is the row, contiguous in the file."""
    qtype: str
    """Element type, like ``"F32"`` or ``"Q4_K"``."""
    nbytes: int
    """Bytes in the file."""

    def __init__(
        self, file: _Handle, index: int, row: tuple[str, tuple[int, ...], str, int]
    ) -> None:
        self._file = file
        self._index = index
        self.name, self.shape, self.qtype, self.nbytes = row

    @property
    def raw(self) -> npt.NDArray[np.uint8]:
        """The encoded bytes: a read-only uint8 view of the file, the last axis in bytes per row.

        No copy is made; the view keeps the file mapped, also after ``close()`` of the GGUF object.
        """
        return self._file.get().raw(self._index)

    def dequantize(
        self,
        rows: int | slice | Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
        *,
        threads: int = 0,
    ) -> npt.NDArray[np.float32]:
        """Decode to float32.

        Parameters
        ----------
        rows : int, slice, sequence of int or None
            Entries of the first axis to decode (experts of an expert tensor, rows of a matrix);
            they index as in NumPy, but only they are read. None: all.
        threads : int
            Threads to decode with; 0 takes what the size is worth, up to the CPUs there are.

        Returns
        -------
        float32 array
            C-contiguous, owning its memory; of ``shape`` with its first axis indexed by ``rows``.

        Raises
        ------
        OutOfMemoryError
            The result would not fit the memory that is free.
        ArgumentError
            A row that does not exist, or rows that are no integers.

        Examples
        --------
        >>> import moesaic
        >>> norm = moesaic.Model.demo().tensors["output_norm.weight"]
        >>> norm.dequantize().dtype
        dtype('float32')
        """
        file = self._file.get()
        threads = checked_threads(threads, "Tensor.dequantize")
        if rows is None:
            return file.dequantize(
                self._index, 0, self.shape[0] if len(self.shape) > 1 else 1, threads
            )
        if len(self.shape) == 1:  # its entries are elements, and blocks hold many of them
            whole = file.dequantize(self._index, 0, 1, threads)
            return np.array(whole[_checked_rows(rows, len(whole))], np.float32, order="C")
        return self._some_rows(file, _checked_rows(rows, self.shape[0]), threads)

    def _some_rows(
        self, file: _core.GGUFFile, rows: int | slice | npt.NDArray[np.int64], threads: int
    ) -> npt.NDArray[np.float32]:
        if isinstance(rows, int):
            row: npt.NDArray[np.float32] = file.dequantize(self._index, rows, 1, threads)[0]
            return row
        n = self.shape[0]
        wanted = range(n)[rows] if isinstance(rows, slice) else [int(i) for i in rows]
        if isinstance(wanted, range) and wanted.step == 1:
            return file.dequantize(self._index, wanted.start, len(wanted), threads)
        out = np.empty((len(wanted), *self.shape[1:]), np.float32)
        for i, index in enumerate(wanted):
            out[i] = file.dequantize(self._index, index, 1, threads)[0]
        return out

    def __repr__(self) -> str:
        return (
            f"Tensor({self.name!r}, shape={self.shape}, qtype={self.qtype!r}, nbytes={self.nbytes})"
        )


def _checked_rows(rows: Any, n: int) -> int | slice | npt.NDArray[np.int64]:
    """Rows as an index that NumPy would take too: in range, none of them negative."""
    if isinstance(rows, slice):
        try:
            rows.indices(n)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"[Tensor.dequantize] rows: got {rows}, need a slice of integers ({error})"
            ) from None
        return rows
    if isinstance(rows, bool | str | bytes):
        raise ArgumentError(
            f"[Tensor.dequantize] rows: got {rows!r}, need integers, a slice or None"
        )
    try:
        single = operator.index(rows)
    except TypeError:
        single = None
    array = np.asarray(rows if single is None else single)
    if array.size == 0 and array.ndim == 1:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ArgumentError(
            f"[Tensor.dequantize] rows: got {array.dtype} {array.shape}, need an integer, a slice, "
            "a one-dimensional sequence of integers, or None"
        )
    if int(array.min()) < -n or int(array.max()) >= n:
        raise ArgumentError(
            f"[Tensor.dequantize] rows: got {rows}, need integers from {-n} to {n - 1}"
        )
    array = array.astype(np.int64)
    array = np.where(array < 0, array + n, array)
    return int(array) if single is not None else array


class _Handle:
    """The core's file until it is closed."""

    __slots__ = ("_file",)

    def __init__(self, file: _core.GGUFFile) -> None:
        self._file: _core.GGUFFile | None = file

    def get(self) -> _core.GGUFFile:
        if self._file is None:
            raise ClosedError("[GGUF] the file was closed; open it again")
        return self._file

    @property
    def closed(self) -> bool:
        return self._file is None

    def close(self) -> None:
        self._file = None


class Metadata(Mapping[str, MetadataValue]):
    """The keys and values of a GGUF file, in file order. Values are read when asked for.

    Integers of any width are ``int``, f32 and f64 ``float``; an array of numbers is a read-only
    NumPy array of its own type, an array of strings a ``list`` of ``str``. Bytes that are no UTF-8
    come as lone surrogates, so that ``text.encode("utf-8", "surrogateescape")`` gives them back.
    """

    def __init__(self, file: _Handle) -> None:
        self._file = file
        self._keys = tuple(file.get().keys())
        self._known = frozenset(self._keys)
        self._arrays: dict[str, MetadataValue] = {}

    def __getitem__(self, key: str) -> MetadataValue:
        if key not in self._known:
            raise KeyError(key)
        if key in self._arrays:
            self._file.get()
            return self._arrays[key]
        value: MetadataValue = self._file.get().value(key)
        if isinstance(value, list | np.ndarray):
            self._arrays[key] = value
        return value

    def __iter__(self) -> Iterator[str]:
        self._file.get()
        return iter(self._keys)

    def __len__(self) -> int:
        self._file.get()
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        self._file.get()
        return key in self._known

    def type_of(self, key: str) -> str:
        """Return the GGUF type of a value.

        Parameters
        ----------
        key : str
            A key of the file.

        Returns
        -------
        str
            ``"u32"``, ``"string"``, ``"array[f32]"``, ...

        Raises
        ------
        KeyError
            The file has no such key.

        Examples
        --------
        >>> import moesaic
        >>> moesaic.Model.demo().metadata.type_of("tokenizer.ggml.tokens")
        'array[string]'
        """
        return self._file.get().value_type(key)

    def __repr__(self) -> str:
        more = ", ..." if len(self._keys) > 4 else ""
        return f"Metadata({len(self._keys)} keys: {', '.join(self._keys[:4])}{more})"


class Tensors(Mapping[str, Tensor]):
    """The tensors of a GGUF file set by name, in file order."""

    def __init__(self, file: _Handle) -> None:
        self._file = file
        rows = file.get().tensors()
        self._tensors = {row[0]: Tensor(file, index, row) for index, row in enumerate(rows)}

    def __getitem__(self, name: str) -> Tensor:
        self._file.get()
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        self._file.get()
        return iter(self._tensors)

    def __len__(self) -> int:
        self._file.get()
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        self._file.get()
        return name in self._tensors

    def __repr__(self) -> str:
        n_bytes = sum(tensor.nbytes for tensor in self._tensors.values())
        return f"Tensors({len(self._tensors)} tensors, {n_bytes} bytes)"


class GGUF:
    """A GGUF file, or a whole split set, opened for reading; takes milliseconds at any size.

    Parameters
    ----------
    path : str or os.PathLike
        The file; of a split set (``-00001-of-00009.gguf``) any part. ``"demo"`` is the model that
        ships in the package.

    Attributes
    ----------
    metadata : Mapping of str to bool, int, float, str, list of str or array
        Every key of the file (of the first part in a split set).
    tensors : Mapping of str to Tensor
        Every tensor of all parts.

    Raises
    ------
    FormatError
        The file is damaged, cut off, no GGUF file, or of a kind that is not read; the message
        says where and what.
    IoError
        The operating system refused.

    Examples
    --------
    >>> import moesaic
    >>> with moesaic.GGUF(moesaic.Model.demo().path) as file:
    ...     file.metadata["general.architecture"]
    'deepseek2'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = located(path, "GGUF")
        self._adopt(_core.GGUFFile(os.fsencode(file)), file)

    @classmethod
    def _from_core(cls, file: _core.GGUFFile, path: str) -> GGUF:
        """Make one of a file that the core has, perhaps without its weights."""
        made = cls.__new__(cls)
        made._adopt(file, path)
        return made

    def _adopt(self, file: _core.GGUFFile, path: str) -> None:
        self._file = _Handle(file)
        self._path = path
        self._metadata = Metadata(self._file)
        self._tensors = Tensors(self._file)

    @property
    def metadata(self) -> Metadata:
        """Every key and its value, read when asked for."""
        self._file.get()
        return self._metadata

    @property
    def tensors(self) -> Tensors:
        """Every tensor by name."""
        self._file.get()
        return self._tensors

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of the set, one unless it is split."""
        return tuple(os.fsdecode(path) for path in self._file.get().paths)

    @property
    def version(self) -> int:
        """Version of the container: 2 or 3."""
        return self._file.get().version

    @property
    def alignment(self) -> int:
        """Alignment of tensors in the (first) file, in bytes."""
        return self._file.get().alignment

    def tokenizer(self) -> Tokenizer:
        """Make a tokenizer from the file's own vocabulary.

        Returns
        -------
        Tokenizer
            Independent of this object; it stays usable when the file is closed.

        Raises
        ------
        FormatError
            There is no vocabulary, or one that is broken or of an unknown kind.

        Examples
        --------
        >>> import moesaic
        >>> with moesaic.GGUF(moesaic.Model.demo().path) as file:
        ...     file.tokenizer().vocab_size
        2048
        """
        from moesaic.tokenizer import Tokenizer

        return Tokenizer.from_metadata(self.metadata)

    def close(self) -> None:
        """Let go of the file; views of its tensors stay valid. May be called again."""
        self._file.close()

    def __enter__(self) -> GGUF:
        self._file.get()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _types(self) -> dict[str, tuple[int, int]]:
        """Element type -> (tensors, bytes), largest first."""
        types: dict[str, tuple[int, int]] = {}
        for tensor in self._tensors.values():
            count, n_bytes = types.get(tensor.qtype, (0, 0))
            types[tensor.qtype] = (count + 1, n_bytes + tensor.nbytes)
        return dict(sorted(types.items(), key=lambda item: -item[1][1]))

    def __repr__(self) -> str:
        if self._file.closed:
            return f"GGUF({self._path!r}, closed)"
        arch = self._metadata.get("general.architecture", "no architecture")
        total = sum(n_bytes for _, n_bytes in self._types().values())
        types = ", ".join(f"{qtype} {count}" for qtype, (count, _) in self._types().items())
        return (
            f"GGUF({self._path!r}, {arch}, {len(self._metadata)} keys, "
            f"{len(self._tensors)} tensors, {total / 1e6:.1f} MB{': ' + types if types else ''})"
        )

    def _repr_html_(self) -> str:
        if self._file.closed:
            return f"<pre>{html.escape(repr(self))}</pre>"
        rows = "".join(
            f"<tr><td>{html.escape(qtype)}</td><td>{count}</td><td>{n_bytes / 1e6:,.1f}</td></tr>"
            for qtype, (count, n_bytes) in self._types().items()
        )
        return (
            f"<pre>{html.escape(repr(self))}</pre>"
            f"<table><tr><th>type</th><th>tensors</th><th>MB</th></tr>{rows}</table>"
        )


def dequantize(
    raw: npt.NDArray[np.uint8], qtype: str, shape: Sequence[int], *, threads: int = 0
) -> npt.NDArray[np.float32]:
    """Decode encoded bytes.

    Parameters
    ----------
    raw : uint8 array
        C-contiguous, of any shape, with exactly the bytes that ``shape`` takes as ``qtype``.
    qtype : str
        Any element type of :func:`qtypes`.
    shape : sequence of int
        Shape of the result in NumPy order.
    threads : int
        Threads to decode with; 0 takes what the size is worth.

    Returns
    -------
    float32 array of ``shape``
        Owning its memory.

    Raises
    ------
    ArgumentError
        Bytes and shape do not fit, or the type is unknown.

    Examples
    --------
    >>> import moesaic, numpy as np
    >>> raw = np.array([1.5, -2.0], np.float16).view(np.uint8)
    >>> moesaic.dequantize(raw, "F16", (2,))
    array([ 1.5, -2. ], dtype=float32)
    """
    try:
        dims = [operator.index(n) for n in shape]
    except TypeError:
        raise ArgumentError(
            f"[dequantize] shape: got {shape!r}, need a sequence of integers"
        ) from None
    threads = checked_threads(threads, "dequantize")
    return _core.dequantize(raw, checked_qtype(qtype, "dequantize"), dims, threads)
