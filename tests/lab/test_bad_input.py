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


def test_a_disk_with_a_file_system_is_not_touched(lab: Lab) -> None:
    """The agents of a cluster whose disk on one node holds somebody's data leave that disk as it is."""
    node, disk = lab["n1"], story.DISK
    node.succeed(f"mkfs.ext4 -q -F {disk} && mount {disk} /mnt && echo '{MARK}' > /mnt/file && umount /mnt")
    before = node.succeed(f"dd if={disk} bs=1M count=64 status=none | sha256sum")
    story.start_agents(lab, story.specification(lab))
    told = node.wait_until_succeeds("hactl status --json | grep -o 'disk-[a-z-]*'")
    assert told
    shown = node.succeed("hactl status")
    assert "ext4" in shown
    assert disk in shown
    assert node.succeed(f"dd if={disk} bs=1M count=64 status=none | sha256sum") == before
    # With the remedy applied the agent goes on by itself.
    node.succeed(f"wipefs --all --quiet {disk}")
    story.wait_until_ready(lab)
