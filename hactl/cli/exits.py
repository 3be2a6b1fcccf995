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
    """The node's agent, or the store with the configuration, cannot be reached; nothing was changed."""
    UNKNOWN = 5
    """Tried, and it is not known whether it was done: look at ``hactl status`` before trying again."""
    DIFFERENT = 6
    """Looked, and it is not as it should be: ``hactl diff`` found differences, ``hactl doctor`` errors."""
    INTERRUPTED = 130
    """Interrupted from the keyboard while only looking."""


UNREACHABLE = frozenset({"store-unreachable", "etcd-unreachable"})
"""Codes of refusals that say: nobody was reached who could have done anything."""


class AgentUnreachable(Refused):
    """The agent was not reached, so that it cannot have done anything."""


def code_of(error: HactlError) -> Exit:
    """The exit code for an error."""
    if isinstance(error, AgentUnreachable) or (isinstance(error, Refused) and error.code in UNREACHABLE):
        return Exit.UNREACHABLE
    if isinstance(error, Refused):
        return Exit.REFUSED
    return Exit.UNKNOWN if isinstance(error, Unknown) else Exit.FAILED
