"""Steps an agent can take, as values: each says why, what, and what must hold right before it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hactl.agents.states import Aspect, Change, Enlargement, ResourceObserved
from hactl.alua.states import AccessState
from hactl.backing.protocol import BackingDisk
from hactl.replication.state import DiskState, Role
from hactl.target.gates import Mode


@dataclass(frozen=True)
class Action:
    """One step for one resource. ``needs`` is what ``hindrance`` looks at.

    ``glance``: what DRBD's event stream told last is good enough for that, since the kernel itself refuses
    the step if it must not be. ``together``: neighbours of the same kind are taken at the same time.
    ``must``: if the step fails, those after it are not taken.
    """

    resource: str
    reason: str
    needs: ClassVar[frozenset[Aspect]] = frozenset()
    glance: ClassVar[bool] = False
    together: ClassVar[bool] = False

    @property
    def must(self) -> bool:
        return True

    def describe(self) -> str:
        """The step in a few words."""
        raise NotImplementedError

    def hindrance(self, observed: ResourceObserved) -> str | None:  # noqa: ARG002 - most look at it
        """Why the step must not be taken in the situation ``observed``, or None."""
        return None

    def __str__(self) -> str:
        return f"{self.describe()}: {self.reason}"


@dataclass(frozen=True)
class EnsureDisk(Action):
    """Have a volume's disk in this node's pool, large enough, under its path. Without ``create`` only if it
    exists: what had data is not replaced by something empty."""

    disk: BackingDisk
    create: bool
    needs = frozenset({Aspect.BACKING})

    def describe(self) -> str:
        return f"provide {self.disk.device} of {self.disk.size} bytes in pool {self.disk.pool.name}"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        if self.create and self.disk.volume in observed.lost:
            return "it had data already"
        return None if self.disk.volume in observed.lacking else "it is there already"


@dataclass(frozen=True)
class WriteDrbdConfig(Action):
    def describe(self) -> str:
        return f"write DRBD's resource file of {self.resource}"


@dataclass(frozen=True)
class CreateMetadata(Action):
    volume: int
    needs = frozenset({Aspect.CONFIG, Aspect.DRBD})
    glance = True

    def describe(self) -> str:
        return f"create DRBD meta-data of {self.resource}/{self.volume}"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        if observed.problems:
            return observed.problems[0].message
        if observed.metadata.get(self.volume) is not False:
            return "the disk carries meta-data already"
        return None


@dataclass(frozen=True)
class EnlargeDisk(Action):
    """Make room for DRBD's meta-data behind the data of a disk that is to be taken over."""

    volume: int
    disk: Enlargement
    needs = frozenset({Aspect.CONFIG, Aspect.DRBD})

    def describe(self) -> str:
        return f"enlarge {self.disk.device} from {self.disk.size} to {self.disk.wanted} bytes"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        return _not_adoptable(observed, self.volume)


@dataclass(frozen=True)
class AdoptDisk(Action):
    """Give a disk that holds a volume's data meta-data which say that they are good. The one step by which
    that is ever said; it is taken before DRBD knows the disk, and never again afterwards."""

    volume: int
    needs = frozenset({Aspect.CONFIG, Aspect.DRBD})

    def describe(self) -> str:
        return f"take over the disk of {self.resource}/{self.volume} with its data"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        return _not_adoptable(observed, self.volume)


@dataclass(frozen=True)
class DrbdUp(Action):
    needs = frozenset({Aspect.CONFIG, Aspect.DRBD})
    glance = True

    def describe(self) -> str:
        return f"bring up DRBD resource {self.resource}"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        return None if observed.configured else "its resource file is not what it should be"


@dataclass(frozen=True)
class SkipInitialSync(Action):
    volumes: tuple[int, ...]
    needs = frozenset({Aspect.DRBD})

    def describe(self) -> str:
        which = ", ".join(map(str, self.volumes))
        return f"declare the brand-new replicas of {self.resource}, volume {which}, equal"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        for number in self.volumes:
            if number not in observed.fresh:
                return f"this node's meta-data of volume {number} is not brand-new"
            if not both_new(observed, number):
                return f"the replicas of volume {number} are not connected and Inconsistent"
        return None


@dataclass(frozen=True)
class DrbdResize(Action):
    needs = frozenset({Aspect.DRBD})
    glance = True

    def describe(self) -> str:
        return f"grow DRBD resource {self.resource}"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        return None if observed.primary else "DRBD is not Primary here"


@dataclass(frozen=True)
class CreateGate(Action):
    volume: int
    gate: str
    size: int
    needs = frozenset({Aspect.GATES})

    def describe(self) -> str:
        return f"create gate {self.gate}, closed"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        return "it exists" if self.volume in observed.gates else None


