"""PERSISTENT RESERVE OUT as bytes, and the command block of PERSISTENT RESERVE IN (SPC-4 6.15, 6.16). Pure.

`encode_command` and `decode_command` speak in terms of `Command`; `encode_out` and `decode_out`, below them,
of what the bytes say. The answers of PERSISTENT RESERVE IN are in ``answers``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from hactl.errors import Failed, Refused
from hactl.pr_sync import transport_id
from hactl.pr_sync.commands import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    Command,
    InitiatorPort,
    Outcome,
    Status,
)
from hactl.pr_sync.commands import Move as Destination
from hactl.pr_sync.state import Action, Nexus
from hactl.pr_sync.transport_id import IscsiPort, TransportId

OUT = 0x5F
IN = 0x5E

PARAMETER_LIST_LENGTH_ERROR = Outcome(Status.CHECK_CONDITION, 0x5, 0x1A, 0x00)

MOST_ALLOCATION = 0xFFFF
"""The longest answer that PERSISTENT RESERVE IN can ask for (a 16-bit ALLOCATION LENGTH)."""

_BASIC = 24
_ACTIONS = {action.value: action for action in Action}


class Read(IntEnum):
    """Service actions of PERSISTENT RESERVE IN (SPC-4 6.15.1)."""

    KEYS = 0x00
    RESERVATION = 0x01
    CAPABILITIES = 0x02
    FULL_STATUS = 0x03


class BadParameters(Refused):
    """A command that a device server ends with CHECK CONDITION, ILLEGAL REQUEST.

    ``outcome``: status and sense data that LIO ends it with.
    """

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(
            "pr-parameters",
            f"not a proper PERSISTENT RESERVE OUT: {message}",
            "correct the program of the initiator that sent it",
        )
        self.outcome = outcome


@dataclass(frozen=True)
class Move:
    """What only REGISTER AND MOVE has: whereto, and whether the sender is unregistered with it."""

    rtpi: int
    transport_id: TransportId
    unregister: bool = False


@dataclass(frozen=True)
class Out:
    """A PERSISTENT RESERVE OUT as its bytes say it (SPC-4 6.16).

    ``type`` and ``scope`` as numbers of 4 bits, since a wrong one can be sent. ``spec_i_pt``: None when the
    bit is not set. ``move`` goes with REGISTER AND MOVE alone, which has no ALL_TG_PT and no SPEC_I_PT.
    """

    action: Action
    key: int = 0
    service_action_key: int = 0
    type: int = 0
    scope: int = 0
    all_tg_pt: bool = False
    aptpl: bool = False
    spec_i_pt: tuple[TransportId, ...] | None = None
    move: Move | None = None

    def __post_init__(self) -> None:
        if (self.action is Action.REGISTER_AND_MOVE) is (self.move is None):
            raise ValueError(f"{self.action.name} {'without' if self.move is None else 'with'} a destination")
        if self.move is not None and (self.all_tg_pt or self.spec_i_pt is not None):
            raise ValueError("REGISTER AND MOVE has neither ALL_TG_PT nor SPEC_I_PT")


def encode_out(out: Out) -> tuple[bytes, bytes]:
    """Command block and parameter list (SPC-4 6.16.1 and 6.16.3, 6.16.4 for REGISTER AND MOVE).

    SPEC_I_PT is encoded with any service action, though only REGISTER may have it: a test may send it.
    """
    keys = out.key.to_bytes(8, "big") + out.service_action_key.to_bytes(8, "big")
    if out.move is not None:
        tail = transport_id.encode(out.move.transport_id)
        flags = out.move.unregister << 1 | out.aptpl
        data = (
            keys + bytes([0, flags]) + out.move.rtpi.to_bytes(2, "big") + len(tail).to_bytes(4, "big") + tail
        )
    else:
        flags = (out.spec_i_pt is not None) << 3 | out.all_tg_pt << 2 | out.aptpl
        data = keys + bytes(4) + bytes([flags, 0, 0, 0])
        if out.spec_i_pt is not None:
            tail = b"".join(transport_id.encode(one) for one in out.spec_i_pt)
            data += len(tail).to_bytes(4, "big") + tail
    cdb = bytes([OUT, out.action, out.scope << 4 | out.type, 0, 0]) + len(data).to_bytes(4, "big") + b"\0"
    return cdb, data


def decode_out(cdb: bytes, data: bytes) -> Out:
    """The command that these bytes are; `BadParameters` with LIO's sense data for those that are none.

    LIO: looks into the list of SPEC_I_PT and of REGISTER AND MOVE only after it has checked the sender's
    registration, so that of two faults a target may name another one than this.
    """
    if len(cdb) != 10 or cdb[0] != OUT:
        raise BadParameters(INVALID_FIELD_IN_CDB, f"command block {cdb[:16].hex()}")
    if len(data) < _BASIC or int.from_bytes(cdb[5:9], "big") != len(data):
        raise BadParameters(PARAMETER_LIST_LENGTH_ERROR, f"{len(data)} bytes of parameters")
    word = cdb[1] & 0x1F
    if word not in _ACTIONS:
        raise BadParameters(INVALID_FIELD_IN_CDB, f"service action {word:#04x}")
    action = _ACTIONS[word]
    key, service_action_key = int.from_bytes(data[0:8], "big"), int.from_bytes(data[8:16], "big")
    type_, scope = cdb[2] & 0x0F, cdb[2] >> 4
    if action is Action.REGISTER_AND_MOVE:
        move = _decode_move(data)
        return Out(action, key, service_action_key, type_, scope, aptpl=bool(data[17] & 0x01), move=move)
    spec_i_pt = None
    if data[20] & 0x08:
        if action is not Action.REGISTER:
            raise BadParameters(INVALID_FIELD_IN_PARAMETER_LIST, f"SPEC_I_PT with {action.name}")
        spec_i_pt = _decode_list(data, 24)
    elif len(data) != _BASIC:
        raise BadParameters(PARAMETER_LIST_LENGTH_ERROR, f"{len(data)} bytes of parameters for {action.name}")
    return Out(
        action,
        key,
        service_action_key,
        type_,
        scope,
        all_tg_pt=bool(data[20] & 0x04),
        aptpl=bool(data[20] & 0x01),
        spec_i_pt=spec_i_pt,
    )


def _decode_move(data: bytes) -> Move:
    ports = _decode_list(data, 20)
    if len(ports) != 1:
        raise BadParameters(INVALID_FIELD_IN_PARAMETER_LIST, f"{len(ports)} TransportIDs to move to")
    return Move(int.from_bytes(data[18:20], "big"), ports[0], bool(data[17] & 0x02))


def _decode_list(data: bytes, at: int) -> tuple[TransportId, ...]:
    """TransportIDs with their length, 4 bytes at ``at``, which must reach to the end of the parameters."""
    if len(data) < at + 4 or int.from_bytes(data[at : at + 4], "big") != len(data) - at - 4:
        raise BadParameters(INVALID_FIELD_IN_PARAMETER_LIST, "the length of the TransportIDs is wrong")
    try:
        return transport_id.split(data[at + 4 :])
    except Failed as error:
        raise BadParameters(INVALID_FIELD_IN_PARAMETER_LIST, error.message) from None


def in_cdb(action: Read, allocation: int = MOST_ALLOCATION) -> bytes:
    """Command block of a PERSISTENT RESERVE IN (SPC-4 6.15.1). ``allocation``: 0 to 65,535 bytes.

    LIO: an ALLOCATION LENGTH below 8 (6 for REPORT CAPABILITIES) is ILLEGAL REQUEST.
    """
    return bytes([IN, action, 0, 0, 0, 0, 0]) + allocation.to_bytes(2, "big") + b"\0"


def encode_command(command: Command) -> tuple[bytes, bytes]:
    """Command block and parameter list of a command, to be sent on its nexus."""
    move = None
    if command.move is not None:
        to = command.move.to
        move = Move(command.move.rtpi, IscsiPort(to.initiator, to.isid), command.move.unregister)
    spec_i_pt = None
    if command.spec_i_pt is not None:
        spec_i_pt = tuple(IscsiPort(one.initiator, one.isid) for one in command.spec_i_pt)
    return encode_out(
        Out(
            action=command.action,
            key=command.key,
            service_action_key=command.service_action_key,
            type=command.type,
            scope=command.scope,
            all_tg_pt=command.all_tg_pt,
            aptpl=command.aptpl,
            spec_i_pt=spec_i_pt,
            move=move,
        )
    )


def decode_command(nexus: Nexus, cdb: bytes, data: bytes) -> Command:
    """The command that arrived on ``nexus``. Raises as `decode_out` does, and for ports not of iSCSI."""
    out = decode_out(cdb, data)
    move = None
    if out.move is not None:
        move = Destination(_iscsi(out.move.transport_id), out.move.rtpi, out.move.unregister)
    return Command(
        nexus=nexus,
        action=out.action,
        key=out.key,
        service_action_key=out.service_action_key,
        type=out.type,
        scope=out.scope,
        all_tg_pt=out.all_tg_pt,
        aptpl=out.aptpl,
        spec_i_pt=None if out.spec_i_pt is None else tuple(_iscsi(one) for one in out.spec_i_pt),
        move=move,
    )


def _iscsi(port: TransportId) -> InitiatorPort:
    if isinstance(port, IscsiPort):
        return InitiatorPort(port.initiator, port.isid)
    raise BadParameters(INVALID_FIELD_IN_PARAMETER_LIST, f"a TransportID of protocol {port.protocol:#x}")
