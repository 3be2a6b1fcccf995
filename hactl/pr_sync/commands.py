"""PERSISTENT RESERVE OUT as a value: what an I_T nexus sends and what it is answered. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from hactl.pr_sync.state import Action, Nexus

Access = Mapping[int, frozenset[str]]
"""Initiator names for which the unit is mapped, per RTPI.

LIO's answers to SPEC_I_PT depend on the order of ports: iterate in the order in which the unit was linked
into the target port groups (the kernel's ``dev_sep_list``), and link in the same order on every node.
"""

GENERATIONS = 2**32
"""PRgeneration wraps here (SPC-4 6.15.2)."""


@dataclass(frozen=True, order=True)
class InitiatorPort:
    """``isid``: 12 lower-case hex digits; empty for a TransportID without one (SPC-4 7.6.4.6, format 00b)."""

    initiator: str
    isid: str


@dataclass(frozen=True)
class Move:
    """Where REGISTER AND MOVE goes (SPC-4 6.16.4); ``unregister``: its UNREG bit."""

    to: InitiatorPort
    rtpi: int
    unregister: bool = False


@dataclass(frozen=True)
class Command:
    """One PERSISTENT RESERVE OUT (SPC-4 6.16) as received on ``nexus``.

    ``nexus``: as the session has it, so with an ISID and without ``copy``. ``key``, ``service_action_key``:
    the fields RESERVATION KEY and SERVICE ACTION RESERVATION KEY, 0 to 2**64 - 1. ``type``, ``scope``: four
    bits each, as sent. ``spec_i_pt``: the TransportIDs, or None if the SPEC_I_PT bit is zero. ``move``: for
    REGISTER AND MOVE and only for that, which has neither ALL_TG_PT nor SPEC_I_PT.
    """

    nexus: Nexus
    action: Action
    key: int = 0
    service_action_key: int = 0
    type: int = 0
    scope: int = 0
    all_tg_pt: bool = False
    aptpl: bool = False
    spec_i_pt: tuple[InitiatorPort, ...] | None = None
    move: Move | None = None

    def __post_init__(self) -> None:
        if (self.move is not None) != (self.action is Action.REGISTER_AND_MOVE):
            raise ValueError(f"{self.action.name} with destination {self.move}")
        if self.move is not None and (self.all_tg_pt or self.spec_i_pt is not None):
            raise ValueError("REGISTER AND MOVE has neither ALL_TG_PT nor SPEC_I_PT")
        if not self.nexus.isid or self.nexus.copy:
            raise ValueError(f"{self.nexus}: a command comes from a session, which has an ISID")


class Status(Enum):
    """SCSI status (SAM-5 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    RESERVATION_CONFLICT = 0x18


@dataclass(frozen=True)
class Outcome:
    """``sense_key``, ``asc``, ``ascq`` (SPC-4 4.5.6 and 4.5.7) are zero unless it is CHECK CONDITION."""

    status: Status
    sense_key: int = 0
    asc: int = 0
    ascq: int = 0

    @property
    def good(self) -> bool:
        """Whether the command took effect, if it had one."""
        return self.status is Status.GOOD


GOOD = Outcome(Status.GOOD)
CONFLICT = Outcome(Status.RESERVATION_CONFLICT)
INVALID_FIELD_IN_CDB = Outcome(Status.CHECK_CONDITION, 0x5, 0x24, 0x00)
LOGICAL_UNIT_NOT_SUPPORTED = Outcome(Status.CHECK_CONDITION, 0x5, 0x25, 0x00)
INVALID_FIELD_IN_PARAMETER_LIST = Outcome(Status.CHECK_CONDITION, 0x5, 0x26, 0x00)
COMMUNICATION_FAILURE = Outcome(Status.CHECK_CONDITION, 0x2, 0x08, 0x00)
