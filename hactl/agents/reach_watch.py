"""Keeps asking on a node's storage network, and knows whether hosts can reach the node.

One task for each agent. While somebody answers, a round is one ICMP message to each address; everything
else is asked only if nobody does. Nothing depends on how many resources there are.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from hactl.agents.reach import Network, Patience, Reach, Round, Verdict, after, fresh, network, trouble
from hactl.model.spec import IpAddress
from hactl.pacemaker.charge import in_charge

if TYPE_CHECKING:
    from hactl.agents.following import Following
    from hactl.agents.reach_probes import StorageProbes

_HOSTS = 8
"""Hosts that are asked at most: those that sent something last."""
_log = structlog.get_logger("hactl.agent")


class StorageWatch:
    """One node's. Without probes (``Kit.storage``) nothing is known against the network."""

    def __init__(self, agent: Following, patience: Patience | None = None) -> None:
        self._agent = agent
        self.patience = patience or Patience()
        self._reach: Reach | None = None
        self._network: Network | None = None
        self._turned, self._before = -math.inf, Verdict.UNKNOWN
        """When the node last became isolated, or well again, and what it was before."""
        self._told = (Verdict.UNKNOWN, Verdict.UNKNOWN)
        self.news: Callable[[], None] = lambda: None
        """Called when the node has become isolated or well again, and when that counts; must not wait for
        anything."""

    @property
    def verdict(self) -> Verdict:
        """What is known now."""
        if self._agent.kit.storage is None:
            return Verdict.REACHABLE
        reach = self._reach
        if reach is None or reach.last is None:
            return Verdict.UNKNOWN
        stale = self._agent.kit.clock.now() - reach.last.at > self.patience.stale
        return Verdict.UNKNOWN if stale else reach.verdict

    @property
    def verdict_of_active(self) -> Verdict:
        """What counts for a resource that is active here: isolated only after the other nodes have had the
        time to say the same of themselves."""
        verdict = self.verdict
        return Verdict.UNKNOWN if verdict.isolated and self._just_now() else verdict

    @property
    def verdict_of_standby(self) -> Verdict:
        """What counts for one that is not: well again only after the active one has had the time to say so,
        too."""
        verdict = self.verdict
        return (
            self._before if self._before.isolated and not verdict.isolated and self._just_now() else verdict
        )

    def _just_now(self) -> bool:
        return self._agent.kit.clock.now() - self._turned < self.patience.others

    @property
    def problem(self) -> str | None:
        """That hosts cannot reach this node, why, and what to do; None if they can, or that is not known."""
        if self._reach is None or self._network is None or not self.verdict.isolated:
            return None
        return trouble(self._reach, self._network, moves=in_charge(self._agent.cluster))

    def document(self) -> dict[str, Any]:
        """For the status document: the verdict, for how many seconds it has held (None before the first
        round), and which portals were answered in the last round."""
        last = None if self._reach is None else self._reach.last
        held = None if self._reach is None else self._agent.kit.clock.now() - self._reach.since
        faults = {} if last is None else dict(last.faults)
        portals: tuple[IpAddress, ...] = () if self._network is None else self._network.portals
        return {
            "verdict": self.verdict.value,
            "seconds": None if held is None else round(held, 1),
            "reason": self.problem,
            "portals": [
                {
                    "address": str(portal),
                    "answered": last is not None and portal in last.answered,
                    "fault": faults.get(portal),
                }
                for portal in portals
            ],
        }

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        probes, clock = self._agent.kit.storage, self._agent.kit.clock
        while probes is not None:
            began = clock.now()
            await self.look(probes)
            await clock.sleep(max(began + self.patience.period - clock.now(), 0.1))

    async def look(self, probes: StorageProbes) -> None:
        """One round."""
        clock = self._agent.kit.clock
        asked = network(self._agent.cluster, self._agent.node)
        if asked is None:
            self._reach = self._network = None
            return
        if self._reach is None or self._network is None or self._network.portals != asked.portals:
            self._reach = fresh(clock.now())
        self._network = asked
        found = await self._round(probes, asked)
        before = self._reach
        self._reach = after(before, replace(found, at=clock.now()), self.patience)
        if self._reach.verdict is not before.verdict:
            self._tell(before)
        if self._reach.verdict.isolated is not before.verdict.isolated:
            self._turned, self._before = self._reach.since, before.verdict
        told, self._told = self._told, (self.verdict_of_active, self.verdict_of_standby)
        # Between the verdicts that are not isolated there is no hurry: monitors tell them.
        if told != self._told and any(verdict.isolated for verdict in (*told, *self._told)):
            self.news()

    async def _round(self, probes: StorageProbes, asked: Network) -> Round:
        answer = self.patience.answer
        found = Round(0.0, len(asked.portals), len(asked.asked))
        answered = await probes.echo(asked.portals, asked.asked, answer)
        if answered:
            return replace(found, answered=answered)
        faults, hosts, answered = await asyncio.gather(
            probes.faults(asked.portals),
            self._hosts(probes, asked),
            probes.connect(asked.portals, asked.others, answer),
        )
        silence, count, echoed = hosts
        return replace(
            found,
            asked=len(asked.asked) + count,
            answered=answered | echoed,
            heard=None if silence is None else self._agent.kit.clock.now() - silence,
            faults=tuple(faults.items()),
        )

    async def _hosts(
        self, probes: StorageProbes, asked: Network
    ) -> tuple[float | None, int, frozenset[IpAddress]]:
        """How long ago any host last sent something, how many were asked, and the portals that were
        answered."""
        known = await probes.hosts(asked.portals)
        # Agents of other nodes are no hosts: they log in for a moment.
        nodes = {*asked.portals, *asked.others}
        hosts = sorted((silence, str(host), host) for host, silence in known.items() if host not in nodes)
        if not hosts:
            return None, 0, frozenset()
        targets = [host for _, _, host in hosts[:_HOSTS]]
        began = self._agent.kit.clock.now()
        answered = await probes.echo(asked.portals, targets, self.patience.answer)
        waited = self._agent.kit.clock.now() - began
        silence = hosts[0][0] + waited
        return (silence if silence < float("inf") else None), len(targets), answered

    def _tell(self, before: Reach) -> None:
        assert self._reach is not None
        told = _log.warning if self._reach.verdict.isolated else _log.info
        told(
            "storage network",
            verdict=self._reach.verdict.value,
            before=before.verdict.value,
            seconds=round(self._reach.since - before.since, 1),
            reason=self.problem,
        )
