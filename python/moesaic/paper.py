"""Machines on paper: what people write about them, as the facts a plan is made of.

``215G`` bytes a second, ``30T`` operations a second, ``0.2ms``, ``5Gb`` a second of link. Amounts
of memory are read by :mod:`moesaic.units`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from moesaic import _core
from moesaic.errors import ArgumentError
from moesaic.inputs import integer
from moesaic.units import parse_memory

#: One for all nodes, or one for each: a number in the base unit (bytes, seconds), or text.
Amount = float | str
Amounts = Amount | Sequence[Amount]

#: Less than this no machine has; who gives less has left out the unit.
_LEAST = {"memory": 1e6, "bandwidth": 1e6, "matmul": 1e6, "link": 1e3}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_BASE_UNITS = {
    "memory": "in bytes", "bandwidth": "in bytes a second", "matmul": "in operations a second",
    "link": "in bytes a second",
}  # fmt: skip
_EXAMPLES = {"memory": '"128G"', "bandwidth": '"215G"', "matmul": '"30T"', "link": '"5Gb"'}
_MOST_NODES = 1024
_NUMBER = r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*"
_OPS = re.compile(_NUMBER + r"([kmgt]?)(?:i?op/?s?|i?ops(?:/s)?)?\s*", re.IGNORECASE | re.ASCII)
_TIME = re.compile(_NUMBER + r"(s|ms|us|µs|μs|ns)\s*")
_LINK = re.compile(
    _NUMBER + r"([kmgtKMGT]?)(i?)(b|B|bit|bits|byte|bytes|bps)(?:/s|ps)?\s*", re.ASCII
)


def parse_rate(text: str, name: str, where: str) -> float:
    """Return bytes in a second of ``215G``, ``215GB/s``."""
    amount = re.sub(r"(?:/s|ps)\s*$", "", text)
    if re.search(r"[KMGT]i?b\s*$", amount):
        raise ArgumentError(
            f'[{where}] {name}: got "{text}", where b are bits; need bytes a second like 215GB/s'
        )
    return float(parse_memory(amount, name, where))


def parse_ops(text: str, name: str, where: str) -> float:
    """Return operations in a second of ``30T``, ``30TOPS``, ``400 GOP/s``."""
    match = _OPS.fullmatch(text)
    if match is None:
        raise ArgumentError(
            f'[{where}] {name}: got "{text}", need int8 operations a second like 30T or 400 GOP/s'
        )
    ops = float(match[1]) * _PREFIXES[match[2].lower()]
    if not match[2] and ops < _LEAST["matmul"]:
        raise ArgumentError(f'[{where}] {name}: got "{text}", need a unit, like {match[1]}T')
    return ops


def parse_time(text: str, name: str, where: str) -> float:
    """Return seconds of ``0.2ms``, ``150us``, ``1s``."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ArgumentError(f'[{where}] {name}: got "{text}", need a time like 0.2ms or 150us')
    return float(match[1]) * _TIMES[match[2]]


def parse_link(text: str, name: str, where: str) -> float:
    """Return bytes in a second of ``5Gb`` or ``5 Gbit/s`` (bits), ``600MB/s`` (bytes).

    Whether bits or bytes are meant must be said: ``5G`` alone could be either.
    """
    match = _LINK.fullmatch(text)
    if match is None:
        raise ArgumentError(
            f'[{where}] {name}: got "{text}", need a rate in bits (5Gb, 5Gbit/s) or bytes '
            "(600MB/s); the b or B must be there"
        )
    number, prefix, binary, unit = match.groups()
    base = 1024.0 if binary else 1000.0
    scale = base ** " kmgt".index(prefix.lower() or " ")
    is_bytes = unit == "B" or unit.startswith("byte")
    return float(number) * scale / (1 if is_bytes else 8)


def node_facts(
    *,
    nodes: int | Sequence[str],
    memory: Amounts | None,
    bandwidth: Amounts | None,
    matmul: Amounts | None,
    rtt: Amounts,
    link: Amounts,
    threads: int | Sequence[int] | None,
    where: str,
) -> list[dict[str, Any]]:
    """Return the facts of each node; memory, bandwidth and matmul None: as this machine has.

    Raises
    ------
    ArgumentError
        An amount that cannot be read, or a list of another length than there are nodes.
    """
    names = _node_names(nodes, where)
    n = len(names)
    if memory is None:
        memory = float(_core.available_memory_bytes())
    if threads is None:
        threads = _core.available_cpus()
    if bandwidth is None or matmul is None:
        read, ops = _core.measure(0)
        bandwidth = read if bandwidth is None else bandwidth
        matmul = ops if matmul is None else matmul
    columns = {
        "memory_bytes": _each(memory, parse_memory, n, "memory", where),
        "read_bytes_per_s": _each(bandwidth, parse_rate, n, "bandwidth", where),
        "matmul_ops_per_s": _each(matmul, parse_ops, n, "matmul", where),
        "rtt_s": _each(rtt, parse_time, n, "rtt", where),
        "link_bytes_per_s": _each(link, parse_link, n, "link", where),
    }
    counts = [threads] * n if not isinstance(threads, Sequence) else list(threads)
    if len(counts) != n:
        raise ArgumentError(
            f"[{where}] threads: got {len(counts)}, need one, or one for each of {n}"
        )
    return [
        {"address": name, "threads": integer(counts[i], "threads", where, 1, 1024)}
        | {column: values[i] for column, values in columns.items()}
        for i, name in enumerate(names)
    ]


def _node_names(nodes: int | str | Sequence[str], where: str) -> list[str]:
    """Return the names of so many nodes, or those that are given."""
    if isinstance(nodes, str) and nodes.strip().isdecimal():
        nodes = int(nodes)
    if not isinstance(nodes, str | Sequence):
        return [f"node{i + 1}" for i in range(integer(nodes, "nodes", where, 1, _MOST_NODES))]
    if isinstance(nodes, str):
        if "," not in nodes:
            raise ArgumentError(
                f'[{where}] nodes: got "{nodes}", need a number like 4, or names with commas like '
                "a,b (one name: a,)"
            )
        nodes = [name.strip() for name in nodes.removesuffix(",").split(",")]
    names = [str(name) for name in nodes]
    if not 1 <= len(names) <= _MOST_NODES:
        raise ArgumentError(f"[{where}] nodes: got {len(names)} names, need 1 to {_MOST_NODES}")
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            raise ArgumentError(
                f"[{where}] nodes: got {name!r} {'twice' if name else 'among them'}, need a name "
                "of its own for each"
            )
    return names


def _each(
    given: Amounts, parse: Callable[[str, str, str], float], n: int, name: str, where: str
) -> list[float]:
    """Return one amount for each node of one for all, a list, or text with commas."""
    if isinstance(given, str):
        items: list[Amount] = list(given.split(","))
    elif isinstance(given, Sequence):
        items = list(given)
    else:
        items = [given]
    if len(items) == 1:
        items *= n
    if len(items) != n:
        raise ArgumentError(
            f"[{where}] {name}: got {len(items)} amounts, need one, or one for each of {n} nodes"
        )
    values = [
        float(parse(item, name, where)) if isinstance(item, str) else _number(item, name, where)
        for item in items
    ]
    for item, value in zip(items, values, strict=True):
        if value < _LEAST.get(name, 0.0):
            raise ArgumentError(
                f"[{where}] {name}: got {item!r}, which is {_BASE_UNITS[name]}; need an amount "
                f"like {_EXAMPLES[name]}"
            )
    return values


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArgumentError(f"[{where}] {name}: got {value!r}, need a number or text with a unit")
    return float(value)
