"""A small stateful iSCSI target in this process, to stand in for LIO.

One target with portal groups, each on a loopback port of its own, as hactl lays them out. It keeps sessions
(and ends the older one of the same name, ISID and group), unit attentions by ACL and LUN as LIO does, and
executes the commands of a connection one after the other: a unit that waits holds up its own connection only.
What an initiator does wrong is kept in ``violations``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from hactl.pr_sync.initiator.chap import Credentials
from hactl.pr_sync.initiator.pdu import (
    NO_TAG,
    AsyncMessage,
    DataIn,
    DataOut,
    FromInitiator,
    FromTarget,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Pdu,
    PduError,
    ReadyToTransfer,
    Reject,
    ScsiCommand,
    ScsiResponse,
)
from hactl.pr_sync.initiator.sense import Status, decode_lun
from hactl.pr_sync.initiator.wire import Wire
from hactl.pr_sync.state import Nexus
from tests.iscsi_target_login import Behaviour, Login, LoginRefused, response_pdus

_WRAP = 1 << 32


def fixed_sense(key: int, asc: int, ascq: int) -> bytes:
    """Sense data as LIO writes them: fixed format."""
    return bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0])


@dataclass(frozen=True)
class Reply:
    """What a unit answers; ``sense`` goes with CHECK CONDITION."""

    status: int = Status.GOOD
    data: bytes = b""
    sense: bytes = b""


NO_LUN = Reply(Status.CHECK_CONDITION, sense=fixed_sense(5, 0x25, 0))

Unit = Callable[[Nexus, bytes, bytes], Awaitable[Reply]]
"""A logical unit: nexus, CDB (16 bytes) and data-out to reply. It may wait, and keeps its own state."""


class Fault(Enum):
    """What goes wrong with one command."""

    DROP_BEFORE = auto()
    """The connection is reset, the unit never sees the command."""
    DROP_AFTER = auto()
    """The unit carries it out, then the connection is reset."""
    SILENT = auto()
    """The unit carries it out, and nothing is answered."""
    REJECT = auto()
    """A Reject PDU instead of carrying it out."""
    GARBAGE = auto()
    """The unit carries it out, and noise is sent instead of the answer."""


@dataclass
class Group:
    """A portal group. ``initiators`` None: any. ``secret`` None: no authentication."""

    tag: int
    rtpi: int
    units: dict[int, Unit] = field(default_factory=dict)
    enabled: bool = True
    initiators: set[str] | None = None
    secret: Credentials | None = None
    portal: str = ""


@dataclass
class FakeTarget:
    """See the module. ``fault`` is asked before each command of a unit, and may wait."""

    name: str
    groups: Mapping[int, Group]
    behaviour: Behaviour = field(default_factory=Behaviour)
    fault: Callable[[Nexus, bytes], Awaitable[Fault | None]] | None = None
    sessions: dict[Nexus, Connection] = field(default_factory=dict)
    attentions: dict[tuple[int, str, int], deque[bytes]] = field(default_factory=dict)
    executed: list[tuple[Nexus, bytes]] = field(default_factory=list)
    logins: list[int] = field(default_factory=list)
    """Requests that each finished login took."""
    violations: list[str] = field(default_factory=list)
    connections: set[Connection] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a connection has ended."""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that the end of a connection brings about."""
        while not condition():
            self.ended.clear()
            await asyncio.wait_for(self.ended.wait(), 5)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeTarget]:
        """Listen, one port for each group, until the block ends."""
        servers = []
        tasks: set[asyncio.Task[None]] = set()
        for group in self.groups.values():

            async def serve(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, group: Group = group
            ) -> None:
                task = asyncio.current_task()
                assert task is not None
                tasks.add(task)
                with contextlib.suppress(asyncio.CancelledError):
                    await Connection(self, group, Wire(reader, writer)).run()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            group.portal = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            servers.append(server)
        try:
            yield self
        finally:
            for server in servers:
                server.close()
            for connection in list(self.connections):
                connection.wire.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def attention(self, tag: int, initiator: str, lun: int, asc: int, ascq: int) -> None:
        """Leave a unit attention for an initiator's LUN."""
        queue = self.attentions.setdefault((tag, initiator, lun), deque())
        queue.append(fixed_sense(6, asc, ascq))


