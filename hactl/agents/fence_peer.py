"""What has become of a peer that DRBD lost: the kernel holds I/O, or a promotion, until that is known.

DRBD's handler (``ocf/fence-peer``) asks this node's agent, which asks two at the same time: the peer's agent,
to have its disks remember that they are old, and Pacemaker, whether the peer is off. Whichever knows first
answers. What is right here is told in docs/decisions/0012-data-fencing.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from hactl.agents.fence_verdict import (
    SETTLED,
    Facts,
    Judgement,
    Patience,
    judge,
    left,
    stranded,
    switched_off,
    unsettled,
    wants_fencing,
    why_in_doubt,
)
from hactl.agents.peers import BUSY, Left
from hactl.agents.resource import gone
from hactl.errors import HactlError, Refused
from hactl.pacemaker.charge import fences
from hactl.pacemaker.protocol import Pacemaker, State
from hactl.replication.state import ResourceState

if TYPE_CHECKING:
    from hactl.agents.following import Following
    from hactl.agents.keeper import Keeper

_log = structlog.get_logger("hactl.agent")


@dataclass
class _Inquiry:
    resource: str
    peer: str
    began: float
    left: Left | None = None
    pacemaker: State | None = None
    fenced: bool = False
    problem: str = ""
    news: asyncio.Event = field(default_factory=asyncio.Event)


class PeerFencing:
    """One node's answers to DRBD's question. Takes no lock: a promotion waits for the answer, and holds the
    resource's."""

    def __init__(
        self,
        agent: Following,
        patience: Patience | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._agent = agent
        self.patience = patience or Patience()
        self._wall = wall
        self._joined: dict[tuple[str, str], float] = {}
        """When the last connection of a resource to a peer was first seen; it may be over."""
        self._connected: frozenset[tuple[str, str]] = frozenset()
        self._asking: dict[tuple[str, str], asyncio.Task[Judgement]] = {}
        self._shared: dict[str, asyncio.Task[Any]] = {}
        self._frozen: dict[str, float] = {}
        self._doubts: dict[str, str] = {}
        self._seeing_to: dict[str, asyncio.Task[None]] = {}
        self._down_since: float | None = None
        self._off: dict[str, float] = {}
        """When nodes were last switched off, of all that Pacemaker has told whoever asked here."""

    @property
    def problem(self) -> str | None:
        """Whose I/O is held, and why."""
        found = [f"{name}: DRBD holds I/O: {why}" for name, why in sorted(self._doubts.items())]
        return "; ".join(found) or None

    async def ask(self, resource: str, peer: str | None = None) -> Judgement:
        """What has become of ``peer``; it may be left out if there is only one. May be asked by several at
        once, and again."""
        key = resource, self._peer(resource, peer)
        if key not in self._asking:
            self._asking[key] = asyncio.create_task(self._inquire(*key))
            self._asking[key].add_done_callback(partial(_forget, self._asking, key))
        return await asyncio.shield(self._asking[key])

    def _keeper(self, resource: str) -> Keeper:
        keeper = self._agent.keepers.get(resource)
        if keeper is None and resource in self._agent.leaving:
            keeper = self._agent.leaving[resource].keeper
        if keeper is None:
            raise gone(self._agent.node, resource, self._agent.keepers)
        return keeper

    def _peer(self, resource: str, peer: str | None) -> str:
        others = [n for n in self._keeper(resource).spec.replicas if n != self._agent.node]
        if peer in others:
            return str(peer)
        if len(others) != 1:
            raise Refused("bad-request", f"which peer of {resource} was lost? one of {others}")
        return others[0]

    async def _inquire(self, resource: str, peer: str) -> Judgement:
        now = asyncio.get_running_loop().time
        inquiry = _Inquiry(resource, peer, now())
        _log.info("DRBD asks after its peer", resource=resource, peer=peer)
        async with _meanwhile(self._ask_peer(inquiry), self._ask_pacemaker(inquiry)) as start:
            ordered = False
            while True:
                inquiry.news.clear()
                facts = await self._facts(inquiry)
                verdict = judge(facts, self.patience)
                if verdict is not None:
                    self._settle(resource, peer, verdict, facts)
                    return verdict
                if facts.primary:
                    self._doubts[resource] = why_in_doubt(facts)
                if not ordered and wants_fencing(facts, self.patience):
                    ordered = True
                    start(self._order_fencing(inquiry))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.patience.again):
                        await inquiry.news.wait()

    def _settle(self, resource: str, peer: str, verdict: Judgement, facts: Facts) -> None:
        if verdict.code in SETTLED or facts.connected:
            self._doubts.pop(resource, None)
        elif facts.primary:
            self._doubts[resource] = verdict.reason
        told = _log.info if verdict.code in SETTLED else _log.warning
        told(
            "DRBD is answered",
            resource=resource,
            peer=peer,
            code=verdict.code.value,
            reason=verdict.reason,
            seconds=round(facts.waited, 3),
        )

    async def _facts(self, inquiry: _Inquiry) -> Facts:
        own = await self._own(inquiry.resource, lost=inquiry.peer)
        return Facts(
            inquiry.peer,
            asyncio.get_running_loop().time() - inquiry.began,
            own,
            inquiry.left,
            inquiry.pacemaker,
            inquiry.fenced,
            fences(self._agent.cluster),
            self._joined.get((inquiry.resource, inquiry.peer)),
            self._off.get(inquiry.peer),
            inquiry.problem,
        )

    async def _own(self, resource: str, lost: str | None = None) -> ResourceState | None:
        states = self._agent.follower.states
        own = None if states is None else states.get(resource)
        # A connection to the lost peer that is followed may be from before the loss; asked now, it is new.
        if states is None or (lost is not None and own is not None and own.connected(lost)):
            own = None
            with contextlib.suppress(HactlError, TimeoutError):
                async with asyncio.timeout(self.patience.promotion):
                    own = (await self._once("drbd", self._agent.kit.drbd.observe())).get(resource)
        return own

    # The two who may know

    async def _ask_peer(self, inquiry: _Inquiry) -> None:
        while True:
            own = await self._own(inquiry.resource)
            # With a disk of its own that is not good, this node may need the peer's.
            if own is not None and own.up_to_date:
                try:
                    inquiry.left = await self._agent.kit.peers.outdate(inquiry.peer, inquiry.resource)
                    inquiry.problem = f"its agent says {inquiry.left}"
                except HactlError as error:
                    inquiry.left, inquiry.problem = None, str(error)
                inquiry.news.set()
            await asyncio.sleep(self.patience.again)

    async def _ask_pacemaker(self, inquiry: _Inquiry) -> None:
        pacemaker = self._agent.kit.pacemaker
        while pacemaker is not None:
            try:
                inquiry.pacemaker = await self._view(pacemaker)
            except HactlError as error:
                inquiry.pacemaker, inquiry.problem = None, str(error)
            inquiry.news.set()
            await asyncio.sleep(self.patience.again)

    async def _view(self, pacemaker: Pacemaker) -> State:
        state: State = await self._once("state", self.view(pacemaker))
        return state

    async def view(self, pacemaker: Pacemaker) -> State:
        """Pacemaker's view of the cluster. What it says of fencing is remembered, even if it comes too late
        for the one who asked: the kernel has the handler ask again, and on a busy machine no answer might
        ever come in time."""
        state = await pacemaker.state()
        self._off = switched_off(state, self._off)
        return state

    async def _order_fencing(self, inquiry: _Inquiry) -> None:
        pacemaker = self._agent.kit.pacemaker
        while pacemaker is not None:
            _log.warning(
                "Pacemaker is told to fence",
                node=inquiry.peer,
                resource=inquiry.resource,
                problem=inquiry.problem,
            )
            try:
                await self._once(f"fence {inquiry.peer}", pacemaker.fence(inquiry.peer))
                inquiry.fenced = True
                inquiry.news.set()
                return
            except HactlError as error:
                _log.warning("not fenced", node=inquiry.peer, error=str(error))
                inquiry.problem = str(error)
            await asyncio.sleep(self.patience.fence)

    async def _once(self, what: str, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something that many resources want at the same moment only once; an answer to a question that
        was put a moment before is as good."""
        if what in self._shared:
            work.close()
        else:
            self._shared[what] = asyncio.create_task(work)
            self._shared[what].add_done_callback(partial(_forget, self._shared, what))
        return await asyncio.shield(self._shared[what])

    # Held I/O that no handler asks about

    async def run(self) -> None:
        """See to I/O that stays held although no handler asks: the kernel calls it once for each loss."""
        try:
            while True:
                self.look()
                await self.step_back()
                await asyncio.sleep(1.0)
        finally:
            for task in self._seeing_to.values():
                task.cancel()

    def look(self) -> None:
        """One look at what DRBD said last."""
        states = self._agent.follower.states or {}
        now = asyncio.get_running_loop().time()
        connected = frozenset((n, p) for n, s in states.items() for p in s.connections if s.connected(p))
        # Later than it was, never earlier: what was fenced before that does not count.
        self._joined |= dict.fromkeys(connected - self._connected, self._wall())
        self._connected = connected
        held = {n for n, s in states.items() if "fencing" in s.suspended.split(",") and self._known(n)}
        self._doubts = {n: why for n, why in self._doubts.items() if n in held}
        self._frozen = {n: self._frozen.get(n, now) for n in held}
        for name, since in self._frozen.items():
            if any(name == resource for resource, _ in self._asking):
                self._frozen[name] = now
            elif now - since >= self.patience.stuck and name not in self._seeing_to:
                task = asyncio.create_task(self.see_to(name))
                self._seeing_to[name] = task
                task.add_done_callback(partial(_forget, self._seeing_to, name))

    async def step_back(self) -> None:
        """For the other nodes, one whose Pacemaker was stopped in good order is off, and they go on without
        it. So a disk here that is cut off meanwhile may be left behind, and must not be promoted later."""
        states, pacemaker = self._agent.follower.states or {}, self._agent.kit.pacemaker
        cut = [n for n, s in states.items() if n in self._agent.keepers and stranded(s)]
        if not cut or pacemaker is None or not fences(self._agent.cluster):
            self._down_since = None
            return
        now = asyncio.get_running_loop().time()
        try:
            await self._view(pacemaker)
        except HactlError as error:
            since = self._down_since = self._down_since if self._down_since is not None else now
            if error.code != "pacemaker-down" or now - since < self.patience.restart:
                return
        else:
            self._down_since = None
            return
        for name in cut:
            try:
                await outdate(self._agent.keepers[name], "nobody: Pacemaker does not run here")
            except HactlError as error:
                _log.warning("not outdated", resource=name, code=error.code, error=str(error))

    def _known(self, resource: str) -> bool:
        return resource in self._agent.keepers or resource in self._agent.leaving

    async def see_to(self, resource: str) -> None:
        """Ask after every peer that is missing, and let I/O go on if all are settled."""
        try:
            before = await self._own(resource)
            missing = () if before is None else unsettled(before)
            for peer in missing:
                if (await self.ask(resource, peer)).code not in SETTLED:
                    return
            # Not after another loss: a peer that was connected meanwhile may have become as good again.
            now = (await self._agent.kit.drbd.observe()).get(resource)
            if now is not None and "fencing" in now.suspended.split(",") and unsettled(now) == missing:
                _log.warning("I/O goes on", resource=resource, settled=list(missing))
                await self._agent.kit.drbd.resume(resource)
        except HactlError as error:
            self._doubts[resource] = str(error)
            _log.warning("I/O is still held", resource=resource, code=error.code, error=str(error))


def _forget(tasks: dict[Any, Any], key: object, _: object) -> None:
    tasks.pop(key, None)


@contextlib.asynccontextmanager
async def _meanwhile(*works: Coroutine[Any, Any, None]) -> AsyncIterator[Any]:
    """Run ``works``, and those that the given function is called with, until the block is left."""
    tasks: list[asyncio.Task[None]] = []

    def start(work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.create_task(work))

    for work in works:
        start(work)
    try:
        yield start
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# The answering side

_LOCK = 2.0
"""Seconds to wait for a pass over the resource to end."""


async def outdate(keeper: Keeper, caller: str) -> Left:
    """Another node's agent has lost this one: have the disks here remember that they are old, if they may be.

    Under the resource's lock, so that no promotion begins meanwhile; while one is under way the question is
    refused (``busy``), since the kernel would make it wait, and everybody else's with it.
    """
    try:
        async with asyncio.timeout(_LOCK), keeper.exclusive(f"outdating for {caller}"):
            return await _outdate(keeper, caller)
    except TimeoutError:
        raise Refused(BUSY, f"{keeper.node} is busy with {keeper.name}", "ask again") from None


async def _outdate(keeper: Keeper, caller: str) -> Left:
    drbd = keeper.kit.drbd
    state = (await drbd.observe()).get(keeper.name)
    found = left(state, caller)
    if found is Left.DOWN and not fences(keeper.cluster):
        raise Refused("drbd-not-configured", f"{keeper.name} is not up on {keeper.node}", "ask again")
    if found is not None:
        return found
    _log.warning("disks are outdated", resource=keeper.name, caller=caller)
    await drbd.outdate(keeper.name)
    found = left((await drbd.observe()).get(keeper.name), caller)
    if found is None:
        raise Refused(BUSY, f"the disks of {keeper.name} on {keeper.node} are not outdated yet", "ask again")
    return found


def handler(fencing: PeerFencing) -> Any:
    """The route for DRBD's handler: form field ``peer`` (may be empty); answers in plain text with the exit
    code, a space, and the reason."""

    async def answer(request: web.Request) -> web.Response:
        peer = (await request.post()).get("peer")
        verdict = await fencing.ask(request.match_info["resource"], str(peer) if peer else None)
        return web.Response(text=f"{verdict.code.value} {verdict.reason}\n")

    return answer
