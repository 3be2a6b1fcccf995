"""What holds for every implementation of Replication: in memory, and with HACTL_REAL=1 (as root, on a node
with DRBD loaded) for drbd-utils and the kernel, with a loop device or the disk HACTL_SCRATCH, which it wipes.

One node of two is there; what takes two is tested on whole clusters.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

import pytest

from hactl.errors import Refused
from hactl.model.spec import Addresses, ClusterSpec, FenceSpec, NodeSpec, ResourceSpec, VolumeSpec
from hactl.replication import config, proc
from hactl.replication.drbd import Drbd
from hactl.replication.memory import MemoryDrbd
from hactl.replication.memory_cluster import MemoryDrbdCluster
from hactl.replication.protocol import Replication
from hactl.replication.state import ConnectionState, DiskState, Role
from hactl.runner import SubprocessRunner

NAME = "hactl-contract"
PROC_DRBD = Path("/proc/drbd")
PEER = "elsewhere"


def specification(node: str, disk: str) -> tuple[ClusterSpec, ResourceSpec]:
    def addresses(address: str) -> Addresses:
        ip = ip_address(address)
        return Addresses(cluster=ip, replication=ip, storage=(ip,))

    resource = ResourceSpec(
        name=NAME,
        id=4000,
        iqn="iqn.2025-01.org.example:contract",
        nodes=(node, PEER),
        volumes=(VolumeSpec(number=0, lun=0, size=4 << 20, disks={node: disk, PEER: "/dev/vdz"}),),
        port=7999,
    )
    nodes = (
        NodeSpec(name=node, id=1, addresses=addresses("127.0.0.1")),
        NodeSpec(name=PEER, id=2, addresses=addresses("127.0.0.2")),
    )
    return ClusterSpec(name="contract", nodes=nodes, resources=(resource,)), resource


def fenced(cluster: ClusterSpec) -> ClusterSpec:
    """The same cluster with Pacemaker and a fence device for every node."""
    nodes = tuple(n.model_copy(update={"fencing": FenceSpec(agent="fence_dummy")}) for n in cluster.nodes)
    return cluster.model_copy(update={"pacemaker": True, "nodes": nodes})


class Rig(Protocol):
    @property
    def drbd(self) -> Replication: ...

    @property
    def cluster(self) -> ClusterSpec: ...

    @property
    def resource(self) -> ResourceSpec: ...

    async def mark_disk(self) -> None:
        """Put a file system's signature on the disk."""
        ...

    async def contents(self) -> str:
        """What the bytes of the volume on the disk are, in short."""
        ...

    async def force_primary(self) -> None:
        """Make the only replica up to date and primary, as an operator would."""
        ...

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Have the device open for writing."""
        ...

    def answer(self, code: int) -> None:
        """From now on this is what the fence-peer handler ends with."""
        ...

    def asked(self) -> int:
        """How often the handler was run."""
        ...


class MemoryRig:
    def __init__(self) -> None:
        self.cluster, self.resource = specification("n1", "/dev/vdb")
        self.world = MemoryDrbdCluster(("n1", PEER))
        self.drbd = MemoryDrbd(self.world, "n1")
        self.world.fencing.handlers["n1"] = self._handler
        self.code = 1
        self.runs = 0

    async def _handler(self, resource: str, peer: str) -> int:
        assert (resource, peer) == (NAME, PEER)
        self.runs += 1
        return self.code

    def answer(self, code: int) -> None:
        self.code = code

    def asked(self) -> int:
        return self.runs

    async def mark_disk(self) -> None:
        self.world.disk("n1", "/dev/vdb").signature = "ext4"

    async def contents(self) -> str:
        disk = self.world.disk("n1", "/dev/vdb")
        return f"{disk.signature} {sorted(disk.blocks.items())}"

    async def force_primary(self) -> None:
        data = self.world.disk("n1", "/dev/vdb").metadata
        assert data is not None
        data.consistent = True
        data.generation = self.world.new_generation()
        await self.drbd.primary(NAME)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        self.world.open("n1", NAME, 0)
        yield
        self.world.release("n1", NAME, 0)


class RealRig:
    def __init__(self, disk: str, folder: Path) -> None:
        self.disk = disk
        self.handler = folder / "fence-peer"
        self.runs = folder / "runs"
        self.runs.touch()
        self.cluster, self.resource = specification(os.uname().nodename, disk)
        self.runner = SubprocessRunner()
        self.drbd = Drbd(self.runner)

    async def mark_disk(self) -> None:
        await self.runner.run(["mkswap", self.disk])

    async def contents(self) -> str:
        size = self.resource.volumes[0].size
        argv = ["sh", "-c", f"head -c {size} {self.disk} | sha256sum"]
        return (await self.runner.run(argv)).stdout

    async def force_primary(self) -> None:
        minor = self.resource.minor(self.resource.volumes[0])
        which = NAME if await self.drbd.version() >= (9,) else str(minor)
        await self.runner.run(["drbdsetup", "primary", "--force", which])

    def answer(self, code: int) -> None:
        self.handler.write_text(f'#!/bin/sh\necho "$DRBD_RESOURCE $DRBD_PEER" >>{self.runs}\nexit {code}\n')
        self.handler.chmod(0o755)

    def asked(self) -> int:
        told = self.runs.read_text().splitlines()
        assert set(told) <= {f"{NAME} {PEER}"}
        return len(told)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        minor = self.resource.minor(self.resource.volumes[0])
        with Path(self.drbd.device(minor)).open("r+b", buffering=0):
            yield


@pytest.fixture(
    params=[
        "memory",
        pytest.param("real", marks=pytest.mark.real),
    ]
)
async def rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
        return
    runner = SubprocessRunner()
    scratch = os.environ.get("HACTL_SCRATCH")
    loop = ""
    if scratch is None:
        image = tmp_path / "disk"
        with image.open("wb") as file:
            file.truncate(16 << 20)
        loop = (await runner.run(["losetup", "--find", "--show", str(image)])).stdout.strip()
    real = RealRig(scratch or loop, tmp_path)
    monkeypatch.setattr(config, "HANDLER", str(real.handler))
    await runner.run(["wipefs", "--all", real.disk])
    try:
        yield real
    finally:
        await real.drbd.down(NAME)
        await real.drbd.remove_config(NAME)
        # The kernel lets go of the disk a moment after it said that the resource is down.
        async with asyncio.timeout(10):
            while (await runner.run(["wipefs", "--all", real.disk], check=False)).status:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # nothing tells
        if loop:
            await runner.run(["losetup", "--detach", loop])


async def bring_up(rig: Rig) -> None:
    await rig.drbd.write_config(rig.cluster, rig.resource)
    await rig.drbd.create_metadata(rig.resource, 0)
    await rig.drbd.up(NAME)


async def test_the_version_is_one_of_drbds(rig: Rig) -> None:
    assert (await rig.drbd.version())[0] in (8, 9)


async def test_the_resource_file(rig: Rig) -> None:
    assert not await rig.drbd.configured(rig.cluster, rig.resource)
    await rig.drbd.write_config(rig.cluster, rig.resource)
    assert await rig.drbd.configured(rig.cluster, rig.resource)
    other = rig.resource.model_copy(update={"port": 7998})
    assert not await rig.drbd.configured(rig.cluster, other)
    await rig.drbd.remove_config(NAME)
    await rig.drbd.remove_config(NAME)
    assert not await rig.drbd.configured(rig.cluster, rig.resource)


async def test_meta_data_is_made_once(rig: Rig) -> None:
    await rig.drbd.write_config(rig.cluster, rig.resource)
    assert not await rig.drbd.has_metadata(rig.resource, 0)
    await rig.drbd.create_metadata(rig.resource, 0)
    assert await rig.drbd.has_metadata(rig.resource, 0)
    with pytest.raises(Refused) as caught:
        await rig.drbd.create_metadata(rig.resource, 0)
    assert caught.value.code == "drbd-metadata-exists"
    await rig.drbd.up(NAME)
    assert await rig.drbd.has_metadata(rig.resource, 0), "also while it is attached"


async def test_meta_data_is_wiped_when_it_is_not_in_use(rig: Rig) -> None:
    minor = rig.resource.minor(rig.resource.volumes[0])
    (disk,) = (d for n, d in rig.resource.volumes[0].disks.items() if n != PEER)
    await rig.drbd.wipe_metadata(NAME, minor, disk)
    await bring_up(rig)
    for number, code in ((minor, "drbd-in-use"), (minor + 1, "drbd-disk-busy")):
        with pytest.raises(Refused) as caught:
            await rig.drbd.wipe_metadata(NAME, number, disk)
        assert caught.value.code == code
    assert await rig.drbd.has_metadata(rig.resource, 0)
    await rig.drbd.down(NAME)
    await rig.drbd.remove_config(NAME)
    await eventually_free(rig, minor, disk)
    assert not await rig.drbd.has_metadata(rig.resource, 0)
    await rig.drbd.wipe_metadata(NAME, minor, disk)
    await bring_up(rig)
    assert (await rig.drbd.observe())[NAME].volumes[0].disk is DiskState.INCONSISTENT, "used anew"


async def eventually_free(rig: Rig, minor: int, disk: str) -> None:
    """Wipe the meta-data as soon as the kernel lets go of the disk, a moment after it said "down"."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await rig.drbd.wipe_metadata(NAME, minor, disk)
            except Refused as error:
                if error.code != "drbd-disk-busy":
                    raise
            await asyncio.sleep(0.05)  # nothing tells


