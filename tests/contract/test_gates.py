"""What holds for every implementation of Gates: in memory, on the fake device-mapper, and with HACTL_REAL=1
(as root) on the kernel's, with a loop device or the disk HACTL_SCRATCH below."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest

from hactl.errors import Failed
from hactl.replication.memory import MemoryDrbd
from hactl.replication.memory_cluster import MemoryDrbdCluster
from hactl.runner import SubprocessRunner
from hactl.target.device_mapper import Dmsetup
from hactl.target.dm_ioctl import DmIoctl, kernel
from hactl.target.gate import DmGates
from hactl.target.gates import Gates, Mode, gate_name
from hactl.target.memory_gates import MemoryGates, Write
from tests.unit.gate_fake_dm import Bio, FakeDm
from tests.unit.replication_spec import cluster, resource

NAME = gate_name("contract", 0)
SIZE = 4 << 20


class Rig(Protocol):
    """An implementation with a backing device, and a way to write through a gate."""

    @property
    def gates(self) -> Gates: ...

    @property
    def backing(self) -> str: ...

    async def write(self, value: str) -> Callable[[], Awaitable[str]]:
        """Begin to write one block; the result waits for its end and says ``done`` or ``failed``."""
        ...

    async def pending(self, write: Callable[[], Awaitable[str]]) -> bool: ...


class MemoryRig:
    def __init__(self) -> None:
        self.cluster = MemoryDrbdCluster(("n1", "n2"))
        self.drbd = MemoryDrbd(self.cluster, "n1")
        self.gates = MemoryGates(self.drbd)
        self.backing = "/dev/drbd16"
        self._writes: dict[Callable[[], Awaitable[str]], Write] = {}

    async def start(self) -> None:
        spec = resource()
        for node in ("n1", "n2"):
            drbd = MemoryDrbd(self.cluster, node)
            await drbd.write_config(cluster(spec), spec)
            await drbd.create_metadata(spec, 0)
            await drbd.up("r0")
        await self.drbd.skip_initial_sync("r0", (0,))
        await self.drbd.primary("r0")

    async def write(self, value: str) -> Callable[[], Awaitable[str]]:
        write = self.gates.write(NAME, 0, value)
        self._writes[write.ended] = write
        return write.ended

    async def pending(self, write: Callable[[], Awaitable[str]]) -> bool:
        return self._writes[write].state == "pending"


class FakeDmRig:
    def __init__(self, way: str) -> None:
        self.dm = FakeDm()
        self.backing = "/dev/drbd16"
        self.dm.add_leaf(self.backing, "147:16", SIZE * 2)
        self.gates = DmGates(self.dm.mapper(way), self.dm)
        self._bios: dict[Callable[[], Awaitable[str]], Bio] = {}

    async def write(self, value: str) -> Callable[[], Awaitable[str]]:
        bio = self.dm.write(NAME, value)

        async def ended() -> str:
            assert bio.state != "pending", "the fake ends what can end at once"
            return bio.state

        self._bios[ended] = bio
        return ended

    async def pending(self, write: Callable[[], Awaitable[str]]) -> bool:
        return self._bios[write].state == "pending"


class RealRig:
    """``dd`` with direct I/O through the kernel's device-mapper."""

    def __init__(self, backing: str, way: str) -> None:
        self.backing = backing
        programs = Dmsetup(SubprocessRunner())
        dm = programs if way == "dmsetup" else DmIoctl(programs, kernel())
        self.gates = DmGates(dm, drain=5.0)
        self._tasks: dict[Callable[[], Awaitable[str]], asyncio.Task[str]] = {}

    async def write(self, value: str) -> Callable[[], Awaitable[str]]:
        device = (await self.gates.observe())[NAME].device
        process = await asyncio.create_subprocess_exec(
            *("dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=1", "oflag=direct"),
            stderr=asyncio.subprocess.DEVNULL,
        )

        async def wait() -> str:
            return "done" if await process.wait() == 0 else "failed"

        task = asyncio.create_task(wait())

        async def ended() -> str:
            return await asyncio.wait_for(asyncio.shield(task), 20)

        self._tasks[ended] = task
        return ended

    async def pending(self, write: Callable[[], Awaitable[str]]) -> bool:
        done, _ = await asyncio.wait([self._tasks[write]], timeout=0.5)
        return not done


