"""What ``/proc/drbd`` of DRBD 8.4 tells and its events do not: the role of each volume. Pure.

Source: drbd_proc.c; the lines are described in the DRBD 8.4 user's guide, "Status information in /proc/drbd".
"""

from __future__ import annotations

import re

from hactl.errors import Failed
from hactl.replication.state import Role

_VOLUME = re.compile(r"^ *(\d+): cs:\S+ ro:(\w+)/\w+ ")


def roles(text: str) -> dict[str, Role]:
    """This node's role by minor; a minor that is not configured is not in it."""
    found = {}
    for line in text.splitlines():
        if match := _VOLUME.match(line):
            try:
                found[match[1]] = Role(match[2])
            except ValueError:
                raise Failed(
                    "drbd-unknown-word", f"/proc/drbd has an unknown role {match[2]!r}: {line.strip()}"
                ) from None
    return found
