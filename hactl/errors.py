"""Errors with a stable code, a message and a hint; the command line formats them once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class HactlError(Exception):
    """Something hactl could not or would not do.

    ``code`` is stable and machine-readable (``drbd-not-uptodate``), ``message`` names the thing and the
    reason, ``hint`` names the remedy.
    """

    code: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def as_dict(self) -> dict[str, str]:
        """The error as the API and ``--json`` show it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class Refused(HactlError):
    """Nothing was changed: a precondition does not hold, or the input is bad."""


class Failed(HactlError):
    """A step was tried and certainly did not take effect."""


class Unknown(HactlError):
    """A step was tried and may or may not have taken effect (a time-out, a lost connection)."""


MOMENTARY = frozenset({"reservations-behind", "store-unreachable", "store-unknown", "pacemaker-timeout"})
"""Codes of errors that keep a node from being promoted for a moment: its agent has to export the resource
before it can follow its reservations, and the store elects a leader when it has lost one together with a
node."""
