"""Orders to one node's agent: who is active, and who is not any more."""

from __future__ import annotations

from hactl.agents import switchover
from hactl.agents.keeper import Keeper
from hactl.agents.ocf_move import moved
from hactl.agents.resource import gone
from hactl.agents.states import Aspect, OrderedRole
from hactl.agents.upkeep import Upkeep
from hactl.agents.views import successor
from hactl.errors import Refused
from hactl.pacemaker.charge import rules

ORDERS = ("promote", "demote")
"""What may be ordered of another node's agent through this one."""


class Orders(Upkeep):
    """Upkeep that takes orders, at any time."""

    _moves: set[str]
    """Resources that Pacemaker was asked to move."""

    async def start(self) -> None:
        self._moves = set()
        await super().start()

    def keeper(self, resource: str) -> Keeper:
        """The keeper of a resource; :class:`Refused` (``unknown-resource``) if this node does not have it."""
        if resource not in self.keepers:
            raise gone(self.node, resource, self.keepers)
        return self.keepers[resource]

    def refuse_unknown_node(self, node: str) -> None:
        """:class:`Refused` (``unknown-node``) if the cluster has no such node."""
        known = [n.name for n in self.cluster.nodes]
        if node not in known:
            raise Refused("unknown-node", f"there is no node {node!r}", f"nodes are {', '.join(known)}")

    async def order(self, order: str, resource: str, node: str | None = None) -> None:
        """Carry out one of :data:`ORDERS` here, or have the agent of ``node`` do it."""
        if order not in ORDERS:
            raise Refused("bad-request", f"there is no order {order!r}", f"orders are {', '.join(ORDERS)}")
        if node is None or node == self.node:
            await (self.promote(resource) if order == "promote" else self.demote(resource))
            return
        self.refuse_unknown_node(node)
        await self.kit.peers.order(node, resource, order)

    async def promote(self, resource: str) -> None:
        """Make this node active. After a failure of the active one; for a planned move see ``switchover``."""
        keeper = self.keeper(resource)
        self._refuse_by_hand(resource)
        async with keeper.exclusive("promote"):
            await self.poll((resource,))
            self.refuse_second(keeper)
            await self.refuse_to_pass_over(keeper)
            # Whoever orders this knows that those which do not answer are down.
            down = [n for n in keeper.spec.nodes if n != self.node and self.views.get(n) is None]
            await self.kit.standing.confirm(resource, down)
            try:
                await keeper.become_active(giver=None)
            finally:
                self.touch(resource)
        self._announce(keeper)

    def _refuse_by_hand(self, resource: str) -> None:
        """:class:`Refused` (``pacemaker-in-charge``) if Pacemaker decides who is active."""
        if rules(self.desired.cluster, resource):
            raise Refused(
                "pacemaker-in-charge",
                f"Pacemaker decides where {resource} is active",
                f"hactl switchover {resource} --to NODE moves it; crm node standby NODE clears a node; "
                f"to do without Pacemaker for a while: hactl resource set {resource} --maintenance",
            )

    def refuse_second(self, keeper: Keeper) -> None:
        """:class:`Refused` if another node was heard to be active."""
        for node, view in sorted(self.views.items()):
            seen = view.get(keeper.name) if view is not None else None
            if seen is not None and (seen.serving or seen.primary):
                raise Refused(
                    "active-elsewhere",
                    f"{keeper.name} is active on {node}",
                    f"hactl switchover {keeper.name} --to {self.node}",
                )

    async def refuse_to_pass_over(self, keeper: Keeper) -> None:
        """:class:`Refused` if a replica's node is alive and not connected: it may have acknowledged writes
        that this one has never seen, while each calls its own disk UpToDate."""
        observed = await keeper.observe(frozenset({Aspect.DRBD}))
        if observed.drbd is None:
            return  # refused for a better reason by what comes next
        for node in keeper.spec.replicas:
            answers = node != self.node and self.views.get(node) is not None
            if answers and node not in observed.connected_peers():
                raise Refused(
                    "not-connected",
                    f"DRBD of {keeper.name} is not connected to {node}, whose agent answers: "
                    "it may have newer data",
                    f"mend the replication network; to pass over what {node} has, stop its hactl-agent",
                )

    async def demote(self, resource: str) -> None:
        """Make this node not active; I/O is held for a while for whoever becomes active next."""
        keeper = self.keeper(resource)
        self._refuse_by_hand(resource)
        async with keeper.exclusive("demote"):
            if keeper.record.role is OrderedRole.ACTIVE:
                await keeper.become_demoted(handover=None)
        self.touch(resource)

    async def switchover(self, resource: str, to: str, *, forward: bool = True) -> None:
        """Hand a resource over to ``to``; ordered at another node than the active one, it is passed on to
        that."""
        if (
            forward
            and resource not in self.keepers
            and any(r.name == resource for r in self.cluster.resources)
        ):
            await self._pass_on(resource, to, None)
            return
        keeper = self.keeper(resource)
        if keeper.record.role is not OrderedRole.ACTIVE:
            await self._pass_on(resource, to, keeper, forward=forward)
            return
        if rules(self.desired.cluster, resource):
            await moved(keeper, to, self._moves)
            return
        async with keeper.exclusive(f"switchover to {to}"):
            try:
                with self.calm.moment():
                    await switchover.hand_over(keeper, to)
            finally:
                self.touch(resource)
        self._announce(keeper)

    async def _pass_on(self, resource: str, to: str, keeper: Keeper | None, *, forward: bool = True) -> None:
        self.refuse_unknown_node(to)
        await self.poll((resource,))
        active = successor(resource, self.views)
        if active == to:
            raise Refused("already-active", f"{resource} is active on {to} already")
        if active is None or not forward:
            where = (
                f"{self.node}, nor on any node that answers"
                if keeper is not None
                else "any node that answers"
            )
            raise Refused(
                "not-active",
                f"{resource} is not active on {where}",
                f"hactl promote {resource} on the node that shall be active",
            )
        await self.kit.peers.switchover(active, resource, to)