@dataclass(frozen=True)
class ResizeGate(Action):
    volume: int
    gate: str
    size: int
    needs = frozenset({Aspect.GATES})

    def describe(self) -> str:
        return f"grow gate {self.gate} to {self.size} bytes"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        gate = observed.gates.get(self.volume)
        if gate is None or gate.mode is Mode.FOREIGN:
            return "there is no such gate of hactl's"
        return None if gate.size < self.size else "it is not smaller"


@dataclass(frozen=True)
class ApplyTarget(Action):
    """One change of the LIO tree; the change checks its own precondition when it is applied."""

    change: Change

    def describe(self) -> str:
        return self.change.describe()


@dataclass(frozen=True)
class SetAlua(Action):
    """Write the access states of all groups in this node's kernel: what paths through it report.

    ``best_effort``: what comes after it does not wait for it.
    """

    states: Mapping[str, AccessState]
    best_effort: bool = False
    needs = frozenset({Aspect.GATES})
    glance = True

    @property
    def must(self) -> bool:
        return not self.best_effort

    def describe(self) -> str:
        view = ", ".join(f"{n} {s.name.lower().replace('_', ' ')}" for n, s in sorted(self.states.items()))
        return f"report {self.resource} as {view}"


@dataclass(frozen=True)
class DrbdPrimary(Action):
    needs = frozenset({Aspect.DRBD})
    glance = True

    def describe(self) -> str:
        return f"make DRBD resource {self.resource} Primary"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        if observed.drbd is None:
            return "it is not up"
        peer = observed.primary_peer()
        return f"{peer} is Primary" if peer is not None else None


@dataclass(frozen=True)
class OpenGate(Action):
    volume: int
    gate: str
    backing: str
    needs = frozenset({Aspect.DRBD, Aspect.GATES})
    glance = True

    def describe(self) -> str:
        return f"open gate {self.gate} to {self.backing}"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        if observed.drbd is None or observed.drbd.role is not Role.PRIMARY:
            return "DRBD is not Primary here"
        gate = observed.gates.get(self.volume)
        if gate is None or gate.mode is Mode.FOREIGN:
            return "there is no such gate of hactl's"
        return None


@dataclass(frozen=True)
class HoldGate(Action):
    volume: int
    gate: str
    needs = frozenset({Aspect.GATES})
    glance = True
    together = True

    def describe(self) -> str:
        return f"hold I/O in gate {self.gate}"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        gate = observed.gates.get(self.volume)
        if gate is None or gate.mode is Mode.FOREIGN:
            return "there is no such gate of hactl's"
        return None


@dataclass(frozen=True)
class CloseGate(Action):
    volume: int
    gate: str
    needs = frozenset({Aspect.GATES})
    glance = True
    together = True

    def describe(self) -> str:
        return f"close gate {self.gate}"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        gate = observed.gate(self.volume)
        if gate is None or gate.mode is Mode.FOREIGN:
            return "there is no such gate of hactl's"
        return None


@dataclass(frozen=True)
class DrbdSecondary(Action):
    needs = frozenset({Aspect.DRBD, Aspect.GATES})
    glance = True

    def describe(self) -> str:
        return f"make DRBD resource {self.resource} Secondary"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        if observed.drbd is None:
            return "it is not up"
        busy = observed.modes(Mode.OPEN, Mode.SUSPENDED)
        return f"the gate of volume {busy[0]} may hold it open" if busy else None


@dataclass(frozen=True)
class RemoveGate(Action):
    gate: str

    def describe(self) -> str:
        return f"remove gate {self.gate}"


@dataclass(frozen=True)
class DrbdDown(Action):
    needs = frozenset({Aspect.DRBD})

    def describe(self) -> str:
        return f"take down DRBD resource {self.resource}"

    def hindrance(self, observed: ResourceObserved) -> str | None:
        return "DRBD is Primary" if observed.primary else None


@dataclass(frozen=True)
class RemoveDrbdConfig(Action):
    def describe(self) -> str:
        return f"remove DRBD's resource file of {self.resource}"


def _not_adoptable(observed: ResourceObserved, volume: int) -> str | None:
    if observed.problems:
        return observed.problems[0].message
    return None if volume in observed.adoptable else "DRBD has the disk, or had it before"


def both_new(observed: ResourceObserved, number: int) -> bool:
    """Every replica of a volume is connected and waits, Inconsistent, for the first copy or the word that
    there is nothing to copy."""
    state = observed.drbd
    if state is None or number not in state.volumes or not observed.connected_peers():
        return False
    disks = {state.volumes[number].disk}
    for connection in state.connections.values():
        disks.add(connection.volumes[number].disk if number in connection.volumes else DiskState.UNKNOWN)
    return disks == {DiskState.INCONSISTENT}
