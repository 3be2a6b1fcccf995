"""What a started agent takes over from its predecessor: pure, from the journal and the kernel's state."""

from __future__ import annotations

from dataclasses import replace

from hactl.agents.journal import Record
from hactl.agents.states import OrderedRole, ResourceObserved
from hactl.target.gates import Mode


def restored(record: Record | None, observed: ResourceObserved, *, boot: str, now: float) -> Record:
    """The record to go on with.

    In the same boot the journal is right about what was ordered, and the kernel about how far it got: a
    promotion that DRBD had not confirmed is dropped; one that it had is finished. In another boot, or where
    the journal was lost, only the kernel tells: after a reboot that is standby everywhere, and whoever is in
    charge orders again.
    """
    holding = bool(observed.modes(Mode.HELD, Mode.SUSPENDED))
    if record is None or record.boot != boot:
        # An open gate is in use: taking it away would be a choice.
        if observed.primary and observed.modes(Mode.OPEN):
            role = OrderedRole.ACTIVE
        else:
            role = OrderedRole.DEMOTED if holding else OrderedRole.STANDBY
        new = Record(role=role, boot=boot, since=now)
        return new if record is None else replace(new, fresh=record.fresh, adopting=record.adopting)
    if record.role is OrderedRole.ACTIVE and not observed.primary:
        role = OrderedRole.DEMOTED if holding else OrderedRole.STANDBY
        return replace(record, role=role, handover=None)
    return record
