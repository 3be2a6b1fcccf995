"""LVM's pools on a fake of its programs: what they are asked for, and an agent that dies in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.backing.commands import Commands
from hactl.backing.lvm import LvmPools
from hactl.backing.lvm_report import (
    REJECTED,
    filter_setting,
    key_of,
    logical_volumes,
    lv_name,
    volume_groups,
)
from hactl.backing.pools import Pools
from hactl.backing.protocol import BackingDisk
from hactl.errors import Failed, Refused, Unknown
from hactl.model.spec import LvmPool, LvmThinPool, PoolSpec
from tests.unit.backing_fakes import EXTENT, FakeLv, FakePrograms, KilledError

MB = 1 << 20
THICK = PoolSpec(name="thick", lvm=LvmPool(vg="vg0"))
THIN = PoolSpec(name="thin", lvm_thin=LvmThinPool(vg="vg0", thin_pool="tp"))


class World:
    def __init__(self, folder: Path) -> None:
        self.programs = FakePrograms(folder)
        self.programs.groups["vg0"] = 100 * MB
        self.programs.lvs["vg0", "tp"] = FakeLv(40 * MB, layout="thin,pool")
        self.conf = folder / "lvm.conf"
        self.start()

    def start(self) -> None:
        self.backing = Pools(self.programs, lvm=LvmPools(Commands(self.programs), (self.conf,)))

    def asked(self, program: str) -> list[tuple[str, ...]]:
        return [argv for argv in self.programs.argvs if argv[0] == program]

    @property
    def lv(self) -> FakeLv:
        return self.programs.lvs["vg0", "hactl.r0.0"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def disk(pool: PoolSpec, size: int = 5 * MB) -> BackingDisk:
    return BackingDisk("r0", 0, pool, size)


REPORT = """
  {
      "report": [
          {
              "vg": [
                  {"vg_name":"vgt", "vg_size":"415236096", "vg_free":"301989888", "vg_extent_size":"4194304"}
              ]
          }
      ]
      ,
      "log": [
      ]
  }
"""
LVS = """
  {
      "report": [
          {
              "lv": [
 {"vg_name":"vgt", "lv_name":"hactl.r0.1", "lv_size":"8388608", "lv_tags":"hactl,mine", "lv_active":"active",
  "lv_device_open":"", "lv_layout":"thin,sparse", "pool_lv":"tp", "data_percent":"0.00"},
 {"vg_name":"vgt", "lv_name":"hactl.r0.3", "lv_size":"515899392", "lv_tags":"", "lv_active":"",
  "lv_device_open":"unknown", "lv_layout":"linear", "pool_lv":"", "data_percent":""},
 {"vg_name":"vgt", "lv_name":"tp", "lv_size":"104857600", "lv_tags":"", "lv_active":"active",
  "lv_device_open":"open", "lv_layout":"thin,pool", "pool_lv":"", "data_percent":"12.50"}
              ]
          }
      ]
      ,
      "log": [
      ]
  }
