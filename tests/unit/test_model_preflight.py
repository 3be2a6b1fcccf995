"""Judging disks: what is safe passes, what could destroy data or not work is refused with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hactl.model.preflight import BlockDevice, Signature, judge
from hactl.model.spec import ClusterSpec
from hactl.replication.memory_blockdev import MemoryDevices
from hactl.replication.metadata import max_peers, required_disk_size
from tests.unit.test_model_check import valid

CLUSTER = ClusterSpec.model_validate(valid())
V84 = (8, 4, 11)
NEED = required_disk_size(1 << 30, 1)
DISK = "/dev/vg/r2v1"
GOOD = {
    path: BlockDevice(path=path, size=NEED)
    for r in CLUSTER.resources
    for path in (v.disks["n1"] for v in r.volumes)
}
DRBD = Signature("drbd", "raid")
EXT4 = Signature("ext4", "filesystem", "home")


def codes(device: BlockDevice, *own: tuple[str, int]) -> list[str]:
    found = judge(CLUSTER, "n1", {**GOOD, DISK: device}, version=V84, own=own)
    assert all(p.path == ("resources", 1, "volumes", 1, "disks", "n1") for p in found)
    assert all(DISK in p.message and p.hint for p in found)
    return [p.code for p in found]


def test_empty_disks_that_are_large_enough() -> None:
    assert judge(CLUSTER, "n1", GOOD, version=V84) == ()


def test_a_node_without_disks_needs_none() -> None:
    assert judge(CLUSTER, "n3", {}, version=V84) == ()


def test_not_having_looked_is_no_judgement() -> None:
    with pytest.raises(KeyError):
        judge(CLUSTER, "n1", {}, version=V84)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"exists": False, "is_block": False}, "disk-missing"),
        ({"is_block": False}, "disk-not-block"),
        ({"read_only": True}, "disk-read-only"),
        ({"size": NEED - 1}, "disk-too-small"),
        ({"mountpoints": ("/srv",)}, "disk-mounted"),
        ({"mountpoints": ("[SWAP]",)}, "disk-mounted"),
        ({"holders": ("/dev/md0 (raid1)",)}, "disk-held"),
        ({"signatures": (EXT4,)}, "disk-has-data"),
        (
            {"signatures": (Signature("gpt", "partition-table"), Signature("PMBR", "partition-table"))},
            "disk-has-data",
        ),
        ({"signatures": (Signature("LVM2_member", "raid"),)}, "disk-has-data"),
        ({"signatures": (Signature("swap", "other"),)}, "disk-has-data"),
        ({"signatures": (DRBD,)}, "disk-has-drbd"),
        ({"signatures": (EXT4, DRBD)}, "disk-has-drbd"),
        ({"in_use_by": ("r1", 0)}, "disk-in-use"),
    ],
)
def test_what_is_wrong_with_a_disk(change: dict[str, object], code: str) -> None:
    assert codes(replace(GOOD[DISK], **change)) == [code]  # type: ignore[arg-type]  # fields by name


def test_the_volumes_own_meta_data_is_fine_whatever_the_initiator_wrote_before_it() -> None:
    device = replace(GOOD[DISK], signatures=(EXT4, DRBD))
    assert codes(device, ("r2", 1)) == []
    assert codes(replace(device, in_use_by=("r2", 1))) == []


def test_another_volume_of_the_same_resource_is_not_the_same_volume() -> None:
    device = replace(GOOD[DISK], signatures=(DRBD,), in_use_by=("r2", 0))
    assert codes(device, ("r2", 0)) == ["disk-has-drbd", "disk-in-use"]


def test_ones_own_disk_may_still_be_too_small_or_read_only() -> None:
    device = replace(GOOD[DISK], size=1 << 30, read_only=True, in_use_by=("r2", 1), signatures=(DRBD,))
    assert codes(device) == ["disk-read-only", "disk-too-small"]


def test_drbd_9_needs_more_room() -> None:
    resource = CLUSTER.resources[0]
    version = (9, 2, 16)
    more = required_disk_size(1 << 30, max_peers(resource, version))
    assert more > NEED
    found = judge(CLUSTER, "n1", GOOD, version=version)
    assert {p.code for p in found} == {"disk-too-small"}
    assert len(found) == 4
    larger = {path: replace(d, size=more) for path, d in GOOD.items()}
    assert judge(CLUSTER, "n1", larger, version=version) == ()


def test_signatures_are_named_in_words() -> None:
    device = replace(GOOD[DISK], signatures=(EXT4, Signature("swap", "other")))
    (found,) = judge(CLUSTER, "n1", {**GOOD, DISK: device}, version=V84)
    assert "a file system (ext4, label 'home') and swap space (swap)" in found.message
    assert f"wipefs --all {DISK}" in found.hint


async def test_what_memory_devices_do_not_have_does_not_exist() -> None:
    devices = MemoryDevices([GOOD[DISK]])
    observed = await devices.observe([DISK, "/dev/none"])
    assert observed[DISK] == GOOD[DISK]
    assert not observed["/dev/none"].exists
