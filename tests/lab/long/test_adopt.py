"""A single LIO machine with targetcli becomes a node of the cluster: its unit keeps data and identity, and
gets a copy on another node.

On a lab of its own: the cluster that comes of it is not the one that other tests begin with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import story
from lab.api import Lab, Machine
from tests.lab.conftest import fresh_lab

OLD = "iqn.2003-01.org.linux-iscsi.n1:disk1"
SIZE = 256 << 20
VOLUME = "/dev/vg0/disk1"
SAVED = "/root/before-hactl.json"
MAPS = "ls /dev/mapper | grep -m1 ^mpath"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab() as running:
        yield running


def test_a_unit_of_targetcli_comes_over_with_its_data(lab: Lab) -> None:
    n1, n2, client = lab["n1"], lab["n2"], lab["c1"]
    serial = single_machine(lab)
    file, whole = data_of_a_host(lab)
    n1.succeed(f"targetcli saveconfig {SAVED}")
    story.make_cluster(lab)

    # While targetcli has the disk, nothing of it is touched; the other replica is made ready.
    told = n1.succeed(
        f"hactl import {SAVED} --node n1 --adopt --copy-to n2 --disk {VOLUME}={story.DISK} --json",
        timeout=120,
    )
    assert json.loads(told)["resources"] == {"disk1": OLD}
    n1.wait_until_succeeds("hactl status --json | grep -q disk-exported", timeout=90)
    n2.wait_until_succeeds("drbdsetup events2 --now disk1 | grep -q 'disk:Inconsistent'", timeout=120)
    assert checksum(n1) == whole
    assert int(n1.succeed(f"blockdev --getsize64 {VOLUME}")) == SIZE

    n1.succeed("targetcli clearconfig confirm=True")
    n1.wait_until_succeeds("drbdsetup events2 --now disk1 | grep -q ' disk:UpToDate'", timeout=120)
    assert int(n1.succeed(f"blockdev --getsize64 {VOLUME}")) > SIZE
    assert checksum(n1) == whole
    until(lambda: adopting(n1) == [None], "the word is taken out of the store")
    if state(n1)["active_node"] is None:
        n1.succeed("hactl promote disk1 --node n1")

    story.wait_until_ready(lab)
    script = n1.succeed("hactl host script c1")
    client.succeed("sh -s", timeout=300, stdin=script.encode())
    client.wait_until_succeeds('[ "$(iscsiadm -m session | wc -l)" -ge 2 ]', timeout=60)
    unit = f"/dev/mapper/{client.wait_until_succeeds(MAPS, timeout=60).strip()}"
    assert int(client.succeed(f"blockdev --getsize64 {unit}")) == SIZE
    for path in story.paths(client):
        assert serial in client.succeed(f"sg_vpd --page=sn /dev/{path.device}").replace("-", "")
    assert read_by(client, unit) == file

    assert checksum(n2, story.DISK) == checksum(n1)
    n1.succeed("hactl switchover disk1 --to n2", timeout=60)
    assert state(n2)["active_node"] == "n2"
    assert read_by(client, unit) == file


def single_machine(lab: Lab) -> str:
    """n1 as targetcli leaves it: a target on a logical volume, for the client. Its serial, no hyphens."""
    n1 = lab["n1"]
    n1.succeed(f"wipefs --all {story.DISK} && vgcreate --yes vg0 {story.DISK}")
    n1.succeed(f"lvcreate --yes --name disk1 --size {SIZE}b vg0")
    portal = story.portals(lab, "n1")[0]
    for words in (
        f"/backstores/block create name=disk1 dev={VOLUME}",
        f"/iscsi create {OLD}",
        f"/iscsi/{OLD}/tpg1/luns create /backstores/block/disk1",
        f"/iscsi/{OLD}/tpg1/acls create {story.INITIATOR}",
        f"/iscsi/{OLD}/tpg1 set attribute authentication=0 generate_node_acls=0",
        f"/iscsi/{OLD}/tpg1/portals delete 0.0.0.0 3260",
        f"/iscsi/{OLD}/tpg1/portals create {portal}",
    ):
        n1.succeed(f"targetcli {words}", timeout=60)
    unit = n1.succeed("cat /sys/kernel/config/target/core/iblock_*/disk1/wwn/vpd_unit_serial")
    return unit.rpartition(":")[2].strip().replace("-", "")


def data_of_a_host(lab: Lab) -> tuple[str, str]:
    """The client makes a file system with a file on the unit and leaves: checksums of the file, and of the
    whole unit."""
    client, portal = lab["c1"], story.portals(lab, "n1")[0]
    client.write("/etc/iscsi/initiatorname.iscsi", f"InitiatorName={story.INITIATOR}\n", 0o600)
    client.write("/etc/multipath.conf", "defaults {\n\tuser_friendly_names yes\n\tfind_multipaths no\n}\n")
    client.succeed("systemctl start iscsid.service && systemctl restart multipathd.service", timeout=120)
    client.succeed(f"iscsiadm -m discovery -t sendtargets -p {portal}", timeout=60)
    client.succeed(f"iscsiadm -m node -T {OLD} -p {portal} --login", timeout=60)
    unit = f"/dev/mapper/{client.wait_until_succeeds(MAPS, timeout=60).strip()}"
    client.succeed(f"mkfs.ext4 -q {unit} && mount {unit} /mnt", timeout=120)
    client.succeed("head -c 64M /dev/urandom >/mnt/file && sync", timeout=300)
    found = client.succeed("sha256sum </mnt/file", timeout=120)
    client.succeed(f"umount /mnt && multipath -f $(basename {unit})", timeout=120)
    client.succeed(f"iscsiadm -m node -T {OLD} --logout && iscsiadm -m node -T {OLD} -o delete", timeout=60)
    return found, checksum(lab["n1"])


def checksum(node: Machine, disk: str = VOLUME) -> str:
    """Of the unit's bytes on a disk under DRBD: of the disk itself, as DRBD writes past the node's cache."""
    count = SIZE >> 20
    return node.succeed(f"dd if={disk} bs=1M count={count} iflag=direct status=none | sha256sum", timeout=120)


def read_by(client: Machine, unit: str) -> str:
    """Checksum of the file, read from the unit and not from memory."""
    client.succeed(f"mount {unit} /mnt", timeout=120)
    try:
        return client.succeed("echo 3 >/proc/sys/vm/drop_caches; sha256sum </mnt/file", timeout=120)
    finally:
        client.succeed("umount /mnt", timeout=60)


def adopting(node: Machine) -> list[str | None]:
    """What the store says of whose data are to be kept."""
    return [v["adopt"] for v in json.loads(node.succeed("hactl resource show disk1 --json"))["volumes"]]


def state(node: Machine) -> dict[str, Any]:
    """The resource as a node's agent has it."""
    found: dict[str, Any] = next(r for r in story.status(node)["resources"] if r["name"] == "disk1")
    return found


def until(true: Callable[[], bool], what: str, timeout: float = 60) -> None:
    """Wait for something that nothing tells."""
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.5)
