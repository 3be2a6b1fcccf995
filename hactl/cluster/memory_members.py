"""etcd's members and the units that run them, in memory: one :class:`MemoryEtcd` for all nodes of a test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hactl.cluster.etcd_config import variables
from hactl.cluster.etcd_log import LogEnd, LogState
from hactl.cluster.layout import (
    AGENT_UNIT,
    CAPTURE_UNIT,
    COROSYNC_UNIT,
    ETCD_UNIT,
    PACEMAKER_UNIT,
    Layout,
)
from hactl.cluster.members import NOT_YET, UNKNOWN, UNREACHABLE, Member, MemberStatus, majority
from hactl.cluster.memory_ring import MemoryCorosync
from hactl.cluster.services import SECONDS, Standing
from hactl.errors import Failed, Refused, Unknown

VERSION = "3.5.16"


@dataclass
class _Started:
    """A server process: the member that it is, and whether it has copied everything (a learner)."""

    member: int
    copied: bool = False


@dataclass
class MemoryEtcd:
    """The cluster of etcd: rules as etcd 3.5 has them with ``strict-reconfig-check``.

    ``lose_answers``: so many of the next changes are carried out without an answer.
    """

    members: dict[int, Member] = field(default_factory=dict)
    running: dict[str, _Started] = field(default_factory=dict)
    """By client URL."""
    leader: int = 0
    lose_answers: int = 0
    gone: dict[int, Member] = field(default_factory=dict)
    """Members that were removed."""
    committed: dict[int, int] = field(default_factory=dict)
    """How far a member's log is committed, by its id."""
    logs: dict[str, LogState] = field(default_factory=dict)
    """By the path of the data folder, where they matter."""
    calls: list[str] = field(default_factory=list)
    _next: int = 100

    def start(self, config: Path, *, alone: bool = False) -> bool:
        """Start the server of a configuration file; whether it stays up. Its id is in its data folder.
        ``alone``: with --force-new-cluster."""
        value = variables(config.read_text(encoding="utf-8"))
        data = Path(value["ETCD_DATA_DIR"])
        client, peer = value["ETCD_LISTEN_CLIENT_URLS"], value["ETCD_LISTEN_PEER_URLS"]
        identity = data / "member" / "wal" / "0.wal"
        if identity.exists():
            number = int(identity.read_text(encoding="ascii"))
        else:
            named = dict(pair.split("=", 1) for pair in value["ETCD_INITIAL_CLUSTER"].split(","))
            if value["ETCD_INITIAL_CLUSTER_STATE"] == "new":
                if set(named.values()) != {peer}:
                    return False
                self.members, self.running, self.leader = {}, {}, 0
                number = self._add(peer, learner=False)
            else:
                if set(named.values()) != {u for m in self.members.values() for u in m.peer_urls}:
                    return False  # "error validating peerURLs"
                found = next((m for m in self.members.values() if peer in m.peer_urls), None)
                if found is None:
                    return False
                # etcd lets it, and then two may lead.
                assert not found.name, f"{found.name} was started again without its data"
                number = found.id
            identity.parent.mkdir(parents=True)
            identity.write_text(str(number), encoding="ascii")
        if alone:
            # Members that are still there have been removed: they are told when they ask, and end.
            own = next(m for m in (*self.members.values(), *self.gone.values()) if m.id == number)
            self.gone |= {m.id: m for m in self.members.values() if m.id != number}
            self.members, self.running = {number: replace(own, learner=False)}, {}
        if number not in self.members:
            return False  # "the member has been permanently removed from the cluster"
        self.members[number] = replace(self.members[number], name=value["ETCD_NAME"], client_urls=(client,))
        self.running[client] = _Started(number)
        self.elect()
        return True

    def stop(self, client_url: str) -> None:
        """Stop a server, as by a kill."""
        self.running.pop(client_url, None)
        self.elect()

    def elect(self) -> None:
        """Who leads now: whoever did if it still can, nobody without a majority."""
        voters = [m.id for m in self.members.values() if not m.learner]
        alive = [m for m in voters if m in self._alive()]
        if len(alive) < majority(len(voters)):
            self.leader = 0
        elif self.leader not in alive:
            self.leader = alive[0]

    def remove(self, number: int) -> None:
        """Remove a member, and end its server, as that does by itself."""
        if (found := self.members.pop(number, None)) is not None:
            self.gone[number] = found
        self.running = {u: s for u, s in self.running.items() if s.member != number}
        self.elect()

    def _alive(self) -> set[int]:
        return {s.member for s in self.running.values()}

    def _add(self, peer: str, *, learner: bool) -> int:
        self._next += 1
        self.members[self._next] = Member(self._next, "", (peer,), (), learner)
        return self._next

    # What the adapter asks

    def working(self, endpoints: Sequence[str]) -> None:
        """Refuse if none of these is a voter with a majority behind it."""
        for endpoint in endpoints:
            server = self.running.get(endpoint)
            if server is not None and not self.members[server.member].learner and self.leader:
                return
        raise Refused(UNREACHABLE, "no member of the store answers with a majority behind it")

    def add_learner(self, peer: str) -> None:
        """MemberAdd with isLearner."""
        if any(m.learner for m in self.members.values()):
            raise Refused(NOT_YET, "etcd did not add a member: too many learner members in cluster")
        if any(peer in m.peer_urls for m in self.members.values()):
            raise Refused("etcd-refused", "etcd did not add a member: Peer URLs already exists")
        self._add(peer, learner=True)

    def promote(self, number: int) -> None:
        """MemberPromote: at the first try the learner has not copied everything yet."""
        server = next((s for s in self.running.values() if s.member == number), None)
        if number not in self.members or not self.members[number].learner:
            raise Refused(
                "etcd-refused", "etcd did not promote the member: can only promote a learner member"
            )
        if server is None or not server.copied:
            if server is not None:
                server.copied = True
            raise Refused(NOT_YET, "can only promote a learner member which is in sync with leader")
        self.members[number] = replace(self.members[number], learner=False)
        self.elect()


