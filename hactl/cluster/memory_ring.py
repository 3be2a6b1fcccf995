"""Corosync and Pacemaker of several nodes in memory, as far as it is about who their nodes are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from hactl.cluster.ring import Known, Link
from hactl.errors import Failed


@dataclass
class _Server:
    """A running corosync: the file it reads, what it has read, its key, and whether it waits for all."""

    file: Path
    keys: dict[str, str] = field(default_factory=dict)
    key: bytes = b""
    waiting: bool = False

    def read(self) -> None:
        text = self.file.read_text(encoding="utf-8")
        self.keys = keys(text)
        found = re.search(r"^\s*keyfile: (\S+)$", text, re.MULTILINE)
        self.key = Path(found[1]).read_bytes() if found else b""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(v for k, v in self.keys.items() if k.endswith(".name"))

    @property
    def two(self) -> bool:
        return self.keys.get("two_node") == "1"


class MemoryCorosync:
    """All nodes of a world. Two see each other if each has the other in its list of nodes, and both the same
    key (corosync.conf(5), ``block_unlisted_ips``); votes are counted as votequorum(5) says."""

    def __init__(self) -> None:
        self.servers: dict[str, _Server] = {}
        self.pacemakers: set[str] = set()
        """Nodes where Pacemaker runs."""
        self.remembered: set[str] = set()
        """Nodes that Pacemaker knows."""
        self.fenced: list[str] = []
        """Nodes that another one lost while Pacemaker ran there: real ones would be switched off."""
        self.calls: list[str] = []
        self.deaf: set[str] = set()
        """Nodes whose corosync refuses to take up new settings."""

    def start(self, node: str, file: Path) -> None:
        """Start corosync on a node, with its settings; nothing if it runs."""
        if node not in self.servers:
            server = _Server(file)
            server.read()
            # Before the others are seen, and at the start only.
            server.waiting = server.two
            self.servers[node] = server
            self._settle({})

    def stop(self, node: str) -> None:
        """Stop it, and with it Pacemaker; or its machine."""
        before = self._seen()
        self.servers.pop(node, None)
        self._settle(before)
        self.pacemakers.discard(node)

    def start_pacemaker(self, node: str) -> None:
        """Start Pacemaker on a node."""
        if node not in self.servers:
            raise Failed("unit-failed", "systemd did not start pacemaker.service: corosync does not run")
        self.pacemakers.add(node)
        self.remembered |= set(self.servers[node].names)

    def stop_pacemaker(self, node: str) -> None:
        """Stop Pacemaker in good order."""
        self.pacemakers.discard(node)

    def reload(self) -> None:
        """Have all that run read their files."""
        before = self._seen()
        for node, server in self.servers.items():
            if node not in self.deaf:
                server.read()
                if node in self.pacemakers:
                    self.remembered |= set(server.names)
        self._settle(before)

    def members(self, node: str) -> set[str]:
        """The nodes that a node's corosync sees, itself included."""
        own = self.servers[node]
        return {
            name
            for name, other in self.servers.items()
            if name in own.names and node in other.names and other.key == own.key
        }

    def quorate(self, node: str) -> bool:
        """Whether a node's corosync has quorum."""
        server = self.servers[node]
        votes, expected = len(self.members(node)), len(server.names)
        return not server.waiting and votes >= (1 if server.two else expected // 2 + 1)

    def _seen(self) -> dict[str, set[str]]:
        return {node: self.members(node) for node in self.servers}

    def _settle(self, before: dict[str, set[str]]) -> None:
        for node, server in self.servers.items():
            members = self.members(node)
            if not server.two or len(members) == len(server.names):
                server.waiting = False
            if node in self.pacemakers:
                lost = before.get(node, set()) - members
                self.fenced += sorted((lost & self.pacemakers) - set(self.fenced))


class MemoryRing:
    """Keeps :class:`hactl.cluster.ring.Ring` for one node."""

    def __init__(self, world: MemoryCorosync, node: str) -> None:
        self._world = world
        self._node = node

    async def loaded(self) -> dict[str, str]:
        return dict(self._server().keys)

    async def reload(self) -> None:
        self._server()
        self._world.calls.append(f"reload {self._node}")
        self._world.reload()

    async def links(self) -> tuple[Link, ...]:
        own = self._server()
        ids = {v: int(k.partition(".")[0]) for k, v in own.keys.items() if k.endswith(".name")}
        members = self._world.members(self._node)
        states = {
            ids[name]: "connected" if name in members else "disconnected"
            for name in own.names
            if name != self._node
        }
        count = sum(k.startswith(f"{ids[self._node]}.ring") for k in own.keys)
        return tuple(Link(number, states) for number in range(count))

    async def known(self) -> tuple[Known, ...]:
        if self._node not in self._world.pacemakers:
            raise Failed("pacemaker-failed", "Pacemaker does not run here")
        there = self._world.members(self._node) & self._world.pacemakers
        return tuple(Known(name, name in there) for name in sorted(self._world.remembered))

    async def forget(self, node: str) -> None:
        self._world.calls.append(f"forget {node}")
        if node in self._world.pacemakers:
            raise Failed("pacemaker-failed", f"{node} is not gone")
        self._world.remembered.discard(node)

    def _server(self) -> _Server:
        if self._node not in self._world.servers:
            raise Failed("corosync-failed", "corosync does not run here")
        return self._world.servers[self._node]


_NODE = re.compile(r"node \{(.*?)\}", re.DOTALL)
_SETTING = re.compile(r"^\s*(\w+): (\S+)$", re.MULTILINE)


def keys(text: str) -> dict[str, str]:
    """What corosync reads of nodes and ``two_node`` in such a file, as
    :func:`hactl.cluster.corosync.wanted_keys`."""
    found: dict[str, str] = {}
    for block in _NODE.findall(text):
        values = dict(_SETTING.findall(block))
        number = values.pop("nodeid")
        found |= {f"{number}.{name}": value for name, value in values.items()}
    if re.search(r"^\s*two_node: 1$", text, re.MULTILINE):
        found["two_node"] = "1"
    return found
