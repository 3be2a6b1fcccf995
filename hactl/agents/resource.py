"""One resource on one node: what it shall be, its record and its observation, and taking steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace

from hactl.agents import execute as executing
from hactl.agents.actions import (
    Action,
    AdoptDisk,
    CreateMetadata,
    DrbdPrimary,
    DrbdSecondary,
    DrbdUp,
    EnsureDisk,
    SkipInitialSync,
    WriteDrbdConfig,
)
from hactl.agents.follow import Follower
from hactl.agents.journal import Record
from hactl.agents.kit import Kit, Timings
from hactl.agents.observe import EVERYTHING, NOTHING, Common, Subject, observe
from hactl.agents.peers import BUSY
from hactl.agents.states import Aspect, OrderedRole, ResourceDesired, ResourceObserved, VolumeDesired
from hactl.agents.views import PeerViews, successor
from hactl.backing.protocol import BackingDisk
from hactl.errors import Refused
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication.state import Role
from hactl.target.gates import gate_name

ROLES = frozenset({Aspect.DRBD, Aspect.GATES, Aspect.ALUA})
"""What a change of role looks at."""


def gone(node: str, resource: str, known: Iterable[str] = ()) -> Refused:
    """The refusal (``unknown-resource``) of an order for a resource that a node does not have."""
    names = ", ".join(sorted(known))
    return Refused(
        "unknown-resource",
        f"{node} has no resource {resource!r}",
        f"it has: {names}" if names else "see hactl status",
    )


@dataclass(frozen=True)
class Wanted:
    """A resource as it shall be: ``cluster`` and ``spec`` with paths of devices in the place of pools, and
    the disks that this node's pools provide for it."""

    cluster: ClusterSpec
    spec: ResourceSpec
    disks: tuple[BackingDisk, ...] = ()


