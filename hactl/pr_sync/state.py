"""The persistent reservation state of one logical unit, as frozen values. Pure.

SPC-4 5.13.1: registrations belong to an I_T nexus, the reservation to the logical unit. A unit of hactl has
the same state on every node; a node's target port is known by its relative target port identifier (RTPI).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType


class Action(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT (SPC-4 6.16.2, table 213)."""

    REGISTER = 0x00
    RESERVE = 0x01
    RELEASE = 0x02
    CLEAR = 0x03
    PREEMPT = 0x04
    PREEMPT_AND_ABORT = 0x05
    REGISTER_AND_IGNORE_EXISTING_KEY = 0x06
    REGISTER_AND_MOVE = 0x07


class Type(IntEnum):
    """Persistent reservation types (SPC-4 6.15.3.4)."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8

    @property
    def all_registrants(self) -> bool:
        """Whether every registered nexus is a holder (SPC-4 5.13.10)."""
        return self in (Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS)


@dataclass(frozen=True, order=True)
class Nexus:
    """An I_T nexus.

    ``initiator``: iSCSI name. ``isid``: 12 lower-case hex digits, empty for a registration made without one
    (LIO does that for the other ports of an ALL_TG_PT registration). ``rtpi``: of the target port. ``copy``:
    0, or how many registrations of the same nexus stand before this one in the kernel's list (LIO does not
    look whether an ALL_TG_PT or SPEC_I_PT registration is there already; only an anonymous registration, or a
    TransportID named twice, comes to be there more than once).
    """

    initiator: str
    isid: str
    rtpi: int
    copy: int = 0


@dataclass(frozen=True)
class Registration:
    """``key``: 1 to 2**64 - 1."""

    key: int
    all_tg_pt: bool = False


@dataclass(frozen=True)
class Reservation:
    """Scope is always the logical unit. ``holder`` is None for an all-registrants type (see ``Hidden``)."""

    type: Type
    holder: Nexus | None


@dataclass(frozen=True)
class Hidden:
    """What LIO remembers, PERSISTENT RESERVE IN does not show, and later commands bring to light.

    Not in SPC-4. It differs between a kernel that executed every command and one whose state was imported:
    an import leaves ``ignored`` and ``scope_left`` empty.
    """

    anchor: Nexus | None = None
    """The one registration an all-registrants reservation hangs on: a PREEMPT of its key takes the
    reservation over, and other sessions of its initiator on its port count as not registered. The APTPL
    file marks it with ``res_holder=1``. None with such a reservation means: the first in the list."""

    ignored: frozenset[tuple[str, int]] = frozenset()
    """Initiator name and RTPI where registrations are left, but LIO takes the initiator for unregistered:
    it keeps one flag for all ISIDs of an ACL, and the last to be removed took it away."""

    scope_left: frozenset[Nexus] = frozenset()
    """Registrations with a scope of non-zero, left there by REGISTER AND MOVE. If the reservation is moved
    back to one of them, RESERVE and RELEASE of it end with RESERVATION CONFLICT."""


@dataclass(frozen=True)
class State:
    """All of it. ``generation`` is modulo 2**32 (SPC-4 6.15.2).

    Two states are equal if PERSISTENT RESERVE IN shows the same but for the order of registrations.
    ``registrations`` keeps the order in which the kernel lists them, oldest first.
    """

    generation: int = 0
    registrations: Mapping[Nexus, Registration] = field(default_factory=dict)
    reservation: Reservation | None = None
    hidden: Hidden = field(default=Hidden(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "registrations", MappingProxyType(dict(self.registrations)))

    def __hash__(self) -> int:
        return hash((self.generation, frozenset(self.registrations.items()), self.reservation))

    @property
    def everything(self) -> Hashable:
        """Equal for two states exactly if no sequence of commands can ever tell them apart."""
        return (self.generation, tuple(self.registrations.items()), self.reservation, self.hidden)

    def same_but_generation(self, other: State) -> bool:
        """Whether nobody could tell the two apart but by PRgeneration."""
        return self.registrations == other.registrations and self.reservation == other.reservation
