"""One unit in the real kernel: the capture tells what waits, sessions read and replay."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace

import structlog

from hactl.errors import Failed, HactlError, Refused
from hactl.pr_sync.capture.protocol import Capture, Held
from hactl.pr_sync.commands import Command
from hactl.pr_sync.cut import cut_off, peers
from hactl.pr_sync.doors import Doors
from hactl.pr_sync.full_status import known_ports, state_from_full_status
from hactl.pr_sync.initiator import scsi
from hactl.pr_sync.initiator.chap import Credentials
from hactl.pr_sync.initiator.sense import Status
from hactl.pr_sync.initiator.session import Session
from hactl.pr_sync.kernel import CONFLICTS, OCCUPIED, Removal, Waiting
from hactl.pr_sync.parameters import encode_command
from hactl.pr_sync.state import Action, Nexus, State
from hactl.pr_sync.units import OWN_PORT, Unit
from hactl.runner import Runner
from hactl.target.configfs import ConfigFs
from hactl.target.observe import chap_of
from hactl.target.tree import CONTROL

CLEARED = "No Registrations or Reservations\n"
"""What LIO writes for CLEAR; when the last registration ends otherwise, the line has no end
(core_scsi3_update_and_write_aptpl, core_scsi3_update_aptpl_buf)."""

_DEPTH = 64
"""Commands that LIO lets an initiator queue (TA_DEFAULT_CMDSN_DEPTH); one more does no harm."""

_ENDED = 1.0
"""Seconds in which a command that was let go has certainly ended."""

_TORN = 5
"""Tries at an answer that mixes two states."""
_log = structlog.get_logger("hactl.pr")


@dataclass(frozen=True)
class Surroundings:
    """What units of a node share. ``portal``: of this node's own portal groups; ``rebuild`` makes a unit anew
    with a state; ``shut_port`` ends all sessions with a unit's target at this node's own port; ``peers``
    are the addresses that anybody is connected from; ``waiting`` are LIO's threads with a command that a
    unit knows to wait."""

    node: str
    portal: Callable[[], str]
    fs: ConfigFs
    runner: Runner
    doors: Doors
    capture: Capture
    now: Callable[[], float]
    rebuild: Callable[[Unit, State], Awaitable[None]]
    shut_port: Callable[[Unit], Awaitable[None]]
    peers: Callable[[], set[str]] = peers
    waiting: set[int] = field(default_factory=set)


class LioUnit:
    """Keeps :class:`hactl.pr_sync.kernel.UnitKernel`. ``changed`` is called when a command begins to wait.
    ``opened``: the own portal group takes logins, which is where the agent looks at the unit through."""

    def __init__(self, unit: Unit, around: Surroundings, changed: Callable[[], None]) -> None:
        self.unit = unit
        self.opened = False
        self._around = around
        self._changed = changed
        self._held: dict[str, tuple[Waiting, Held]] = {}
        self._own: set[int] = set()
        self._removal: Removal | None = None
        self._let_go_of: set[int] = set()
        """Threads whose commands were let go, and may not have ended yet."""
        self._control: Session | None = None
        self._looking = asyncio.Lock()
        # RFC 7143 11.12.5: T = 10b, random; one that no initiator has, and another in each life.
        self._isid = f"80{secrets.token_hex(5)}"
        self._tasks: set[asyncio.Task[None]] = set()

    # What waits

    def arrived(self, held: Held) -> None:
        """The capture holds a write of this unit."""
        if held.thread and held.thread in self._own:
            # A command of this agent's own: nobody but it waits for the answer.
            self._later(self._let_go([held.id]))
            return
        self._around.waiting.add(held.thread)
        if self._removal is not None:
            self._later(self._out_of_the_way(held, self._removal.initiators))
            return
        self._held[held.id] = (Waiting(held.id, self._around.now(), held.content == CLEARED), held)
        self._changed()

    async def _out_of_the_way(self, held: Held, initiators: frozenset[str]) -> None:
        """Let a command go whose registration LIO may be waiting for, so that its sender hears nothing of it.
        What it did is found by the next look."""
        self._held[held.id] = (Waiting(held.id, self._around.now()), held)
        try:
            async with self.cut([held.id], initiators):
                pass
        except HactlError as error:
            _log.error("a command stays in the way", unit=self.unit.name, error=str(error))
        self._changed()

    def waiting(self) -> tuple[Waiting, ...]:
        return tuple(waiting for waiting, _ in self._held.values())

    async def release(self, ids: Collection[str]) -> None:
        for one in ids:
            if one in self._held:
                _, held = self._held.pop(one)
                self._around.waiting.discard(held.thread)
                self._let_go_of.add(held.thread)
                await self._let_go([one])

    async def _let_go(self, ids: Collection[str]) -> None:
        for one in ids:
            await self._around.capture.release(one)

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Looking

    async def read(self, known: State) -> State:
        async with self._looking:
            for left in reversed(range(_TORN)):
                data = await self._full_status()
                try:
                    texts = [held.content for _, held in self._held.values()]
                    ports = known_ports(known, texts)
                    return state_from_full_status(data, self.unit.access, ports)
                except HactlError as error:
                    if error.code != "pr-answer-torn" or not left:
                        raise
        raise AssertionError("unreachable")

    async def _full_status(self) -> bytes:
        if not self.opened:
            other = self.unit.back(self._around.node)
            async with self._around.doors.opened(self.unit.target, other.tag):
                session, _ = await self._around.doors.log_in(self.unit.target, other.tag, CONTROL, self._isid)
                try:
                    return await self._status_through(session)
                finally:
                    await _end(session)
        if self._control is None or self._control.end is not None:
            if self._control is not None:
                await self._control.close()
            tag = self.unit.port(self._around.node).tag
            self._control, _ = await self._around.doors.log_in(
                self.unit.target, tag, CONTROL, self._isid, self._around.portal()
            )
        return await self._status_through(self._control)

    async def _status_through(self, session: Session) -> bytes:
        return await scsi.persistent_reserve_in(session, scsi.PrIn.READ_FULL_STATUS, lun=self.unit.lun)

    # Acting

    async def replay(self, command: Command, removal: Removal | None = None) -> None:
        if command.nexus.rtpi == OWN_PORT:
            back = self.unit.back(self._around.node)
            command = replace(command, nexus=replace(command.nexus, rtpi=back.rtpi))
            await self._send([command], self.unit.lun, removal)
            return
        await self._send([command], self.unit.mapped[command.nexus.initiator], removal)

    async def count_up(self, times: int) -> None:
        """As an initiator of its own, which no host sees: registers, and registers again, and is gone."""
        port = self.unit.back(self._around.node)
        nexus = Nexus(CONTROL, self._isid, port.rtpi)
        key = secrets.randbits(63) | 1
        again = Action.REGISTER_AND_IGNORE_EXISTING_KEY
        commands = [Command(nexus, again, 0, key) for _ in range(times)]
        await self._send([*commands, Command(nexus, Action.REGISTER, key, 0)], self.unit.lun)

    async def _send(self, commands: list[Command], lun: int, removal: Removal | None = None) -> None:
        nexus = commands[0].nexus
        port = self.unit.at(nexus.rtpi)
        tag, own = port.tag, port.node == self._around.node
        if own and not self.opened:
            raise Failed("pr-port-shut", f"the port of {self.unit.name} is shut", "the unit is rebuilt")
        async with contextlib.nullcontext() if own else self._around.doors.opened(self.unit.target, tag):
            session, thread = await self._login(tag, nexus, own=own)
            self._own.add(thread)
            try:
                if removal is not None:
                    await self._nothing_uses_what_goes(removal)
                self._removal = removal
                for command in commands:
                    cdb, data = encode_command(command)
                    result = await scsi.execute(session, cdb, lun=lun, data_out=data)
                    if result.status is not Status.GOOD:
                        raise Failed(
                            CONFLICTS,
                            f"{command.action.name.replace('_', ' ')} of {nexus.initiator} at port "
                            f"{nexus.rtpi} of {self.unit.name} is answered {result}",
                            "the unit is rebuilt from the log",
                        )
            finally:
                self._removal = None
                await _end(session)
                self._own.discard(thread)

    async def _nothing_uses_what_goes(self, removal: Removal) -> None:
        """:class:`Refused` ``pr-replay-occupied`` if commands wait that may use these registrations."""
        doors = self._around.doors
        # What was let go uses its registration until its thread has run again.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDED):
                while busy := {one for one in self._let_go_of if not doors.idle(one)}:
                    self._let_go_of = busy
                    await asyncio.sleep(0.002)
                self._let_go_of = set()
        # What waits may not have been told of yet.
        waiting = {one for one in doors.threads() if doors.held(one)} - self._around.waiting - self._own
        if waiting or self._let_go_of or not self._held.keys() <= removal.besides:
            await asyncio.sleep(0.01)
            raise Refused(OCCUPIED, f"commands wait at {self.unit.name}", "it is tried again after them")

    async def _login(self, tag: int, nexus: Nexus, *, own: bool) -> tuple[Session, int]:
        """A session of which it is known which kernel thread serves it: its own commands are told apart from
        initiators' by that. ``own``: at this node's own port, with what the initiator proves itself with
        there; if it has a session still, that ends (RFC 7143 6.3.5)."""
        doors, target = self._around.doors, self.unit.target
        for _ in range(20):
            if own:
                chap = await asyncio.to_thread(self._credentials, tag, nexus.initiator)
                portal = self._around.portal()
                session, thread = await doors.log_in_as(
                    target, tag, nexus.initiator, nexus.isid, portal, chap
                )
            else:
                session, thread = await doors.log_in(target, tag, nexus.initiator, nexus.isid)
            if thread:
                return session, thread
            await _end(session)
        raise Failed("pr-busy", "others log in all the time", "it is tried again")

    def _credentials(self, tag: int, initiator: str) -> Credentials | None:
        """What the kernel asks an initiator for at this node's own port; None: nothing."""
        fs, acl = self._around.fs, f"iscsi/{self.unit.target}/tpgt_{tag}/acls/{initiator}"
        if fs.read(f"{acl}/attrib/authentication") == "0":
            return None
        chap = chap_of(fs, acl)
        if chap is None:
            return None
        mutual = chap.mutual_password.get_secret_value() if chap.mutual_user else None
        return Credentials(chap.user, chap.password.get_secret_value(), chap.mutual_user or None, mutual)

    # When there is no other way

    @contextlib.asynccontextmanager
    async def cut(self, ids: Collection[str], initiators: frozenset[str] | None) -> AsyncIterator[None]:
        threads = {self._held[one][1].thread for one in ids if one in self._held}
        async with self._cut_off(initiators):
            await self.release(ids)
            # What LIO says now comes back as a reset; then the connection is gone, and its thread with it.
            if not await self._ended(threads, 0.2):
                # It does not come back where traffic control does the cutting.
                ending = asyncio.ensure_future(asyncio.to_thread(self._end_sessions, initiators))
                self._later(ending)
                await asyncio.wait({ending}, timeout=3)
                if not await self._ended(threads, 0.2):
                    _log.error("connections that were cut off do not end", unit=self.unit.name)
            yield

    async def _ended(self, threads: set[int], seconds: float) -> bool:
        """Whether these threads have ended, after that time at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while threads & self._around.doors.threads():  # noqa: ASYNC110 - nobody tells of it
                    await asyncio.sleep(0.01)
                return True
        return False

    def _end_sessions(self, initiators: frozenset[str] | None) -> None:
        """Have LIO end the sessions of these initiators (None: all) with the unit's target at this node's own
        port; back when their commands have ended. It does so when the depth of an ACL's queue changes
        (core_tpg_set_initiator_node_queue_depth). Not for sessions that may be ending by themselves: LIO does
        not hold on to a session between finding and ending it."""
        fs = self._around.fs
        acls = f"iscsi/{self.unit.target}/tpgt_{self.unit.port(self._around.node).tag}/acls"
        for initiator in fs.listdir(acls):
            if initiator == CONTROL or (initiators is not None and initiator not in initiators):
                continue
            depth = f"{acls}/{initiator}/cmdsn_depth"
            with contextlib.suppress(HactlError):
                # If it has lost its access meanwhile, its session has ended too.
                fs.write(depth, str(_DEPTH + 1 if int(fs.read(depth)) == _DEPTH else _DEPTH))

    @contextlib.asynccontextmanager
    async def _cut_off(self, initiators: frozenset[str] | None = None) -> AsyncIterator[None]:
        """Nothing reaches these initiators (None: all of this unit's) from this node meanwhile."""
        hosts = await asyncio.to_thread(self._hosts, initiators)
        _log.warning("initiators are cut off", unit=self.unit.name, hosts=sorted(hosts))
        async with cut_off(self._around.runner, hosts):
            yield

    def _hosts(self, initiators: frozenset[str] | None) -> set[str]:
        """Addresses from which these initiators (None: all) are logged in at this node's own port.

        LIO shows one session of each initiator and portal group, also if there are more. If the target has
        more than are shown, whoever is connected with this node's iSCSI port may be meant."""
        fs, target = self._around.fs, f"iscsi/{self.unit.target}"
        own = f"tpgt_{self.unit.port(self._around.node).tag}"
        found, shown = set[str](), 0
        for group in fs.listdir(target):
            acls = f"{target}/{group}/acls"
            for initiator in fs.listdir(acls) if group.startswith("tpgt_") and fs.exists(acls) else ():
                with contextlib.suppress(HactlError):
                    seen = addresses(fs.read(f"{acls}/{initiator}/info"))
                    shown += bool(seen)
                    if (
                        group == own
                        and initiator != CONTROL
                        and (initiators is None or initiator in initiators)
                    ):
                        found |= set(seen)
        count = f"{target}/fabric_statistics/iscsi_instance/sessions"
        if not fs.exists(count) or int(fs.read(count)) > shown:
            local = self._around.portal().rpartition(":")[0].strip("[]")
            found |= self._around.peers() - {local}
        return found

    async def rebuild(self, state: State) -> None:
        await self.shut()
        if self._held:
            async with self._cut_off():
                # Their answers go nowhere, and with the port their sockets are closed.
                closing = asyncio.ensure_future(self._around.shut_port(self.unit))
                while not closing.done():
                    # LIO waits for commands to end, those that have come only now too.
                    await self.release([*self._held])
                    await asyncio.wait({closing}, timeout=0.02)
                await closing
        await self._around.rebuild(self.unit, state)

    async def shut(self) -> None:
        """End the session that looks."""
        if self._control is not None:
            control, self._control = self._control, None
            await _end(control)


def addresses(info: str) -> tuple[str, ...]:
    """Where the connections of an ACL's session come from, as LIO's ``info`` shows them (lines such as
    ``Address 192.0.2.1 TCP  StatSN: 0x00000003``)."""
    return tuple(a.strip("[]") for a in re.findall(r"^\s*Address (\S+) ", info, re.MULTILINE))


async def _end(session: Session) -> None:
    with contextlib.suppress(HactlError):
        await session.logout()
    session.abort()
    await session.close()
