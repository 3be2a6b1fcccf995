"""The resource file and the size of meta-data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.errors import Failed, Refused
from hactl.model.spec import FenceSpec
from hactl.replication import metadata
from hactl.replication.config import LocalVolume, file_name, read_nodes, read_peer, render, resource_of
from tests.unit.replication_spec import cluster, node, resource

V84 = (8, 4, 11)
V9 = (9, 2, 16)


def test_drbd_8_4() -> None:
    spec = resource(nodes=("n1", "n2", "n3"))
    text = render(cluster(spec), spec, V84)
    on_sections = text[text.index("    on n1") :]
    assert on_sections == (
        "    on n1 {\n"
        "        address ipv4 10.77.2.1:7001;\n"
        "        volume 0 { device minor 16; disk /dev/vdb; meta-disk internal; }\n"
        "    }\n"
        "    on n2 {\n"
        "        address ipv4 10.77.2.2:7001;\n"
        "        volume 0 { device minor 16; disk /dev/vdb; meta-disk internal; }\n"
        "    }\n"
        "}\n"
    )
    assert "quorum" not in text
    assert "auto-promote" not in text


def test_drbd_9_with_a_tiebreaker() -> None:
    spec = resource(nodes=("n1", "n2", "n3"))
    text = render(cluster(spec), spec, V9)
    assert "quorum majority;" in text
    assert "on-no-quorum suspend-io;" in text
    assert "auto-promote no;" in text
    assert "node-id 3;" in text
    assert "volume 0 { device minor 16; disk none; }" in text
    assert "connection-mesh { hosts n1 n2 n3; }" in text


@pytest.mark.parametrize(("version", "section"), [(V84, "disk"), (V9, "net")])
def test_fencing_while_pacemaker_fences(version: tuple[int, int, int], section: str) -> None:
    spec = resource()
    plain = cluster(spec)
    nodes = tuple(n.model_copy(update={"fencing": FenceSpec(agent="fence_ipmilan")}) for n in plain.nodes)
    fenced = plain.model_copy(update={"pacemaker": True, "nodes": nodes})
    text = render(fenced, spec, version)
    start = text.index(f"    {section} {{")
    assert "fencing resource-and-stonith;" in text[start : text.index("    }", start)]
    assert text.count("resource-and-stonith") == 1
    assert '    handlers {\n        fence-peer "/usr/lib/hactl/fence-peer";\n    }\n' in text
    assert set(read_nodes(text)) == {"n1", "n2"}
    for without in (
        plain,
        fenced.model_copy(update={"nodes": (*nodes[:2], plain.nodes[2])}),
        fenced.model_copy(update={"unfenced_promotion": True, "nodes": plain.nodes}),
        fenced.model_copy(update={"manual_failover": True}),
    ):
        assert "fenc" not in render(without, spec, version)


def test_drbd_9_with_two_nodes_has_no_quorum() -> None:
    spec = resource()
    assert "quorum off;" in render(cluster(spec), spec, V9)


@pytest.mark.parametrize("version", [V84, V9])
def test_diverged_data_is_never_thrown_away(version: tuple[int, int, int]) -> None:
    spec = resource()
    text = render(cluster(spec), spec, version)
    for which in ("0pri", "1pri", "2pri"):
        assert f"after-sb-{which} disconnect;" in text


def test_ipv6() -> None:
    spec = resource()
    nodes = (node("n1", 1, "fd00::1"), node("n2", 2, "fd00::2"))
    assert "address ipv6 [fd00::1]:7001;" in render(cluster(spec, nodes=nodes), spec, V84)


@pytest.mark.parametrize("replicas", [("n1",), ("n1", "n2", "n3")])
def test_drbd_8_4_keeps_two_replicas(replicas: tuple[str, ...]) -> None:
    spec = resource(nodes=("n1", "n2", "n3"), replicas=replicas)
    with pytest.raises(Refused) as caught:
        render(cluster(spec), spec, V84)
    assert caught.value.code == "drbd-two-replicas"


def test_a_disk_on_a_node_that_does_not_export() -> None:
    spec = resource(nodes=("n1", "n2"), replicas=("n1", "n2", "n3"))
    with pytest.raises(Refused) as caught:
        render(cluster(spec), spec, V9)
    assert caught.value.code == "drbd-partial-replica"


@pytest.mark.parametrize("version", [V84, V9])
def test_what_is_written_can_be_read(version: tuple[int, int, int]) -> None:
    spec = resource(volumes=2)
    text = render(cluster(spec), spec, version)
    local = (LocalVolume(0, 16, "/dev/vdb"), LocalVolume(1, 17, "/dev/vdc"))
    assert read_nodes(text) == {"n1": local, "n2": local}
    assert read_peer(text, "n1") == "n2"
    assert read_peer(text, "n3") is None


def test_anothers_file_is_not_read() -> None:
    with pytest.raises(Failed):
        read_nodes("resource r0 {}\n")


def test_file_names() -> None:
    assert resource_of(file_name("r0")) == "r0"
    assert resource_of("global_common.conf") is None


def test_the_recorded_size() -> None:
    """DRBD 9.2.16 made a device of 262100 KiB of a disk of 256 MiB with one peer."""
    assert metadata.usable_size(256 << 20, 1) == 262100 << 10
    assert metadata.required_disk_size(262100 << 10, 1) == 256 << 20


def test_a_disk_below_the_minimum_gives_nothing() -> None:
    assert metadata.usable_size(metadata.MIN_DEVICE_SIZE - 1, 1) == 0
    assert metadata.required_disk_size(1, 1) == metadata.MIN_DEVICE_SIZE


@given(size=st.integers(1, 1 << 46), peers=st.integers(1, 15))
def test_the_required_size_is_enough_and_the_smallest(size: int, peers: int) -> None:
    disk = metadata.required_disk_size(size, peers)
    assert metadata.usable_size(disk, peers) >= size
    assert metadata.usable_size(disk - 4096, peers) < size


def test_room_for_peers() -> None:
    spec = resource()
    assert metadata.max_peers(spec, V84) == 1
    assert metadata.max_peers(spec, V9) == 7