async def test_a_disk_with_a_signature_is_not_touched(rig: Rig) -> None:
    await rig.mark_disk()
    with pytest.raises(Refused) as caught:
        await rig.drbd.create_metadata(rig.resource, 0)
    assert caught.value.code == "drbd-disk-not-empty"
    assert not await rig.drbd.has_metadata(rig.resource, 0)


async def test_data_are_adopted_in_place(rig: Rig) -> None:
    """The disk comes up good, alone, with the volume's size, while its peer has yet to come."""
    await rig.mark_disk()
    before = await rig.contents()
    await rig.drbd.adopt_metadata(rig.resource, 0)
    assert await rig.contents() == before
    assert await rig.drbd.has_metadata(rig.resource, 0)
    for write in (rig.drbd.adopt_metadata, rig.drbd.create_metadata):
        with pytest.raises(Refused) as caught:
            await write(rig.resource, 0)
        assert caught.value.code == "drbd-metadata-exists"
    await rig.drbd.write_config(rig.cluster, rig.resource)
    await rig.drbd.up(NAME)
    state = (await rig.drbd.observe())[NAME]
    assert (state.role, state.volumes[0].disk) == (Role.SECONDARY, DiskState.UP_TO_DATE)
    assert state.volumes[0].size is not None
    assert state.volumes[0].size >= rig.resource.volumes[0].size
    await rig.drbd.primary(NAME)
    assert (await rig.drbd.observe())[NAME].role is Role.PRIMARY
    assert await rig.contents() == before
    await rig.drbd.secondary(NAME)
    await rig.drbd.down(NAME)
    await rig.drbd.up(NAME)
    assert (await rig.drbd.observe())[NAME].volumes[0].disk is DiskState.UP_TO_DATE, "and stays so"


