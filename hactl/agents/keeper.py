"""Orders to become active or not for one resource on one node, and the regular pass over it."""

from __future__ import annotations

from dataclasses import replace

import structlog

from hactl.agents.actions import Action, DrbdSecondary
from hactl.agents.observe import EVERYTHING, NOTHING, Common
from hactl.agents.plan import plan, plan_groundwork, plan_role, plan_upkeep
from hactl.agents.resource import ROLES, LocalResource
from hactl.agents.states import OrderedRole, ResourceObserved, attached, serving, sync_decided, unready
from hactl.agents.views import active_node
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.replication.state import Role
from hactl.target.gates import Mode

_ROUNDS = 12
_log = structlog.get_logger("hactl.agent")


class Keeper(LocalResource):
    """Keeps one resource as it was ordered.

    ``unfinished``: after the last pass something was still to be done that did not take effect yet.
    ``taken_over``: volumes whose disk was to be taken over with its data, and which DRBD has by now.
    """

    unfinished = False
    taken_over: frozenset[int] = frozenset()

    async def turn(self, role: OrderedRole) -> None:
        """Bring the kernel to ``role`` now, whatever is on record."""
        await self.run(plan_role(self.desired(role), await self.observe(ROLES)))

    async def turn_quickly(self, role: OrderedRole) -> None:
        """The same in a switchover: initiators wait, and nobody else changes anything meanwhile."""
        await self.run(plan_role(self.desired(role), await self.glance()))

    def require_ready(self, observed: ResourceObserved, *, giver: str | None) -> None:
        """:class:`Refused` unless this node could become active now (see :func:`unready`)."""
        reasons = unready(self.desired(), observed, giver=giver)
        peer = observed.primary_peer()
        if peer is not None:
            reasons = (*reasons, f"DRBD says {peer} is Primary")
        behind = self.kit.standing.unready(self.name)
        if behind is not None:
            reasons = (*reasons, behind)
        if reasons:
            raise Refused(
                "not-ready",
                f"{self.node} cannot take over {self.name}: {'; '.join(reasons)}",
                "see hactl status on that node",
            )

    async def become_active(self, *, giver: str | None, prepared: bool = False) -> None:
        """Carry out the order to be active: all or nothing, and if neither can be said, :class:`Unknown`.

        ``giver``: the node that hands over, if one does. ``prepared``: a moment ago, while I/O still flowed
        elsewhere, this node was found ready; what cannot have changed by the handover itself is not looked at
        again while initiators wait.
        """
        desired = self.desired(OrderedRole.ACTIVE)
        observed = await self._look_again(giver) if prepared else await self.observe()
        if self.record.role is OrderedRole.ACTIVE and serving(desired, observed):
            await self.run(plan_role(desired, observed))
            return
        if not observed.primary:
            self.require_ready(observed, giver=giver)
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

    async def _look_again(self, giver: str | None) -> ResourceObserved:
        # The node that hands over is Secondary by now, but its message may still be under way to this one; a
        # try before it has come would be refused, after a second's wait in the kernel (drbd_set_role).
        await self.follower.until(
            self.name, lambda state: all(c.role is not Role.PRIMARY for c in state.connections.values())
        )
        observed = replace(await self.glance(), export=())
        if observed.primary_peer() or unready(self.desired(), observed, giver=giver):
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

    async def reconcile(self, common: Common = NOTHING) -> None:
        """One pass: do what can be done without an order. Raises what went wrong last; the rest was tried.
        ``common`` is what was found when the node was looked at as a whole."""
        problem: HactlError | None = None
        self.unfinished = True
        observed = await self.glance(EVERYTHING, common)
        self._learn(observed)
        await self.kit.journal.flush(self.name)
        try:
            done: tuple[Action, ...] = ()
            for _ in range(_ROUNDS):
                steps = plan_groundwork(self.desired(), observed)
                self.unfinished = bool(steps)
                if not steps or steps == done:
                    # The same again would change as little as it just did.
                    break
                await self.run(steps)
                done = steps
                observed = await self.glance(EVERYTHING)
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
        # A first copy is decided, and a volume grown, together with other nodes, which may not be as far yet.
        sizes = {v.number: v.size for v in self.spec.volumes}
        small = any(gate.size < sizes[number] for number, gate in observed.gates.items())
        waiting = bool(self.record.fresh or observed.adoptable)
        self.unfinished = self.unfinished or small or waiting
        if problem is not None:
            raise problem

    def _learn(self, observed: ResourceObserved) -> None:
        self.learn(observed)
        if self.record.role is OrderedRole.ACTIVE:
            self.active_node = self.node
        else:
            last = self.active_node if self.active_node != self.node else None
            self.active_node = active_node(self.name, self.views, last, observed.primary_peer())
        said = frozenset(v.number for v in self.spec.volumes if v.adopt == self.node)
        self.taken_over = said & attached(observed)
        decided = frozenset() if observed.drbd is None else sync_decided(observed.drbd)
        if self.record.fresh & decided:
            self.write(fresh=self.record.fresh - decided)

    async def pending(self) -> tuple[Action, ...]:
        """What the next pass would do."""
        return plan(self.desired(), await self.observe())


def held_volumes(observed: ResourceObserved) -> tuple[int, ...]:
    """Volumes whose I/O is queued on this node."""
    return observed.modes(Mode.HELD, Mode.SUSPENDED)
