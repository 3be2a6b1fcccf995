"""The sequences of DmGates, on a fake device-mapper: what happens to I/O, and recovery from every half-way
state."""

from __future__ import annotations

import pytest

from hactl.errors import Failed, Refused
from hactl.target.gate import DmGates
from hactl.target.gates import GateState, Mode
from tests.unit.gate_fake_dm import Bio, FakeDm, KilledError

NAME = "hactl.r0.0"
HOLD = f"{NAME}.hold"
SIZE = 1 << 20
DRBD = "/dev/drbd16"


class World:
    """One gate on a DRBD device of a little more than its size, and whoever has it open."""

    def __init__(self, way: str) -> None:
        self.dm = FakeDm()
        self.leaf = self.dm.add_leaf(DRBD, "147:16", SIZE + 8192)
        self.gates = DmGates(self.dm.mapper(way), self.dm)
        self.sent: list[Bio] = []

    async def create(self) -> None:
        await self.gates.create(NAME, SIZE)
        self.dm.mapped[NAME].opens += 1

    def write(self, value: str) -> Bio:
        bio = self.dm.write(NAME, value)
        self.sent.append(bio)
        return bio

    async def change(self, mode: Mode) -> None:
        if mode is Mode.OPEN:
            await self.gates.open(NAME, DRBD)
        elif mode is Mode.HELD:
            await self.gates.hold(NAME)
        else:
            await self.gates.close(NAME)

    async def state(self) -> GateState:
        return (await self.gates.observe())[NAME]


