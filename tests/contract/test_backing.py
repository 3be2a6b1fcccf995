"""What holds for every implementation of Backing, for each kind of pool: in memory, on fakes of the programs,
and with HACTL_REAL=1 (as root, on a machine with device-mapper and loop devices) on the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from hactl.backing.commands import Commands
from hactl.backing.files import FilePools
from hactl.backing.image_files import file_name
from hactl.backing.lvm import LvmPools
from hactl.backing.memory import MemoryBacking
from hactl.backing.pools import Pools
from hactl.backing.protocol import Backing, BackingDisk, DiskState, PoolState
from hactl.errors import Failed, Refused
from hactl.model.spec import FilesPool, LvmPool, LvmThinPool, PoolSpec
from hactl.runner import SubprocessRunner
from tests.unit.backing_fakes import FakeLv, FakePrograms

VG = "hactl-contract"
MB = 1 << 20


class Rig(Protocol):
    """A node with one pool of about 100 MB."""

    @property
    def backing(self) -> Backing: ...

    @property
    def pool(self) -> PoolSpec: ...

    async def reboot(self) -> None: ...

    async def put_foreign(self, disk: BackingDisk) -> None:
        """Make something of the disk's name as somebody else would."""
        ...

    def opened(self, disk: BackingDisk) -> contextlib.AbstractContextManager[None]:
        """Have the disk open, as DRBD has."""
        ...


class MemoryRig:
    def __init__(self, pool: PoolSpec) -> None:
        self.pool = pool
        self.backing = MemoryBacking({pool.name: 100 * MB})

    async def reboot(self) -> None:
        self.backing.reboot()

    async def put_foreign(self, disk: BackingDisk) -> None:
        self.backing.put_foreign(replace(disk, size=4 * MB))

    @contextlib.contextmanager
    def opened(self, disk: BackingDisk) -> Iterator[None]:
        self.backing.opened.add(disk.device)
        yield
        self.backing.opened.clear()


class FakeRig:
    def __init__(self, pool: PoolSpec, folder: Path) -> None:
        self.pool = pool
        self.programs = programs = FakePrograms(folder)
        if pool.files is None:
            programs.groups[VG] = 100 * MB
        if pool.lvm_thin is not None:
            programs.lvs[VG, pool.lvm_thin.thin_pool] = FakeLv(40 * MB, layout="thin,pool")
        commands = Commands(programs)
        self.backing = Pools(
            programs,
            lvm=LvmPools(commands),
            files=FilePools(
                commands,
                links=programs.links,
                sys_block=programs.sys_block,
                claimed=programs.opened.__contains__,
            ),
        )

    async def reboot(self) -> None:
        self.programs.reboot()

    async def put_foreign(self, disk: BackingDisk) -> None:
        if disk.pool.files is not None:
            (Path(disk.pool.files.path) / file_name(disk.key)).write_bytes(bytes(4096))
        else:
            self.programs.lvs[VG, f"hactl.{disk.resource}.{disk.volume}"] = FakeLv(4 * MB)

    @contextlib.contextmanager
    def opened(self, disk: BackingDisk) -> Iterator[None]:
        device = disk.device
        if disk.pool.files is not None:
            device = str((self.programs.links / Path(device).relative_to("/dev")).readlink())
        self.programs.opened.add(device)
        yield
        self.programs.opened.clear()