class MemoryMembers:
    """Keeps :class:`hactl.cluster.members.Members`."""

    def __init__(self, etcd: MemoryEtcd, endpoints: Sequence[str]) -> None:
        self._etcd = etcd
        self._endpoints = tuple(endpoints)

    async def list(self) -> tuple[Member, ...]:
        self._etcd.working(self._endpoints)
        return self._all()

    async def add_learner(self, peer_url: str) -> None:
        self._change("add", lambda: self._etcd.add_learner(peer_url))

    async def promote(self, member: int) -> None:
        self._change("promote", lambda: self._etcd.promote(member))

    async def remove(self, member: int) -> None:
        self._change("remove", lambda: self._etcd.remove(member))

    async def move_leader(self, leader: Member, to: int) -> None:
        self._etcd.calls.append("move_leader")
        if self._etcd.leader != leader.id or to not in self._etcd.members:
            raise Refused("etcd-refused", "etcd did not move the leadership: not leader")
        self._etcd.leader = to

    async def status(self, client_url: str) -> MemberStatus | None:
        server = self._etcd.running.get(client_url)
        if server is None:
            return None
        learner = self._etcd.members[server.member].learner
        committed = self._etcd.committed.get(server.member, 0)
        return MemberStatus(server.member, self._etcd.leader, VERSION, 4096, learner, committed=committed)

    async def local_list(self, client_url: str) -> tuple[Member, ...] | None:
        return self._all() if client_url in self._etcd.running else None

    async def close(self) -> None:
        pass

    def _all(self) -> tuple[Member, ...]:
        return tuple(sorted(self._etcd.members.values(), key=lambda m: (m.name, m.id)))

    def _change(self, what: str, change: Callable[[], None]) -> None:
        self._etcd.working(self._endpoints)
        self._etcd.calls.append(what)
        change()
        if self._etcd.lose_answers:
            self._etcd.lose_answers -= 1
            raise Unknown(UNKNOWN, f"{what}: no answer")


