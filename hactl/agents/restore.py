"""What a started agent takes over from its predecessor: pure, from the journal and the kernel's state."""

from __future__ import annotations

from dataclasses import replace

from hactl.agents.journal import Record
from hactl.agents.states import OrderedRole, ResourceObserved
from hactl.target.gates import Mode


def restored(record: Record | None, observed: ResourceObserved, *, boot: str, now: float) -> Record:
    """The record to go on with.

    After a reboot everything is standby: what happened meanwhile is not known, and whoever is in charge
    orders again. In the same boot the journal is right about what was ordered, and the kernel about how far
    it got: a promotion that DRBD had not confirmed is dropped; one that it had is finished.
    """
    holding = bool(observed.modes(Mode.HELD, Mode.SUSPENDED))
    if record is None:
        # The journal was lost or never written. An open gate is in use: taking it away would be a choice.
        if observed.primary and observed.modes(Mode.OPEN):
            role = OrderedRole.ACTIVE
        else:
            role = OrderedRole.DEMOTED if holding else OrderedRole.STANDBY
        return Record(role=role, boot=boot, since=now)
    if record.boot != boot:
        return Record(role=OrderedRole.STANDBY, boot=boot, since=now, fresh=record.fresh)
    if record.role is OrderedRole.ACTIVE and not observed.primary:
        role = OrderedRole.DEMOTED if holding else OrderedRole.STANDBY
        return replace(record, role=role, handover=None)
    return record
