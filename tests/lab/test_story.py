"""The main story on real kernels: one replicated LUN that changes nodes while a client writes to it.

The tests follow each other on one lab, in the order of the file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from lab import plot, story
from lab.api import Lab, Machine

SWITCHOVERS = int(os.environ.get("HACTL_LAB_SWITCHOVERS", "2"))
OUT = Path("out")


def configfs(node: Machine) -> str:
    """Everything in LIO's tree that can be read, but for counters and what sessions have agreed on."""
    return node.succeed(
        "cd /sys/kernel/config/target"
        " && find . -type f -readable ! -path '*statistics*' ! -path '*/acls/*/param/*' ! -name info"
        " ! -name control | sort | xargs grep -H . ; find . -type l -printf '%p -> %l\\n' | sort"
    )


def test_nothing_is_left_to_do_and_a_restarted_agent_changes_nothing(cluster: Lab) -> None:
    for node in cluster.nodes:
        plan = json.loads(node.succeed("hactl plan --json"))
        assert [r["actions"] for r in plan["resources"]] == [[] for _ in plan["resources"]], node.name
    before = [configfs(node) for node in cluster.nodes[:2]]
    for node in cluster.nodes[:2]:
        node.succeed("systemctl restart hactl-agent")
    story.wait_until_ready(cluster)
    assert [configfs(node) for node in cluster.nodes[:2]] == before
    story.active_node(cluster)


def test_discovery_shows_each_nodes_own_portals_and_no_shadow(cluster: Lab, device: str) -> None:
    client = cluster["c1"]
    for node, tag in (("n1", 1), ("n2", 2)):
        address, address6 = story.portals(cluster, node)
        shown = client.succeed(f"iscsiadm -m discovery -t sendtargets -p {address}")
        assert sorted(shown.split("\n")[:-1]) == sorted(
            f"{portal}:3260,{tag} {story.TARGET}" for portal in (address, f"[{address6}]")
        )


def test_identity_is_the_same_on_all_paths(cluster: Lab, device: str) -> None:
    client = cluster["c1"]
    pages: dict[str, list[str]] = {"sn": [], "di_lu": []}
    ports = []
    for path in story.paths(client):
        pages["sn"].append(client.succeed(f"sg_vpd --page=sn /dev/{path.device}"))
        identification = client.succeed(f"sg_vpd --page=di /dev/{path.device}")
        pages["di_lu"].append(identification.partition("\n  Target port:")[0])
        ports.append((path.portal, re.findall(r"Relative target port: (0x[0-9a-f]+)", identification)))
    assert len(pages["sn"]) == 2
    assert pages["sn"][0] == pages["sn"][1]
    assert pages["di_lu"][0] == pages["di_lu"][1]
    assert "NAA" in pages["di_lu"][0]
    # RTPI = resource id * 16 + node id.
    expected = {story.portals(cluster, "n1")[0]: ["0x11"], story.portals(cluster, "n2")[0]: ["0x12"]}
    assert dict(ports) == expected


def port_groups(client: Machine, device: str) -> dict[int, tuple[int, tuple[int, ...]]]:
    """REPORT TARGET PORT GROUPS through one path: group → (state, RTPIs) (SPC-4 6.37)."""
    raw = bytes.fromhex(client.succeed(f"sg_rtpg --raw /dev/{device} | od -An -v -tx1"))
    length = int.from_bytes(raw[:4], "big")
    groups, at = {}, 4
    while at < 4 + length:
        count = raw[at + 7]
        ports = tuple(int.from_bytes(raw[at + 8 + 4 * i + 2 : at + 12 + 4 * i], "big") for i in range(count))
        groups[int.from_bytes(raw[at + 2 : at + 4], "big")] = (raw[at] & 0x0F, ports)
        at += 8 + 4 * count
    return groups


def test_every_path_reports_the_whole_truth(cluster: Lab, device: str) -> None:
    seen = [port_groups(cluster["c1"], path.device) for path in story.paths(cluster["c1"])]
    for groups in seen:
        named = {k: v for k, v in groups.items() if k != 0}
        states = (
            {1: 0, 2: 2} if story.active_node(cluster) == "n1" else {1: 2, 2: 0}
        )  # active/optimized, standby
        assert named == {1: (states[1], (0x11,)), 2: (states[2], (0x12,))}
        assert groups.get(0, (2, ()))[1] == ()  # LIO's default group has no port


