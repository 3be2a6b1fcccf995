"""The protocol between capture and agent: a JSON object on each line, over a Unix socket of root's.

Version 1. The agent speaks first:

- ``hello`` {version}. Answered with ``hello`` {version, mount, resend}, ``held`` for each write that waits,
  and ``synced``. ``mount`` names this mount of the file system: a new name means that the kernel may have
  answered commands in between without waiting. ``resend``: whether a killed capture's writes come back (Linux
  6.9).
- ``units`` {ref, serials}: from now on exactly these are hactl's. ``release`` {ref, id}. ``ping`` {ref}. Each
  is answered with ``done`` {ref, found} once it is so (``found``: False where ``release`` found no such
  write), or with ``failed`` {ref, message}.

Unasked come ``held`` {id, serial, since, size, content, resent, thread} and, before the connection is closed
for what the agent sent, ``refused`` {message}, or for
another agent, ``replaced``. ``id`` is never used for another
write, and stays through restarts of either side. ``serial`` is empty where the list of units was lost with
it. ``since``: CLOCK_MONOTONIC in seconds.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs start-up time
    from typing import Any

VERSION = 1
SOCKET = "capture.sock"
LIMIT = 1 << 24
"""Bytes of a line at most: the largest write, escaped, and then some."""


def encode(kind: str, **values: object) -> bytes:
    """One message as a line."""
    return json.dumps({"type": kind, **values}).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message on a line; ValueError when it is none."""
    found = json.loads(line)
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise ValueError("not an object with a type")
    return found
