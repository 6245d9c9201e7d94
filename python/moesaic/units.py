"""Amounts as people write them: ``100G``, ``1.5 TB``, ``64GiB``."""

from __future__ import annotations

import re

from moesaic.errors import ArgumentError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_LEAST_BARE = 10**6  # a number without a unit is taken as bytes from here on
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]i?|)(b?)\s*", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str, name: str, where: str) -> int:
    """Return a number of bytes.

    Parameters
    ----------
    text : str
        A number, then k, M, G or T (powers of 1000) or Ki, Mi, Gi or Ti (of 1024), then perhaps B.
    name, where : str
        For the error: which option of what.

    Raises
    ------
    ArgumentError
        Anything else.

    Examples
    --------
    >>> parse_bytes("100G", "memory", "worker")
    100000000000
    >>> parse_bytes("1.5 GiB", "memory", "worker")
    1610612736
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ArgumentError(
            f'[{where}] {name}: got "{text}", need a number of bytes like 100G, 1.5T or 64GiB'
        )
    number, unit, _ = match.groups()
    return round(float(number) * (_DECIMAL | _BINARY)[unit.lower()])


def parse_memory(text: str, name: str, where: str) -> int:
    """Return a number of bytes, as :func:`parse_bytes`, of an amount that a machine may have.

    A number without a unit is refused unless it is large enough to be meant as bytes.

    Raises
    ------
    ArgumentError
        No amount, or one without the unit that it needs.

    Examples
    --------
    >>> parse_memory("128GB", "memory", "plan")
    128000000000
    >>> parse_memory("128", "memory", "plan")
    Traceback (most recent call last):
    ...
    moesaic.errors.ArgumentError: [plan] memory: got "128", need a unit, like 128G or 128GiB
    """
    n_bytes = parse_bytes(text, name, where)
    bare = text.strip()
    if bare[-1:] in "0123456789." and n_bytes < _LEAST_BARE:
        raise ArgumentError(
            f'[{where}] {name}: got "{text}", need a unit, like {bare}G or {bare}GiB'
        )
    return n_bytes
