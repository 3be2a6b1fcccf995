"""Sizes: bytes as integers inside, ``10G`` (powers of 1024) where people write and read them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"^\s*([0-9]{1,20})\s*([KMGTP]?)(?:i?B)?\s*$", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of ``10G``, ``512MiB``, ``4096``; units are powers of 1024. :class:`ValueError` for others."""
    found = _SIZE.match(text)
    if not found:
        raise ValueError(
            f"{text!r} is not a size; write a whole number of bytes, or of K, M, G or T as in 10G"
        )
    return int(found[1]) * _UNITS[found[2].upper()]


def format_size(size: int) -> str:
    """The shortest exact writing of a number of bytes: ``10G``, ``1536M``, ``513``."""
    for unit in ("P", "T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
