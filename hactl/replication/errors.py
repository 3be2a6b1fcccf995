"""What drbd-utils' exit statuses and messages mean, as hactl's errors; pure."""

from __future__ import annotations

import re

from hactl.errors import Failed, HactlError, Refused
from hactl.runner import Completed

_NO_METADATA = "No valid meta data found"
_REASON = re.compile(r"(State change failed|Failure): \((-?\d+)\)\s*(.*)")

# State change errors of the kernel (enum drbd_state_rv) with the remedy hactl can name.
_STATE_CHANGE = {
    -1: ("drbd-primary-elsewhere", "demote the resource on the other node first"),
    -2: ("drbd-not-uptodate", "connect a node whose data is up to date, or wait until the resync is done"),
    -7: ("drbd-peer-not-outdated", "fence the peer first"),
    -10: ("drbd-refused-by-peer", "see the kernel's log on the peer"),
    -12: ("drbd-in-use", "close the gate, or end what has the device open"),
    -18: ("drbd-in-transit", "try again when the state has settled"),
    -19: ("drbd-in-transit", "try again when the state has settled"),
    -22: ("drbd-no-quorum", "bring back a majority of the nodes"),
}

# Configuration errors of the kernel (enum drbd_ret_code).
_CONFIGURATION = {
    111: ("drbd-disk-too-small", "use a larger disk"),
    119: ("drbd-no-metadata", "create meta-data first"),
    158: ("drbd-not-configured", "bring the resource up first"),
}


def refusal(completed: Completed, name: str) -> HactlError:
    """The error for a drbd-utils command that ended with a status other than 0.

    A reason with a number comes from the kernel, which then has changed nothing:
    :class:`hactl.errors.Refused`, with that reason and what else the kernel tells (who has the device open).
    Anything else is :class:`hactl.errors.Failed`.
    """
    text = completed.stderr.strip() or completed.stdout.strip()
    found = _REASON.search(text)
    if not found and _NO_METADATA in text:
        # drbdadm adjust asks drbdmeta before it asks the kernel to attach.
        code, hint = _CONFIGURATION[119]
        return Refused(code, f"resource {name}: {_NO_METADATA}", hint)
    if not found:
        return Failed("drbd-failed", f"resource {name}: {' '.join(completed.argv[:2])}: {_one_line(text)}")
    known = _STATE_CHANGE if found[1].startswith("State") else _CONFIGURATION
    code, hint = known.get(int(found[2]), ("drbd-refused", "see the kernel's log"))
    details = [_one_line(line) for line in _details(text[found.end() :])]
    message = "; ".join([f"resource {name}: {found[3].strip()} ({found[2]})", *details])
    return Refused(code, message, hint)


def _details(rest: str) -> list[str]:
    """What the kernel adds, without what drbd-utils writes around it."""
    around = ("additional info", "Command '")
    return [
        line for line in (raw.strip() for raw in rest.splitlines()) if line and not line.startswith(around)
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())