"""


def test_reports_as_lvm_2_03_31_writes_them() -> None:
    (group,) = volume_groups(REPORT).values()
    assert (group.name, group.size, group.free, group.extent) == ("vgt", 415236096, 301989888, 4194304)
    volumes = logical_volumes(LVS)
    thin, thick, pool = (volumes["vgt", n] for n in ("hactl.r0.1", "hactl.r0.3", "tp"))
    assert (thin.tags, thin.active, thin.open, thin.pool) == (frozenset({"hactl", "mine"}), True, False, "tp")
    assert (thick.tags, thick.active, thick.open, thick.pool) == (frozenset(), False, False, "")
    assert (pool.thin_pool, pool.open, pool.data) == (True, True, 0.125)
    assert not thin.thin_pool


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"report": [[]]}', '{"report": [{"lv": [{}]}]}'])
def test_reports_that_cannot_be_understood_raise(text: str) -> None:
    with pytest.raises(Failed):
        logical_volumes(text)


def test_names() -> None:
    assert key_of(lv_name("a-b", 15)) == ("a-b", 15)
    for name in ("hactl.r0", "hactl.r0.0.hold", "hactl.r0.x", "xhactl.r0.0", "hactl..0", "tp"):
        assert key_of(name) is None


@pytest.mark.parametrize(
    ("configured", "kept"),
    [
        ("", ()),
        ('global_filter=["a|.*|"]\n', ()),
        ('global_filter="a/.*/"\n', ()),
        ('global_filter=["r|^/dev/sdz$|","a|.*|"]\n', ("r|^/dev/sdz$|",)),
        ('global_filter=["a|^/dev/sd.*|","r|.*|"]\n', ("a|^/dev/sd.*|", "r|.*|")),
        ('global_filter=["r|\\\\.img$|"]\n', ("r|\\\\.img$|",)),
    ],
)
def test_the_filter_that_is_configured_is_kept_after_hactls_own(
    configured: str, kept: tuple[str, ...]
) -> None:
    quoted = ",".join(f'"{pattern}"' for pattern in (*REJECTED, *kept))
    assert filter_setting(configured) == f"devices/global_filter=[{quoted}]"


async def test_the_filter_is_read_again_when_the_configuration_changes(world: World) -> None:
    await world.backing.observe([THICK])
    await world.backing.observe([THICK])
    assert len(world.asked("lvmconfig")) == 1
    world.conf.write_text("changed")
    world.programs.lvmconfig = 'global_filter=["r|^/dev/sdz|"]\n'
    await world.backing.observe([THICK])
    assert len(world.asked("lvmconfig")) == 2
    assert all("sdz" in argv[2] for argv in world.asked("lvs")[-1:])


@pytest.mark.parametrize("pool", [THICK, THIN])
async def test_dying_in_between_leaves_what_is_completed_later(tmp_path: Path, pool: PoolSpec) -> None:
    """Die after each program of a creation and a growth; what is not ready is never taken for it."""
    for steps in range(10):
        world = World(tmp_path / str(steps))
        world.programs.die_after = steps
        died = False
        try:
            await world.backing.ensure(disk(pool))
            await world.backing.ensure(disk(pool, 13 * MB))
        except KilledError:
            died = True
        world.programs.die_after = None
        world.start()
        state = (await world.backing.observe([pool]))[pool.name].disks[("r0", 0)]
        assert state.ours
        if state.ready:
            assert not world.lv.signed
        await world.backing.ensure(disk(pool, 13 * MB), create=False)
        state = (await world.backing.observe([pool]))[pool.name].disks[("r0", 0)]
        assert state.satisfies(disk(pool, 13 * MB))
        assert not world.lv.signed
        assert world.lv.tags == {"hactl"}
        if not died:
            return
    raise AssertionError("it never came to its end")


async def test_what_is_half_made_can_be_removed(world: World) -> None:
    world.programs.die_after = 0
    with pytest.raises(KilledError):
        await world.backing.ensure(disk(THICK))
    world.programs.die_after = None
    await world.backing.remove(disk(THICK))
    assert set(world.programs.lvs) == {("vg0", "tp")}


async def test_only_the_end_of_what_was_added_is_blanked(world: World) -> None:
    await world.backing.ensure(disk(THICK))
    await world.backing.ensure(disk(THICK, 30 * MB))
    assert world.programs.blanked == [("/dev/vg0/hactl.r0.0", 31 * MB, MB)]
    world.programs.blanked.clear()
    await world.backing.ensure(BackingDisk("r1", 0, THIN, 5 * MB))
    await world.backing.ensure(BackingDisk("r1", 0, THIN, 50 * MB))
    assert world.programs.blanked == [], "what is new in a thin volume reads as zeros"


async def test_two_pools_of_a_volume_group_keep_their_disks_apart(world: World) -> None:
    await world.backing.ensure(disk(THICK))
    for work in (world.backing.ensure(disk(THIN)), world.backing.remove(disk(THIN))):
        with pytest.raises(Refused) as caught:
            await work
        assert caught.value.code == "backing-foreign"
    states = await world.backing.observe([THICK, THIN])
    assert states["thick"].disks["r0", 0].ours
    assert not states["thin"].disks["r0", 0].ours
    assert (states["thin"].size, states["thin"].free, states["thin"].thin) == (40 * MB, 30 * MB, True)


async def test_a_thin_pool_that_is_full_or_none(world: World) -> None:
    world.programs.lvs["vg0", "tp"].layout = "linear"
    assert set(await world.backing.observe([THICK, THIN])) == {"thick"}
    with pytest.raises(Refused) as caught:
        await world.backing.ensure(disk(THIN))
    assert caught.value.code == "pool-unfit"


async def test_space_that_others_take_meanwhile(world: World) -> None:
    def taken() -> None:
        world.programs.lvs["vg0", "other"] = FakeLv(world.programs.groups["vg0"] - 40 * MB)

    world.programs.before["lvcreate"] = taken
    with pytest.raises(Refused) as caught:
        await world.backing.ensure(disk(THICK))
    assert caught.value.code == "pool-full"


async def test_use_that_begins_meanwhile(world: World) -> None:
    await world.backing.ensure(disk(THICK))
    world.programs.before["lvremove"] = lambda: world.programs.opened.add("/dev/vg0/hactl.r0.0")
    with pytest.raises(Refused) as caught:
        await world.backing.remove(disk(THICK))
    assert caught.value.code == "backing-in-use"
    assert world.lv.size == 8 * MB


async def test_what_is_in_use_is_not_even_tried_to_remove(world: World) -> None:
    await world.backing.ensure(disk(THICK))
    world.programs.opened.add("/dev/vg0/hactl.r0.0")
    with pytest.raises(Refused):
        await world.backing.remove(disk(THICK))
    assert world.asked("lvremove") == []


async def test_sizes_are_whole_blocks(world: World) -> None:
    await world.backing.ensure(disk(THICK, EXTENT + 1))
    (argv,) = world.asked("lvcreate")
    assert argv[argv.index("--size") + 1] == f"{EXTENT + 4096}b"


async def test_programs_that_are_missing_hang_or_fail(world: World) -> None:
    world.programs.absent.add("vgs")
    with pytest.raises(Failed) as missing:
        await world.backing.free(THICK)
    assert missing.value.code == "program-missing"
    world.programs.absent.clear()
    world.programs.hanging.add("lvcreate")
    with pytest.raises(Unknown) as hanging:
        await world.backing.ensure(disk(THICK))
    assert hanging.value.code == "backing-timeout"
    world.programs.hanging.clear()
    world.programs.before["lvcreate"] = lambda: world.programs.lvs.update({("vg0", "hactl.r0.0"): FakeLv(MB)})
    with pytest.raises(Failed) as failed:
        await world.backing.ensure(disk(THICK))
    assert failed.value.code == "backing-failed"
    assert "already exists" in failed.value.message


async def test_nothing_is_started_for_kinds_of_pools_that_are_not_there(world: World) -> None:
    assert await world.backing.observe([]) == {}
    assert world.programs.argvs == []
    await world.backing.observe([THICK])
    assert {argv[0] for argv in world.programs.argvs} == {"lvmconfig", "vgs", "lvs"}