async def test_an_adopted_disk_waits_for_its_peer_where_drbd_fences(rig: Rig) -> None:
    await rig.drbd.adopt_metadata(rig.resource, 0)
    await rig.drbd.write_config(fenced(rig.cluster), rig.resource)
    await rig.drbd.up(NAME)
    assert (await rig.drbd.observe())[NAME].volumes[0].disk is DiskState.CONSISTENT


async def test_without_meta_data_it_does_not_come_up(rig: Rig) -> None:
    await rig.drbd.write_config(rig.cluster, rig.resource)
    with pytest.raises(Refused) as caught:
        await rig.drbd.up(NAME)
    assert caught.value.code == "drbd-no-metadata"


async def test_a_new_replica_is_inconsistent_and_waits_for_its_peer(rig: Rig) -> None:
    await bring_up(rig)
    state = (await rig.drbd.observe())[NAME]
    assert (state.role, state.suspended) == (Role.SECONDARY, "no")
    volume = state.volumes[0]
    assert volume.minor == rig.resource.minor(rig.resource.volumes[0])
    assert volume.disk is DiskState.INCONSISTENT
    assert volume.size is not None
    assert volume.size >= 4 << 20
    assert set(state.connections) == {PEER}
    assert state.connections[PEER].state in (ConnectionState.CONNECTING, ConnectionState.UNCONNECTED)
    assert state.connections[PEER].role is Role.UNKNOWN


