"""The persistent reservation state of one logical unit, as frozen values. Pure.

SPC-4 5.13.1: registrations belong to an I_T nexus, the reservation to the logical unit. A unit of hactl has
the same state on every node; a node's target port is known by its relative target port identifier (RTPI).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType


class Action(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT (SPC-4 6.16.2, table 215)."""

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
    (LIO does that for the other ports of an ALL_TG_PT registration). ``rtpi``: of the target port.
    """

    initiator: str
    isid: str
    rtpi: int


@dataclass(frozen=True)
class Registration:
    """``key``: 1 to 2**64 - 1."""

    key: int
    all_tg_pt: bool = False


@dataclass(frozen=True)
class Reservation:
    """Scope is always the logical unit. ``holder`` is None for an all-registrants type."""

    type: Type
    holder: Nexus | None


def _frozen(registrations: Mapping[Nexus, Registration]) -> Mapping[Nexus, Registration]:
    return MappingProxyType(dict(sorted(registrations.items())))


@dataclass(frozen=True)
class State:
    """All of it. Order of registrations does not count; ``generation`` is modulo 2**32 (SPC-4 6.15.2)."""

    generation: int = 0
    registrations: Mapping[Nexus, Registration] = field(default_factory=dict)
    reservation: Reservation | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "registrations", _frozen(self.registrations))

    def __hash__(self) -> int:
        return hash((self.generation, tuple(self.registrations.items()), self.reservation))

    def same_but_generation(self, other: State) -> bool:
        """Whether nobody could tell the two apart but by PRgeneration."""
        return self.registrations == other.registrations and self.reservation == other.reservation
