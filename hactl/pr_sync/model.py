"""What PERSISTENT RESERVE OUT does to a unit (SPC-4 5.13 and 6.16), as Linux 6.12's LIO does it. Pure.

Where LIO departs from SPC-4 the model follows LIO, and a comment that begins with "LIO:" says so. Assumed:
``force_pr_aptpl=1``, ``enforce_pr_isids=1``, iSCSI, resources enough, no unit attention pending, no SPC-2
reservation (all PERSISTENT RESERVE commands conflict with one), an ALUA state in which the port answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hactl.pr_sync.commands import (
    COMMUNICATION_FAILURE,
    CONFLICT,
    GOOD,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    LOGICAL_UNIT_NOT_SUPPORTED,
    Access,
    Command,
    InitiatorPort,
    Outcome,
)
from hactl.pr_sync.rules import Record, Table
from hactl.pr_sync.state import Action, Nexus, State, Type

_TYPES = frozenset(Type)
_WRITE_EXCLUSIVE = (
    Type.WRITE_EXCLUSIVE,
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
)
_HOLDER_ALONE = (Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS)


class NotGood(Exception):
    """A command of a sequence does not end with GOOD."""


def apply(state: State, command: Command, access: Access) -> tuple[Outcome, State]:
    """What the command is answered, and the state after it.

    ``state`` itself if nothing changed. Raises `KernelUndefined` where LIO uses freed memory.
    """
    nexus = command.nexus
    table = Table(state, access)
    if not table.mapped(nexus.initiator, nexus.rtpi):
        return LOGICAL_UNIT_NOT_SUPPORTED, state
    if not _let_through(table, command):
        return CONFLICT, state
    if command.spec_i_pt is not None and command.action is not Action.REGISTER:
        return INVALID_FIELD_IN_PARAMETER_LIST, state  # SPC-4 6.16.3
    outcome = _ACTIONS[command.action](table, command)
    return outcome, table.state() if outcome.good else state


def replay(state: State, commands: Iterable[Command], access: Access) -> State:
    """The state after all of them. `NotGood` if one is refused."""
    for command in commands:
        outcome, state = apply(state, command, access)
        if not outcome.good:
            raise NotGood(f"{command}: {outcome}")
    return state


def conflicts(state: State, nexus: Nexus, *, write: bool, access: Access) -> bool:
    """Whether a read or a write of the medium on ``nexus`` ends with RESERVATION CONFLICT.

    SPC-4 5.13.1, table 65. Who counts as registered: see ``counts_as_registered``, where LIO departs. LIO:
    goes by the direction of data, so commands without (SYNCHRONIZE CACHE) are not writes.
    """
    table = Table(state, access)
    if table.holder is None or table.counts_as_holder(nexus):
        return False
    if table.type not in _HOLDER_ALONE and table.counts_as_registered(nexus):
        return False
    return write or table.type not in _WRITE_EXCLUSIVE


def _let_through(table: Table, command: Command) -> bool:
    """Which service actions a reservation lets pass (SPC-4 5.13.1, table 66), before all other checks."""
    if table.holder is None or table.counts_as_holder(command.nexus):
        return True
    registered = table.counts_as_registered(command.nexus)
    match command.action:
        case Action.REGISTER | Action.REGISTER_AND_IGNORE_EXISTING_KEY:
            return True
        case Action.CLEAR | Action.PREEMPT | Action.PREEMPT_AND_ABORT | Action.RELEASE:
            return registered
        case Action.RESERVE | Action.REGISTER_AND_MOVE:
            return registered and table.type not in _HOLDER_ALONE


def _register(table: Table, command: Command) -> Outcome:
    """REGISTER (SPC-4 5.13.7, table 67)."""
    record = table.of(command.nexus)
    if record is None:
        if command.key:
            return CONFLICT
        return _register_new(table, command)
    if command.key != record.key:
        return CONFLICT
    return _register_again(table, command, record, key=command.key)


def _register_and_ignore(table: Table, command: Command) -> Outcome:
    """REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7, table 68)."""
    record = table.of(command.nexus)
    if record is None:
        return _register_new(table, command)
    return _register_again(table, command, record, key=0)


def _register_new(table: Table, command: Command) -> Outcome:
    nexus, key = command.nexus, command.service_action_key
    if not key:
        return GOOD  # SPC-4 5.13.7, tables 67 and 68
    records = [Record(nexus.initiator, nexus.isid, nexus.rtpi, key, command.all_tg_pt)]
    for port in command.spec_i_pt or ():
        rtpi = _port_for(table, port)
        if rtpi is None:
            return INVALID_FIELD_IN_PARAMETER_LIST
        # LIO: leaves one that is registered as it is, where SPC-4 5.13.7, table 67, ends the command with
        # INVALID FIELD IN PARAMETER LIST; and does not see those that this very command makes, so a port
        # that is named twice, or the sender's own, is registered twice.
        if table.locate(port.initiator, port.isid, rtpi) is None:
            records.append(Record(port.initiator, port.isid, rtpi, key, command.all_tg_pt))
    for record in records:
        table.add(record)
        for other in table.elsewhere(record) if command.all_tg_pt else ():
            table.add(other)
    return GOOD


def _port_for(table: Table, port: InitiatorPort) -> int | None:
    """Where SPEC_I_PT registers an initiator port; None for an error.

    LIO: the first port of the unit on which the initiator is known, not the one that received the command
    (SPC-4 5.13.7, table 69). And as reading a TransportID with an ISID damages it, it can be read only once:
    the initiator has to be known on the very first port. One without an ISID is refused by
    ``enforce_pr_isids``.
    """
    first = next(iter(table.access), None)
    if first is None or not port.isid or not table.mapped(port.initiator, first):
        return None
    return first


def _register_again(table: Table, command: Command, record: Record, *, key: int) -> Outcome:
    if command.spec_i_pt is not None:
        return INVALID_FIELD_IN_PARAMETER_LIST  # SPC-4 5.13.7, table 67
    if record.all_tg_pt and not command.all_tg_pt:
        return INVALID_FIELD_IN_CDB  # LIO: SPC-4 has no such rule
    if command.service_action_key:
        # LIO: changes this one registration, not those that ALL_TG_PT made or would make on other ports.
        record.key = command.service_action_key
        table.count()
        return GOOD
    # LIO: does not count PRgeneration for this, though SPC-4 6.16.2, table 213, asks for it.
    return GOOD if table.unregister(record, key=key) else CONFLICT


def _reserve(table: Table, command: Command) -> Outcome:
    """RESERVE (SPC-4 5.13.9)."""
    if command.type not in _TYPES:
        return INVALID_FIELD_IN_CDB
    record = table.of(command.nexus)
    if record is None:
        return COMMUNICATION_FAILURE  # LIO: SPC-4 5.13.7 asks for RESERVATION CONFLICT
    if command.key != record.key:
        return CONFLICT
    if command.scope:
        return INVALID_FIELD_IN_PARAMETER_LIST  # LIO: SPC-4 6.16.1 asks for INVALID FIELD IN CDB
    if table.holder is None:
        table.reserve(record, Type(command.type))
        return GOOD
    if not table.holds(record) or table.type != command.type or table.holder.scope_left:
        return CONFLICT
    return GOOD


def _release(table: Table, command: Command) -> Outcome:
    """RELEASE (SPC-4 5.13.11.2.2)."""
    record = table.of(command.nexus)
    if record is None:
        return COMMUNICATION_FAILURE  # LIO: SPC-4 5.13.7 asks for RESERVATION CONFLICT
    if table.holder is None or not table.holds(record):
        return GOOD  # LIO: whatever the key, where SPC-4 6.16.3 asks for RESERVATION CONFLICT
    if command.key != record.key:
        return CONFLICT
    if table.type != command.type or command.scope or table.holder.scope_left:
        return CONFLICT  # LIO: SPC-4 asks for CHECK CONDITION, INVALID RELEASE OF PERS. RES.
    table.release()
    return GOOD


def _clear(table: Table, command: Command) -> Outcome:
    """CLEAR (SPC-4 5.13.11.2.7)."""
    record = table.of(command.nexus)
    if record is None:
        return COMMUNICATION_FAILURE  # LIO: SPC-4 5.13.7 asks for RESERVATION CONFLICT
    if command.key != record.key:
        return CONFLICT
    table.release()
    for other in [*table.records]:
        table.remove(other)
    table.count()  # LIO: only after the APTPL file was written
    return GOOD


def _preempt(table: Table, command: Command) -> Outcome:
    """PREEMPT and PREEMPT AND ABORT (SPC-4 5.13.11.2.4 to 5.13.11.2.6)."""
    victim = command.service_action_key
    if command.type not in _TYPES:
        # LIO: also where SPC-4 5.13.11.2.5 ignores type and scope. Linux 7.2 ignores them there, too, and
        # looks at them after all else; as no command that hactl sends has wrong ones, this follows 6.12.
        return INVALID_FIELD_IN_CDB
    record = table.of(command.nexus)
    if record is None or record.key != command.key:
        return CONFLICT
    if command.scope:
        return INVALID_FIELD_IN_PARAMETER_LIST  # LIO: as with the type
    everyone = table.holder is not None and table.type.all_registrants
    if not victim and not everyone:
        return INVALID_FIELD_IN_PARAMETER_LIST  # SPC-4 5.13.11.2.4.1, table 72
    # LIO: an all-registrants reservation is taken over, and its type changed, also if the key is that of the
    # registration it hangs on, where SPC-4 (table 72) only removes registrations.
    takes_over = not victim or (table.holder is not None and table.holder.key == victim)
    found = [other for other in table.records if not victim or other.key == victim]
    if not found:
        return CONFLICT  # SPC-4 5.13.11.2.5
    if takes_over:
        table.reserve(record, Type(command.type))
    for other in found:
        # SPC-4 5.13.11.2.5: who preempts its own key without being the holder loses its own registration too.
        # LIO: not under an all-registrants reservation.
        if other is record and (takes_over or everyone):
            continue
        table.remove(other)
    table.count()  # LIO: only after the APTPL file was written
    return GOOD


def _move(table: Table, command: Command) -> Outcome:
    """REGISTER AND MOVE (SPC-4 5.13.8, table 70)."""
    move = command.move
    assert move is not None
    record = table.of(command.nexus)
    if record is None:
        return COMMUNICATION_FAILURE  # LIO: SPC-4 table 70 asks for RESERVATION CONFLICT
    if command.key != record.key:
        return CONFLICT
    if not command.service_action_key or move.rtpi not in table.access:
        return INVALID_FIELD_IN_PARAMETER_LIST
    to = move.to
    # SPC-4 5.13.8: not to the initiator port itself. LIO: not on another target port either.
    if to.initiator == record.initiator and (not to.isid or not record.isid or to.isid == record.isid):
        return INVALID_FIELD_IN_PARAMETER_LIST
    if not table.mapped(to.initiator, move.rtpi):
        return INVALID_FIELD_IN_PARAMETER_LIST
    if table.holder is None:
        return INVALID_FIELD_IN_CDB
    if not table.holds(record) or table.type.all_registrants:
        return CONFLICT
    goal = table.locate(to.initiator, to.isid, move.rtpi)
    if goal is None:
        goal = Record(to.initiator, to.isid, move.rtpi, command.service_action_key, all_tg_pt=False)
        table.add(goal)
    else:
        goal.key = command.service_action_key
        table.count()
    # LIO: gives the old holder the type as its scope, and leaves the new one with whatever scope it had.
    had = goal.scope_left
    table.reserve(goal, table.type)
    goal.scope_left = had
    record.scope_left = True
    if move.unregister:
        table.remove(record)
    return GOOD


_ACTIONS: dict[Action, Callable[[Table, Command], Outcome]] = {
    Action.REGISTER: _register,
    Action.RESERVE: _reserve,
    Action.RELEASE: _release,
    Action.CLEAR: _clear,
    Action.PREEMPT: _preempt,
    Action.PREEMPT_AND_ABORT: _preempt,
    Action.REGISTER_AND_IGNORE_EXISTING_KEY: _register_and_ignore,
    Action.REGISTER_AND_MOVE: _move,
}