async def test_up_and_down_may_be_repeated(rig: Rig) -> None:
    await bring_up(rig)
    await rig.drbd.up(NAME)
    await rig.drbd.down(NAME)
    await rig.drbd.down(NAME)
    assert NAME not in await rig.drbd.observe()


async def test_no_promotion_without_up_to_date_data(rig: Rig) -> None:
    await bring_up(rig)
    with pytest.raises(Refused) as caught:
        await rig.drbd.primary(NAME)
    assert caught.value.code == "drbd-not-uptodate"
    assert (await rig.drbd.observe())[NAME].role is Role.SECONDARY


async def test_the_first_copy_is_not_skipped_without_the_peer(rig: Rig) -> None:
    await bring_up(rig)
    with pytest.raises(Refused) as caught:
        await rig.drbd.skip_initial_sync(NAME, (0,))
    assert caught.value.code == "drbd-not-new"


def proc_roles() -> dict[str, Role]:
    return proc.roles(PROC_DRBD.read_text())


async def test_roles(rig: Rig) -> None:
    await bring_up(rig)
    await rig.force_primary()
    assert (await rig.drbd.observe())[NAME].role is Role.PRIMARY
    assert (await rig.drbd.observe())[NAME].up_to_date
    if isinstance(rig, RealRig) and await rig.drbd.version() < (9,):
        minor = rig.resource.minor(rig.resource.volumes[0])
        assert proc_roles() == {str(minor): Role.PRIMARY}
    with rig.opened():
        for change in (rig.drbd.secondary, rig.drbd.down):
            with pytest.raises(Refused) as caught:
                await change(NAME)
            assert caught.value.code == "drbd-in-use"
    await rig.drbd.secondary(NAME)
    await rig.drbd.secondary(NAME)
    await rig.drbd.primary(NAME)
    await rig.drbd.primary(NAME)
    assert (await rig.drbd.observe())[NAME].role is Role.PRIMARY
    await rig.drbd.secondary(NAME)


async def up_to_date_alone(rig: Rig) -> None:
    """Secondary, with the only good disk there is, and fencing switched on after that."""
    await bring_up(rig)
    await rig.force_primary()
    await rig.drbd.secondary(NAME)
    await rig.drbd.write_config(fenced(rig.cluster), rig.resource)
    await rig.drbd.up(NAME)


async def test_a_lone_disk_is_promoted_only_when_the_handler_settles_it(rig: Rig) -> None:
    await up_to_date_alone(rig)
    rig.answer(1)
    with pytest.raises(Refused) as caught:
        await rig.drbd.primary(NAME)
    assert caught.value.code == "drbd-peer-not-outdated"
    assert rig.asked() == 4
    state = (await rig.drbd.observe())[NAME]
    assert state.role is Role.SECONDARY
    assert state.connections[PEER].volumes[0].disk is DiskState.UNKNOWN
    rig.answer(7)
    await rig.drbd.primary(NAME)
    assert rig.asked() == 5
    state = (await rig.drbd.observe())[NAME]
    assert (state.role, state.suspended) == (Role.PRIMARY, "no")
    assert state.connections[PEER].volumes[0].disk is DiskState.OUTDATED
    await rig.drbd.secondary(NAME)
    await rig.drbd.primary(NAME)
    assert rig.asked() == 5, "it is known already"


