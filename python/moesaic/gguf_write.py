"""Writing small GGUF files and encoding floats as element types; public through moesaic.gguf."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moesaic import _core
from moesaic.errors import ArgumentError
from moesaic.inputs import integer


def qtypes() -> dict[str, tuple[int, int]]:
    """Element types by name: elements per block, bytes per block.

    Examples
    --------
    >>> from moesaic.gguf import qtypes
    >>> qtypes()["Q4_K"]
    (256, 144)
    """
    return {name: (elems, n_bytes) for name, elems, n_bytes, _ in _core.qtypes()}


def quantize(array: npt.ArrayLike, qtype: str, *, threads: int = 0) -> npt.NDArray[np.uint8]:
    """Encode floats as an element type.

    Parameters
    ----------
    array : float array, shape (..., n)
        n must be a multiple of the type's block. float16 and float64 are converted to float32;
        integers are refused.
    qtype : str
        F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS or MXFP4.
    threads : int
        Threads to encode with; 0 takes what the size is worth.

    Returns
    -------
    uint8 array, shape (..., bytes of n elements)
        Owning its memory.

    Raises
    ------
    ArgumentError
        Wrong dtype, a row that does not fit the block, a type that cannot be written, or a number
        that the type cannot hold (not finite where the type has blocks, or beyond its scales).

    Examples
    --------
    >>> import moesaic, numpy as np
    >>> raw = moesaic.quantize(np.ones((2, 64), np.float32), "Q8_0")
    >>> raw.shape
    (2, 68)
    >>> bool(np.allclose(moesaic.dequantize(raw, "Q8_0", (2, 64)), 1, atol=1e-3))
    True
    """
    threads = checked_threads(threads, "quantize")
    name = checked_qtype(qtype, "quantize")
    with np.errstate(over="ignore"):  # of float64 beyond float32: refused by the core
        return _core.quantize(np.asarray(array), name, threads)


def checked_qtype(qtype: Any, where: str) -> str:
    """Return ``qtype`` if it is text; whether there is such a type the core says."""
    if isinstance(qtype, str):
        return qtype
    raise ArgumentError(
        f"[{where}] qtype: got {type(qtype).__name__}, need the name of an element type (str) like "
        '"Q8_0"; moesaic.gguf.qtypes() lists them'
    )


def checked_threads(threads: Any, where: str) -> int:
    """Return ``threads`` if it is a count; 0 leaves the choice to the core."""
    return integer(threads, "threads (0: automatic)", where, 0, 2**31 - 1)


class Typed(NamedTuple):
    """A metadata value with its GGUF type (of its elements, in a sequence)."""

    value: Any
    type: str


_TYPE_OF_DTYPE = {
    "uint8": "u8", "int8": "i8", "uint16": "u16", "int16": "i16", "uint32": "u32", "int32": "i32",
    "uint64": "u64", "int64": "i64", "float32": "f32", "float64": "f64", "bool": "bool",
}  # fmt: skip
_DTYPE_OF_TYPE = {type_: dtype for dtype, type_ in _TYPE_OF_DTYPE.items()}


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    qtype: str | Mapping[str, str] = "F32",
    alignment: int = 32,
) -> None:
    """Write a GGUF v3 file: whole, or not at all.

    Parameters
    ----------
    path : str or os.PathLike
        Where to; an existing file is replaced when the new one is whole, through a symbolic link
        too. A pipe, device or directory is refused.
    metadata : Mapping of str to value
        bool, str and float become bool, string and f32; an int becomes the first of u32, i32, i64,
        u64 that holds it; a NumPy scalar or array keeps its type; a list of one kind becomes an
        array in the same way. ``Typed(value, "u16")`` chooses a type.
    tensors : Mapping of str to array or (array, qtype) or (raw, qtype, shape)
        A float array is encoded as its ``qtype``; a uint8 array with qtype and shape (NumPy order)
        is taken as encoded.
    qtype : str or Mapping of str to str
        Element type of the tensors that bring none; a mapping gives it by tensor name (F32 for
        those not in it).
    alignment : int
        Alignment of tensors in bytes.

    Raises
    ------
    ArgumentError
        A value, type or shape that a GGUF file, or an element type, cannot hold.
    IoError
        The operating system refused, or the target is not a regular file.

    Examples
    --------
    >>> import moesaic, numpy as np, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.gguf"
    >>> eye = np.eye(32, dtype=np.float32)
    >>> moesaic.write_gguf(path, {"general.name": "small"}, {"w": (eye, "Q8_0")})
    >>> moesaic.GGUF(path).tensors["w"].qtype
    'Q8_0'
    """
    writer = _core.GGUFWriter(alignment)
    for key, value in metadata.items():
        if key == "general.alignment":
            if int(value.value if isinstance(value, Typed) else value) != alignment:
                raise ArgumentError(
                    "[write_gguf] general.alignment: give it as the argument alignment"
                )
            continue
        _add_value(writer, key, value)
    for name, given in tensors.items():
        default = qtype if isinstance(qtype, str) else qtype.get(name, "F32")
        _add_tensor(writer, name, given, default)
    writer.write(os.fsencode(path))


def _add_value(writer: _core.GGUFWriter, key: str, value: Any) -> None:
    wanted: str | None = None
    if isinstance(value, Typed):
        value, wanted = value
    if isinstance(value, np.ndarray) or (
        isinstance(value, Sequence) and not isinstance(value, str | bytes)
    ):
        _add_sequence(writer, key, value, wanted)
        return
    kind = wanted or _scalar_type(key, value)
    if kind == "string":
        if not isinstance(value, str):
            raise ArgumentError(f'[write_gguf] key "{key}": got {type(value).__name__}, need str')
        writer.add_string(key, value)
    elif kind == "bool":
        writer.add_bool(key, bool(value))
    elif kind in ("f32", "f64"):
        writer.add_float(key, kind, float(value))
    else:
        _add_integer(writer, key, kind, value)


def _add_integer(writer: _core.GGUFWriter, key: str, kind: str, value: Any) -> None:
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(
            f'[write_gguf] key "{key}": got {type(value).__name__}, need an integer'
        ) from None
    if number >= 2**64 or number < -(2**63):
        raise ArgumentError(f'[write_gguf] key "{key}": {number} does not fit 64 bits')
    if number < 0:
        writer.add_int(key, kind, number)
    else:
        writer.add_uint(key, kind, number)


def _scalar_type(key: str, value: Any) -> str:
    if isinstance(value, np.generic) and value.dtype.name in _TYPE_OF_DTYPE:
        return _TYPE_OF_DTYPE[value.dtype.name]
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, float):
        return "f32"
    if isinstance(value, int):
        return _int_type(key, value, value)
    raise ArgumentError(
        f'[write_gguf] key "{key}": got {type(value).__name__}, need bool, int, float, str, '
        "a sequence of one of them, or Typed(value, type)"
    )


def _int_type(key: str, low: int, high: int) -> str:
    for kind, least, most in (
        ("u32", 0, 2**32 - 1),
        ("i32", -(2**31), 2**31 - 1),
        ("i64", -(2**63), 2**63 - 1),
        ("u64", 0, 2**64 - 1),
    ):
        if least <= low and high <= most:
            return kind
    raise ArgumentError(f'[write_gguf] key "{key}": {low} to {high} does not fit 64 bits')


def _add_sequence(
    writer: _core.GGUFWriter, key: str, values: Sequence[Any] | npt.NDArray[Any], wanted: str | None
) -> None:
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ArgumentError(
                f'[write_gguf] key "{key}": got an array of shape {values.shape}, need (n,)'
            )
        kind = wanted or _TYPE_OF_DTYPE.get(values.dtype.name)
        if kind is None or kind == "string":
            _add_sequence(writer, key, values.tolist(), wanted)
            return
    else:
        kind = wanted or _element_type(key, values)
    if kind == "string":
        if not all(isinstance(value, str) for value in values):
            raise ArgumentError(f'[write_gguf] key "{key}": need a sequence of str only')
        writer.add_strings(key, list(values))
        return
    if kind not in _DTYPE_OF_TYPE:
        raise ArgumentError(
            f'[write_gguf] key "{key}": got type {kind!r}, need one of '
            f"{', '.join(_DTYPE_OF_TYPE)}, string"
        )
    dtype = np.dtype(_DTYPE_OF_TYPE[kind])
    try:
        array = np.asarray(values)
        with np.errstate(over="ignore"):  # said below
            packed = array.astype(dtype) if len(array) else np.empty(0, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f'[write_gguf] key "{key}": {error}') from None
    if dtype.kind in "iu" and not (
        len(array) == 0 or (array.dtype.kind in "iub" and bool((packed == array).all()))
    ):
        raise ArgumentError(
            f'[write_gguf] key "{key}": not all values are integers that fit {kind}'
        )
    if dtype.kind == "f" and array.dtype.kind in "fiu":
        beyond = np.isinf(packed) & ~np.isinf(array)
        if bool(beyond.any()):
            raise ArgumentError(
                f'[write_gguf] key "{key}": {array[beyond][0]} does not fit {kind}: give '
                'Typed(values, "f64")'
            )
    writer.add_array(key, kind, packed)


def _element_type(key: str, values: Sequence[Any]) -> str:
    if not values:
        raise ArgumentError(
            f'[write_gguf] key "{key}": an empty sequence has no element type: '
            'give Typed([], "string") or the like'
        )
    kinds = {_scalar_type(key, value) for value in values}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds <= {"u32", "i32", "i64", "u64"}:
        return _int_type(key, min(values), max(values))
    if kinds <= {"u32", "i32", "i64", "u64", "f32"}:
        return "f32"
    raise ArgumentError(
        f'[write_gguf] key "{key}": values of different kinds ({", ".join(sorted(kinds))})'
    )


_INTEGER_TYPES = ("I8", "I16", "I32", "I64")


def _integers(name: str, array: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    """Return integers as the dtype of ``kind``, each checked to be in its range."""
    dtype = np.dtype(f"int{kind[1:]}")
    limits = np.iinfo(dtype)
    outside = np.argwhere((array < limits.min) | (array > limits.max))
    if len(outside):
        place = tuple(int(i) for i in outside[0])
        raise ArgumentError(
            f'[write_gguf] tensor "{name}": element {place} is {array[place]}, need integers from '
            f"{limits.min} to {limits.max} for {kind}"
        )
    return np.ascontiguousarray(array.astype(dtype))


def _add_tensor(writer: _core.GGUFWriter, name: str, given: Any, default: str) -> None:
    if isinstance(given, tuple) and len(given) == 3:
        raw, kind, shape = given
        writer.add_tensor(name, kind, [operator.index(n) for n in shape], np.ascontiguousarray(raw))
        return
    values, kind = given if isinstance(given, tuple) and len(given) == 2 else (given, default)
    array = np.asarray(values)
    if array.ndim == 0:
        array = array.reshape(1)
    if array.dtype.kind in "iu" and isinstance(kind, str) and kind.upper() in _INTEGER_TYPES:
        raw = _integers(name, array, kind.upper())
        writer.add_tensor(name, kind, list(array.shape), raw.reshape(-1).view(np.uint8))
        return
    try:
        raw = quantize(array, kind)
    except ArgumentError as error:
        raise ArgumentError(f'[write_gguf] tensor "{name}": {error}') from None
    writer.add_tensor(name, kind, list(array.shape), raw)