def test_switchovers_under_load(cluster: Lab, device: str, load: story.Load) -> None:
    client = cluster["c1"]
    measured = []
    for number in range(1, SWITCHOVERS + 1):
        source, destination = story.active_node(cluster), story.standby_node(cluster)
        measured.append(story.switchover(cluster, number, source, destination))
        assert story.active_node(cluster) == destination
        seen = story.wait_until_paths(client, active=destination, lab=cluster)
        assert sorted(p.checker for p in seen) == ["ghost", "ready"]
        load.wait_for_progress()
    report = load.stop()
    assert report.error == 0
    assert report.writes > 0
    assert report.reads > 0  # verified
    assert client.execute("dmesg | grep -iE 'I/O error.* dev dm-'").out == ""
    OUT.mkdir(exist_ok=True)
    plot.pauses(report, measured, OUT / "switchovers.png")
    text = story.table(report, measured)
    print(text)
    (OUT / "switchovers.txt").write_text(text)


def test_a_pattern_written_before_is_there_after(cluster: Lab, device: str) -> None:
    client = cluster["c1"]
    job = (
        f"fio --name=pattern --filename={device} --offset=128M --size=32M --bs=64k --rw=write --direct=1"
        " --ioengine=libaio --iodepth=8 --verify=sha256 --verify_fatal=1"
    )
    client.succeed(f"{job} --do_verify=0", timeout=300)
    cluster[story.active_node(cluster)].succeed(f"hactl switchover r0 --to {story.standby_node(cluster)}")
    client.succeed(f"{job} --verify_only=1", timeout=300)


def test_a_write_to_the_standby_path_reaches_no_disk(cluster: Lab, device: str) -> None:
    client, standby = cluster["c1"], story.standby_node(cluster)
    portal = story.portals(cluster, standby)[0]
    path = next(p.device for p in story.paths(client) if p.portal == portal)
    block = (
        200 << 8
    )  # in 4 KiB blocks: 200 MiB into the unit, and into the disk, whose meta-data is at its end

    def on_disks() -> list[str]:
        read = "dd if={} bs=4k count=1 skip={} iflag=direct status=none | sha256sum"
        return [cluster[n].succeed(read.format(story.DISK, block)) for n in ("n1", "n2")]

    client.succeed(f"dd if=/dev/urandom of={device} bs=4k count=1 seek={block} oflag=direct status=none")
    before = on_disks()
    assert before[0] == before[1]
    for _ in range(5):
        error = client.fail(
            f"sg_dd if=/dev/urandom of=/dev/{path} bs=512 count=8 seek={block * 8} blk_sgio=1 2>&1"
        )
        assert error
        client.fail(f"dd if=/dev/urandom of=/dev/{path} bs=4k count=1 seek={block} oflag=direct")
    assert on_disks() == before


def test_a_grown_volume_is_seen_by_the_client_under_load(cluster: Lab, device: str, load: story.Load) -> None:
    client = cluster["c1"]
    cluster["n3"].succeed("hactl volume resize r0 0 640M")
    story.wait_until_settled(cluster)
    client.succeed("iscsiadm -m session --rescan")
    client.wait_until_succeeds(f"multipathd resize map {device.removeprefix('/dev/mapper/')} | grep ok")
    assert int(client.succeed(f"blockdev --getsize64 {device}")) == 640 << 20
    # The new part can be written to, and is on both replicas.
    block = (600 << 20) // 4096
    client.succeed(f"dd if=/dev/urandom of={device} bs=4k count=1 seek={block} oflag=direct status=none")
    read = f"dd if={{}} bs=4k count=1 skip={block} iflag=direct status=none | sha256sum"
    seen = {client.succeed(read.format(device))}
    seen |= {cluster[n].succeed(read.format(story.DISK)) for n in ("n1", "n2")}
    assert len(seen) == 1
