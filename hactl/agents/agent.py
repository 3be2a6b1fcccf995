"""The agent of one node: takes orders, keeps every resource as ordered, answers the other agents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import structlog

from hactl.agents import execute as executing
from hactl.agents import switchover
from hactl.agents.calm import Calm, Expected
from hactl.agents.follow import Follower
from hactl.agents.journal import Record
from hactl.agents.keeper import ROLES, Exported, Keeper
from hactl.agents.kit import Kit, Timings
from hactl.agents.observe import Common, devices, observe, observe_common, observe_exports
from hactl.agents.peers import ABORTED, BUSY, PeerResource
from hactl.agents.plan import initial_sync_open
from hactl.agents.restore import restored
from hactl.agents.retire import retire
from hactl.agents.states import Aspect, OrderedRole, serving, unready
from hactl.errors import HactlError, Refused
from hactl.model.spec import ClusterSpec

_log = structlog.get_logger("hactl.agent")


class Agent:
    """One node. ``start`` once, then ``reconcile`` again and again, and orders at any time.

    Keeps :class:`hactl.agents.peers.PeerService` for the other agents.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        node: str,
        kit: Kit,
        *,
        timings: Timings | None = None,
        after_step: executing.AfterStep = executing.nothing,
    ) -> None:
        self.cluster = cluster
        self.node = node
        self.kit = kit
        self.timings = timings or Timings()
        self.wake = asyncio.Event()
        self.calm = Calm()
        self.follower = Follower(kit.drbd)
        self._expected = Expected(self.calm)
        self.views: dict[str, dict[str, PeerResource] | None] = {
            n.name: None for n in cluster.nodes if n.name != node
        }
        self.keepers: dict[str, Keeper] = {}
        self._after_step = after_step
        self._called_off: dict[str, set[str]] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take over from the predecessor: journal and kernel tell how things stand. Changes nothing in the
        kernel."""
        journal = self.kit.journal.read()
        clock = self.kit.clock
        common = await observe_common(self.kit)
        for spec in self.cluster.resources:
            if self.node not in spec.nodes:
                continue
            old = journal.get(spec.name)
            blank = Record(OrderedRole.STANDBY, clock.boot(), clock.now())
            observed = await observe(
                self.kit,
                self.cluster,
                self.node,
                spec,
                old or blank,
                adjusted=False,
                aspects=ROLES,
                common=common,
            )
            record = restored(old, observed, boot=clock.boot(), now=clock.now())
            if record != old:
                self.kit.journal.write(spec.name, record)
            self.keepers[spec.name] = Keeper(
                self.kit,
                self.cluster,
                self.node,
                spec,
                record,
                timings=self.timings,
                views=self.views,
                follower=self.follower,
                after_step=self._after_step,
            )

    def keeper(self, resource: str) -> Keeper:
        """The keeper of a resource; :class:`Refused` (``unknown-resource``) if this node does not have it."""
        if resource not in self.keepers:
            known = ", ".join(sorted(self.keepers)) or "none"
            raise Refused("unknown-resource", f"{self.node} has no resource {resource!r}", f"it has: {known}")
        return self.keepers[resource]

    # Orders

    async def promote(self, resource: str) -> None:
        """Make this node active. After a failure of the active one; for a planned move see ``switchover``."""
        keeper = self.keeper(resource)
        async with keeper.exclusive("promote"):
            await self.poll()
            for node, view in sorted(self.views.items()):
                seen = view.get(resource) if view is not None else None
                if seen is not None and (seen.serving or seen.primary):
                    raise Refused(
                        "active-elsewhere",
                        f"{resource} is active on {node}",
                        f"hactl switchover {resource} --to {self.node}",
                    )
            await self._refuse_to_pass_over(keeper)
            try:
                await keeper.become_active(handover=False)
            finally:
                self.wake.set()
        self._announce(keeper)

    async def _refuse_to_pass_over(self, keeper: Keeper) -> None:
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
        async with keeper.exclusive("demote"):
            if keeper.record.role is OrderedRole.ACTIVE:
                await keeper.become_demoted(handover=None)
        self.wake.set()

    async def switchover(self, resource: str, to: str, *, forward: bool = True) -> None:
        """Hand a resource over to ``to``; ordered at another node than the active one, it is passed on to
        that."""
        keeper = self.keeper(resource)
        if keeper.record.role is not OrderedRole.ACTIVE:
            if to not in {n.name for n in self.cluster.nodes}:
                raise Refused("unknown-node", f"there is no node {to!r}", "see hactl status")
            await self.poll()
            active = keeper.desired(OrderedRole.DEMOTED).active_node
            if active == to:
                raise Refused("already-active", f"{resource} is active on {to} already")
            if active is None or not forward:
                raise Refused(
                    "not-active",
                    f"{resource} is not active on {self.node}, nor on any node that answers",
                    f"hactl promote {resource} on the node that shall be active",
                )
            await self.kit.peers.switchover(active, resource, to)
            return
        async with keeper.exclusive(f"switchover to {to}"):
            try:
                with self.calm.moment():
                    await switchover.hand_over(keeper, to)
            finally:
                self.wake.set()
        self._announce(keeper)

    # Keeping

    async def poll(self) -> None:
        """Ask every other agent how it is."""

        async def ask(node: str) -> None:
            try:
                self.views[node] = await self.kit.peers.status(node)
            except HactlError as error:
                if self.views[node] is not None:
                    _log.warning("peer does not answer", peer=node, error=str(error))
                self.views[node] = None

        await asyncio.gather(*(ask(node) for node in self.views))

    async def reconcile(self) -> None:
        """One pass over everything; what fails is logged, kept as the resource's reason, and tried next
        time."""
        await self.poll()
        # Read once for all resources. It does not get out of date: nothing but this pass changes the tree.
        exports = await observe_exports(self.kit, self.cluster, self.node)
        # An exception other than HactlError is a bug, and ends the agent: I/O goes on, and it starts afresh.
        await asyncio.gather(*(self._reconcile(keeper, exports) for keeper in self.keepers.values()))
        await self._guard("retired resources", self._retire())

    async def _reconcile(self, keeper: Keeper, exports: Exported | None) -> None:
        if keeper.operation is not None or keeper.name in self._expected:
            return
        async with keeper.lock:
            before = keeper.reason
            if keeper.hands_over():
                await self._guard(keeper.name, switchover.resume(keeper))
                if not keeper.hands_over():
                    before = keeper.reason = None
                    self._announce(keeper)
            error = await self._guard(keeper.name, keeper.reconcile(exports))
            if error is not None:
                keeper.reason = str(error)
            elif keeper.reason == before and not keeper.hands_over():
                keeper.reason = None

    async def _guard(self, what: str, work: Awaitable[None]) -> HactlError | None:
        try:
            await work
        except HactlError as error:
            _log.warning("not done", resource=what, code=error.code, error=str(error))
            return error
        return None

    async def _retire(self) -> None:
        gates = await self.kit.gates.observe()
        await retire(self.kit, set(self.keepers), devices(self.cluster, self.node, gates))

    def next_pass(self) -> float:
        """Seconds until ``reconcile`` has something to do without an event."""
        seconds = self.timings.reconcile
        for keeper in self.keepers.values():
            if keeper.hands_over():
                seconds = min(seconds, self.timings.ask)
            elif keeper.holding:
                left = keeper.record.since + self.timings.hold - self.kit.clock.now()
                seconds = min(seconds, max(left, 0.0) + 0.05) if left > 0 else seconds
                seconds = min(seconds, 1.0)
        return seconds

    def _announce(self, keeper: Keeper, knows: str = "") -> None:
        """Tell the others who is active, without waiting: they ask by themselves sooner or later. ``knows``
        is a node that knows already."""
        active = keeper.active_node
        if active is None:
            return

        async def tell(node: str) -> None:
            # What it sets off on both sides must not delay a node that has still to let go of held I/O.
            await self.calm.returned(self.timings.calm)
            try:
                await self.kit.peers.announce(node, keeper.name, active)
            except HactlError as error:
                _log.info("not announced", peer=node, resource=keeper.name, error=str(error))

        for node in keeper.peers_of():
            if node == knows:
                continue
            task = asyncio.create_task(tell(node))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def settled(self) -> None:
        """Wait until nothing started in the background is left."""
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)

    # The other agents' questions

    async def on_status(self, caller: str) -> dict[str, PeerResource]:  # noqa: ARG002 - all may know
        views = {}
        states = self.follower.states
        common = (
            Common(states, await self.kit.gates.observe())
            if states is not None
            else await observe_common(self.kit)
        )
        for name, keeper in self.keepers.items():
            observed = await keeper.observe(ROLES, common)
            views[name] = PeerResource(
                role=keeper.record.role,
                serving=serving(keeper.desired(), observed),
                primary=observed.primary,
                active_node=keeper.active_node,
                fresh=tuple(sorted(initial_sync_open(observed))),
            )
        return views

    async def on_ready(self, caller: str, resource: str, handover: str) -> tuple[str, ...]:
        keeper = self.keeper(resource)
        reasons = await self._prepare(keeper, handover)
        _log.info("asked whether ready", caller=caller, resource=resource, reasons=list(reasons))
        return reasons

    async def _prepare(self, keeper: Keeper, handover: str) -> tuple[str, ...]:
        """Look at everything now, and keep the regular pass away until the order comes: it must not wait."""
        if keeper.operation is not None:
            return (f"{keeper.operation} is running on {self.node}",)
        self._expected.expect(keeper.name, handover, self.timings.prepared)
        try:
            async with asyncio.timeout(self.timings.prepared), keeper.lock:
                reasons = unready(keeper.desired(), await keeper.observe(), handover=True)
        except TimeoutError:
            reasons = (f"{self.node} is busy with {keeper.name}",)
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
                await keeper.become_active(handover=True, prepared=prepared)
        # The caller has still to let go of what it holds, and gets the processor to itself for that long.
        self._expected.expect(resource, "", self.timings.rest)
        self._announce(keeper, knows=caller)

    async def on_abort(self, caller: str, resource: str, handover: str) -> bool:
        keeper = self.keeper(resource)
        self._expected.over(resource)
        async with keeper.exclusive(f"calling off switchover {handover} for {caller}"):
            observed = await keeper.observe(ROLES)
            if keeper.record.role is OrderedRole.ACTIVE or observed.primary:
                # Primary but not serving: an earlier attempt fell half-way. Finish it rather than guess.
                await keeper.become_active(handover=True)
                return True
            self._called_off.setdefault(resource, set()).add(handover)
            return False

    async def on_announce(self, caller: str, resource: str, active: str) -> None:
        _log.info("announced", caller=caller, resource=resource, active=active)
        self.wake.set()

    async def on_switchover(self, caller: str, resource: str, to: str) -> None:
        _log.info("switchover ordered", caller=caller, resource=resource, to=to)
        await self.switchover(resource, to, forward=False)
