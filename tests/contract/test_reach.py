"""What holds for every implementation of StorageProbes: in memory, and with HACTL_REAL=1 (as root) on the
kernel's network: the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from ipaddress import ip_address
from typing import Protocol

import pytest

from hactl.agents.memory_reach import MemoryProbes, MemoryStorageNetwork
from hactl.agents.reach_probes import KernelProbes, StorageProbes
from hactl.model.spec import ISCSI_PORT, IpAddress
from hactl.runner import SubprocessRunner
from tests.contract.conftest import REAL

PORTAL, OTHER = ip_address("127.77.1.1"), ip_address("127.77.1.2")
FAMILY6 = ip_address("::1")
NOBODY = ip_address("192.0.2.77")
"""Of the block for documentation: not there, and nothing is sent to it from loopback addresses."""
SECONDS = 2.0


class Rig(Protocol):
    """Probes of the node that has PORTAL; OTHER answers."""

    @property
    def probes(self) -> StorageProbes: ...

    def session(self) -> AbstractAsyncContextManager[None]:
        """OTHER has a connection to PORTAL, over which it has just sent something."""
        ...


class MemoryRig:
    def __init__(self) -> None:
        self.network = MemoryStorageNetwork({PORTAL: "n1", OTHER: "h1"})
        self.probes: MemoryProbes = self.network.probes("n1")

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self.network.sessions[PORTAL, OTHER] = 0.0
        yield
        del self.network.sessions[PORTAL, OTHER]


class RealRig:
    def __init__(self) -> None:
        self.probes = KernelProbes(SubprocessRunner())

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        got = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                await reader.readexactly(1)
                got.set()
                await reader.read()

        server = await asyncio.start_server(serve, str(PORTAL), ISCSI_PORT)
        async with server:
            _, writer = await asyncio.open_connection(str(PORTAL), ISCSI_PORT, local_addr=(str(OTHER), 0))
            with contextlib.closing(writer):
                writer.write(b"x")
                await got.wait()
                yield


@pytest.fixture(params=["memory", *(["real"] if REAL else [])])
def rig(request: pytest.FixtureRequest) -> Rig:
    """One implementation."""
    return MemoryRig() if request.param == "memory" else RealRig()


async def test_who_answers_an_echo_request(rig: Rig) -> None:
    assert await rig.probes.echo([PORTAL], [OTHER], SECONDS) == {PORTAL}
    assert await rig.probes.echo([PORTAL], [NOBODY, OTHER], SECONDS) == {PORTAL}
    # Not the node itself, nobody of another family, and nobody who is not there.
    assert await rig.probes.echo([PORTAL], [PORTAL, FAMILY6], SECONDS) == frozenset()
    assert await rig.probes.echo([PORTAL], [NOBODY], 0.2) == frozenset()
    assert await rig.probes.echo([PORTAL], [], SECONDS) == frozenset()


async def test_a_portal_that_the_node_lacks_gets_no_answer(rig: Rig) -> None:
    assert await rig.probes.echo([NOBODY, PORTAL], [OTHER], SECONDS) == {PORTAL}
    assert await rig.probes.connect([NOBODY, PORTAL], [OTHER], SECONDS) == {PORTAL}


async def test_a_refused_connection_is_an_answer(rig: Rig) -> None:
    assert await rig.probes.connect([PORTAL], [OTHER], SECONDS) == {PORTAL}
    assert await rig.probes.connect([PORTAL], [PORTAL, FAMILY6], SECONDS) == frozenset()
    assert await rig.probes.connect([PORTAL], [NOBODY], 0.2) == frozenset()


async def test_an_accepted_connection_is_an_answer_and_ends_at_once(rig: Rig) -> None:
    async with rig.session():
        assert await rig.probes.connect([OTHER], [PORTAL], SECONDS) == (
            {OTHER} if isinstance(rig, RealRig) else frozenset()
        )


async def test_an_address_that_is_nowhere(rig: Rig) -> None:
    found = await rig.probes.faults([PORTAL, NOBODY])
    assert found[NOBODY] == "is on no interface"


async def test_who_has_a_session_and_when_it_last_sent(rig: Rig) -> None:
    assert await rig.probes.hosts([PORTAL]) == {}
    async with rig.session():
        found = await rig.probes.hosts([PORTAL])
        assert list(found) == [OTHER]
        assert found[OTHER] < SECONDS
        assert await rig.probes.hosts([NOBODY]) == {}


@pytest.mark.real
async def test_an_address_of_an_interface_that_is_up_has_no_fault() -> None:
    local: IpAddress = ip_address("127.0.0.1")
    assert await KernelProbes(SubprocessRunner()).faults([local]) == {}


@pytest.mark.real
async def test_echo_over_ipv6() -> None:
    """To itself by another address of its own: none is at hand, so that the answer has to come to nobody."""
    probes = KernelProbes(SubprocessRunner())
    assert await probes.echo([FAMILY6], [ip_address("2001:db8::77")], 0.2) == frozenset()
