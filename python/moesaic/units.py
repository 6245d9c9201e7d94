"""Amounts as people write them: ``100G``, ``1.5 TB``, ``64GiB``."""

from __future__ import annotations

import re

from moesaic.errors import ArgumentError

_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
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
