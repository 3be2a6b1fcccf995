"""Agents of several nodes in one process: the twin of the cluster network, which can cut, refuse and lose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from hactl.agents.peers import UNREACHABLE, Left, PeerResource, PeerService
from hactl.errors import HactlError, Refused, Unknown
from hactl.model.spec import ClusterSpec

T = TypeVar("T")


class Killed(BaseException):
    """An agent died at this instruction; nothing in it may handle that."""


class MemoryNetwork:
    """Who answers, and between whom the link is cut.

    ``lose`` maps (caller, called, question) to how many answers are lost after the question was carried out.
    """

    def __init__(self) -> None:
        self.services: dict[str, PeerService] = {}
        self.cut: set[frozenset[str]] = set()
        self.lose: dict[tuple[str, str, str], int] = {}
        self.asked: list[tuple[str, str, str]] = []

    def peers(self, node: str) -> MemoryPeers:
        return MemoryPeers(self, node)

    async def call(
        self, caller: str, node: str, question: str, ask: Callable[[PeerService], Awaitable[T]]
    ) -> T:
        """Carry a question over; raises as :class:`hactl.agents.peers.Peers` says."""
        await asyncio.sleep(0)
        service = self.services.get(node)
        if service is None or frozenset({caller, node}) in self.cut:
            raise Refused(UNREACHABLE, f"the agent on {node} cannot be reached", f"see hactl-agent on {node}")
        self.asked.append((caller, node, question))
        refusal: HactlError | None = None
        try:
            answer = await ask(service)
        except HactlError as error:
            refusal = error
        except Killed:
            self.services.pop(node, None)
            raise Unknown("peer-lost", f"the connection to {node} was lost", "ask again") from None
        left = self.lose.get((caller, node, question), 0)
        if left:
            self.lose[caller, node, question] = left - 1
        if left or frozenset({caller, node}) in self.cut:
            raise Unknown("peer-lost", f"no answer from {node}", "ask again")
        if refusal is not None:
            raise refusal
        return answer


class MemoryPeers:
    """One node's view of the network; keeps :class:`hactl.agents.peers.Peers`."""

    def __init__(self, network: MemoryNetwork, node: str) -> None:
        self._network = network
        self._node = node

    def follow(self, cluster: ClusterSpec) -> None:
        """Nothing: who answers is known without addresses."""

    async def status(self, node: str, only: Collection[str] = ()) -> dict[str, PeerResource]:
        return await self._network.call(self._node, node, "status", lambda s: s.on_status(self._node, only))

    async def document(self, node: str) -> dict[str, Any]:
        return await self._network.call(self._node, node, "document", lambda s: s.on_document(self._node))

    async def ready(self, node: str, resource: str, handover: str) -> tuple[str, ...]:
        return await self._network.call(
            self._node, node, "ready", lambda s: s.on_ready(self._node, resource, handover)
        )

    async def promote(self, node: str, resource: str, handover: str) -> None:
        await self._network.call(
            self._node, node, "promote", lambda s: s.on_promote(self._node, resource, handover)
        )

    async def abort(self, node: str, resource: str, handover: str) -> bool:
        return await self._network.call(
            self._node, node, "abort", lambda s: s.on_abort(self._node, resource, handover)
        )

    async def announce(self, node: str, resource: str, active: str) -> None:
        await self._network.call(
            self._node, node, "announce", lambda s: s.on_announce(self._node, resource, active)
        )

    async def outdate(self, node: str, resource: str) -> Left:
        return await self._network.call(
            self._node, node, "outdate", lambda s: s.on_outdate(self._node, resource)
        )

    async def reserved(self, node: str, unit: str, index: int) -> None:
        await self._network.call(
            self._node, node, "reserved", lambda s: s.on_reserved(self._node, unit, index)
        )

    async def switchover(self, node: str, resource: str, to: str) -> None:
        await self._network.call(
            self._node, node, "switchover", lambda s: s.on_switchover(self._node, resource, to)
        )

    async def order(self, node: str, resource: str, order: str) -> None:
        await self._network.call(self._node, node, "order", lambda s: s.on_order(self._node, resource, order))