@pytest.fixture(params=["dmsetup", "ioctl"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def world(way: str) -> World:
    world = World(way)
    await world.create()
    return world


MODES = (Mode.CLOSED, Mode.OPEN, Mode.HELD)


async def test_a_new_gate_is_closed(world: World) -> None:
    assert await world.state() == GateState(NAME, Mode.CLOSED, SIZE, "/dev/dm-1", None)


async def test_create_returns_an_existing_gate_as_it_is(world: World) -> None:
    await world.change(Mode.OPEN)
    assert (await world.gates.create(NAME, SIZE * 2)).mode is Mode.OPEN
    assert world.leaf.opens == 1


@pytest.mark.parametrize("before", MODES)
@pytest.mark.parametrize("after", MODES)
async def test_from_every_mode_to_every_other(world: World, before: Mode, after: Mode) -> None:
    await world.change(before)
    held = world.write("held") if before is Mode.HELD else None
    await world.change(after)
    assert (await world.state()).mode is after
    assert (await world.state()).backing == (DRBD if after is Mode.OPEN else None)
    assert world.leaf.opens == (1 if after is Mode.OPEN else 0)
    bio = world.write("later")
    assert bio.state == {Mode.CLOSED: "failed", Mode.OPEN: "done", Mode.HELD: "pending"}[after]
    if held is not None:
        assert held.state == {Mode.CLOSED: "failed", Mode.OPEN: "done", Mode.HELD: "pending"}[after]


async def test_held_io_goes_to_the_backing_device_in_its_order(world: World) -> None:
    await world.change(Mode.OPEN)
    world.write("1")
    await world.change(Mode.HELD)
    world.write("2")
    world.write("3")
    await world.change(Mode.OPEN)
    world.write("4")
    assert world.leaf.log == ["1", "2", "3", "4"]


@pytest.mark.parametrize("backlog", [False, True])
@pytest.mark.parametrize("last", MODES)
@pytest.mark.parametrize("interrupted", MODES)
@pytest.mark.parametrize("before", MODES)
async def test_every_change_is_completed_from_every_half_way_state(
    way: str, before: Mode, interrupted: Mode, last: Mode, backlog: bool
) -> None:
    """Die after each command of a change, observe, and make another change; nothing hangs, gets lost or
    doubled."""
    for steps in range(10):
        world = World(way)
        await world.create()
        await world.change(before)
        if backlog:
            world.write("held")
        world.dm.die_after = steps
        died = False
        try:
            await world.change(interrupted)
        except KilledError:
            died = True
        world.dm.die_after = None
        between = world.write("between")
        found = (await world.state()).mode
        if world.leaf.opens and found is not Mode.OPEN:
            assert found is Mode.SUSPENDED, "a gate that keeps DRBD open is never reported as settled"
        await world.change(last)
        assert (await world.state()).mode is last
        assert world.leaf.opens == (1 if last is Mode.OPEN else 0)
        assert not world.dm.mapped[HOLD].in_flight
        if last is not Mode.HELD:
            assert all(bio.state != "pending" for bio in world.sent)
        done = [bio.value for bio in world.sent if bio.state == "done"]
        assert world.leaf.log == done, "what was answered is on the backing device, once and in order"
        if Mode.CLOSED not in (before, interrupted, last):
            assert all(bio.state != "failed" for bio in world.sent), "no I/O fails unless a gate is closed"
        if found is Mode.OPEN:
            assert between.state == "done"
        if not died:
            return
    pytest.fail("the change never ended")


async def test_closing_a_held_gate_after_an_interrupted_opening_writes_nothing(world: World) -> None:
    await world.change(Mode.HELD)
    bio = world.write("stale")
    world.dm.die_after = 1
    with pytest.raises(KilledError):
        await world.change(Mode.OPEN)
    world.dm.die_after = None
    assert world.leaf.opens == 1
    await world.change(Mode.CLOSED)
    assert bio.state == "failed"
    assert world.leaf.log == []
    assert world.leaf.opens == 0


async def test_io_flows_after_two_commands_when_a_held_gate_opens(world: World) -> None:
    await world.change(Mode.HELD)
    bio = world.write("waiting")
    world.dm.die_after = 2
    with pytest.raises(KilledError):
        await world.change(Mode.OPEN)
    assert bio.state == "done"


async def test_a_plain_change_takes_two_commands(world: World) -> None:
    world.dm.commands.clear()
    await world.change(Mode.OPEN)
    assert world.dm.commands == [("load", NAME), ("resume", NAME)]
    world.dm.commands.clear()
    await world.change(Mode.HELD)
    assert world.dm.commands == [("load", NAME), ("resume", NAME)]


async def test_programs_are_started_only_where_io_may_be_in_flight(way: str) -> None:
    world = World(way)
    await world.create()
    world.dm.programs.clear()
    for mode in (Mode.OPEN, Mode.HELD, Mode.CLOSED):
        await world.change(mode)
    if way == "ioctl":
        # The hold, which waits for I/O on DRBD.
        assert world.dm.programs == ["resume"]
    else:
        assert len(world.dm.programs) > len(world.dm.commands)


@pytest.mark.parametrize("change", [Mode.HELD, Mode.CLOSED])
async def test_io_that_does_not_end_leaves_the_gate_as_it_was(world: World, change: Mode) -> None:
    await world.change(Mode.OPEN)
    world.leaf.stalled = True
    bio = world.write("slow")
    with pytest.raises(Failed) as caught:
        await world.change(change)
    assert caught.value.code == "gate-io-in-flight"
    assert (await world.state()).mode is Mode.OPEN
    world.leaf.go_on()
    assert bio.state == "done"
    await world.change(change)
    assert (await world.state()).mode is change


async def test_a_secondary_cannot_be_opened_and_what_is_held_stays_held(world: World) -> None:
    await world.change(Mode.HELD)
    bio = world.write("waiting")
    world.leaf.writable = False
    with pytest.raises(Failed, match="Read-only file system"):
        await world.change(Mode.OPEN)
    assert (await world.state()).mode is Mode.HELD
    assert bio.state == "pending"


@pytest.mark.parametrize("size", [0, SIZE - 512])
async def test_a_backing_device_that_is_too_small_is_not_opened(world: World, size: int) -> None:
    world.leaf.size = size
    with pytest.raises(Failed) as caught:
        await world.change(Mode.OPEN)
    assert caught.value.code == "gate-backing-too-small"
    assert (await world.state()).mode is Mode.CLOSED


async def test_a_missing_backing_device_is_refused(world: World) -> None:
    with pytest.raises(Refused):
        await world.gates.open(NAME, "/dev/drbd99")


async def test_a_gate_that_does_not_exist(world: World) -> None:
    with pytest.raises(Failed) as caught:
        await world.gates.open("hactl.r9.0", DRBD)
    assert caught.value.code == "gate-missing"
    await world.gates.remove("hactl.r9.0")


async def test_a_foreign_table_is_seen_and_can_be_closed(world: World) -> None:
    await world.dm.run(["dmsetup", "load", "--table", "0 2048 zero", NAME])
    await world.dm.run(["dmsetup", "resume", NAME])
    assert (await world.state()).mode is Mode.FOREIGN
    await world.change(Mode.CLOSED)
    assert (await world.state()).mode is Mode.CLOSED


async def test_a_gate_suspended_by_hand_is_seen_and_repaired(world: World) -> None:
    await world.change(Mode.OPEN)
    await world.dm.run(["dmsetup", "suspend", NAME])
    bio = world.write("queued")
    assert (await world.state()).mode is Mode.SUSPENDED
    await world.change(Mode.HELD)
    assert bio.state == "pending"
    await world.change(Mode.OPEN)
    assert bio.state == "done"


async def test_others_devices_are_not_gates(world: World) -> None:
    await world.dm.run(["dmsetup", "create", "--uuid", "LVM-1", "--table", "0 8 error", "hactl.r1.0"])
    assert set(await world.gates.observe()) == {NAME}
    with pytest.raises(Failed) as caught:
        await world.gates.create("hactl.r1.0", SIZE)
    assert caught.value.code == "gate-name-taken"
    await world.gates.remove("hactl.r1.0")
    assert "hactl.r1.0" in world.dm.mapped


async def test_creation_is_completed_from_every_half_way_state(way: str) -> None:
    for steps in range(5):
        world = World(way)
        world.dm.die_after = steps
        try:
            await world.gates.create(NAME, SIZE)
            return
        except KilledError:
            world.dm.die_after = None
        assert await world.gates.observe() == {}
        assert (await world.gates.create(NAME, SIZE)).mode is Mode.CLOSED
    pytest.fail("the creation never ended")


async def test_a_device_without_a_table_is_completed(way: str) -> None:
    world = World(way)
    await world.gates.create(NAME, SIZE)
    for name in (NAME, HOLD):
        world.dm.mapped[name].live = None
        assert (await world.gates.create(NAME, SIZE)).mode is Mode.CLOSED


async def test_a_lost_hold_device_is_made_again(world: World) -> None:
    await world.change(Mode.OPEN)
    await world.dm.run(["dmsetup", "remove", HOLD])
    assert (await world.state()).mode is Mode.SUSPENDED
    await world.gates.create(NAME, SIZE)
    assert (await world.state()).mode is Mode.OPEN


@pytest.mark.parametrize("size", [SIZE // 2, SIZE + 4096])
@pytest.mark.parametrize("mode", [Mode.CLOSED, Mode.OPEN])
async def test_resize_keeps_the_mode_and_survives_interruption(mode: Mode, size: int, way: str) -> None:
    for steps in range(10):
        world = World(way)
        await world.create()
        await world.change(mode)
        world.dm.die_after = steps
        died = False
        try:
            await world.gates.resize(NAME, size)
        except KilledError:
            died = True
        world.dm.die_after = None
        await world.gates.resize(NAME, size)
        state = await world.state()
        assert (state.mode, state.size) == (mode, size)
        assert world.dm.mapped[HOLD].size == size
        if not died:
            return
    pytest.fail("the change never ended")


async def test_resize_beyond_the_backing_device_fails(world: World) -> None:
    await world.change(Mode.OPEN)
    with pytest.raises(Failed) as caught:
        await world.gates.resize(NAME, SIZE * 2)
    assert caught.value.code == "gate-backing-too-small"


async def test_a_held_gate_is_not_resized(world: World) -> None:
    await world.change(Mode.HELD)
    world.write("waiting")
    with pytest.raises(Failed) as caught:
        await world.gates.resize(NAME, SIZE * 2)
    assert caught.value.code == "gate-held"


async def test_remove(world: World) -> None:
    with pytest.raises(Failed) as caught:
        await world.gates.remove(NAME)
    assert caught.value.code == "gate-in-use"
    world.dm.mapped[NAME].opens = 0
    await world.gates.remove(NAME)
    assert world.dm.mapped == {}
    await world.gates.remove(NAME)
