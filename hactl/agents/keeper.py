"""One resource on one node: its record, its observation, and the orders to become active or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import structlog

from hactl.agents import execute as executing
from hactl.agents.actions import (
    Action,
    CreateMetadata,
    DrbdPrimary,
    DrbdSecondary,
    DrbdUp,
    SkipInitialSync,
)
from hactl.agents.follow import Follower
from hactl.agents.journal import Record
from hactl.agents.kit import Kit, Timings
from hactl.agents.observe import EVERYTHING, NOTHING, Common, observe
from hactl.agents.peers import BUSY
from hactl.agents.plan import plan, plan_groundwork, plan_role, plan_upkeep
from hactl.agents.states import (
    Aspect,
    Change,
    OrderedRole,
    ResourceDesired,
    ResourceObserved,
    VolumeDesired,
    serving,
    sync_decided,
    unready,
)
from hactl.agents.views import PeerViews, active_node, successor
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication.state import Role
from hactl.target.gates import Mode, gate_name

ROLES = frozenset({Aspect.DRBD, Aspect.GATES, Aspect.ALUA})
"""What a change of role looks at."""

Exported = dict[str, tuple[Change, ...]]
_ROUNDS = 8
_log = structlog.get_logger("hactl.agent")


class Keeper:
    """Keeps one resource as it was ordered. One operation at a time; ``lock`` is held by whoever changes
    it."""

    def __init__(
        self,
        kit: Kit,
        cluster: ClusterSpec,
        node: str,
        spec: ResourceSpec,
        record: Record,
        *,
        timings: Timings,
        views: PeerViews,
        follower: Follower,
        after_step: executing.AfterStep = executing.nothing,
    ) -> None:
        self.kit = kit
        self.cluster = cluster
        self.node = node
        self.spec = spec
        self.record = record
        self.timings = timings
        self.views = views
        self.follower = follower
        self.after_step = after_step
        self.lock = asyncio.Lock()
        self.operation: str | None = None
        self.reason: str | None = None
        self.active_node = record.active_node
        self.adjusted = False

    @property
    def name(self) -> str:
        return self.spec.name

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
        try:
            async with self.lock:
                yield
        finally:
            self.operation = None

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
                )
                for v in self.spec.volumes
            ),
            role=role,
            active_node=successor(self.name, self.views) if strict else self.active_node,
            hold_over=self.kit.clock.now() - self.record.since >= self.timings.hold,
            peer_fresh=frozenset.intersection(*fresh) if fresh else frozenset(),
            skips_sync=bool(ids) and self.node == min(ids, key=lambda n: ids[n]),
        )

    async def observe(
        self, aspects: frozenset[Aspect] = EVERYTHING, common: Common = NOTHING
    ) -> ResourceObserved:
        return await observe(
            self.kit,
            self.cluster,
            self.node,
            self.spec,
            self.record,
            adjusted=self.adjusted,
            aspects=aspects,
            common=common,
        )

    async def glance(
        self, aspects: frozenset[Aspect] = ROLES, exports: Exported | None = None
    ) -> ResourceObserved:
        """Like ``observe``, with what DRBD's event stream told last, if it runs: no program is started."""
        return await self.observe(aspects, Common(drbd=self.follower.states, exports=exports))

    async def run(self, steps: Iterable[Action]) -> None:
        """Carry a plan out; the first step that fails ends it and raises."""
        await executing.execute(
            steps, look=self.observe, glance=self.glance, perform=self._perform, after_step=self.after_step
        )

    async def _perform(self, step: Action) -> None:
        if isinstance(step, CreateMetadata):
            # Before, not after: meta-data without this note would look like somebody's and never be
            # synchronised.
            self.write(fresh=self.record.fresh | {step.volume})
        await executing.perform(self.kit, self.cluster, self.spec, step)
        if isinstance(step, DrbdUp):
            self.adjusted = True
        if isinstance(step, SkipInitialSync):
            self.write(fresh=self.record.fresh - set(step.volumes))
        if isinstance(step, DrbdPrimary | DrbdSecondary) and self.follower.states is not None:
            # So that what is glanced at from now on is not older than this change.
            role = Role.PRIMARY if isinstance(step, DrbdPrimary) else Role.SECONDARY
            await self.follower.until(self.name, lambda state: state.role is role)

    async def turn(self, role: OrderedRole) -> None:
        """Bring the kernel to ``role`` now, whatever is on record."""
        await self.run(plan_role(self.desired(role), await self.observe(ROLES)))

    async def turn_quickly(self, role: OrderedRole) -> None:
        """The same in a switchover: initiators wait, and nobody else changes anything meanwhile."""
        await self.run(plan_role(self.desired(role), await self.glance()))

    def require_ready(self, observed: ResourceObserved, *, handover: bool) -> None:
        """:class:`Refused` unless this node could become active now."""
        reasons = unready(self.desired(), observed, handover=handover)
        peer = observed.primary_peer()
        if peer is not None:
            reasons = (*reasons, f"DRBD says {peer} is Primary")
        if reasons:
            raise Refused(
                "not-ready",
                f"{self.node} cannot take over {self.name}: {'; '.join(reasons)}",
                "see hactl status on that node",
            )

    async def become_active(self, *, handover: bool, prepared: bool = False) -> None:
        """Carry out the order to be active: all or nothing, and if neither can be said, :class:`Unknown`.

        ``prepared``: a moment ago, while I/O still flowed elsewhere, this node was found ready; what cannot
        have changed by the handover itself is not looked at again while initiators wait.
        """
        desired = self.desired(OrderedRole.ACTIVE)
        observed = await self._look_again() if prepared else await self.observe()
        if self.record.role is OrderedRole.ACTIVE and serving(desired, observed):
            await self.run(plan_role(desired, observed))
            return
        if not observed.primary:
            self.require_ready(observed, handover=handover)
        before = self.record
        self.write(role=OrderedRole.ACTIVE, handover=None, active_node=self.node)
        try:
            await self.run(plan_role(desired, observed))
        except HactlError as error:
            if before.role is OrderedRole.ACTIVE and observed.primary:
                # It was active, and what is open serves; the regular pass goes on with the rest.
                self.reason = f"not fully active: {error}"
            else:
                await self._fall_back(before.role, error)
            raise
        self.active_node = self.node
        self.reason = None

    async def _look_again(self) -> ResourceObserved:
        # The node that hands over is Secondary by now, but its message may still be under way to this one; a
        # try before it has come would be refused, after a second's wait in the kernel (drbd_set_role).
        await self.follower.until(
            self.name, lambda state: all(c.role is not Role.PRIMARY for c in state.connections.values())
        )
        observed = replace(await self.glance(), export=())
        if observed.primary_peer() or unready(self.desired(), observed, handover=True):
            return await self.observe()
        return observed

    async def _fall_back(self, before: OrderedRole, error: HactlError) -> None:
        role = OrderedRole.DEMOTED if before is OrderedRole.DEMOTED else OrderedRole.STANDBY
        self.active_node = None
        self.write(role=role, active_node=None)
        self.reason = f"could not become active: {error}"
        try:
            await self.turn(role)
            if isinstance(error, Unknown):
                # A killed drbdsetup may have left its request in the kernel: what comes last decides.
                await self.run([DrbdSecondary(self.name, "it is not known whether it became Primary")])
        except HactlError as second:
            raise Unknown(
                "promotion-unknown",
                f"{self.name} on {self.node}: {error}; and going back failed: {second}",
                "see hactl status; the agent goes on trying to go back",
            ) from error
        if isinstance(error, Unknown):
            raise Failed("promotion-failed", error.message, error.hint) from error

    async def become_demoted(self, **changes: object) -> None:
        """Carry out the order not to be active: I/O is held, DRBD Secondary. If that fails, active as
        before."""
        self.write(role=OrderedRole.DEMOTED, **changes)
        try:
            # Until now this node was active: what was said of another one is from before.
            desired = replace(self.desired(OrderedRole.DEMOTED), active_node=None)
            await self.run(plan_role(desired, await self.glance()))
        except HactlError as error:
            try:
                await self.back_to_active()
            except HactlError as second:
                self.reason = f"half demoted: {error}; and going back failed: {second}"
                raise Unknown(
                    "demotion-unknown", f"{self.name}: {self.reason}", "see hactl status"
                ) from error
            raise

    async def back_to_active(self) -> None:
        """Take the role again that was just given up. The caller knows that nobody else has it, or DRBD
        decides."""
        await self.turn(OrderedRole.ACTIVE)
        self.write(role=OrderedRole.ACTIVE, handover=None, active_node=self.node)
        self.active_node = self.node
        self.reason = None

    async def hand_to(self, node: str) -> None:
        """Another node is active now: report that, then fail what is still held, so that it is retried
        there."""
        self.active_node = node
        self.write(role=OrderedRole.STANDBY, handover=None, active_node=node)
        self.reason = None
        await self.turn_quickly(OrderedRole.STANDBY)

    async def reconcile(self, exports: Exported | None = None) -> None:
        """One pass: do what can be done without an order. Raises what went wrong last; the rest was tried.
        ``exports`` are the pending changes of the LIO tree, if that was looked at as a whole already."""
        problem: HactlError | None = None
        observed = await self.glance(EVERYTHING, exports)
        self._learn(observed)
        try:
            done: tuple[Action, ...] = ()
            for _ in range(_ROUNDS):
                steps = plan_groundwork(self.desired(), observed)
                if not steps or steps == done:
                    # The same again would change as little as it just did.
                    break
                await self.run(steps)
                done = steps
                observed = await self.observe()
        except HactlError as error:
            problem = error
            observed = await self.observe()
        self._learn(observed)
        desired = self.desired()
        try:
            await self.run(plan_upkeep(desired, observed))
        except HactlError as error:
            # What failed first is the cause to tell of.
            raise problem or error from error
        if self.record.role is OrderedRole.DEMOTED and (node := desired.active_node) not in (None, self.node):
            self.active_node = node
            self.write(role=OrderedRole.STANDBY, handover=None, active_node=node)
        if problem is not None:
            raise problem

    def _learn(self, observed: ResourceObserved) -> None:
        if self.record.role is OrderedRole.ACTIVE:
            self.active_node = self.node
        else:
            last = self.active_node if self.active_node != self.node else None
            self.active_node = active_node(self.name, self.views, last, observed.primary_peer())
        decided = frozenset() if observed.drbd is None else sync_decided(observed.drbd)
        if self.record.fresh & decided:
            self.write(fresh=self.record.fresh - decided)

    async def pending(self) -> tuple[Action, ...]:
        """What the next pass would do."""
        return plan(self.desired(), await self.observe())

    def hands_over(self) -> bool:
        """A switchover from here is not over yet."""
        return self.record.handover is not None

    @property
    def holding(self) -> bool:
        """A demotion or a switchover is not over yet."""
        return self.record.role is OrderedRole.DEMOTED

    def peers_of(self) -> tuple[str, ...]:
        return tuple(n for n in self.spec.nodes if n != self.node)


def held_volumes(observed: ResourceObserved) -> tuple[int, ...]:
    """Volumes whose I/O is queued on this node."""
    return observed.modes(Mode.HELD, Mode.SUSPENDED)
