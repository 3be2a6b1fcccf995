"""What becomes of other devices, and of the next call, when a call to device-mapper hangs in the kernel."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator

import pytest

from hactl.errors import Unknown
from hactl.target import dm_ioctl as abi
from hactl.target.device_mapper import DmTimeoutError
from hactl.target.dm_ioctl import DmIoctl
from hactl.target.dmsetup import Device
from hactl.target.gate import DmGates
from tests.unit.gate_fake_dm import FakeDm

SIZE = 1 << 20


class Sticky:
    """The fake's ioctls, of which those for some devices hang until they are let go."""

    def __init__(self) -> None:
        self.dm = FakeDm()
        self.hanging: set[str] = set()
        self.go = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.made: list[str] = []

    def __call__(self, command: int, buffer: bytearray) -> None:
        name = bytes(abi.HEADER.unpack_from(buffer)[11]).rstrip(b"\0").decode()
        self.made.append(name)
        if name in self.hanging:
            self.waiting.release()
            self.go.wait()
        self.dm.ioctl(command, buffer)

    def asked(self, name: str) -> int:
        return self.made.count(name)


@pytest.fixture
def sticky() -> Iterator[Sticky]:
    sticky = Sticky()
    yield sticky
    sticky.go.set()


def ioctls(sticky: Sticky, seconds: float = 0.05) -> DmIoctl:
    return DmIoctl(sticky.dm.mapper("dmsetup"), sticky, seconds=seconds)


async def answered(dm: DmIoctl, name: str) -> dict[str, Device]:
    """What there is by that name, once the kernel has answered what it was asked before."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await dm.devices([name])
            except DmTimeoutError:
                await asyncio.sleep(0)


async def test_many_that_hang_leave_the_others_and_asyncios_own_threads_alone(sticky: Sticky) -> None:
    dm = ioctls(sticky)
    names = [f"hactl.r{n}.0" for n in range(100)]
    for name in (*names, "hactl.well.0"):
        await dm.create(name, f"HACTL-gate-{name}", f"0 {SIZE // 512} error")
    sticky.hanging.update(names)
    results = await asyncio.gather(*(dm.devices([n]) for n in names), return_exceptions=True)
    assert all(isinstance(r, DmTimeoutError) for r in results)
    assert set(await dm.devices(["hactl.well.0"])) == {"hactl.well.0"}
    assert await asyncio.to_thread(lambda: "answered") == "answered"


async def test_while_a_call_hangs_the_next_for_that_device_is_not_made(sticky: Sticky) -> None:
    dm = ioctls(sticky)
    await dm.create("a", "HACTL-gate-a", f"0 {SIZE // 512} error")
    sticky.hanging.add("a")
    with pytest.raises(DmTimeoutError, match="may still take effect"):
        await dm.suspend("a", 1, waits=False)
    made = sticky.asked("a")
    for _ in range(3):
        with pytest.raises(DmTimeoutError, match="not answered 'suspend a' yet"):
            await dm.load("a", f"0 {SIZE // 512} error")
    with pytest.raises(DmTimeoutError, match="not answered 'suspend a' yet"):
        await dm.devices(["b", "a"])
    assert sticky.asked("a") == made
    sticky.hanging.clear()
    sticky.go.set()
    found = await answered(dm, "a")
    assert found["a"].suspended, "what was late took effect after all"


async def test_two_at_the_same_time_take_turns(sticky: Sticky) -> None:
    dm = ioctls(sticky, seconds=60)
    await dm.create("a", "HACTL-gate-a", f"0 {SIZE // 512} error")
    sticky.hanging.add("a")
    first = asyncio.create_task(dm.suspend("a", 1, waits=False))
    await asyncio.to_thread(sticky.waiting.acquire)
    second = asyncio.create_task(dm.devices(["a"]))
    assert set(await dm.devices(["b"])) == set()
    assert sticky.asked("a") == 1
    sticky.hanging.clear()
    sticky.go.set()
    await first
    assert (await second)["a"].suspended


async def test_an_error_that_comes_too_late_is_nobodys(sticky: Sticky) -> None:
    dm = ioctls(sticky)
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    sticky.hanging.add("missing")
    with pytest.raises(DmTimeoutError):
        await dm.clear("missing")
    sticky.hanging.clear()
    sticky.go.set()
    assert await answered(dm, "missing") == {}
    gc.collect()
    assert complaints == []


async def test_a_gate_whose_change_hangs_is_unknown(sticky: Sticky) -> None:
    sticky.dm.add_leaf("/dev/drbd16", "147:16", SIZE)
    gates = DmGates(ioctls(sticky), sticky.dm)
    await gates.create("hactl.r0.0", SIZE)
    await gates.open("hactl.r0.0", "/dev/drbd16")
    sticky.hanging.add("hactl.r0.0")
    for _ in range(2):
        with pytest.raises(Unknown) as caught:
            await gates.hold("hactl.r0.0")
        assert caught.value.code == "gate-timeout"
