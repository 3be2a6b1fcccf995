"""What a transaction may look like; the same for every store."""

from __future__ import annotations

from collections.abc import Iterable

from hactl.store.protocol import Unchanged, Write


def checked(
    conditions: Iterable[Unchanged], writes: Iterable[Write]
) -> tuple[tuple[Unchanged, ...], tuple[Write, ...]]:
    """The transaction, each part read once.

    ValueError: a key is empty or written twice, which etcd refuses as well (it could not tell which is last).
    """
    known, wanted = tuple(conditions), tuple(writes)
    keys = [write.key for write in wanted]
    if not all(keys) or not all(condition.key for condition in known):
        raise ValueError("a key is empty")
    if len(set(keys)) != len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"written twice in one transaction: {', '.join(twice)}")
    return known, wanted


def first_after(prefix: str) -> bytes:
    """End of the range of all keys that begin with ``prefix``, itself not in it, in bytes as etcd compares
    them; a zero byte, etcd's word for no end, if there is none."""
    start = prefix.encode()
    for index in range(len(start) - 1, -1, -1):
        if start[index] < 0xFF:
            return start[:index] + bytes([start[index] + 1])
    return b"\0"
