"""What to do next for one resource on one node: pure, from what is wanted and what was found.

Every prefix of a plan leaves a sound state: at most one node's gate is open, a gate is opened only when
DRBD is Primary here, and held I/O is failed only when the whole view of the access states has been written,
or when it has been held for as long as it may be and writing the view was tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from hactl.agents.actions import (
    Action,
    AdoptDisk,
    ApplyTarget,
    CloseGate,
    CreateGate,
    CreateMetadata,
    DrbdDown,
    DrbdPrimary,
    DrbdResize,
    DrbdSecondary,
    DrbdUp,
    EnlargeDisk,
    EnsureDisk,
    HoldGate,
    OpenGate,
    RemoveDrbdConfig,
    RemoveGate,
    ResizeGate,
    SetAlua,
    SkipInitialSync,
    WriteDrbdConfig,
    both_new,
)
from hactl.agents.states import OrderedRole, ResourceDesired, ResourceObserved, VolumeDesired
from hactl.replication.state import DiskState
from hactl.target.gates import Mode


def plan(desired: ResourceDesired, observed: ResourceObserved) -> tuple[Action, ...]:
    """The next steps; empty when there is nothing to do.

    What depends on devices that do not exist yet (the LIO tree on its gates) is planned once they do, so plan
    again after carrying a plan out.
    """
    return (*plan_groundwork(desired, observed), *plan_upkeep(desired, observed))


def plan_groundwork(desired: ResourceDesired, observed: ResourceObserved) -> tuple[Action, ...]:
    """Everything that does not depend on the role: configuration, meta-data, DRBD up, gates, LIO tree.
    Nothing of it while a disk cannot be used: that may be a mistake in the specification."""
    if observed.problems:
        return ()
    if observed.surplus:
        # LIO's tree cannot be planned without the gates of the volumes that stay, or come.
        return (*_gates(desired, observed),) or (*_drop(desired, observed),)
    disks = tuple(
        EnsureDisk(
            desired.name,
            "the pool does not have it ready, or not large enough",
            disk,
            create=disk.volume not in observed.lost,
        )
        for disk in desired.disks
        if disk.volume in observed.lacking
    )
    if disks:
        # What comes next is planned from what the disks look like then.
        return disks
    if observed.adoptable:
        return tuple(_adopt(desired, observed))
    storage = (*_replication(desired, observed), *_gates(desired, observed))
    if storage:
        return storage
    return (*_tree(desired, observed), *_skip(desired, observed), *_grow(desired, observed))


def _adopt(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    """Disks with data, before DRBD knows of them: nothing else comes first, so that it never meets one that
    says nothing of its data. Nothing while another replica may have data, too."""
    if desired.unready_copies(frozenset(observed.adoptable)):
        return
    small = {n: disk for n, disk in observed.adoptable.items() if disk.needed}
    for number, disk in sorted(small.items()):
        yield EnlargeDisk(desired.name, "DRBD's meta-data needs room behind the data", number, disk)
    if small:
        return
    for number in sorted(observed.adoptable):
        yield AdoptDisk(desired.name, "the specification says that its data are the volume's", number)


def _tree(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    # LIO waits for commands when it takes something away, and those in a gate that holds would never end.
    if not observed.modes(Mode.HELD, Mode.SUSPENDED):
        yield from (ApplyTarget(desired.name, c.reason, c) for c in observed.export or ())


def _drop(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    """Volumes that the resource has no more: LIO lets go of the gate first, then the gate of DRBD."""
    why = f"{desired.name} does not have the volume any more"
    waits = [g for g in observed.surplus.items() if g[1].mode in (Mode.HELD, Mode.SUSPENDED)]
    if waits:
        yield from (CloseGate(desired.name, why, number, gate.name) for number, gate in waits)
        return
    if observed.export is None or observed.export:
        # What is pending takes the volume away, among other things.
        yield from _tree(desired, observed)
        return
    for number, gate in sorted(observed.surplus.items()):
        if gate.mode is Mode.OPEN:
            yield CloseGate(desired.name, why, number, gate.name)
        if gate.mode is not Mode.FOREIGN:
            yield RemoveGate(desired.name, why, gate.name)


def plan_role(desired: ResourceDesired, observed: ResourceObserved) -> tuple[Action, ...]:
    """From the role the kernel is in to the one that was ordered."""
    if desired.role is OrderedRole.ACTIVE:
        return tuple(_to_active(desired, observed))
    return tuple(_off_active(desired, observed))


def plan_upkeep(desired: ResourceDesired, observed: ResourceObserved) -> tuple[Action, ...]:
    """Like ``plan_role``, but a node that is not Primary any more is not made so again without a new order:
    what was true when it was ordered may have changed since."""
    if desired.role is OrderedRole.ACTIVE and not observed.primary:
        return ()
    return plan_role(desired, observed)


def plan_retired(name: str, gates: tuple[str, ...], observed: ResourceObserved) -> tuple[Action, ...]:
    """Taking down a resource that is not wanted on this node any more, once nothing exports its gates.

    ``gates`` are the names of its gates. Data and meta-data stay on the disks.
    """
    reason = "the specification does not have it on this node"
    steps: list[Action] = [
        CloseGate(name, reason, number, gate.name)
        for number, gate in sorted(observed.gates.items())
        if gate.mode not in (Mode.CLOSED, Mode.FOREIGN)
    ]
    if observed.primary:
        steps.append(DrbdSecondary(name, reason))
    if observed.drbd is not None:
        steps.append(DrbdDown(name, reason))
    # The gates last: they are what tells a successor of this process that there is something to take down.
    return (*steps, RemoveDrbdConfig(name, reason), *(RemoveGate(name, reason, gate) for gate in gates))


def _replication(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    name = desired.name
    if observed.former:
        # Refused while this node is Primary: to whom the resource goes is not the agent's choice.
        if observed.drbd is not None:
            yield DrbdDown(name, "this node is to hold no replica any more")
        yield RemoveDrbdConfig(name, "this node is to hold no replica any more")
    if not desired.replica:
        return
    rewritten = observed.configured is False
    state = observed.drbd
    complete = state is not None and set(state.volumes) == {v.number for v in desired.volumes}
    if rewritten:
        yield WriteDrbdConfig(name, "it differs from the specification")
        if not complete:
            # The disks are looked at through the file, so the rest is planned once it is there. Brought up
            # before its meta-data exists, a volume would stay without its disk.
            return
    for volume in desired.volumes:
        if observed.metadata.get(volume.number) is False and volume.adopt != desired.node:
            yield CreateMetadata(name, "the disk carries none", volume.number)
    if not complete:
        yield DrbdUp(name, "it is not in the kernel, or not all of it")
    elif rewritten:
        yield DrbdUp(name, "its resource file has changed")
    elif not observed.adjusted:
        yield DrbdUp(name, "the agent has just started: the kernel may lag behind the resource file")


def _gates(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    for volume in desired.volumes:
        if volume.number not in observed.gates:
            yield CreateGate(desired.name, "it does not exist", volume.number, volume.gate, volume.size)


def _skip(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    # Where one of the disks has data they are not equal, whatever else is said of them.
    holding = {v.number for v in desired.volumes if v.adopt is not None}
    new = sorted(v for v in (observed.fresh & desired.peer_fresh) - holding if both_new(observed, v))
    if desired.skips_sync and desired.replica and new:
        reason = "there is nothing to copy: all were created just now"
        yield SkipInitialSync(desired.name, reason, tuple(new))


def _grow(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    # Not while I/O is held: the size of a gate changes only where its table is settled.
    settled = observed.modes(Mode.OPEN, Mode.CLOSED)
    small = [v for v in desired.volumes if v.number in settled and observed.gates[v.number].size < v.size]
    if not small:
        return
    if desired.replica:
        if observed.drbd is None:
            return
        sizes = {n: v.size for n, v in observed.drbd.volumes.items()}
        if any((sizes.get(v.number) or 0) < v.size for v in small):
            if observed.primary and observed.connected_peers():
                yield DrbdResize(desired.name, "volumes have grown")
            return
    for volume in small:
        yield ResizeGate(desired.name, "the volume has grown", volume.number, volume.gate, volume.size)


def _to_active(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    shut = [v for v in desired.volumes if _mode(observed, v) not in (Mode.OPEN, Mode.FOREIGN)]
    if observed.primary:
        # A volume that has just joined has nothing to serve yet, and DRBD would refuse it; the others go on.
        shut = [v for v in shut if not both_new(observed, v.number)]
    if shut or not observed.primary:
        # Also when it is Primary already: what opens a gate is DRBD's yes of just now, not an old
        # observation.
        yield DrbdPrimary(desired.name, "the node was ordered to be active")
    for volume in shut:
        yield OpenGate(
            desired.name, "the node was ordered to be active", volume.number, volume.gate, volume.backing
        )
    yield from _view(desired, observed, desired.node, "this node is active")


def _off_active(desired: ResourceDesired, observed: ResourceObserved) -> Iterator[Action]:
    """Role demoted or standby. Gates are held only if the order was to demote; otherwise, and in the end,
    closed."""
    name = desired.name
    demoted = desired.role is OrderedRole.DEMOTED
    successor = desired.active_node if desired.active_node != desired.node else None
    holds = demoted and successor is None and not desired.hold_over
    fallen = [v for v in desired.volumes if _mode(observed, v) in (Mode.OPEN, Mode.SUSPENDED)]
    held = [v for v in desired.volumes if _mode(observed, v) is Mode.HELD]
    for volume in fallen:
        if demoted:
            yield HoldGate(name, "the node was ordered not to be active", volume.number, volume.gate)
        else:
            yield CloseGate(name, "the node is standby", volume.number, volume.gate)
    if holds:
        if observed.primary:
            yield DrbdSecondary(name, "the node was ordered not to be active")
        if not fallen and not held:
            yield from _view(desired, observed, None, "no node is active")
        return
    why = f"{successor} is active" if successor else "no other node became active in time"
    closing = [CloseGate(name, why, v.number, v.gate) for v in (*held, *(fallen if demoted else ()))]
    secondary = [DrbdSecondary(name, "the node was ordered not to be active")] if observed.primary else []
    if not closing:
        yield from secondary
        yield from _view(desired, observed, successor, f"{successor or 'no node'} is active")
    elif desired.hold_over:
        # Hosts have waited for as long as they may: nothing that goes wrong here makes them wait longer.
        yield from _view(desired, observed, successor, why, best_effort=True)
        yield from closing
        yield from secondary
    else:
        yield from secondary
        # The view first: what is failed here is retried at once, and must find the successor reported.
        yield from _view(desired, observed, successor, why)
        yield from closing


def _view(
    desired: ResourceDesired,
    observed: ResourceObserved,
    active: str | None,
    reason: str,
    *,
    best_effort: bool = False,
) -> Iterator[Action]:
    view = desired.view(active)
    known = observed.alua
    if observed.alua_error:
        # Trying tells whether it is still so.
        yield SetAlua(desired.name, f"{reason}; what is reported cannot be read", view, best_effort)
        return
    if not known:
        # Not exported yet; what is exported later starts with every group in standby and comes by here again.
        return
    if any(dict(known.get(v.number, {})) != view for v in desired.volumes):
        yield SetAlua(desired.name, reason, view, best_effort)


def _mode(observed: ResourceObserved, volume: VolumeDesired) -> Mode | None:
    gate = observed.gates.get(volume.number)
    return gate.mode if gate is not None else None


def initial_sync_open(observed: ResourceObserved) -> frozenset[int]:
    """Volumes with brand-new meta-data here that still wait for the decision whether to copy."""
    known = observed.drbd.volumes if observed.drbd is not None else {}
    return frozenset(n for n in observed.fresh if n not in known or known[n].disk is DiskState.INCONSISTENT)