class Connection:
    """One connection to the target."""

    def __init__(self, target: FakeTarget, group: Group, wire: Wire) -> None:
        self.target, self.group, self.wire = target, group, wire
        self.nexus: Nexus | None = None
        self.stat_sn = int.from_bytes(os.urandom(4), "big")
        self.exp_cmd_sn = 0
        self.max_cmd_sn = 0
        self.max_receive = 8192
        self.first_burst = 0
        self.pongs: dict[int, asyncio.Future[NopOut]] = {}
        self._later: deque[Pdu] = deque()
        self._closing = False

    async def run(self) -> None:
        """Serve until either side ends the connection."""
        self.target.connections.add(self)
        try:
            if await self._login():
                while not self._closing:
                    await self._take(self._later.popleft() if self._later else await self.wire.read())
        except (EOFError, OSError):
            pass
        except PduError as error:
            self.target.violations.append(str(error))
        finally:
            self.target.connections.discard(self)
            if self.nexus is not None and self.target.sessions.get(self.nexus) is self:
                del self.target.sessions[self.nexus]
            self.target.ended.set()
            with contextlib.suppress(asyncio.CancelledError):
                await self.wire.close()

    async def ping(self) -> NopOut:
        """Send a NOP-In and return what the initiator answers."""
        tag = 0x100 + len(self.pongs)
        self.pongs[tag] = asyncio.get_running_loop().create_future()
        self._send(NopIn(target_tag=tag, stat_sn=self.stat_sn), counts=False)
        return await self.pongs[tag]

    def open_window(self, commands: int) -> None:
        """Tell the initiator of room for more commands."""
        self.max_cmd_sn = (self.exp_cmd_sn + commands - 1) % _WRAP
        self._send(NopIn(stat_sn=self.stat_sn), counts=False)

    def message(self, event: int) -> None:
        """Send an asynchronous message."""
        self._send(AsyncMessage(event=event))

    def _send(self, pdu: FromTarget, *, counts: bool = True) -> None:
        stat_sn = pdu.stat_sn
        if counts:
            stat_sn = self.stat_sn
            self.stat_sn = (self.stat_sn + 1) % _WRAP
        self.wire.write(replace(pdu, stat_sn=stat_sn, exp_cmd_sn=self.exp_cmd_sn, max_cmd_sn=self.max_cmd_sn))

    async def _login(self) -> bool:
        login = Login(self.target.behaviour, self.group.tag, self.group.secret)
        while True:
            request = await self.wire.read()
            if not isinstance(request, LoginRequest):
                self.target.violations.append(f"{type(request).__name__} before login")
                return False
            fresh = login.stage is None
            try:
                keys, response = login.step(request)
                name = self._admit(login)
            except LoginRefused as refused:
                if fresh and login.stage == 1 and refused.status == 0x0201:
                    # LIO looks for an older session before it sees that nobody was authenticated.
                    nexus = Nexus(self._admit(login), request.isid.hex(), self.group.rtpi)
                    self._end_older(nexus)
                # LIO fills in nothing else, not even the ISID.
                self.wire.write(
                    LoginResponse(
                        tag=request.tag,
                        status_class=refused.status >> 8,
                        status_detail=refused.status & 0xFF,
                    )
                )
                await self.wire.drain()
                return False
            self.exp_cmd_sn = self.max_cmd_sn = request.cmd_sn
            done = response.transit and response.next_stage == 3
            if done:
                self._reinstate(Nexus(name, request.isid.hex(), self.group.rtpi))
                response = replace(response, tsih=1 + len(self.target.logins))
                self.target.logins.append(login.rounds)
            pdus = response_pdus(response, keys, self.target.behaviour.split)
            for pdu in pdus:
                self._send(pdu)
                if pdu is not pdus[-1]:
                    more = await self.wire.read()
                    if not isinstance(more, LoginRequest) or more.data or more.transit:
                        raise PduError("the rest of an answer was not asked for")
            if done:
                self._start(login)
                return True

    def _admit(self, login: Login) -> str:
        if login.keys.get("SessionType") != "Normal" or not {"InitiatorName", "TargetName"} <= set(
            login.keys
        ):
            raise LoginRefused(0x0207)
        if login.keys["TargetName"] != self.target.name or not self.group.enabled:
            raise LoginRefused(0x0301)
        name = login.keys["InitiatorName"]
        if self.group.initiators is not None and name not in self.group.initiators:
            raise LoginRefused(0x0202)
        return name

    def _end_older(self, nexus: Nexus) -> None:
        older = self.target.sessions.pop(nexus, None)
        if older is not None:
            older.wire.abort()

    def _reinstate(self, nexus: Nexus) -> None:
        self._end_older(nexus)
        self.nexus = nexus
        self.target.sessions[nexus] = self
        for lun in self.group.units:
            key = (self.group.tag, nexus.initiator, lun)
            if key not in self.target.attentions:
                self.target.attention(*key, 0x29, 0)

    def _start(self, login: Login) -> None:
        agreed = login.agreed
        self.wire.header_digest = agreed["HeaderDigest"] == "CRC32C"
        self.wire.data_digest = agreed["DataDigest"] == "CRC32C"
        self.wire.max_receive = self.target.behaviour.max_receive
        self.max_receive = int(login.keys["MaxRecvDataSegmentLength"])
        self.first_burst = int(agreed["FirstBurstLength"]) if agreed["ImmediateData"] == "Yes" else 0
        self.stat_sn = (self.stat_sn + self.target.behaviour.shift) % _WRAP

    async def _take(self, pdu: Pdu) -> None:
        assert isinstance(pdu, FromInitiator)
        if (self.stat_sn - pdu.exp_stat_sn) % _WRAP > 256:
            self.target.violations.append(f"ExpStatSN {pdu.exp_stat_sn} at StatSN {self.stat_sn}")
        match pdu:
            case ScsiCommand():
                await self._command(pdu)
            case NopOut() if pdu.target_tag in self.pongs and pdu.immediate and pdu.tag == NO_TAG:
                self.pongs[pdu.target_tag].set_result(pdu)
            case LogoutRequest() if pdu.immediate and pdu.reason == 0:
                self._send(LogoutResponse(tag=pdu.tag))
                self._closing = True
            case _:
                self.target.violations.append(f"{pdu} was not expected")

    async def _command(self, pdu: ScsiCommand) -> None:
        target = self.target
        assert self.nexus is not None
        if pdu.cmd_sn != self.exp_cmd_sn or (self.max_cmd_sn - pdu.cmd_sn) % _WRAP >= _WRAP // 2:
            target.violations.append(f"CmdSN {pdu.cmd_sn} in {self.exp_cmd_sn} to {self.max_cmd_sn}")
        if len(pdu.data) > self.first_burst:
            target.violations.append(f"{len(pdu.data)} bytes of immediate data")
        self.exp_cmd_sn = (self.exp_cmd_sn + 1) % _WRAP
        self.max_cmd_sn = (self.exp_cmd_sn + target.behaviour.window - 1) % _WRAP
        fault = await target.fault(self.nexus, pdu.cdb) if target.fault else None
        if fault is Fault.DROP_BEFORE:
            self.wire.abort()
            return
        if fault is Fault.REJECT:
            self._send(Reject(reason=0x04, data=bytes(48)))
            return
        data_out = await self._collect(pdu) if pdu.write else b""
        reply = await self._execute(pdu, data_out)
        if fault is Fault.DROP_AFTER:
            self.wire.abort()
        elif fault is Fault.GARBAGE:
            self.wire.write(AsyncMessage(event=0, stat_sn=NO_TAG))
        elif fault is None:
            self._answer(pdu, reply)

    async def _collect(self, pdu: ScsiCommand) -> bytes:
        """The command's data: what came with it, and the rest by R2T."""
        data = pdu.data
        number = 0
        while len(data) < pdu.length:
            want = min(self.target.behaviour.max_burst, pdu.length - len(data))
            r2t = ReadyToTransfer(
                tag=pdu.tag,
                lun=pdu.lun,
                target_tag=pdu.tag,
                r2t_sn=number,
                offset=len(data),
                length=want,
                stat_sn=self.stat_sn,
            )
            self._send(r2t, counts=False)
            end, data_sn, number = len(data) + want, 0, number + 1
            while len(data) < end:
                part = await self.wire.read()
                if not isinstance(part, DataOut):
                    self._later.append(part)
                    continue
                data += part.data
                expected = (pdu.tag, r2t.target_tag, data_sn, len(data) - len(part.data), len(data) == end)
                if (part.tag, part.target_tag, part.data_sn, part.offset, part.final) != expected:
                    self.target.violations.append(f"{replace(part, data=b'')} instead of {expected}")
                data_sn += 1
        return data

    async def _execute(self, pdu: ScsiCommand, data_out: bytes) -> Reply:
        assert self.nexus is not None
        lun = decode_lun(pdu.lun)
        pending = self.target.attentions.get((self.group.tag, self.nexus.initiator, lun))
        # INQUIRY, REPORT LUNS and REQUEST SENSE are carried out all the same (SAM-5 5.14.7).
        if pending and pdu.cdb[0] not in (0x12, 0xA0, 0x03):
            return Reply(Status.CHECK_CONDITION, sense=pending.popleft())
        unit = self.group.units.get(lun)
        if unit is None:
            return NO_LUN
        self.target.executed.append((self.nexus, pdu.cdb))
        return await unit(self.nexus, pdu.cdb, data_out)

    def _answer(self, pdu: ScsiCommand, reply: Reply) -> None:
        data = reply.data[: pdu.length] if pdu.read else b""
        missing = pdu.length - len(data) if pdu.read else 0
        collapse = self.target.behaviour.collapse and reply.status == Status.GOOD and bool(data)
        for number, offset in enumerate(range(0, len(data), self.max_receive)):
            part = data[offset : offset + self.max_receive]
            last = collapse and offset + len(part) == len(data)
            self._send(
                DataIn(
                    data=part,
                    tag=pdu.tag,
                    final=offset + len(part) == len(data),
                    has_status=last,
                    data_sn=number,
                    offset=offset,
                    underflow=last and missing > 0,
                    residual=missing if last else 0,
                ),
                counts=last,
            )
        if not collapse:
            sense = len(reply.sense).to_bytes(2, "big") + reply.sense if reply.sense else b""
            self._send(
                ScsiResponse(
                    data=sense, tag=pdu.tag, status=reply.status, underflow=missing > 0, residual=missing
                )
            )
