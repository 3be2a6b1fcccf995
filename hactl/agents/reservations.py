"""Persistent reservations in step, as part of the agent: what ties the service to everything else here."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from hactl.agents.agent import Agent
from hactl.agents.exports import LioExports
from hactl.agents.kit import Standing
from hactl.agents.peers import Peers
from hactl.agents.pr_document import reached_document
from hactl.errors import Failed, HactlError
from hactl.model.spec import ResourceSpec
from hactl.pr_sync.capture.client import CaptureClient
from hactl.pr_sync.capture.place import Place
from hactl.pr_sync.cut import end_all
from hactl.pr_sync.doors import Doors
from hactl.pr_sync.lio import LioUnit, Surroundings
from hactl.pr_sync.service import Reservations
from hactl.pr_sync.state import State
from hactl.pr_sync.units import Unit
from hactl.runner import Runner
from hactl.store.protocol import Store
from hactl.target.configfs import ConfigFs
from hactl.target.tree import PrTree, portal
from hactl.thread import in_thread

SECRET = Path("/run/hactl/door")
"""CHAP password of the agent's own sessions; made anew at each boot."""


def door_secret(path: Path = SECRET) -> SecretStr:
    """The password that the kernel's tree has, or a new one."""
    try:
        return SecretStr(path.read_text())
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(32))
        draft.replace(path)
        return SecretStr(path.read_text())


@dataclass
class AgentNode:
    """Keeps :class:`hactl.pr_sync.around.Node`."""

    agent: Agent
    fs: ConfigFs
    place: Place

    async def claim_directory(self) -> None:
        await in_thread(self.place.claim)

    async def check_directory(self) -> None:
        await in_thread(self.place.check)

    async def attend_to(self, resource: str) -> None:
        keeper = self.agent.keepers.get(resource)
        if keeper is None:
            raise Failed("not-exported", f"{resource} is not exported on this node yet", "see hactl status")
        async with keeper.lock:
            keeper.changes += 1
            await keeper.reconcile()
        self.agent.touch(resource)

    async def close_doors(self, resource: str) -> None:
        keeper = self.agent.keepers.get(resource)
        if keeper is None:
            return
        own = self.agent.cluster.node(self.agent.node).id
        groups = f"iscsi/{keeper.spec.iqn}"

        def close() -> None:
            for name in self.fs.listdir(groups):
                if name.startswith("tpgt_") and name != f"tpgt_{own}":
                    where = f"{groups}/{name}/enable"
                    if self.fs.read(where) == "1":
                        self.fs.write(where, "0")

        await in_thread(close)

    def _own_switch(self, resource: str) -> str:
        """What enables this node's own portal group of a resource."""
        own = self.agent.cluster.node(self.agent.node).id
        return f"iscsi/{self.agent.keepers[resource].spec.iqn}/tpgt_{own}/enable"

    async def shut_port(self, resource: str) -> None:
        where = self._own_switch(resource)
        if self.fs.exists(where):
            await in_thread(lambda: self.fs.write(where, "0"))

    def serving(self, resource: str) -> bool:
        where = self._own_switch(resource)
        return self.exported(resource) and self.fs.exists(where) and self.fs.read(where) == "1"

    def withdrawn(self, resource: str) -> bool:
        keeper = self.agent.keepers.get(resource)
        return keeper is not None and keeper.record.withdrawn

    def exported(self, resource: str) -> bool:
        keeper = self.agent.keepers.get(resource)
        return keeper is not None and self.fs.exists(f"iscsi/{keeper.spec.iqn}")


@dataclass
class PeerMembers:
    """Keeps :class:`hactl.pr_sync.sync.Members`."""

    peers: Peers

    async def applied(self, node: str, serial: str, index: int) -> None:
        await self.peers.reserved(node, serial, index)


class Keeping:
    """The service with its real surroundings. Make it before the agent looks at the kernel for the first
    time, ``run`` it beside the agent."""

    def __init__(
        self, agent: Agent, exports: LioExports, store: Store, fs: ConfigFs, runner: Runner, secret: SecretStr
    ) -> None:
        self._agent = agent
        self._capture = CaptureClient()
        self._runner = runner

        async def switch(target: str, tag: int, on: bool) -> None:
            await in_thread(lambda: fs.write(f"iscsi/{target}/tpgt_{tag}/enable", str(int(on))))

        def own_portal() -> str:
            return portal(agent.cluster.node(agent.node).addresses.storage[0])

        self._doors = doors = Doors(switch, secret)
        clock = agent.kit.clock

        node = AgentNode(agent, fs, Place(fs))

        async def rebuild(unit: Unit, state: State) -> None:
            await service.rebuild(unit, state)

        async def shut_port(unit: Unit) -> None:
            await node.shut_port(unit.resource)

        around = Surroundings(
            agent.node,
            own_portal,
            fs,
            runner,
            doors,
            self._capture,
            clock.now,
            rebuild,
            shut_port,
        )

        def make(unit: Unit, changed: object) -> LioUnit:
            return LioUnit(unit, around, changed)  # type: ignore[arg-type]  # as the service calls it

        service = self.service = Reservations(
            agent.node,
            agent.cluster.name,
            store,
            self._capture,
            PeerMembers(agent.kit.peers),
            clock,
            node,
            make,
        )
        service.update(agent.cluster)
        standing: Standing = agent.kit.standing
        standing.unready, standing.confirm = service.unready, service.confirm
        standing.applied = service.applied
        standing.reached = lambda resource: reached_document(service.reached(resource))
        standing.clear = service.clear
        standing.withdraw, standing.rejoin = service.withdraw, service.rejoin

        def tree(spec: ResourceSpec) -> PrTree:
            found = service.tree(spec)
            return PrTree(found.open, secret, found.imports, found.absent)

        exports.reservations = tree

    @property
    def problem(self) -> str | None:
        """For the agent's status."""
        error: HactlError | None = self._capture.problem
        if error is not None:
            return f"persistent reservations cannot be changed: {error.message}"
        return self.service.problem

    async def run(self) -> None:
        """Until cancelled."""
        await end_all(self._runner)
        async with self._capture:
            try:
                await self.service.run()
            finally:
                await self._doors.close()
