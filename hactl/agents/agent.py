"""The agent of one node: keeps every resource as ordered, takes orders, answers the other agents."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from typing import Any

import structlog

from hactl.agents.document import node_document
from hactl.agents.fence_peer import PeerFencing, outdate
from hactl.agents.keeper import Keeper
from hactl.agents.observe import Common, by_resource, observe_roles
from hactl.agents.ocf_orders import ClusterOrders
from hactl.agents.ocf_tell import tell_scores
from hactl.agents.peers import ABORTED, BUSY, Left, PeerResource
from hactl.agents.plan import initial_sync_open
from hactl.agents.resource import ROLES
from hactl.agents.states import Aspect, OrderedRole, serving, unready
from hactl.errors import Refused
from hactl.target.gates import gate_name

_CALLED_OFF = 32
"""Switchovers of a resource that were called off and are remembered: a request that is still under way is of
one of the last."""
_PEERS_ASK = frozenset({Aspect.DRBD, Aspect.GATES})
_log = structlog.get_logger("hactl.agent")


class Agent(ClusterOrders):
    """One node. ``start`` once, then ``attend`` again and again, ``update`` and orders at any time.

    Keeps :class:`hactl.agents.peers.PeerService` for the other agents.
    """

    _called_off: dict[str, deque[str]]

    async def start(self) -> None:
        self._called_off = {}
        self.fencing = PeerFencing(self)
        self.reporters.append(self.fencing)
        self.storage.news = self._storage_news
        await super().start()

    def _storage_news(self) -> None:
        task = asyncio.create_task(tell_scores(self))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def on_status(self, caller: str, only: Collection[str] = ()) -> dict[str, PeerResource]:  # noqa: ARG002 - all may know
        keepers = [k for name, k in self.keepers.items() if not only or name in only]
        states = self.follower.states
        if only and states is not None:
            gates = [gate_name(k.name, v.number) for k in keepers for v in k.spec.volumes]
            common = Common(states, by_resource(await self.kit.gates.observe(gates)) if gates else {})
        else:
            common = await observe_roles(self.kit, states)
        views = {}
        for keeper in keepers:
            observed = await keeper.observe(_PEERS_ASK, common)
            views[keeper.name] = PeerResource(
                role=keeper.record.role,
                serving=serving(keeper.desired(), observed),
                primary=observed.primary,
                active_node=keeper.active_node,
                fresh=tuple(sorted(initial_sync_open(observed))),
            )
        return views

    async def on_outdate(self, caller: str, resource: str) -> Left:
        return await outdate(self.keeper(resource), caller)

    async def on_reserved(self, caller: str, unit: str, index: int) -> None:  # noqa: ARG002 - all may ask
        await self.kit.standing.applied(unit, index)

    async def on_document(self, caller: str) -> dict[str, Any]:  # noqa: ARG002 - all may know
        return await node_document(self)

    async def on_ready(self, caller: str, resource: str, handover: str) -> tuple[str, ...]:
        keeper = self.keeper(resource)
        reasons = await self._prepare(keeper, caller, handover)
        _log.info("asked whether ready", caller=caller, resource=resource, reasons=list(reasons))
        return reasons

    async def _prepare(self, keeper: Keeper, caller: str, handover: str) -> tuple[str, ...]:
        """Look at everything now, and keep the regular pass away until the order comes: it must not wait."""
        if keeper.operation is not None:
            return (f"{keeper.operation} is running on {self.node}",)
        self._expected.expect(keeper.name, handover, self.timings.prepared)
        try:
            async with asyncio.timeout(self.timings.prepared), keeper.lock:
                reasons = unready(keeper.desired(), await keeper.observe(), giver=caller)
        except TimeoutError:
            reasons = (f"{self.node} is busy with {keeper.name}",)
        behind = self.kit.standing.unready(keeper.name)
        if behind is not None:
            reasons = (*reasons, behind)
        if reasons:
            self._expected.over(keeper.name)
        else:
            self._expected.expect(keeper.name, handover, self.timings.prepared)
        return reasons

    async def on_promote(self, caller: str, resource: str, handover: str) -> None:
        keeper = self.keeper(resource)
        operation = f"switchover {handover} from {caller}"
        with self.calm.moment():
            async with keeper.exclusive(operation):
                if handover in self._called_off.get(resource, ()):
                    raise Refused(ABORTED, f"the switchover of {resource} was called off", "order it again")
                if keeper.hands_over():
                    raise Refused(BUSY, f"{self.node} is handing {resource} over itself", "try again")
                prepared = self._expected.of(resource) == handover
                await keeper.become_active(giver=caller, prepared=prepared)
        # The caller has still to let go of what it holds, and gets the processor to itself for that long.
        self._expected.expect(resource, "", self.timings.rest)
        self._announce(keeper, knows=caller)
        self.touch(resource)

    async def on_abort(self, caller: str, resource: str, handover: str) -> bool:
        keeper = self.keeper(resource)
        self._expected.over(resource)
        async with keeper.exclusive(f"calling off switchover {handover} for {caller}"):
            observed = await keeper.observe(ROLES)
            if keeper.record.role is OrderedRole.ACTIVE or observed.primary:
                # Primary but not serving: an earlier attempt fell half-way. Finish it rather than guess.
                await keeper.become_active(giver=caller)
                return True
            for name in self._called_off.keys() - self.keepers.keys():
                del self._called_off[name]
            self._called_off.setdefault(resource, deque(maxlen=_CALLED_OFF)).append(handover)
            return False

    async def on_announce(self, caller: str, resource: str, active: str) -> None:
        _log.info("announced", caller=caller, resource=resource, active=active)
        self.touch(resource)

    async def on_switchover(self, caller: str, resource: str, to: str) -> None:
        _log.info("switchover ordered", caller=caller, resource=resource, to=to)
        await self.switchover(resource, to, forward=False)

    async def on_order(self, caller: str, resource: str, order: str) -> None:
        _log.info("ordered", caller=caller, resource=resource, order=order)
        await self.order(order, resource)
