"""Exit codes of ``hactl``; stable, so that scripts and resource agents can rely on them."""

from __future__ import annotations

from enum import IntEnum

from hactl.errors import HactlError, Refused, Unknown


class Exit(IntEnum):
    """What the exit code of ``hactl`` says."""

    OK = 0
    FAILED = 1
    """Tried, and certainly not done; or an error in hactl itself."""
    USAGE = 2
    """The command line is wrong; nothing was tried."""
    REFUSED = 3
    """Nothing was changed: a precondition does not hold, or the input is bad."""
    UNREACHABLE = 4
    """The node's agent cannot be reached; nothing was changed."""
    UNKNOWN = 5
    """Tried, and it is not known whether it was done: look at ``hactl status`` before trying again."""
    INTERRUPTED = 130
    """Interrupted from the keyboard while only looking."""


class AgentUnreachable(Refused):
    """The agent was not reached, so that it cannot have done anything."""


def code_of(error: HactlError) -> Exit:
    """The exit code for an error."""
    if isinstance(error, AgentUnreachable):
        return Exit.UNREACHABLE
    if isinstance(error, Refused):
        return Exit.REFUSED
    return Exit.UNKNOWN if isinstance(error, Unknown) else Exit.FAILED