@pytest.fixture(
    params=[
        "memory",
        "fake-dmsetup",
        "fake-ioctl",
        *(pytest.param(name, marks=pytest.mark.real) for name in ("real-dmsetup", "real-ioctl")),
    ]
)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    kind, _, way = request.param.partition("-")
    if kind == "memory":
        memory = MemoryRig()
        await memory.start()
        await memory.gates.create(NAME, SIZE)
        yield memory
    elif kind == "fake":
        fake = FakeDmRig(way)
        await fake.gates.create(NAME, SIZE)
        yield fake
    else:
        runner = SubprocessRunner()
        scratch = os.environ.get("HACTL_SCRATCH")
        loop = ""
        if scratch is None:
            image = tmp_path / "backing"
            with image.open("wb") as file:
                file.truncate(SIZE * 2)
            loop = (await runner.run(["losetup", "--find", "--show", str(image)])).stdout.strip()
        real = RealRig(scratch or loop, way)
        await real.gates.create(NAME, SIZE)
        try:
            yield real
        finally:
            await real.gates.close(NAME)
            await real.gates.remove(NAME)
            if loop:
                await runner.run(["losetup", "--detach", loop])


async def mode(rig: Rig) -> Mode:
    return (await rig.gates.observe())[NAME].mode


async def put(rig: Rig, wanted: Mode) -> None:
    if wanted is Mode.OPEN:
        await rig.gates.open(NAME, rig.backing)
    elif wanted is Mode.HELD:
        await rig.gates.hold(NAME)
    else:
        await rig.gates.close(NAME)


MODES = (Mode.CLOSED, Mode.OPEN, Mode.HELD)


async def test_a_new_gate_is_closed_and_fails_io(rig: Rig) -> None:
    state = (await rig.gates.observe())[NAME]
    assert (state.mode, state.size, state.backing) == (Mode.CLOSED, SIZE, None)
    assert state.device.startswith("/dev/dm-")
    assert await (await rig.write("x"))() == "failed"


@pytest.mark.parametrize("before", MODES)
@pytest.mark.parametrize("after", MODES)
async def test_every_change_can_be_made_and_repeated(rig: Rig, before: Mode, after: Mode) -> None:
    for wanted in (before, after, after):
        await put(rig, wanted)
    assert await mode(rig) is after
    assert (await rig.gates.observe())[NAME].backing == (rig.backing if after is Mode.OPEN else None)


async def test_an_open_gate_lets_io_through(rig: Rig) -> None:
    await rig.gates.open(NAME, rig.backing)
    assert await (await rig.write("x"))() == "done"


async def test_what_is_held_completes_when_the_gate_opens(rig: Rig) -> None:
    await rig.gates.open(NAME, rig.backing)
    await rig.gates.hold(NAME)
    write = await rig.write("x")
    assert await rig.pending(write)
    await rig.gates.open(NAME, rig.backing)
    assert await write() == "done"
    assert await mode(rig) is Mode.OPEN


async def test_what_is_held_fails_when_the_gate_closes(rig: Rig) -> None:
    await rig.gates.hold(NAME)
    write = await rig.write("x")
    assert await rig.pending(write)
    await rig.gates.close(NAME)
    assert await write() == "failed"
    assert await mode(rig) is Mode.CLOSED


@pytest.mark.parametrize("wanted", [Mode.OPEN, Mode.CLOSED])
async def test_resize_keeps_the_mode(rig: Rig, wanted: Mode) -> None:
    await put(rig, wanted)
    await rig.gates.resize(NAME, SIZE // 2)
    state = (await rig.gates.observe())[NAME]
    assert (state.mode, state.size) == (wanted, SIZE // 2)
    await rig.gates.resize(NAME, SIZE)
    assert (await rig.gates.observe())[NAME].size == SIZE


async def test_a_held_gate_is_not_resized(rig: Rig) -> None:
    await rig.gates.hold(NAME)
    with pytest.raises(Failed) as caught:
        await rig.gates.resize(NAME, SIZE // 2)
    assert caught.value.code == "gate-held"


async def test_a_gate_is_not_opened_on_less_than_its_size(rig: Rig) -> None:
    await rig.gates.resize(NAME, 1 << 50)
    with pytest.raises(Failed) as caught:
        await rig.gates.open(NAME, rig.backing)
    assert caught.value.code == "gate-backing-too-small"
    assert await mode(rig) is Mode.CLOSED


async def test_create_returns_what_is_there(rig: Rig) -> None:
    await rig.gates.open(NAME, rig.backing)
    assert (await rig.gates.create(NAME, SIZE * 2)).mode is Mode.OPEN
    assert (await rig.gates.observe())[NAME].size == SIZE


async def test_a_size_that_is_not_whole_sectors(rig: Rig) -> None:
    with pytest.raises(Failed) as caught:
        await rig.gates.create("hactl.contract.1", 1000)
    assert caught.value.code == "gate-size"


async def test_remove_and_what_is_absent(rig: Rig) -> None:
    absent = gate_name("contract", 15)
    await rig.gates.remove(absent)
    for change in (rig.gates.hold, rig.gates.close):
        with pytest.raises(Failed) as caught:
            await change(absent)
        assert caught.value.code == "gate-missing"
    await rig.gates.remove(NAME)
    assert NAME not in await rig.gates.observe()
    await rig.gates.create(NAME, SIZE)
