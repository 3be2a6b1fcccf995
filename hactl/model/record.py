"""One record of the store: a JSON object as bytes, and back. Pure; no message holds a secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from hactl.errors import Refused

SCHEMA = 2
"""The newest schema this version reads."""

NEWER = frozenset(
    {
        "fencing",
        "pacemaker",
        "unfenced_promotion",
        "manual_failover",
        "failback",
        "maintenance",
        "storage_witnesses",
    }
)
"""Parts that readers of schema 1 do not know. A record without any is written as schema 1, so that nodes with
the version before can be in the cluster until what is new is used."""

NEWER_VOLUME = frozenset({"adopt"})
"""The same, of a resource's volumes."""

Json = dict[str, Any]
Checked = TypeVar("Checked")


def encode(value: Json) -> bytes:
    """A record's bytes: equal values are equal bytes."""
    newer = value.keys() & NEWER or any(v.keys() & NEWER_VOLUME for v in value.get("volumes", ()))
    schema = SCHEMA if newer else 1
    text = json.dumps({"schema": schema, **value}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def decode(key: str, value: bytes) -> Json:
    """A record's parts but ``schema``; :class:`Refused` ``record-damaged`` or ``schema-newer``."""
    try:
        parts = json.loads(value.decode(), parse_constant=_no_number, parse_float=_no_number)
    except (ValueError, RecursionError):
        damaged(key, "it is not JSON")
    if not isinstance(parts, dict):
        damaged(key, "it is not a JSON object")
    schema = parts.pop("schema", None)
    if type(schema) is not int or schema < 1:
        damaged(key, "it has no schema number")
    if schema > SCHEMA:
        raise Refused(
            "schema-newer",
            f"{key} in the store has schema {schema}, and this hactl reads up to {SCHEMA}: a newer one "
            "wrote it",
            "install the same hactl version on all nodes",
        )
    return parts


def checked(validate: Callable[[Any], Checked], key: str, value: Any) -> Checked:
    """What ``validate`` makes of a value that belongs to ``key``, or :func:`damaged`."""
    try:
        return validate(value)
    except ValidationError as error:
        # Not pydantic's own text: it quotes the input, which may be a secret.
        places = {".".join(str(step) for step in e["loc"])[:80] for e in error.errors(include_input=False)}
        wrong = ", ".join(sorted(filter(None, places)))
        damaged(key, f"wrong or missing: {wrong}" if wrong else "its key or value is not valid")


def damaged(key: str, why: str) -> NoReturn:
    """Refuse what is in the store."""
    raise Refused(
        "record-damaged",
        f"{key} in the store cannot be understood: {why}",
        "something else than hactl wrote it: restore the store from a backup, or correct that key with "
        "etcdctl",
    )


def _no_number(text: str) -> NoReturn:
    raise ValueError(text[:20])