class LocalResource:
    """One operation at a time; ``lock`` is held by whoever changes the resource, or what it shall be.

    ``changes`` counts what makes an older look at the resource out of date. ``retired``: it was taken down.
    ``dropped`` are volumes it does not have any more, and may still have a gate of.
    """

    def __init__(
        self,
        kit: Kit,
        node: str,
        wanted: Wanted,
        record: Record,
        *,
        timings: Timings,
        views: PeerViews,
        follower: Follower,
        after_step: executing.AfterStep = executing.nothing,
    ) -> None:
        self.kit = kit
        self.node = node
        self.wanted = wanted
        self.record = record
        self.timings = timings
        self.views = views
        self.follower = follower
        self.after_step = after_step
        self.lock = asyncio.Lock()
        self.operation: str | None = None
        self.free = asyncio.Event()
        """No order is being carried out."""
        self.free.set()
        self.reason: str | None = None
        self.active_node = record.active_node
        self.adjusted = False
        self.changes = 0
        self.retired = False
        self._next: Wanted | None = None
        self._provided: dict[int, BackingDisk] = {}
        self._prepared: frozenset[int] = frozenset()
        self.dropped: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        return self.wanted.spec.name

    @property
    def spec(self) -> ResourceSpec:
        return self.wanted.spec

    @property
    def cluster(self) -> ClusterSpec:
        return self.wanted.cluster

    @contextlib.asynccontextmanager
    async def exclusive(self, operation: str) -> AsyncIterator[None]:
        """Run one order; a second one meanwhile is refused. Waits for the reconciliation in progress."""
        if self.operation is not None:
            raise Refused(
                BUSY,
                f"{self.name}: {self.operation} is running on {self.node}",
                "try again when it has ended",
            )
        self.operation = operation
        self.free.clear()
        try:
            async with self.lock:
                if self.retired:
                    raise gone(self.node, self.name)
                self.changes += 1
                try:
                    yield
                finally:
                    self.changes += 1
        finally:
            self.operation = None
            self.free.set()

    # What it shall be

    def offer(self, wanted: Wanted) -> None:
        """From now on it shall be like this; taken up by :meth:`adopt`, when nothing is going on."""
        self._next = wanted

    @property
    def offered(self) -> bool:
        """There is something to adopt."""
        return self._next is not None

    def same(self, cluster: ClusterSpec) -> None:
        """The cluster has changed, but nothing of it that concerns this resource."""
        if self._next is not None:
            self._next = replace(self._next, cluster=cluster)
        else:
            self.wanted = replace(self.wanted, cluster=cluster)

    def adopt(self) -> None:
        """Take up what was offered last. Call it with the lock held; while a switchover is not over nothing
        changes, since its other end goes by the old."""
        if self._next is None or self.record.handover is not None:
            return
        wanted, self._next = self._next, None
        numbers = {v.number for v in wanted.spec.volumes}
        gone = frozenset(v.number for v in self.spec.volumes) - numbers
        if self.record.fresh - numbers:
            # A volume of that number that comes later has nothing to do with this one.
            self.write(fresh=self.record.fresh & numbers)
        adopted = frozenset(v.number for v in wanted.spec.volumes if v.adopt == self.node)
        if self.record.adopting - adopted:
            # It was carried out, or taken back: from now on meta-data is nobody's that is not in use.
            self.write(adopting=self.record.adopting & adopted)
        self.dropped = (self.dropped | gone) - numbers
        self._provided = {n: disk for n, disk in self._provided.items() if n in numbers}
        self.wanted = wanted
        self.changes += 1

    # The record

    def write(self, *, role: OrderedRole | None = None, **changes: object) -> None:
        """Change the record, first in the journal, so that a successor of this process knows."""
        if role is not None and role is not self.record.role:
            changes["since"] = self.kit.clock.now()
        if role is not None:
            changes["role"] = role
        record = replace(self.record, boot=self.kit.clock.boot(), **changes)  # type: ignore[arg-type]  # by field name
        self.kit.journal.write(self.name, record)
        self.record = record
        self.after_step(self.name, f"journal:{record.role}")

    def hands_over(self) -> bool:
        """A switchover from here is not over yet."""
        return self.record.handover is not None

    @property
    def holding(self) -> bool:
        """A demotion or a switchover is not over yet."""
        return self.record.role is OrderedRole.DEMOTED

    def peers_of(self) -> tuple[str, ...]:
        return tuple(n for n in self.spec.nodes if n != self.node)

    # Wanted and found

    def desired(self, role: OrderedRole | None = None) -> ResourceDesired:
        """What the resource shall be, in ``role`` or the one on record."""
        role = role or self.record.role
        replicas = self.spec.replicas
        ids = {n: self.cluster.node(n).id for n in replicas}
        others = [n for n in replicas if n != self.node]
        views = [self.views.get(n) for n in others]
        fresh = [frozenset(v[self.name].fresh) if v and self.name in v else frozenset() for v in views]
        strict = role is OrderedRole.DEMOTED
        return ResourceDesired(
            name=self.name,
            node=self.node,
            exporters=self.spec.nodes,
            replica=self.node in replicas,
            volumes=tuple(
                VolumeDesired(
                    number=v.number,
                    lun=v.lun,
                    size=v.size,
                    gate=gate_name(self.name, v.number),
                    minor=self.spec.minor(v),
                    backing=self.kit.drbd.device(self.spec.minor(v)),
                    adopt=v.adopt,
                )
                for v in self.spec.volumes
            ),
            role=role,
            active_node=successor(self.name, self.views) if strict else self.active_node,
            hold_over=self.kit.clock.now() - self.record.since >= self.timings.hold,
            peer_fresh=frozenset.intersection(*fresh) if fresh else frozenset(),
            skips_sync=bool(ids) and self.node == min(ids, key=lambda n: ids[n]),
            disks=self.wanted.disks,
            others=tuple(others),
        )

    @property
    def unprovided(self) -> tuple[BackingDisk, ...]:
        """Disks from pools that this agent has not seen to yet."""
        return tuple(d for d in self.wanted.disks if self._provided.get(d.volume) != d)

    async def observe(
        self, aspects: frozenset[Aspect] = EVERYTHING, common: Common = NOTHING
    ) -> ResourceObserved:
        subject = Subject(
            self.cluster,
            self.node,
            self.spec,
            self.record.fresh,
            self.adjusted,
            self.unprovided,
            self.dropped,
            self._prepared,
            self.record.adopting,
        )
        return await observe(self.kit, subject, aspects=aspects, common=common)

    def learn(self, observed: ResourceObserved) -> None:
        """Take note of what a whole look has found; with the lock held, so that it is not of an older
        specification."""
        self.dropped = frozenset(observed.surplus)
        self._provided.update({d.volume: d for d in self.wanted.disks if d.volume not in observed.lacking})
        if observed.problems:
            # One that was there may be gone.
            self._provided.clear()

    async def glance(self, aspects: frozenset[Aspect] = ROLES, common: Common = NOTHING) -> ResourceObserved:
        """Like ``observe``, with what DRBD's event stream told last, if it runs: no program is started."""
        states = self.follower.states
        return await self.observe(aspects, common if states is None else replace(common, drbd=states))

    # Steps

    async def run(self, steps: Iterable[Action]) -> None:
        """Carry a plan out; the first step that fails ends it and raises."""
        try:
            await executing.execute(
                steps,
                look=self.observe,
                glance=self.glance,
                perform=self._perform,
                after_step=self.after_step,
            )
        finally:
            self._prepared = frozenset()

    async def _perform(self, step: Action) -> None:
        if isinstance(step, CreateMetadata):
            # Before, not after: meta-data without this note would look like somebody's and never be
            # synchronised.
            self.write(fresh=self.record.fresh | {step.volume})
            await self.kit.journal.flush(self.name)
        if isinstance(step, AdoptDisk):
            # Before, for the same reason: it would be somebody else's meta-data, which nobody touches.
            self.write(adopting=self.record.adopting | {step.volume})
            await self.kit.journal.flush(self.name)
        if isinstance(step, WriteDrbdConfig):
            # Until DRBD was brought in line with it, which may fail.
            self.adjusted = False
        await executing.perform(self.kit, self.cluster, self.spec, step)
        if isinstance(step, CreateMetadata):
            # Until this plan has ended. DRBD comes up on it next, and the kernel takes no disk that has no
            # meta-data, or that somebody else has taken meanwhile.
            self._prepared |= {step.volume}
        if isinstance(step, EnsureDisk):
            self._provided[step.disk.volume] = step.disk
        if isinstance(step, DrbdUp):
            self.adjusted = True
            if self.follower.runs:
                numbers = {v.number for v in self.spec.volumes}
                await self.follower.until(self.name, lambda state: set(state.volumes) == numbers)
        if isinstance(step, SkipInitialSync):
            self.write(fresh=self.record.fresh - set(step.volumes))
            await self.kit.journal.flush(self.name)
        if isinstance(step, DrbdPrimary | DrbdSecondary) and self.follower.runs:
            # So that what is glanced at from now on is not older than this change.
            role = Role.PRIMARY if isinstance(step, DrbdPrimary) else Role.SECONDARY
            await self.follower.until(self.name, lambda state: state.role is role)
