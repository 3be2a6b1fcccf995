"""Bad specifications and bad disks: refused before anything is touched, with the line and the remedy."""

from __future__ import annotations

import pytest

from lab import story
from lab.api import Lab, Machine

MARK = "nothing of mine may be lost"


def traces(node: Machine) -> str:
    """What hactl could have left in the kernel."""
    return node.succeed(
        "dmsetup ls; drbdsetup status 2>/dev/null; ls /sys/kernel/config/target/iscsi 2>/dev/null; true"
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("nodes: [n1, n2]", "nodes: [n1, n9]", ("no node n9", "known are")),
        ("iqn: iqn.2026-11", "iqn: iqn.26-11", ("iqn.26-11", "year")),
        ("size: 512M", "size: 64K", ("64K", "write 1M or more")),
        ("hosts: [c1]", "hosts: [c7]", ("no host c7", "known are")),
        ("    id: 2\n", "    id: 1\n", ("nodes.n2.id", "share an RTPI")),
    ],
)
def test_a_bad_specification_names_line_reason_and_remedy(
    lab: Lab, old: str, new: str, words: tuple[str, str]
) -> None:
    node = lab["n3"]
    text = story.specification(lab)
    assert old in text
    bad = text.replace(old, new, 1)
    node.write("/root/bad.yaml", bad, 0o600)
    before = traces(node)
    shown = node.fail("hactl check /root/bad.yaml")
    lines = zip(text.splitlines(), bad.splitlines(), strict=True)
    number = next(i for i, (good, spoiled) in enumerate(lines, 1) if good != spoiled)
    assert f"/root/bad.yaml:{number}:" in shown
    for word in words:
        assert word.lower() in shown.lower()
    assert "hint" in shown.lower() or "→" in shown
    assert traces(node) == before


def test_a_bad_specification_changes_nothing_in_the_store(cluster: Lab) -> None:
    node = cluster["n3"]
    before = node.succeed("hactl dump")
    node.write("/root/bad.yaml", story.specification(cluster).replace("[n1, n2]", "[n1, n9]"), 0o600)
    assert "no node n9" in node.fail("hactl apply -f /root/bad.yaml")
    assert "unknown-host" in node.fail("hactl export r0 c7")
    assert "resource-exists" in node.fail("hactl resource create r0 --size 16M --disk n3=/dev/vdb")
    assert node.succeed("hactl dump") == before


def test_a_disk_with_a_file_system_is_not_touched(cluster: Lab) -> None:
    """A resource whose disk holds somebody's data waits until it does not, and leaves that disk as it is."""
    node, disk = cluster["n3"], story.DISK
    node.succeed(f"mkfs.ext4 -q -F {disk} && mount {disk} /mnt && echo '{MARK}' > /mnt/file && umount /mnt")
    before = node.succeed(f"dd if={disk} bs=1M count=64 status=none | sha256sum")
    refused = cluster["n2"].fail(f"hactl resource create r1 --size 256M --disk n3={disk} --no-wait")
    assert "too-few-replicas" in refused
    other = (
        cluster["n2"]
        .succeed("modprobe loop && truncate -s 300M /root/r1.img && losetup --find --show /root/r1.img")
        .strip()
    )
    disks = f"--disk n2={other} --disk n3={disk}"
    cluster["n2"].succeed(f"hactl resource create r1 --size 256M {disks} --no-wait")
    node.wait_until_succeeds("hactl status --json | grep -o 'disk-[a-z-]*'")
    shown = node.succeed("hactl status --here")
    assert "ext4" in shown
    assert disk in shown
    assert node.succeed(f"dd if={disk} bs=1M count=64 status=none | sha256sum") == before
    # With the remedy applied the agent goes on by itself.
    node.succeed(f"wipefs --all --quiet {disk}")
    node.wait_until_succeeds("drbdadm dstate r1 | grep -x UpToDate/UpToDate", timeout=120)
    # Gone again with all that it was.
    assert "confirmation-needed" in cluster["n1"].fail("hactl resource delete r1 </dev/null")
    cluster["n1"].succeed("hactl resource delete r1 --yes-destroy r1")
    for replica in (cluster["n2"], node):
        replica.wait_until_succeeds(
            "! drbdsetup status r1 && ! dmsetup info hactl.r1.0 && ! test -e /etc/drbd.d/hactl-r1.res"
        )
    # Once nothing is left of it, its name is free again, and the disks that were its own are taken anew.
    again = f"hactl resource create r1 --size 16M {disks} --no-wait"
    cluster["n1"].wait_until_succeeds(again)
    node.wait_until_succeeds("drbdadm dstate r1 | grep -x UpToDate/UpToDate", timeout=120)
    cluster["n1"].succeed("hactl resource delete r1 --yes-destroy r1")
    cluster["n1"].wait_until_succeeds("hactl status | grep -q 'r1' && exit 1 || exit 0")
    for replica in (cluster["n2"], node):
        replica.wait_until_succeeds("! drbdsetup status r1")
    cluster["n2"].succeed(f"losetup -d {other}; rm /root/r1.img")
