"""What hactl relies on in an iSCSI target, on the fake and, with HACTL_REAL=1, on LIO over loopback.

A target with two portal groups: the first takes an initiator without authentication, the second asks for
mutual CHAP.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hactl.errors import Failed, HactlError, Refused
from hactl.pr_sync.initiator import scsi
from hactl.pr_sync.initiator.chap import Credentials
from hactl.pr_sync.initiator.connect import log_in, open_session
from hactl.pr_sync.initiator.scsi import PrIn
from hactl.pr_sync.initiator.sense import SenseKey, Status
from hactl.pr_sync.initiator.session import Session
from hactl.pr_sync.state import Action, Nexus
from hactl.target.configfs import RealConfigFs
from hactl.target.tree import HBA_BASE
from tests.contract.conftest import IQN, wipe
from tests.iscsi_target import FakeTarget, Group
from tests.iscsi_unit import SmallUnit

TARGET = f"{IQN}initiator"
HOST = "iqn.1994-05.com.example.contract:h1"
OTHER = "iqn.1994-05.com.example.contract:h2"
STRANGER = "iqn.1994-05.com.example.contract:stranger"
ISID = "00023d0000a1"
CHAP = Credentials("user", "correct-horse-battery", "target", "staple-of-the-battery")
RTPI = {1: 4242, 2: 4243}
SERIAL = "contract-initiator"
CRC = ("CRC32C",)
PATIENCE = 20.0


@dataclass
class World:
    """The target: where its groups listen, and how to switch one off."""

    portals: dict[int, str]
    disable: Callable[[int], Awaitable[None]]

    @asynccontextmanager
    async def session(
        self,
        tag: int = 1,
        initiator: str = HOST,
        isid: str = ISID,
        *,
        chap: Credentials | None = None,
        digests: tuple[str, ...] = ("None", "CRC32C"),
        target: str = TARGET,
    ) -> AsyncIterator[Session]:
        """A session on one of the groups, with its credentials."""
        async with open_session(
            self.portals[tag],
            target,
            initiator,
            isid,
            chap=chap or (CHAP if tag == 2 else None),
            portal_group=tag,
            digests=digests,
            timeout=PATIENCE,
        ) as session:
            yield session


@asynccontextmanager
async def fake() -> AsyncIterator[World]:
    unit = SmallUnit(SERIAL, groups=((0, 0, RTPI[1]), (0, 0, RTPI[2])))
    target = FakeTarget(
        TARGET,
        {t: Group(t, RTPI[t], {0: unit}, initiators={HOST, OTHER}) for t in (1, 2)},
    )
    target.groups[2].secret = CHAP
    async with target.running():

        async def disable(tag: int) -> None:
            target.groups[tag].enabled = False
            for connection in list(target.connections):
                if connection.group.tag == tag:
                    connection.wire.abort()

        yield World({t: target.groups[t].portal for t in (1, 2)}, disable)
    assert target.violations == []


def _make(fs: RealConfigFs, folder: Path) -> dict[int, str]:
    hba, target = f"core/fileio_{HBA_BASE}", f"iscsi/{TARGET}"
    store = f"{hba}/hactl.contract.initiator"
    fs.mkdir(hba)
    fs.mkdir(store)
    fs.write(f"{store}/control", f"fd_dev_name={folder}/unit,fd_dev_size={1 << 20}")
    fs.write(f"{store}/enable", "1")
    fs.write(f"{store}/wwn/vpd_unit_serial", SERIAL)
    fs.mkdir(target)
    portals = {}
    for tag in (1, 2):
        tpg = f"{target}/tpgt_{tag}"
        portals[tag] = f"127.0.0.1:{3270 + tag}"
        fs.mkdir(tpg)
        fs.mkdir(f"{tpg}/np/{portals[tag]}")
        fs.mkdir(f"{tpg}/lun/lun_0")
        fs.symlink(store, f"{tpg}/lun/lun_0/link")
        fs.write(f"{tpg}/attrib/authentication", str(tag - 1))
        for host in (HOST, OTHER):
            acl = f"{tpg}/acls/{host}"
            fs.mkdir(acl)
            fs.mkdir(f"{acl}/lun_0")
            fs.symlink(f"{tpg}/lun/lun_0", f"{acl}/lun_0/link")
            if tag == 2:
                assert CHAP.mutual_user is not None
                assert CHAP.mutual_password is not None
                fs.write(f"{acl}/auth/userid", CHAP.user)
                fs.write(f"{acl}/auth/password", CHAP.password)
                fs.write(f"{acl}/auth/userid_mutual", CHAP.mutual_user)
                fs.write(f"{acl}/auth/password_mutual", CHAP.mutual_password)
        fs.write(f"{tpg}/rtpi", str(RTPI[tag]))
        fs.write(f"{tpg}/enable", "1")
    return portals


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[World]:
    fs = RealConfigFs(ledger=folder / "ledger")
    if not fs.exists("iscsi"):
        fs.mkdir("iscsi")
    wipe(fs)
    try:
        portals = _make(fs, folder)

        async def disable(tag: int) -> None:
            # In a thread: it waits for sessions to end, and this side of them is served by this loop.
            await asyncio.to_thread(fs.write, f"iscsi/{TARGET}/tpgt_{tag}/enable", "0")

        yield World(portals, disable)
    finally:
        await asyncio.to_thread(wipe, fs)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """See :class:`World`."""
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(real(tmp_path) if request.param == "real" else fake())


def _out(key: int, new: int = 0) -> bytes:
    return struct.pack(">QQ", key, new) + bytes(8)


async def _register(session: Session, key: int, new: int) -> Status:
    return (await scsi.persistent_reserve_out(session, Action.REGISTER, _out(key, new))).status


async def _holders(session: Session) -> dict[Nexus, int]:
    """The registrations as READ FULL STATUS shows them."""
    data = await scsi.persistent_reserve_in(session, PrIn.READ_FULL_STATUS)
    found = {}
    at = 8
    while at < len(data):
        key = int.from_bytes(data[at : at + 8], "big")
        rtpi = int.from_bytes(data[at + 18 : at + 20], "big")
        size = int.from_bytes(data[at + 20 : at + 24], "big")
        text = data[at + 28 : at + 24 + size].rstrip(b"\0").decode()
        name, _, isid = text.partition(",i,0x")
        found[Nexus(name, isid, rtpi)] = key
        at += 24 + size
    return found


@pytest.mark.parametrize("tag", [1, 2])
@pytest.mark.parametrize("digests", [("None", "CRC32C"), CRC])
async def test_what_a_session_reads(world: World, tag: int, digests: tuple[str, ...]) -> None:
    async with world.session(tag, digests=digests) as session:
        assert session.parameters.portal_group == tag
        assert session.parameters.header_digest is session.parameters.data_digest is (digests == CRC)
        assert (await scsi.unit_ready(session)).status is Status.GOOD
        assert (await scsi.inquiry(session))[8:16] == b"LIO-ORG "
        assert SERIAL.encode() in await scsi.inquiry(session, page=0x80)
        assert await scsi.report_luns(session) == (0,)
        groups = await scsi.report_target_port_groups(session)
        assert {port for group in groups for port in group.ports} >= set(RTPI.values())
        assert await scsi.persistent_reserve_in(session, PrIn.READ_RESERVATION) == bytes(8)
        assert len(await scsi.persistent_reserve_in(session, PrIn.REPORT_CAPABILITIES)) == 8


REFUSALS: list[tuple[str, str, str, Callable[[World], object]]] = [
    ("a stranger", "iscsi-refused", "not allowed", lambda w: w.session(initiator=STRANGER)),
    ("another target", "iscsi-refused", "not there", lambda w: w.session(target=f"{TARGET}-no")),
    (
        "a wrong password",
        "iscsi-refused",
        "authentication",
        lambda w: w.session(2, chap=replace(CHAP, password="x" * 14)),
    ),
    (
        "a wrong user",
        "iscsi-refused",
        "authentication",
        lambda w: w.session(2, chap=replace(CHAP, user="me")),
    ),
    (
        "a target that proves itself otherwise",
        "iscsi-target-unproven",
        "did not prove",
        lambda w: w.session(2, chap=replace(CHAP, mutual_password="y" * 14)),
    ),
    (
        "no authentication where it is asked for",
        "iscsi-refused",
        "authentication",
        lambda w: open_session(w.portals[2], TARGET, HOST, ISID, timeout=PATIENCE),
    ),
    (
        "another portal group than thought",
        "iscsi-wrong-portal-group",
        "portal group 1 instead of 2",
        lambda w: open_session(w.portals[1], TARGET, HOST, ISID, portal_group=2, timeout=PATIENCE),
    ),
]


@pytest.mark.parametrize(("code", "reason", "login"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
async def test_refusals(
    world: World, code: str, reason: str, login: Callable[[World], AsyncExitStack]
) -> None:
    with pytest.raises(Refused) as refused:
        async with login(world):
            pytest.fail("the login succeeded")
    assert refused.value.code == code
    assert reason in refused.value.message


async def test_one_way_chap_where_the_target_could_prove_itself(world: World) -> None:
    async with world.session(2, chap=Credentials(CHAP.user, CHAP.password)) as session:
        assert (await scsi.unit_ready(session)).status is Status.GOOD


async def test_a_disabled_portal_group(world: World) -> None:
    async with world.session(2) as other:
        session = await log_in(world.portals[1], TARGET, HOST, ISID, timeout=PATIENCE)
        assert (await scsi.unit_ready(session)).status is Status.GOOD
        await world.disable(1)
        with pytest.raises(HactlError) as lost:
            await scsi.unit_ready(session)
        assert lost.value.code == "iscsi-lost"
        await session.close()
        with pytest.raises(Refused) as refused:
            await log_in(world.portals[1], TARGET, HOST, ISID, timeout=PATIENCE)
        assert refused.value.code == "iscsi-refused"
        assert (await scsi.unit_ready(other)).status is Status.GOOD


async def test_the_session_is_the_nexus(world: World) -> None:
    async with world.session() as one, world.session(2, OTHER, "80123456789a") as two:
        assert await _register(one, 0, 0xA1) is Status.GOOD
        assert await _register(two, 0, 0xB2) is Status.GOOD
        assert await _holders(one) == {
            Nexus(HOST, ISID, 4242): 0xA1,
            Nexus(OTHER, "80123456789a", 4243): 0xB2,
        }
        assert await _holders(two) == await _holders(one)
    # Another session of the same name and ISID is the same nexus, another ISID is not.
    async with world.session() as again:
        assert await _register(again, 0xA1, 0xA3) is Status.GOOD
    async with world.session(isid="00023d0000a2") as another:
        assert await _register(another, 0xA3, 0xA4) is Status.RESERVATION_CONFLICT
        assert (await _holders(another))[Nexus(HOST, ISID, 4242)] == 0xA3


async def test_answers_of_persistent_reserve_out(world: World) -> None:
    async with world.session(digests=CRC) as one, world.session(2, OTHER) as two:
        assert await _register(one, 1, 2) is Status.RESERVATION_CONFLICT
        assert await _register(one, 0, 1) is Status.GOOD
        assert await _register(two, 0, 2) is Status.GOOD
        reserve = await scsi.persistent_reserve_out(one, Action.RESERVE, _out(1), type=1)
        assert reserve.status is Status.GOOD
        refused = await scsi.persistent_reserve_out(two, Action.RESERVE, _out(2), type=1)
        assert refused.status is Status.RESERVATION_CONFLICT
        held = await scsi.persistent_reserve_in(two, PrIn.READ_RESERVATION)
        assert (held[8:16], held[21]) == ((1).to_bytes(8, "big"), 1)
        bad = await scsi.persistent_reserve_out(one, Action.REGISTER, bytes(23))
        assert bad.sense is not None
        assert bad.sense.key is SenseKey.ILLEGAL_REQUEST
        assert await _register(one, 1, 0) is Status.GOOD


async def test_a_lun_that_is_not_there(world: World) -> None:
    async with world.session() as session:
        with pytest.raises(scsi.ScsiFailed) as failed:
            await scsi.persistent_reserve_in(session, PrIn.READ_KEYS, lun=9)
        assert str(failed.value.result.sense) == "ILLEGAL REQUEST 25/00"


@pytest.mark.parametrize("digests", [("None",), CRC])
async def test_data_beyond_the_first_burst(world: World, digests: tuple[str, ...]) -> None:
    data = os.urandom(100 << 10)
    blocks = struct.pack(">IBH", 7, 0, len(data) // 512) + bytes(1)
    async with world.session(digests=digests) as session:
        assert len(data) > session.parameters.first_burst
        written = await scsi.execute(session, b"\x2a\0" + blocks, data_out=data)
        assert (written.status, written.residual) == (Status.GOOD, 0)
        read = await scsi.execute(session, b"\x28\0" + blocks, data_in=len(data))
        assert read.data == data


async def test_less_data_than_asked_for(world: World) -> None:
    async with world.session() as session:
        keys = bytes([0x5E, 0, 0, 0, 0, 0, 0, 0x10, 0, 0])
        result = await scsi.execute(session, keys, data_in=0x1000)
        assert (result.status, result.data, result.residual) == (
            Status.GOOD,
            result.data[:4] + bytes(4),
            0xFF8,
        )


async def test_more_commands_than_the_window_has_room_for(world: World) -> None:
    async with world.session() as session:
        await scsi.unit_ready(session)
        results = await asyncio.gather(*(scsi.unit_ready(session) for _ in range(200)))
        assert {result.status for result in results} == {Status.GOOD}


async def test_a_login_ends_the_session_of_the_same_name_and_isid(world: World) -> None:
    older = await log_in(world.portals[1], TARGET, HOST, ISID, timeout=PATIENCE)
    beside = await log_in(world.portals[1], TARGET, HOST, "00023d0000a2", timeout=PATIENCE)
    elsewhere = await log_in(world.portals[2], TARGET, HOST, ISID, chap=CHAP, timeout=PATIENCE)
    async with world.session() as session:
        assert (await scsi.unit_ready(session)).status is Status.GOOD
        with pytest.raises(HactlError) as lost:
            await scsi.unit_ready(older)
        assert lost.value.code == "iscsi-lost"
        for other in (beside, elsewhere):
            assert (await scsi.unit_ready(other)).status is Status.GOOD
            await other.logout()
    await older.close()


async def test_a_login_without_authentication_ends_that_session_too(world: World) -> None:
    older = await log_in(world.portals[2], TARGET, HOST, ISID, chap=CHAP, timeout=PATIENCE)
    assert (await scsi.unit_ready(older)).status is Status.GOOD
    # One that fails in CHAP does not.
    with pytest.raises(Refused):
        await log_in(world.portals[2], TARGET, HOST, ISID, chap=replace(CHAP, user="me"), timeout=PATIENCE)
    assert (await scsi.unit_ready(older)).status is Status.GOOD
    with pytest.raises(Refused):
        await log_in(world.portals[2], TARGET, HOST, ISID, timeout=PATIENCE)
    with pytest.raises(HactlError) as lost:
        await scsi.unit_ready(older)
    assert lost.value.code == "iscsi-lost"
    await older.close()


async def test_a_reset_session_leaves_room_for_the_next(world: World) -> None:
    for _ in range(5):
        session = await log_in(world.portals[1], TARGET, HOST, ISID, timeout=PATIENCE)
        session.abort()
        with pytest.raises(Failed) as failed:
            await session.command(bytes(6))
        assert failed.value.code == "iscsi-lost"
        await session.close()
    async with world.session() as session:
        assert (await scsi.unit_ready(session)).status is Status.GOOD