class MemoryLog:
    """Keeps :class:`hactl.cluster.etcd_log.EtcdLog`: what a test says, or one committed to its end."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        self._logs = etcd.logs

    def read(self, data: Path) -> LogState:
        if not (data / "member" / "wal" / "0.wal").exists():
            raise Failed("etcd-log", f"there is no log in {data}")
        return self._logs.get(str(data), LogState(LogEnd(2, 10), 10, 2, 1))

    def commit(self, data: Path) -> LogState:
        found = self.read(data)
        self._logs[str(data)] = replace(found, committed=found.end.index)
        return self._logs[str(data)]


class MemoryServices:
    """Keeps :class:`hactl.cluster.services.Services`: etcd's unit runs a server of :class:`MemoryEtcd`, those
    of Corosync and Pacemaker the node's in a :class:`MemoryCorosync`, the agent's calls ``agent_start`` and
    ``agent_stop``."""

    def __init__(
        self,
        layout: Layout,
        etcd: MemoryEtcd,
        agent_start: Callable[[], Awaitable[None]],
        agent_stop: Callable[[], Awaitable[None]],
        corosync: MemoryCorosync | None = None,
        node: str = "n1",
    ) -> None:
        self.layout = layout
        self.etcd = etcd
        self.corosync = MemoryCorosync() if corosync is None else corosync
        self.node = node
        self.units = {AGENT_UNIT, COROSYNC_UNIT, PACEMAKER_UNIT}
        self.enabled: set[str] = set()
        self.up: set[str] = set()
        self.fallen: set[str] = set()
        """Units that have failed."""
        self.alone = False
        """etcd runs apart from its unit."""
        self._agent = (agent_start, agent_stop)

    async def known(self, unit: str) -> bool:
        return unit in self.units

    async def active(self, unit: str) -> bool:
        return unit in self.up

    async def start(self, unit: str, *, wait: bool = True) -> None:  # noqa: ARG002 - as its protocol
        self.enabled.add(unit)
        if unit in self.up and unit != ETCD_UNIT:
            return
        if unit == PACEMAKER_UNIT:
            await self.start(COROSYNC_UNIT)
            self.corosync.start_pacemaker(self.node)
        elif unit == COROSYNC_UNIT:
            self.corosync.start(self.node, self.layout.corosync_file)
        self.fallen.discard(unit)
        self.up.add(unit)
        if unit == ETCD_UNIT:
            # One that gave up is tried again by systemd: here with the next start.
            self.etcd.start(self.layout.etcd_file)
        elif unit == AGENT_UNIT:
            self.up.add(CAPTURE_UNIT)
            await self._agent[0]()

    async def restart(self, unit: str) -> None:
        await self._down(unit)
        await self.start(unit)

    async def stop(self, unit: str, *, seconds: float = SECONDS) -> None:  # noqa: ARG002 - as its protocol
        self.enabled.discard(unit)
        await self._down(unit)

    async def _down(self, unit: str) -> None:
        if unit not in self.up:
            return
        self.up.discard(unit)
        if unit == ETCD_UNIT:
            value = variables(self.layout.etcd_file.read_text(encoding="utf-8"))
            self.etcd.stop(value["ETCD_LISTEN_CLIENT_URLS"])
        elif unit == PACEMAKER_UNIT:
            self.corosync.stop_pacemaker(self.node)
        elif unit == COROSYNC_UNIT:
            await self._down(PACEMAKER_UNIT)
            self.corosync.stop(self.node)
        else:
            await self._agent[1]()

    async def standing(self, *units: str) -> dict[str, Standing]:
        return {unit: self._standing(unit) for unit in units}

    def _standing(self, unit: str) -> Standing:
        if unit in self.up:
            return Standing.ACTIVE
        return Standing.FALLEN if unit in self.fallen & self.enabled else Standing.STOPPED

    async def revive(self, unit: str) -> None:
        enabled = set(self.enabled)
        await self.start(unit)
        self.enabled = enabled

    async def end_capture(self) -> str:
        self.up.discard(CAPTURE_UNIT)
        return ""

    async def start_alone(self) -> None:
        assert ETCD_UNIT not in self.up, "two servers on the same data"
        log = self.etcd.logs.get(str(self.layout.etcd_data))
        assert log is None or log.committed == log.end.index, "etcd throws away what is not committed"
        self.alone = self.etcd.start(self.layout.etcd_file, alone=True)

    async def stop_alone(self) -> None:
        if self.alone:
            value = variables(self.layout.etcd_file.read_text(encoding="utf-8"))
            self.etcd.stop(value["ETCD_LISTEN_CLIENT_URLS"])
            self.alone = False

    async def install(self) -> None:
        self.units.add(ETCD_UNIT)
