"""Descriptions: a GGUF's headers as JSON, small enough to keep where 375 GB are not.

``moesaic inspect FILE --json`` writes one, :func:`header_bytes` turns it back into the headers of a
file without weights. What no plan needs is left out: strings of vocabularies, long arrays and long
texts keep only their number. Not for tokenizers, and not for running anything.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesaic import _core
from moesaic.errors import FormatError, IoError
from moesaic.gguf_write import qtypes

if TYPE_CHECKING:
    from moesaic.gguf import GGUF

#: What ships with the package: name -> file in moesaic/data.
SHIPPED = {"kimi-k2.5": "kimi-k2.5-ud-q2_k_xl.json"}

_MOST_ELEMENTS = 1024  # of an array whose values are kept; keys with a value a layer are shorter
_MOST_CHARACTERS = 256  # of a text that is kept
_MOST_BYTES = 64 << 20  # of a description that is read

#: What values of a wrong type or size cause.
_SENSELESS = (AttributeError, KeyError, OverflowError, TypeError, ValueError, struct.error)

_SCALARS = {
    "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?",
    "u64": "Q", "i64": "q", "f64": "d",
}  # fmt: skip
_TYPE_IDS = {
    "u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "string": 8,
    "array": 9, "u64": 10, "i64": 11, "f64": 12,
}  # fmt: skip


def describe_metadata(gguf: GGUF) -> dict[str, dict[str, Any]]:
    """Return every key with its GGUF type, and its value or the number of its elements."""
    out: dict[str, dict[str, Any]] = {}
    for key in gguf.metadata:
        kind = gguf.metadata.type_of(key)
        value = gguf.metadata[key]
        if isinstance(value, list):  # of strings
            out[key] = {"type": kind, "count": len(value)}
        elif isinstance(value, np.ndarray):
            out[key] = {"type": kind, "count": len(value)}
            if len(value) <= _MOST_ELEMENTS:
                out[key]["value"] = [_json_number(v) for v in value.tolist()]
        elif isinstance(value, str) and len(value) > _MOST_CHARACTERS:
            out[key] = {"type": kind, "count": len(value)}
        else:
            out[key] = {"type": kind, "value": _json_number(value)}
    return out


def _json_number(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become text, which float() reads."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load(source: str | Path) -> dict[str, Any]:
    """Return the description of a shipped name, or in a file.

    Parameters
    ----------
    source : str or Path
        A name in ``SHIPPED``, or a JSON file (perhaps gzipped) as ``moesaic inspect --json`` writes
        it.

    Raises
    ------
    IoError
        It cannot be read.
    FormatError
        It is no description.

    Examples
    --------
    >>> from moesaic import description
    >>> description.load("kimi-k2.5")["arch"]
    'deepseek2'
    """
    shipped = SHIPPED.get(str(source))
    try:
        if shipped is not None:
            raw = resources.files("moesaic").joinpath("data", shipped).read_bytes()
        else:
            raw = Path(source).read_bytes()
        if raw[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as unpacked:
                raw = unpacked.read(_MOST_BYTES + 1)
    except (OSError, EOFError) as error:
        raise IoError(f"[description] {source}: {error}") from None
    if len(raw) > _MOST_BYTES:
        raise FormatError(f"[description] {source}: more than {_MOST_BYTES >> 20} MiB of JSON")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"[description] {source}: no JSON: {error}") from None
    if not isinstance(value, dict) or not {"metadata", "tensors"} <= value.keys():
        raise FormatError(
            f"[description] {source}: no description: need an object with metadata and tensors, as "
            "`moesaic inspect FILE --json` prints it"
        )
    return value


def header_bytes(description: Mapping[str, Any], name: str) -> bytes:
    """Return a GGUF v3 header up to the end of its tensor directory.

    Parameters
    ----------
    description : Mapping
        With ``"metadata"`` and ``"tensors"``, as :func:`load` gives it.
    name : str
        For messages.

    Raises
    ------
    FormatError
        A key or tensor that makes no sense.

    Examples
    --------
    >>> from moesaic import description
    >>> description.header_bytes(description.load("kimi-k2.5"), "kimi-k2.5")[:4]
    b'GGUF'
    """
    metadata, tensors = description.get("metadata"), description.get("tensors")
    if not isinstance(metadata, Mapping) or not isinstance(tensors, list):
        raise FormatError(f"[description] {name}: metadata must be an object, tensors a list")
    keys: list[bytes] = []
    for key, entry in metadata.items():
        if key.startswith("split."):  # one part, whatever it was
            continue
        try:
            keys.append(_string(key) + _value(entry))
        except _SENSELESS as error:
            raise FormatError(
                f'[description] {name}: key "{key}": got {_shown(entry)}, need {{"type": a GGUF '
                f'type, "value": ... or "count": n}} ({error})'
            ) from None
    alignment = metadata.get("general.alignment", {}).get("value", 32)
    if alignment not in [2**n for n in range(25)]:
        raise FormatError(
            f"[description] {name}: general.alignment: got {_shown(alignment)}, need a power of two"
        )
    directory, n_tensors = _directory(tensors, alignment, name)
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(keys))
    return head + b"".join(keys) + directory


def _directory(tensors: list[Any], alignment: int, name: str) -> tuple[bytes, int]:
    """Entries of all tensors, each behind the one before, and their number."""
    ids, blocks = _core.qtype_ids(), qtypes()
    entries: list[bytes] = []
    offset = 0
    for tensor in tensors:
        try:
            if tensor["name"] == "rope_freqs.weight":  # read for its values, which are not here
                continue
            shape = [int(n) for n in tensor["shape"]]
            elems, n_bytes = blocks[tensor["qtype"]]
            if not shape or min(shape) < 1 or shape[-1] % elems or math.prod(shape) >= 2**48:
                raise ValueError(f"a shape of whole blocks of {elems} elements is needed")
            entry = _string(tensor["name"]) + struct.pack("<I", len(shape))
            entry += struct.pack(f"<{len(shape)}Q", *reversed(shape))
            entry += struct.pack("<IQ", ids[tensor["qtype"]], offset)
        except _SENSELESS as error:
            raise FormatError(
                f'[description] {name}: tensor: got {_shown(tensor)}, need {{"name", "shape", '
                f'"qtype"}} ({error})'
            ) from None
        entries.append(entry)
        size = math.prod(shape) // elems * n_bytes
        offset += -(-size // alignment) * alignment
    return b"".join(entries), len(entries)


def _value(entry: Mapping[str, Any]) -> bytes:
    """A key's type and value. What was left out becomes zeros and empty strings."""
    kind = entry["type"]
    if not kind.startswith("array["):
        return struct.pack("<I", _TYPE_IDS[kind]) + _scalar(kind, entry.get("value"))
    element = kind.removeprefix("array[").removesuffix("]")
    values = entry.get("value")
    count = int(entry["count"]) if values is None else len(values)
    if not 0 <= count <= 2**26:
        raise ValueError("a count from 0 to 67,108,864 is needed")
    head = struct.pack("<IIQ", _TYPE_IDS["array"], _TYPE_IDS[element], count)
    if values is None:
        return head + bytes(
            count * (8 if element == "string" else struct.calcsize(_SCALARS[element]))
        )
    return head + b"".join(_scalar(element, value) for value in values)


def _scalar(kind: str, value: Any) -> bytes:
    if kind == "string":
        return _string("" if value is None else value)
    if kind in ("f32", "f64"):
        value = float(value)
    return struct.pack("<" + _SCALARS[kind], value)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