class RealRig:
    def __init__(self, pool: PoolSpec) -> None:
        self.pool = pool
        self.runner = SubprocessRunner()
        self.backing = Pools(self.runner)

    async def reboot(self) -> None:
        for loop in _unlinked():
            await self.runner.run(["losetup", "--detach", loop])
        if self.pool.files is None:
            await self.runner.run(["vgchange", "--activate", "n", VG])

    async def put_foreign(self, disk: BackingDisk) -> None:
        name = f"hactl.{disk.resource}.{disk.volume}"
        if disk.pool.files is not None:
            (Path(disk.pool.files.path) / f"{name}.img").write_bytes(bytes(4096))
        elif disk.pool.lvm_thin is not None:
            pool = f"{VG}/{disk.pool.lvm_thin.thin_pool}"
            await self.runner.run(["lvcreate", "--virtualsize", "4m", "--name", name, "--thinpool", pool])
        else:
            await self.runner.run(["lvcreate", "--size", "4m", "--name", name, VG])

    @contextlib.contextmanager
    def opened(self, disk: BackingDisk) -> Iterator[None]:
        file = os.open(disk.device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        try:
            yield
        finally:
            os.close(file)


def _unlinked() -> list[str]:
    """Remove all links to loop devices; returns where they led."""
    loops = []
    for link in Path("/dev/hactl").glob("*"):
        loops.append(str(link.readlink()))
        link.unlink()
    return loops


def pool_of(kind: str, folder: Path) -> PoolSpec:
    match kind:
        case "lvm":
            return PoolSpec(name="p", lvm=LvmPool(vg=VG))
        case "thin":
            return PoolSpec(name="p", lvm_thin=LvmThinPool(vg=VG, thin_pool="tp"))
        case _:
            path = folder / "pool"
            path.mkdir()
            return PoolSpec(name="p", files=FilesPool(path=str(path)))


def run(*argv: str, check: bool = True) -> str:
    return subprocess.run(argv, check=check, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


@pytest.fixture(scope="module")
def volume_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A volume group of 100 MB on a loop device, with a thin pool. Made once: LVM takes its time."""
    image = tmp_path_factory.mktemp("pv") / "image"
    image.touch()
    os.truncate(image, 104 * MB)
    loop = run("losetup", "--find", "--show", str(image)).strip()
    try:
        run("vgcreate", VG, loop)
        run("lvcreate", "--yes", "--type", "thin-pool", "--size", "40m", "--name", "tp", VG)
        yield
    finally:
        run("vgremove", "--force", "--yes", VG, check=False)
        run("losetup", "--detach", loop)


@pytest.fixture(params=["lvm", "thin", "files"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def real(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> AsyncIterator[RealRig]:
    if kind != "files":
        request.getfixturevalue("volume_group")
    rig = RealRig(pool_of(kind, tmp_path))
    try:
        yield rig
    finally:
        for loop in _unlinked():
            run("losetup", "--detach", loop)
        if kind != "files":
            run("lvremove", "--yes", "--select", "lv_name=~^hactl", VG)


@pytest.fixture(params=["memory", "fake", pytest.param("real", marks=pytest.mark.real)])
def rig(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Rig:
    if request.param == "real":
        found: RealRig = request.getfixturevalue("real")
        return found
    pool = pool_of(kind, tmp_path)
    return MemoryRig(pool) if request.param == "memory" else FakeRig(pool, tmp_path)


def disk_of(rig: Rig, size: int = 5 * MB, volume: int = 0) -> BackingDisk:
    return BackingDisk("contract", volume, rig.pool, size)


async def pool_state(rig: Rig) -> PoolState:
    return (await rig.backing.observe([rig.pool]))[rig.pool.name]


async def state_of(rig: Rig, disk: BackingDisk) -> DiskState | None:
    return (await pool_state(rig)).disks.get(disk.key)


async def refused(work: object) -> str:
    with pytest.raises(Refused) as caught:
        await work  # type: ignore[misc]  # a coroutine
    return caught.value.code


async def test_an_empty_pool(rig: Rig) -> None:
    state = await pool_state(rig)
    assert state.disks == {}
    assert 0 < state.free <= state.size
    assert state.free == await rig.backing.free(rig.pool)
    assert state.extent % 512 == 0
    assert state.thin is (rig.pool.lvm_thin is not None)


@pytest.mark.parametrize(
    "pool",
    [
        PoolSpec(name="q", lvm=LvmPool(vg="no-such-vg")),
        PoolSpec(name="q", lvm_thin=LvmThinPool(vg="no-such-vg", thin_pool="tp")),
        PoolSpec(name="q", lvm_thin=LvmThinPool(vg=VG, thin_pool="no-such-pool")),
        PoolSpec(name="q", files=FilesPool(path="/no/such/folder")),
    ],
)
async def test_a_pool_that_is_not_there(rig: Rig, pool: PoolSpec) -> None:
    assert set(await rig.backing.observe([pool, rig.pool])) == {rig.pool.name}
    disk = BackingDisk("contract", 0, pool, MB)
    for work in (rig.backing.ensure(disk), rig.backing.remove(disk), rig.backing.free(pool)):
        assert await refused(work) == "pool-missing"


async def test_a_disk_is_made_once(rig: Rig) -> None:
    disk = disk_of(rig)
    free = await rig.backing.free(rig.pool)
    await rig.backing.ensure(disk)
    state = await state_of(rig, disk)
    assert state is not None
    assert state.satisfies(disk)
    assert state.size % (await pool_state(rig)).extent == 0
    if rig.pool.lvm is not None:
        assert await rig.backing.free(rig.pool) == free - state.size
    await rig.backing.ensure(disk)
    await rig.backing.ensure(disk, create=False)
    assert (await pool_state(rig)).disks == {disk.key: state}


async def test_disks_are_made_at_the_same_time(rig: Rig) -> None:
    disks = [disk_of(rig, volume=n) for n in range(3)]
    await asyncio.gather(*(rig.backing.ensure(d) for d in (*disks, *disks)))
    state = await pool_state(rig)
    assert set(state.disks) == {("contract", 0), ("contract", 1), ("contract", 2)}
    assert all(state.disks[d.key].satisfies(d) for d in disks)


async def test_a_disk_grows_while_it_is_in_use_and_never_shrinks(rig: Rig) -> None:
    disk = disk_of(rig)
    await rig.backing.ensure(disk)
    larger = disk_of(rig, 13 * MB)
    with rig.opened(disk):
        await rig.backing.ensure(larger)
        state = await state_of(rig, disk)
        assert state is not None
        assert state.satisfies(larger)
        await rig.backing.ensure(disk)
    assert await state_of(rig, disk) == state


async def test_a_volume_that_hactl_did_not_make_is_extended_and_not_more(rig: Rig) -> None:
    disk = disk_of(rig)
    await rig.put_foreign(disk)
    if rig.pool.files is not None:
        with pytest.raises(Failed) as caught:
            await rig.backing.extend(disk.device, 5 * MB)
        assert caught.value.code == "backing-failed"
        return
    await rig.backing.extend(disk.device, 5 * MB)
    state = await state_of(rig, disk)
    assert state is not None
    assert state.size == 8 * MB, "in whole extents"
    await rig.backing.extend(disk.device, 5 * MB)
    await rig.backing.extend(disk.device, 4096)
    assert await state_of(rig, disk) == state
    if rig.pool.lvm_thin is None:
        assert await refused(rig.backing.extend(disk.device, 1 << 41)) == "extend-no-room"
        assert await state_of(rig, disk) == state
    assert await refused(rig.backing.ensure(disk)) == "backing-foreign", "it is not hactl's all the same"


async def test_no_more_than_there_is_room_for(rig: Rig) -> None:
    if rig.pool.lvm_thin is not None:
        large = disk_of(rig, 1 << 30)
        await rig.backing.ensure(large)
        state = await state_of(rig, large)
        assert state is not None
        assert state.satisfies(large), "a thin pool promises more than it has"
        return
    too_large = (await rig.backing.free(rig.pool)) + MB
    assert await refused(rig.backing.ensure(disk_of(rig, too_large))) == "pool-full"
    assert (await pool_state(rig)).disks == {}
    await rig.backing.ensure(disk_of(rig))
    before = await state_of(rig, disk_of(rig))
    assert await refused(rig.backing.ensure(disk_of(rig, 2 * too_large))) == "pool-full"
    assert await state_of(rig, disk_of(rig)) == before


async def test_what_somebody_else_made_is_left_alone(rig: Rig) -> None:
    disk = disk_of(rig)
    await rig.put_foreign(disk)
    before = await state_of(rig, disk)
    assert before is not None
    assert not before.ours
    assert not before.satisfies(disk_of(rig, 1))
    for work in (rig.backing.ensure(disk), rig.backing.ensure(disk, create=False), rig.backing.remove(disk)):
        assert await refused(work) == "backing-foreign"
    assert await state_of(rig, disk) == before


async def test_a_disk_is_removed_when_nothing_uses_it(rig: Rig) -> None:
    disk = disk_of(rig)
    await rig.backing.remove(disk)
    free = await rig.backing.free(rig.pool)
    await rig.backing.ensure(disk)
    with rig.opened(disk):
        assert await refused(rig.backing.remove(disk)) == "backing-in-use"
        state = await state_of(rig, disk)
        assert state is not None
        assert state.satisfies(disk)
    await rig.backing.remove(BackingDisk(disk.resource, disk.volume, disk.pool, 0))
    await rig.backing.remove(disk)
    assert (await pool_state(rig)).disks == {}
    if rig.pool.lvm is not None:
        assert await rig.backing.free(rig.pool) == free
    await rig.backing.ensure(disk)


async def test_a_disk_that_is_gone_is_not_replaced_unless_asked_for(rig: Rig) -> None:
    disk = disk_of(rig)
    assert await refused(rig.backing.ensure(disk, create=False)) == "backing-missing"
    assert (await pool_state(rig)).disks == {}


async def test_after_a_reboot_a_disk_is_there_again(rig: Rig) -> None:
    disk = disk_of(rig)
    await rig.backing.ensure(disk)
    before = await state_of(rig, disk)
    await rig.reboot()
    if rig.pool.files is not None:
        state = await state_of(rig, disk)
        assert state is not None
        assert not state.ready
    await rig.backing.ensure(disk, create=False)
    assert await state_of(rig, disk) == before
    await rig.reboot()
    await rig.backing.remove(disk)
    assert (await pool_state(rig)).disks == {}


@pytest.mark.real
async def test_lvm_does_not_wait_for_a_gate_that_holds_io(volume_group: None, tmp_path: Path) -> None:
    image = tmp_path / "below"
    image.write_bytes(bytes(4 * MB))
    loop = run("losetup", "--find", "--show", str(image)).strip()
    gate = "hactl.contract.9"
    try:
        table = f"0 {4 * MB // 512} linear {loop} 0"
        run("dmsetup", "create", gate, "--uuid", f"HACTL-gate-{gate}", "--table", table)
        run("dmsetup", "suspend", gate)
        async with asyncio.timeout(60):
            pool = pool_of("lvm", tmp_path)
            assert set(await Pools(SubprocessRunner()).observe([pool])) == {pool.name}
    finally:
        run("dmsetup", "resume", gate, check=False)
        run("dmsetup", "remove", "--retry", gate, check=False)
        run("losetup", "--detach", loop)


def read(disk: BackingDisk, start: int, length: int) -> bytes:
    with Path(disk.device).open("rb") as file:
        file.seek(start)
        return file.read(length)


def write(disk: BackingDisk, start: int, data: bytes) -> None:
    with Path(disk.device).open("r+b") as file:
        file.seek(start)
        file.write(data)


@pytest.mark.real
async def test_a_disk_keeps_what_is_on_it_through_growth_and_reboot(kind: str, real: RealRig) -> None:
    disk = disk_of(real)
    await real.backing.ensure(disk)
    if kind != "lvm":
        assert set(read(disk, 0, 5 * MB)) == {0}
    write(disk, MB, b"kept")
    await real.backing.ensure(disk_of(real, 13 * MB))
    await real.reboot()
    await real.backing.ensure(disk, create=False)
    assert read(disk, MB, 4) == b"kept"
    assert len(read(disk, 13 * MB - 4, 4)) == 4


def has_metadata(disk: BackingDisk) -> bool:
    argv = ("drbdmeta", "900", "v08", disk.device, "internal", "dump-md")
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 or "No valid meta data" in done.stderr
    return done.returncode == 0


def create_metadata(disk: BackingDisk) -> None:
    run("drbdmeta", "--force", "900", "v08", disk.device, "internal", "create-md")
    assert has_metadata(disk)


@pytest.mark.real
async def test_a_new_disk_does_not_look_like_the_one_before_it(real: RealRig) -> None:
    """DRBD's meta-data is at the end of a disk, where it would be found by the next one in that place."""
    small, large = disk_of(real, 8 * MB), disk_of(real, 16 * MB)
    for disk in (small, large):
        await real.backing.ensure(disk)
        create_metadata(disk)
        await real.backing.remove(disk)
    await real.backing.ensure(small)
    assert not has_metadata(small)
    await real.backing.ensure(large)
    assert not has_metadata(large), "that of the larger disk before"


@pytest.mark.real
async def test_growth_leaves_the_meta_data_of_an_attached_disk_alone(real: RealRig) -> None:
    disk = disk_of(real, 8 * MB)
    await real.backing.ensure(disk)
    before = int(run("blockdev", "--getsize64", disk.device))
    write(disk, before - 4096, b"x" * 4096)
    await real.backing.ensure(disk_of(real, 9 * MB))
    assert read(disk, before - 4096, 4096) == b"x" * 4096
    assert int(run("blockdev", "--getsize64", disk.device)) > before
