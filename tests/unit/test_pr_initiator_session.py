"""A session under all that can happen to it.

What was not sent has failed; what was sent and not answered is unknown.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.errors import Failed, HactlError, Unknown
from hactl.pr_sync.initiator import scsi
from hactl.pr_sync.initiator.connect import log_in, open_session
from hactl.pr_sync.initiator.login import Parameters
from hactl.pr_sync.initiator.pdu import (
    DataIn,
    FromTarget,
    NopIn,
    ReadyToTransfer,
    Reject,
    ScsiResponse,
    encode,
)
from hactl.pr_sync.initiator.scsi import Patience, PrIn
from hactl.pr_sync.initiator.sense import SenseKey, Status
from hactl.pr_sync.initiator.session import Result, Session
from hactl.pr_sync.initiator.wire import Wire
from hactl.pr_sync.state import Action, Nexus
from tests.iscsi_target import FakeTarget, Fault, Group, Reply
from tests.iscsi_target_login import Behaviour
from tests.iscsi_unit import SmallUnit

TARGET = "iqn.2026-11.org.example:t"
HOST = "iqn.2026-11.org.example:h"
ISID = "00023d0000a1"
REGISTER = struct.pack(">QQ", 0, 0xA1) + bytes(8)
TUR = bytes(6)


class World:
    """A fake target with one unit, and a session on it whose pending unit attention is gone."""

    def __init__(self, fake: FakeTarget, unit: SmallUnit, session: Session) -> None:
        self.fake, self.unit, self.session = fake, unit, session

    def hold(self) -> tuple[asyncio.Event, asyncio.Event]:
        """Let the next commands wait: set when one is there, and to be set to let it go on."""
        arrived, release = asyncio.Event(), asyncio.Event()

        async def wait(nexus: Nexus, cdb: bytes) -> None:
            arrived.set()
            await release.wait()

        self.fake.fault = wait
        return arrived, release

    def fail(self, fault: Fault) -> None:
        async def once(nexus: Nexus, cdb: bytes) -> Fault:
            return fault

        self.fake.fault = once

    @property
    def outs(self) -> int:
        """How many PERSISTENT RESERVE OUT the unit has seen."""
        return sum(cdb[0] == 0x5F for _, cdb in self.fake.executed)


@asynccontextmanager
async def running(behaviour: Behaviour | None = None, *, clean: bool = True) -> AsyncIterator[World]:
    unit = SmallUnit()
    fake = FakeTarget(TARGET, {1: Group(1, 11, {0: unit})}, behaviour or Behaviour())
    async with fake.running(), open_session(fake.groups[1].portal, TARGET, HOST, ISID) as session:
        if clean:
            await session.command(TUR)
        yield World(fake, unit, session)
        assert fake.violations == []


async def _register(session: Session, timeout: float | None = None) -> Result:
    return await scsi.persistent_reserve_out(session, Action.REGISTER, REGISTER, timeout=timeout)


FAULTS = [
    (Fault.DROP_BEFORE, 0, ""),
    (Fault.DROP_AFTER, 1, ""),
    (Fault.SILENT, 1, "no answer within 0.1 s"),
    (Fault.REJECT, 0, "rejected a PDU, reason 0x04"),
    (Fault.GARBAGE, 1, "StatSN"),
]


@pytest.mark.parametrize(("fault", "carried_out", "reason"), FAULTS, ids=[f[0].name for f in FAULTS])
async def test_a_reserve_out_without_answer_is_unknown_and_sent_once(
    fault: Fault, carried_out: int, reason: str
) -> None:
    async with running() as world:
        world.fail(fault)
        with pytest.raises(Unknown) as unknown:
            await _register(world.session, timeout=0.1 if fault is Fault.SILENT else None)
        assert unknown.value.code == "iscsi-lost"
        assert reason in unknown.value.message
        assert HOST in unknown.value.message
        assert world.outs == len(world.unit.keys) == carried_out
        with pytest.raises(Failed) as failed:
            await _register(world.session)
        assert failed.value.code == "iscsi-lost"
        assert world.outs == carried_out


async def test_a_command_that_is_cancelled_ends_the_session() -> None:
    async with running() as world:
        arrived, release = world.hold()
        task = asyncio.create_task(_register(world.session))
        beside = asyncio.create_task(world.session.command(TUR))
        await asyncio.wait_for(arrived.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Unknown):
            await beside
        assert world.session.end is not None
        release.set()


async def test_a_command_that_waits_for_room_may_be_cancelled() -> None:
    async with running(Behaviour(window=0), clean=False) as world:
        await world.session.command(TUR)
        waiting = asyncio.create_task(world.session.command(TUR))
        finished, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not finished
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert world.session.end is None


async def test_the_command_window() -> None:
    async with running(Behaviour(window=0), clean=False) as world:
        assert (await world.session.command(TUR)).sense is not None
        with pytest.raises(Failed) as failed:
            await world.session.command(TUR, timeout=0.05)
        assert "no room" in failed.value.message
        assert world.session.end is None
        waiting = [asyncio.create_task(world.session.command(TUR)) for _ in range(3)]
        connection = next(iter(world.fake.connections))
        done = 0
        while done < 3:
            connection.open_window(1)
            finished, _ = await asyncio.wait(
                [w for w in waiting if not w.done()], timeout=5, return_when=asyncio.FIRST_COMPLETED
            )
            assert len(finished) == 1
            done += 1


async def test_pings_are_answered() -> None:
    async with running() as world:
        connection = next(iter(world.fake.connections))
        for _ in range(3):
            answer = await asyncio.wait_for(connection.ping(), 5)
            assert answer.immediate
        assert (await world.session.command(TUR)).status is Status.GOOD


@pytest.mark.parametrize(
    ("event", "outcome"), [(0, None), (250, None), (1, Failed), (2, Failed), (77, Failed)]
)
async def test_messages_of_the_target(event: int, outcome: type[HactlError] | None) -> None:
    async with running() as world:
        connection = next(iter(world.fake.connections))
        arrived, release = world.hold()
        task = asyncio.create_task(world.session.command(TUR))
        await asyncio.wait_for(arrived.wait(), 5)
        connection.message(event)
        release.set()
        if event in (2, 77):
            with pytest.raises(Unknown):
                await task
        else:
            # The answer comes after the message, so that has been seen.
            assert (await task).status is Status.GOOD
        if outcome is None:
            assert (await world.session.command(TUR)).status is Status.GOOD
        else:
            with pytest.raises(outcome):
                await world.session.command(TUR)


async def test_an_answer_that_went_missing_is_noticed() -> None:
    async with running(Behaviour(shift=1), clean=False) as world:
        with pytest.raises(Unknown) as unknown:
            await world.session.command(TUR)
        assert "StatSN" in unknown.value.message
        world.fake.violations.clear()


async def test_unit_attentions_are_gone_through() -> None:
    async with running(clean=False) as world:
        for _ in range(3):
            world.fake.attention(1, HOST, 0, 0x2A, 0x06)
        assert (await _register(world.session)).status is Status.GOOD
        assert world.outs == 1
        world.fake.attention(1, HOST, 0, 0x2A, 0x03)
        shown = await scsi.unit_ready(world.session, patience=scsi.ONCE)
        assert shown.sense is not None
        assert (shown.sense.key, shown.sense.asc, shown.sense.ascq) == (SenseKey.UNIT_ATTENTION, 0x2A, 3)
        for _ in range(20):
            world.fake.attention(1, HOST, 0, 0x2A, 0x06)
        assert (await _register(world.session)).status is Status.CHECK_CONDITION


@pytest.mark.parametrize("status", [Status.BUSY, Status.TASK_SET_FULL])
@pytest.mark.parametrize("times", [2, 3])
async def test_a_busy_target_is_asked_again(status: Status, times: int) -> None:
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    async with running() as world:
        left = times

        async def unit(nexus: Nexus, cdb: bytes, data: bytes) -> Reply:
            nonlocal left
            left -= 1
            return Reply(status) if left >= 0 else Reply()

        world.fake.groups[1].units[0] = unit
        result = await scsi.persistent_reserve_out(
            world.session, Action.REGISTER, REGISTER, patience=Patience(delays=(1, 2), pause=pause)
        )
        assert (result.status, waited) == (Status.GOOD if times == 2 else status, [1, 2])


@pytest.mark.parametrize("status", [Status.RESERVATION_CONFLICT, Status.TASK_ABORTED, Status.ACA_ACTIVE])
async def test_other_answers_are_final(status: Status) -> None:
    async with running() as world:

        async def unit(nexus: Nexus, cdb: bytes, data: bytes) -> Reply:
            return Reply(status)

        world.fake.groups[1].units[0] = unit
        assert (await _register(world.session)).status is status
        assert world.outs == 1
        with pytest.raises(scsi.ScsiFailed) as failed:
            await scsi.persistent_reserve_in(world.session, PrIn.READ_KEYS)
        assert failed.value.code == "scsi-failed"
        assert str(status) in failed.value.message
        assert failed.value.result.status is status


@pytest.mark.parametrize(("count", "asked"), [(30, [4032]), (256, [4032, 65472]), (1000, [4032, 65472])])
async def test_long_parameter_data_are_asked_for_whole(count: int, asked: list[int]) -> None:
    async with running() as world:
        world.unit.keys = {Nexus(HOST, f"{i:012x}", 11): i + 1 for i in range(count)}
        if count == 1000:
            with pytest.raises(Failed) as failed:
                await scsi.persistent_reserve_in(world.session, PrIn.READ_FULL_STATUS)
            assert failed.value.code == "scsi-bad-data"
        else:
            data = await scsi.persistent_reserve_in(world.session, PrIn.READ_FULL_STATUS)
            assert len(data) == 8 + int.from_bytes(data[4:8], "big")
        rooms = [struct.unpack(">H", cdb[7:9])[0] for _, cdb in world.fake.executed if cdb[0] == 0x5E]
        assert rooms == asked
        # Whatever does not fit, LIO writes a little behind the end; there is room for that in the page.
        assert all(4096 - room % 4096 >= 32 for room in rooms)


NONSENSE: list[tuple[bytes, Callable[[Session], Awaitable[object]]]] = [
    (b"", scsi.inquiry),
    (bytes(4) + b"\xff", scsi.inquiry),
    (b"\0\x83\0\4abcd", lambda s: scsi.inquiry(s, page=0x80)),
    (b"\0\x80\0\4abc", lambda s: scsi.inquiry(s, page=0x80)),
    (bytes(7), scsi.report_luns),
    (b"\0\0\0\x10" + bytes(12), scsi.report_luns),
    (b"\0\0\0\x08\x04\0\0\0\0\0\0\0", scsi.report_target_port_groups),
    (b"\0\0\0\x08\0\0\0\0\0\0\0\1", scsi.report_target_port_groups),
    (b"\0\0\0\x04\0\0\0\0", scsi.report_target_port_groups),
    (bytes(7), lambda s: scsi.persistent_reserve_in(s, PrIn.READ_KEYS)),
    (b"\0\0\0\0\0\0\0\1", lambda s: scsi.persistent_reserve_in(s, PrIn.READ_KEYS)),
    (b"\0\x09" + bytes(6), lambda s: scsi.persistent_reserve_in(s, PrIn.REPORT_CAPABILITIES)),
]


@pytest.mark.parametrize(("data", "read"), NONSENSE)
async def test_parameter_data_that_are_cut_or_wrong(
    data: bytes, read: Callable[[Session], Awaitable[object]]
) -> None:
    async with running() as world:

        async def unit(nexus: Nexus, cdb: bytes, out: bytes) -> Reply:
            return Reply(data=data)

        world.fake.groups[1].units[0] = unit
        with pytest.raises(Failed) as failed:
            await read(world.session)
        assert failed.value.code == "scsi-bad-data"


async def test_port_groups() -> None:
    async with running() as world:
        world.unit.groups = ((1, 0x80, 11), (2, 2, 12), (3, 15, 13))
        groups = await scsi.report_target_port_groups(world.session)
        assert [(g.id, int(g.state), g.preferred, g.ports) for g in groups] == [
            (1, 0, True, (11,)),
            (2, 2, False, (12,)),
            (3, 15, False, (13,)),
        ]


@pytest.mark.parametrize("lost", [False, True])
async def test_a_logout_ends_whatever_the_target_does(lost: bool) -> None:
    async with running() as world:
        session = await log_in(world.fake.groups[1].portal, TARGET, HOST, "00023d0000a2")
        nexus = Nexus(HOST, "00023d0000a2", 11)
        arrived, release = world.hold()
        if lost:
            # Its commands wait, so the target does not look at the logout behind them.
            task = asyncio.create_task(session.command(TUR))
            await asyncio.wait_for(arrived.wait(), 5)
            await session.logout(timeout=0.05)
            with pytest.raises(Unknown):
                await task
            release.set()
        else:
            await session.logout()
        with pytest.raises(Failed):
            await session.command(TUR)
        await world.fake.until(lambda: nexus not in world.fake.sessions)


async def test_a_block_that_raises_resets_its_session() -> None:
    async with running() as world:
        with pytest.raises(LookupError):
            async with open_session(world.fake.groups[1].portal, TARGET, HOST, "00023d0000a2") as session:
                raise LookupError
        assert session.end is not None
        await world.fake.until(lambda: len(world.fake.sessions) == 1)


@pytest.mark.parametrize(
    "arguments", [{"cdb": bytes(17)}, {"cdb": TUR, "data_in": 1, "data_out": b"x"}, {"cdb": TUR, "lun": -1}]
)
async def test_commands_that_are_none(arguments: dict[str, object]) -> None:
    async with running() as world:
        with pytest.raises(ValueError, match=r"CDB|direction|LUN"):
            await world.session.command(**arguments)  # type: ignore[arg-type]  # that is the point
        assert (await world.session.command(TUR)).status is Status.GOOD


@asynccontextmanager
async def fed(data: bytes) -> AsyncIterator[Session]:
    """A session whose target sends these bytes after the login and then closes."""
    ready = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ready.wait()
        writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    wire = Wire(*await asyncio.open_connection(*server.sockets[0].getsockname()[:2]))
    session = Session(wire, Parameters(), name="x", cmd_sn=1, stat_sn=5, timeout=2)
    try:
        asyncio.get_running_loop().call_soon(ready.set)
        yield session
    finally:
        await session.close()
        server.close()


WRONG: list[FromTarget] = [
    ScsiResponse(tag=9, stat_sn=5),
    ScsiResponse(tag=1, stat_sn=6),
    ScsiResponse(tag=1, stat_sn=5, response=1),
    ScsiResponse(tag=1, stat_sn=5, status=0x22),
    ScsiResponse(tag=1, stat_sn=5, status=2),
    DataIn(tag=1, data=bytes(9), has_status=True, stat_sn=5),
    DataIn(tag=1, data=b"x", offset=1, has_status=True, stat_sn=5),
    ReadyToTransfer(tag=1, offset=0, length=8),
    NopIn(tag=3, stat_sn=5),
    Reject(reason=9, stat_sn=5),
]


@pytest.mark.parametrize("pdu", WRONG, ids=str)
async def test_answers_that_are_none(pdu: FromTarget) -> None:
    async with fed(b"".join(encode(pdu))) as session:
        with pytest.raises(Unknown) as unknown:
            await session.command(TUR, data_in=8)
        assert "closed" not in unknown.value.message


@pytest.mark.parametrize("status_at", ["response", "data"])
async def test_where_status_may_stand(status_at: str) -> None:
    data = DataIn(tag=1, data=b"12", max_cmd_sn=9)
    pdus: list[FromTarget] = [data, ScsiResponse(tag=1, stat_sn=5, underflow=True, residual=6)]
    if status_at == "data":
        pdus = [replace(data, has_status=True, stat_sn=5, underflow=True, residual=6)]
    async with fed(b"".join(b"".join(encode(pdu)) for pdu in pdus)) as session:
        result = await session.command(TUR, data_in=8)
        assert (result.status, result.data, result.residual) == (Status.GOOD, b"12", 6)


@settings(max_examples=60, deadline=2000)
@given(st.binary(max_size=300))
def test_noise_after_the_login(noise: bytes) -> None:
    async def attempt() -> None:
        async with fed(noise) as session:
            with pytest.raises((Unknown, Failed)) as error:
                await session.command(TUR)
            assert error.value.code == "iscsi-lost"

    asyncio.run(attempt())
