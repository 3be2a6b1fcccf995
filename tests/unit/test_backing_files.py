"""Pools of files on a fake of losetup and real files: links, loop devices, an agent that dies in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hactl.backing import image_files
from hactl.backing.commands import Commands
from hactl.backing.files import FilePools
from hactl.backing.loops import Loop, behind, loops
from hactl.backing.pools import Pools
from hactl.backing.protocol import BackingDisk, DiskState
from hactl.errors import Failed, Refused, Unknown
from hactl.model.spec import FilesPool, PoolSpec
from tests.unit.backing_fakes import FakeLoop, FakePrograms, KilledError

MB = 1 << 20


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "pool"
        self.folder.mkdir(parents=True)
        self.pool = PoolSpec(name="trial", files=FilesPool(path=str(self.folder)))
        self.programs = FakePrograms(folder)
        self.slept = 0
        self.start()

    def start(self) -> None:
        files = FilePools(
            Commands(self.programs),
            links=self.programs.links,
            sys_block=self.programs.sys_block,
            claimed=self.programs.opened.__contains__,
            sleep=self._sleep,
        )
        self.backing = Pools(self.programs, files=files)

    async def _sleep(self, seconds: float) -> None:
        self.slept += 1

    def disk(self, size: int = 5 * MB) -> BackingDisk:
        return BackingDisk("r0", 0, self.pool, size)

    @property
    def image(self) -> Path:
        return self.folder / "hactl.r0.0.img"

    @property
    def link(self) -> Path:
        return self.programs.links / "hactl" / "r0.0"

    async def state(self) -> DiskState:
        return (await self.backing.observe([self.pool]))["trial"].disks["r0", 0]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


LISTED = """
{
   "loopdevices": [
      {"name": "/dev/loop10", "back-ino": 20847, "back-maj:min": "98:0", "autoclear": false,
       "offset": 0, "sizelimit": 0, "ro": false},
      {"name": "/dev/loop2", "back-ino": "20828", "back-maj:min": "  98:0", "autoclear": "1",
       "offset": 512, "sizelimit": 0, "ro": false}
   ]
}
"""


def test_loops_as_losetup_lists_them() -> None:
    assert loops("") == ()
    assert loops(LISTED) == (
        Loop("/dev/loop2", 20828, "98:0", whole=False, going=True),
        Loop("/dev/loop10", 20847, "98:0", whole=True, going=False),
    )
    assert behind(loops(LISTED), 20847, "98:0") == loops(LISTED)[1:]
    assert behind(loops(LISTED), 20847, "98:16") == ()


@pytest.mark.parametrize("text", ["x", "{}", "[]", '{"loopdevices": [{}]}', '{"loopdevices": [1]}'])
def test_lists_that_cannot_be_understood_raise(text: str) -> None:
    with pytest.raises(Failed):
        loops(text)


async def test_files_are_private_marked_and_linked(world: World) -> None:
    await world.backing.ensure(world.disk())
    assert world.image.stat().st_mode & 0o777 == 0o600
    assert os.getxattr(world.image, "user.hactl") == b"r0.0"
    assert str(world.link.readlink()) == "/dev/loop0"
    assert [p.name for p in world.folder.iterdir()] == ["hactl.r0.0.img"]


async def test_dying_in_between_leaves_what_is_completed_later(tmp_path: Path) -> None:
    for steps in range(10):
        world = World(tmp_path / str(steps))
        world.programs.die_after = steps
        died = False
        try:
            await world.backing.ensure(world.disk())
            await world.backing.ensure(world.disk(13 * MB))
        except KilledError:
            died = True
        world.programs.die_after = None
        world.start()
        await world.backing.ensure(world.disk(13 * MB))
        assert (await world.state()).satisfies(world.disk(13 * MB))
        assert len(world.programs.loops) == 1
        assert [p.name for p in world.folder.iterdir()] == ["hactl.r0.0.img"]
        if not died:
            return
    raise AssertionError("it never came to its end")


async def test_what_is_half_made_is_removed(world: World) -> None:
    world.programs.die_after = 0
    with pytest.raises(KilledError):
        await world.backing.ensure(world.disk())
    world.programs.die_after = None
    assert len(list(world.folder.iterdir())) == 1
    assert (await world.backing.observe([world.pool]))["trial"].disks == {}, "not under its name yet"
    await world.backing.remove(world.disk())
    assert list(world.folder.iterdir()) == []


async def test_after_a_reboot_the_link_leads_to_the_loop_device_of_today(world: World) -> None:
    await world.backing.ensure(world.disk())
    world.programs.reboot()
    other = world.folder / "somebody-elses"
    other.write_bytes(bytes(4096))
    world.programs.loops["/dev/loop0"] = FakeLoop(other, 4096)
    # A link of before that leads to another file now.
    image_files.point(world.link, "/dev/loop0")
    assert not (await world.state()).ready
    await world.backing.ensure(world.disk(), create=False)
    assert str(world.link.readlink()) == "/dev/loop1"
    assert (await world.state()).ready


async def test_a_loop_device_that_somebody_attached_is_used_if_it_shows_all(world: World) -> None:
    await world.backing.ensure(world.disk())
    world.programs.reboot()
    world.programs.loops["/dev/loop5"] = FakeLoop(world.image, world.image.stat().st_size, offset=512)
    with pytest.raises(Refused) as caught:
        await world.backing.ensure(world.disk())
    assert caught.value.code == "backing-in-use"
    world.programs.loops["/dev/loop5"].offset = 0
    await world.backing.ensure(world.disk())
    assert str(world.link.readlink()) == "/dev/loop5"
    world.programs.loops["/dev/loop3"] = FakeLoop(world.image, world.image.stat().st_size)
    await world.backing.ensure(world.disk())
    assert str(world.link.readlink()) == "/dev/loop5", "the one that may be in use already"


async def test_the_module_is_loaded_where_nothing_has_done_so_at_boot(world: World) -> None:
    world.programs.control.unlink()
    await world.backing.ensure(world.disk())
    assert (await world.state()).ready


async def test_a_loop_device_that_is_on_its_way_out_is_not_used(world: World) -> None:
    await world.backing.ensure(world.disk())
    world.programs.opened.add("/dev/loop0")
    world.programs.loops["/dev/loop0"].going = True
    assert not (await world.state()).ready
    with pytest.raises(Refused) as caught:
        await world.backing.ensure(world.disk())
    assert caught.value.code == "backing-in-use"
    world.programs.opened.clear()
    await world.backing.ensure(world.disk())
    assert (await world.state()).ready


async def test_a_file_is_removed_only_when_its_loop_device_has_let_go(world: World) -> None:
    await world.backing.ensure(world.disk())

    def opened_after_the_look(device: str) -> bool:
        # The kernel says yes to losetup, then, and detaches later.
        world.programs.opened.add(device)
        return False

    pools = FilePools(
        Commands(world.programs),
        links=world.programs.links,
        sys_block=world.programs.sys_block,
        claimed=opened_after_the_look,
        sleep=world._sleep,
    )
    with pytest.raises(Refused) as caught:
        await pools.remove(world.disk())
    assert caught.value.code == "backing-in-use"
    assert world.slept > 1
    assert world.image.exists()
    world.programs.opened.clear()
    await world.backing.remove(world.disk())
    assert not world.image.exists()
    assert not world.link.is_symlink()


async def test_a_loop_device_may_take_a_moment_to_let_go(world: World) -> None:
    await world.backing.ensure(world.disk())
    world.programs.lets_go_after = 5
    await world.backing.remove(world.disk())
    assert 0 < world.slept < 10
    assert world.programs.loops == {}


async def test_no_space(world: World) -> None:
    world.programs.room = MB
    with pytest.raises(Refused) as caught:
        await world.backing.ensure(world.disk())
    assert caught.value.code == "pool-full"
    assert list(world.folder.iterdir()) == []
    world.programs.room = None
    await world.backing.ensure(world.disk())
    world.programs.room = 6 * MB
    before = await world.state()
    with pytest.raises(Refused) as caught:
        await world.backing.ensure(world.disk(7 * MB))
    assert caught.value.code == "pool-full"
    assert await world.state() == before
    assert world.image.stat().st_size == 5 * MB


async def test_a_time_out_is_unknown_and_made_good(world: World) -> None:
    world.programs.hanging.add("fallocate")
    with pytest.raises(Unknown) as caught:
        await world.backing.ensure(world.disk())
    assert caught.value.code == "backing-timeout"
    world.programs.hanging.clear()
    await world.backing.ensure(world.disk())
    assert (await world.state()).satisfies(world.disk())


@pytest.mark.parametrize("kind", ["unmarked", "another's", "link", "folder"])
async def test_what_hactl_did_not_make(world: World, kind: str) -> None:
    target = world.folder / "data"
    target.write_bytes(b"data")
    os.setxattr(target, "user.hactl", b"r0.0")
    if kind == "link":
        world.image.symlink_to(target)
    elif kind == "folder":
        world.image.mkdir()
    else:
        world.image.write_bytes(b"data")
        if kind == "another's":
            os.setxattr(world.image, "user.hactl", b"r0.1")
    assert not (await world.state()).ours
    for work in (world.backing.ensure(world.disk()), world.backing.remove(world.disk())):
        with pytest.raises(Refused) as caught:
            await work
        assert caught.value.code == "backing-foreign"
    assert target.read_bytes() == b"data"


async def test_a_file_that_appears_meanwhile_is_not_replaced(world: World) -> None:
    def appear() -> None:
        world.image.write_text("somebody's")

    world.programs.before["fallocate"] = appear
    with pytest.raises(Failed, match="exists"):
        await world.backing.ensure(world.disk())
    assert world.image.read_text() == "somebody's"


async def test_a_file_system_without_extended_attributes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def setxattr(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "setxattr", setxattr)
    with pytest.raises(Refused) as caught:
        await world.backing.ensure(world.disk())
    assert caught.value.code == "pool-unfit"
    assert list(world.folder.iterdir()) == []


async def test_a_pool_that_cannot_be_read_does_not_hide_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    real = image_files.space

    def space(folder: Path) -> image_files.Space | None:
        if folder == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(folder)

    monkeypatch.setattr(image_files, "space", space)
    pool = PoolSpec(name="bad", files=FilesPool(path=str(bad)))
    assert set(await world.backing.observe([pool, world.pool])) == {"trial"}
    with pytest.raises(Failed) as caught:
        await world.backing.free(pool)
    assert caught.value.code == "backing-failed"