async def test_a_primary_peer_outdates_this_one(rig: Rig) -> None:
    await up_to_date_alone(rig)
    rig.answer(6)
    with pytest.raises(Refused) as caught:
        await rig.drbd.primary(NAME)
    assert caught.value.code == "drbd-not-uptodate"
    assert (await rig.drbd.observe())[NAME].volumes[0].disk is DiskState.OUTDATED


async def test_outdated_is_remembered(rig: Rig) -> None:
    await up_to_date_alone(rig)
    rig.answer(7)
    await rig.drbd.outdate(NAME)
    await rig.drbd.outdate(NAME)
    for _ in range(2):
        assert (await rig.drbd.observe())[NAME].volumes[0].disk is DiskState.OUTDATED
        with pytest.raises(Refused) as caught:
            await rig.drbd.primary(NAME)
        assert caught.value.code == "drbd-not-uptodate"
        await rig.drbd.down(NAME)
        await rig.drbd.up(NAME)
    assert rig.asked() == 0, "it is of no use to ask"


async def test_a_primary_is_not_outdated(rig: Rig) -> None:
    await bring_up(rig)
    await rig.force_primary()
    with pytest.raises(Refused):
        await rig.drbd.outdate(NAME)
    state = (await rig.drbd.observe())[NAME]
    assert state.role is Role.PRIMARY
    assert state.up_to_date


async def test_what_is_inconsistent_is_not_made_better_by_outdating(rig: Rig) -> None:
    await bring_up(rig)
    await rig.drbd.outdate(NAME)
    assert (await rig.drbd.observe())[NAME].volumes[0].disk is DiskState.INCONSISTENT


async def test_after_a_restart_alone_it_is_not_known_to_be_the_newest(rig: Rig) -> None:
    await up_to_date_alone(rig)
    await rig.drbd.down(NAME)
    await rig.drbd.up(NAME)
    assert (await rig.drbd.observe())[NAME].volumes[0].disk is DiskState.CONSISTENT
    rig.answer(1)
    with pytest.raises(Refused) as caught:
        await rig.drbd.primary(NAME)
    assert caught.value.code == "drbd-not-uptodate"
    assert rig.asked() == 4
    assert (await rig.drbd.observe())[NAME].volumes[0].disk is DiskState.CONSISTENT


async def test_who_knew_that_the_other_is_older_still_does_after_a_restart(rig: Rig) -> None:
    await up_to_date_alone(rig)
    rig.answer(4)
    await rig.drbd.primary(NAME)
    await rig.drbd.secondary(NAME)
    await rig.drbd.down(NAME)
    await rig.drbd.up(NAME)
    assert (await rig.drbd.observe())[NAME].up_to_date


async def test_the_policy_changes_while_it_is_in_use(rig: Rig) -> None:
    await bring_up(rig)
    await rig.force_primary()
    with rig.opened():
        for cluster in (fenced(rig.cluster), rig.cluster):
            await rig.drbd.write_config(cluster, rig.resource)
            await rig.drbd.up(NAME)
            assert await rig.drbd.configured(cluster, rig.resource)
            state = (await rig.drbd.observe())[NAME]
            assert (state.role, state.suspended) == (Role.PRIMARY, "no")
    await rig.drbd.resume(NAME)


async def test_roles_of_what_is_not_up(rig: Rig) -> None:
    await rig.drbd.write_config(rig.cluster, rig.resource)
    for change in (rig.drbd.primary, rig.drbd.secondary):
        with pytest.raises(Refused):
            await change(NAME)


async def test_watch_shows_the_state_at_once_and_each_change(rig: Rig) -> None:
    await bring_up(rig)
    async with contextlib.aclosing(rig.drbd.watch()) as watch:  # type: ignore[type-var]
        first = await anext(watch)
        assert first is not None
        assert first[NAME].role is Role.SECONDARY
        await rig.force_primary()
        async for states in watch:
            assert states is not None, "the stream broke"
            if states[NAME].role is Role.PRIMARY and states[NAME].up_to_date:
                break
        await rig.drbd.secondary(NAME)
        await rig.drbd.down(NAME)
        async for states in watch:
            assert states is not None, "the stream broke"
            if NAME not in states:
                break
