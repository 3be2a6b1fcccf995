"""Asymmetric access states (SPC-4 5.15.2, codes of REPORT TARGET PORT GROUPS 6.37) as LIO writes them."""

from __future__ import annotations

from enum import IntEnum


class AccessState(IntEnum):
    """State of a target port group; the value is what ``alua_access_state`` in configfs takes."""

    ACTIVE_OPTIMIZED = 0
    ACTIVE_NON_OPTIMIZED = 1
    STANDBY = 2
    UNAVAILABLE = 3
    OFFLINE = 14
    TRANSITIONING = 15


def wanted(node: str, active: str | None) -> AccessState:
    """State of a node's group for a resource whose active node is known, or is nobody's (all standby)."""
    return AccessState.ACTIVE_OPTIMIZED if node == active else AccessState.STANDBY
