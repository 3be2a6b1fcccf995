"""OCF exit codes, what hactl's errors are to Pacemaker, and promotion scores; data and pure functions.

Source: the OCF resource agent API 1.1, and "How are OCF return codes interpreted" in Pacemaker
Administration, with ``remap_operation`` of Pacemaker's ``lib/pengine/unpack.c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from hactl.agents.reach import Verdict
from hactl.errors import HactlError


class Recovery(Enum):
    """What Pacemaker does about an exit code that it did not expect."""

    NONE = "nothing: the result is good"
    SOFT = "the resource is stopped here (demoted first) and started again, here or elsewhere"
    HARD = "the resource is stopped, and not started on this node again before an operator has cleaned up"
    FATAL = "the resource is stopped on all nodes, and not started before its configuration was changed"


class Code(IntEnum):
    """Exit codes of a resource agent."""

    SUCCESS = 0
    ERR_GENERIC = 1
    ERR_ARGS = 2
    ERR_UNIMPLEMENTED = 3
    ERR_PERM = 4
    ERR_INSTALLED = 5
    ERR_CONFIGURED = 6
    NOT_RUNNING = 7
    RUNNING_PROMOTED = 8
    FAILED_PROMOTED = 9
    DEGRADED = 190
    DEGRADED_PROMOTED = 191


RECOVERY = {
    Code.SUCCESS: Recovery.NONE,
    Code.ERR_GENERIC: Recovery.SOFT,
    Code.ERR_ARGS: Recovery.HARD,
    Code.ERR_UNIMPLEMENTED: Recovery.HARD,
    Code.ERR_PERM: Recovery.HARD,
    Code.ERR_INSTALLED: Recovery.HARD,
    Code.ERR_CONFIGURED: Recovery.FATAL,
    Code.NOT_RUNNING: Recovery.SOFT,
    Code.RUNNING_PROMOTED: Recovery.SOFT,
    Code.FAILED_PROMOTED: Recovery.SOFT,
    Code.DEGRADED: Recovery.NONE,
    Code.DEGRADED_PROMOTED: Recovery.NONE,
}
"""What Pacemaker does if a monitor answers this. NOT_RUNNING and RUNNING_PROMOTED are good where they are
expected, and in a probe. The degraded ones count as 0 and 8, and are shown among the failures."""

ERRORS = {
    "unknown-resource": Code.ERR_GENERIC,
    "not-root": Code.ERR_PERM,
    "bad-request": Code.ERR_ARGS,
    "unknown-action": Code.ERR_UNIMPLEMENTED,
}
"""Codes of hactl's errors that are not simply ERR_GENERIC. None is FATAL: what one node says must never stop
a resource on another. A resource that a node does not know may be one that it does not know *yet*."""


def code_of(error: HactlError) -> Code:
    """What an action ends with that ended with ``error``. What may have been done counts as failed: Pacemaker
    then stops the resource, and fences the node if even that is not confirmed."""
    return ERRORS.get(error.code, Code.ERR_GENERIC)


class Unchanged(Enum):
    """A score that stays as it is."""

    SCORE = "="


ACTIVE = 20000
"""Active with its own disks: stays so."""
READY = 10000
"""Standby with everything that was ever acknowledged: may be promoted."""
HANDED_OVER = 1000
"""Standby that has just handed over to another node. If Pacemaker drops its plan before it has promoted that
one, it chooses the same again, and not the one that is preferred otherwise."""
LAST_RESORT = 6000
"""Active on the disks of another node that could be active itself."""

Score = int | None | Unchanged
"""None: not to be promoted, whatever is preferred."""

_WEIGHTS = {
    Verdict.REACHABLE: {ACTIVE: ACTIVE, READY: READY, LAST_RESORT: LAST_RESORT},
    Verdict.UNKNOWN: {ACTIVE: ACTIVE, READY: 4000, LAST_RESORT: 2500},
    Verdict.SILENT: {ACTIVE: 5000, READY: 4000, LAST_RESORT: 2500},
    Verdict.DOWN: {ACTIVE: 3000, READY: 2000, LAST_RESORT: 1500},
}


def weighed(score: Score, storage: Verdict) -> Score:
    """A score (ACTIVE, READY, LAST_RESORT or none) of a node of which hosts can, or cannot, make use.

    What is active stays active as long as no other node is *better* reached: it outweighs any standby with
    the same verdict, and one that nobody has answered pulls nothing away unless the active one has no link at
    all. All are apart by more than a preferred node gets.
    """
    return _WEIGHTS[storage][score] if isinstance(score, int) else score


@dataclass(frozen=True)
class Answer:
    """Of one action. ``reason`` is one line for Pacemaker's status."""

    code: Code
    score: Score = Unchanged.SCORE
    reason: str = ""

    def text(self) -> str:
        """As the resource agent reads it: three lines; the score is ``-`` for none, ``=`` if it stays."""
        score = "-" if self.score is None else self.score
        word = score.value if isinstance(score, Unchanged) else str(score)
        return f"{int(self.code)}\n{word}\n{' '.join(self.reason.split())}\n"
