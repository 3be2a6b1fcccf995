"""Orders that come from Pacemaker: like an operator's, but final. What a stop or a demotion says is done is
not undone by this agent any more, and a promotion knows from Pacemaker which nodes are down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from hactl.agents import switchover
from hactl.agents.fence_peer import PeerFencing
from hactl.agents.keeper import Keeper
from hactl.agents.observe import EVERYTHING, observe_roles
from hactl.agents.ocf_monitor import Subject, busy, lacking
from hactl.agents.orders import Orders
from hactl.agents.peers import BUSY
from hactl.agents.resource import ROLES
from hactl.agents.states import OrderedRole, ResourceObserved, serving
from hactl.errors import MOMENTARY, Failed, HactlError, Refused, Unknown
from hactl.pacemaker.charge import fences
from hactl.replication.state import ConnectionState, ResourceState, Role

_log = structlog.get_logger("hactl.agent")


class ClusterOrders(Orders):
    """Orders of Pacemaker's; ``until`` is in seconds of the kit's clock, and what is not done by then raises.
    All may be repeated."""

    fencing: PeerFencing

    def subject(self, keeper: Keeper, observed: ResourceObserved) -> Subject:
        """What a resource is judged by."""
        behind = self.kit.standing.unready(keeper.name)
        record, storage = keeper.record, self.storage
        verdict = (
            storage.verdict_of_active if record.role is OrderedRole.ACTIVE else storage.verdict_of_standby
        )
        return Subject(keeper.desired(), observed, record.withdrawn, behind, verdict)

    @contextlib.asynccontextmanager
    async def _turn(self, keeper: Keeper, order: str, until: float) -> AsyncIterator[None]:
        """Carry out an order as soon as the one that is being carried out has ended."""
        while keeper.operation is not None:
            try:
                async with asyncio.timeout(max(until - self.kit.clock.now(), 0.0)):
                    await keeper.free.wait()
            except TimeoutError:
                raise Refused(
                    BUSY,
                    f"{keeper.name}: {keeper.operation} is running on {self.node}",
                    "try again when it has ended",
                ) from None
        async with keeper.exclusive(order):
            yield

    def _left(self, until: float) -> float:
        return max(until - self.kit.clock.now(), 0.0)

    async def _pause(self, until: float) -> bool:
        """Wait for a moment; False if there is no time left for that."""
        if self._left(until) <= self.timings.ask:
            return False
        await self.kit.clock.sleep(self.timings.ask)
        return True

    # Started

    async def start_here(self, resource: str, until: float) -> None:
        """Have everything of a resource there as standby."""
        while resource not in self.keepers:
            # What shall be may be known to the node that has told Pacemaker, and not yet here.
            if not await self._pause(until):
                self.keeper(resource)
        keeper = self.keeper(resource)
        if keeper.record.withdrawn:
            async with self._turn(keeper, "start", until):
                keeper.write(withdrawn=False)
            await self.kit.standing.rejoin(resource)
        while True:
            self.touch(resource)
            missing = lacking(self.subject(keeper, await keeper.glance(EVERYTHING)))
            if not missing:
                return
            if not await self._pause(until):
                raise Failed(
                    "not-started",
                    f"{resource} is not there on {self.node}: {'; '.join(missing)}",
                    "hactl status has the reasons",
                )

    # Not active any more

    async def demote_here(self, resource: str, successor: str | None, until: float) -> bool:
        """Make this node not active for good: handed over to ``successor`` if that goes, else I/O is held.
        Whether another node is known to be active now."""
        keeper = self.keepers.get(resource)
        if keeper is None:
            await self._nothing_left(resource, until)
            return False
        if successor is not None and successor != self.node:
            await self._hand_over(keeper, successor, until)
        async with self._turn(keeper, "demote", until):
            try:
                await self._give_up(keeper)
            finally:
                self.touch(resource)
        return keeper.record.role is OrderedRole.STANDBY and keeper.active_node not in (None, self.node)

    async def _hand_over(self, keeper: Keeper, to: str, until: float) -> None:
        try:
            async with self._turn(keeper, f"demote, and hand over to {to}", until):
                if keeper.record.role is not OrderedRole.ACTIVE:
                    return
                # Some of the time is kept for going without.
                async with asyncio.timeout(self._left(until) * 0.7):
                    with self.calm.moment():
                        await switchover.hand_over(keeper, to)
            self._announce(keeper)
        except (HactlError, TimeoutError) as error:
            if isinstance(error, HactlError) and error.code == BUSY:
                raise
            _log.warning("demoted without a hand-over", resource=keeper.name, to=to, error=str(error))
        finally:
            self.touch(keeper.name)

    async def _give_up(self, keeper: Keeper) -> None:
        if keeper.hands_over():
            # From here on nobody takes the role back: Pacemaker is about to be told that this node has not
            # got it. Whether the other one has is no matter of this node's any more.
            keeper.write(handover=None)
        if keeper.record.role is OrderedRole.ACTIVE:
            await keeper.become_demoted(handover=None)
        observed = await keeper.observe(ROLES)
        if busy(observed):
            await keeper.turn(keeper.record.role)
            observed = await keeper.observe(ROLES)
        why = busy(observed)
        if why is not None:
            raise _still_active(self.node, keeper.name, why)

    async def stop_here(self, resource: str, until: float) -> None:
        """Not active, port shut, no member of its reservations; DRBD goes on replicating."""
        keeper = self.keepers.get(resource)
        if keeper is None:
            await self._nothing_left(resource, until)
            return
        await self.demote_here(resource, None, until)
        async with self._turn(keeper, "stop", until):
            if keeper.record.role is OrderedRole.ACTIVE:
                raise _still_active(self.node, resource, "another order has made it so")
            # Before the port is shut: whoever comes after a kill goes on with it, and nobody opens it again.
            keeper.write(role=OrderedRole.STANDBY, handover=None, withdrawn=True)
            # What is held must fail now: LIO waits for it when the port is shut.
            await keeper.turn(OrderedRole.STANDBY)
            why = busy(await keeper.observe(ROLES))
            if why is not None:
                raise _still_active(self.node, resource, why)
        async with asyncio.timeout(self._left(until)):
            await self.kit.standing.withdraw(resource)
        self.touch(resource)

    async def _nothing_left(self, resource: str, until: float) -> None:
        """A resource that this node does not have; one that it has no more is being taken down."""
        while True:
            common = await observe_roles(self.kit)
            drbd, gates = (common.drbd or {}).get(resource), (common.gates or {}).get(resource, {})
            why = busy(ResourceObserved(drbd=drbd, gates=gates))
            if why is None:
                return
            if not await self._pause(until):
                raise _still_active(self.node, resource, why)

    # Active

    async def promote_here(self, resource: str, until: float) -> None:
        """Make this node active; nothing to do if it is already, as after a hand-over to it. Nodes of which
        Pacemaker knows that they are gone are not asked, nor waited for."""
        keeper = self.keeper(resource)
        while True:
            try:
                async with self._turn(keeper, "promote", until):
                    if keeper.record.withdrawn:
                        raise Refused(
                            "resource-stopped",
                            f"{resource} is stopped on {self.node}",
                            f"Pacemaker starts it before it promotes it: crm resource start hactl-{resource}",
                        )
                    if not await self._serves(keeper):
                        await self._promote(keeper, until)
                break
            except HactlError as error:
                if error.code not in MOMENTARY or not await self._pause(until):
                    raise
                _log.info("not promoted yet", resource=resource, code=error.code, error=str(error))
            finally:
                self.touch(resource)
        self._announce(keeper)

    async def _serves(self, keeper: Keeper) -> bool:
        role = keeper.record.role
        return role is OrderedRole.ACTIVE and serving(keeper.desired(), await keeper.glance())

    async def _promote(self, keeper: Keeper, until: float) -> None:
        if keeper.hands_over():
            # Pacemaker has changed its mind while this node was handing over.
            with contextlib.suppress(Failed):
                # Rolled back, which is what Pacemaker wants now.
                await switchover.resume(keeper)
            if await self._serves(keeper):
                return
        gone = await self._poll_living(keeper.name)
        self.refuse_second(keeper)
        if gone:
            await self._noticed(keeper, gone, until)
        if not fences(self.cluster):
            await self.refuse_to_pass_over(keeper)
        await self.kit.standing.confirm(keeper.name, [n for n in keeper.spec.nodes if n in gone])
        await keeper.become_active(giver=None, prepared=True)

    async def _poll_living(self, resource: str) -> frozenset[str]:
        """Ask all nodes how they are, but none for longer than it takes Pacemaker to say that it is gone;
        those that are."""
        if self.kit.pacemaker is None:
            await self.poll((resource,))
            return frozenset()
        asked = {node: asyncio.create_task(self.poll((resource,), (node,))) for node in self.views}
        gone: set[str] = set()
        try:
            state = await self.fencing.view(self.kit.pacemaker)
            for node, task in asked.items():
                if state.gone(node):
                    gone.add(node)
                    task.cancel()
        finally:
            await asyncio.gather(*asked.values(), return_exceptions=True)
        for node in gone & self.views.keys():
            self.views[node] = None
        return frozenset(gone)

    async def _noticed(self, keeper: Keeper, gone: frozenset[str], until: float) -> None:
        """Wait until DRBD has noticed, too: until then it refuses, as it believes that they are Primary."""

        def without(state: ResourceState) -> bool:
            return not any(
                peer in gone and c.state is ConnectionState.CONNECTED and c.role is Role.PRIMARY
                for peer, c in state.connections.items()
            )

        await keeper.follower.until(keeper.name, without, seconds=self._left(until) * 0.7)


def _still_active(node: str, resource: str, why: str) -> Unknown:
    return Unknown(
        "still-active",
        f"{resource} may still be active on {node}: {why}",
        "hactl status on that node says more; Pacemaker fences the node",
    )
