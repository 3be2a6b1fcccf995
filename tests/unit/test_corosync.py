"""Corosync's settings: what they say for how many nodes, whose a file's are, and what its tools print."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from hactl.cluster import corosync, memory_ring, ring
from hactl.cluster.corosync import Whose, render, wanted_keys, whose
from hactl.cluster.layout import Layout
from hactl.cluster.memory_ring import MemoryCorosync
from hactl.cluster.ring import CorosyncRing, Known, Link
from hactl.cluster.services import Standing, standing
from hactl.errors import Failed, Refused, Unknown
from hactl.model.spec import Addresses, ClusterSpec, NodeSpec
from hactl.runner import CommandFailed, CommandTimeout, Completed

PACKAGED = """\
# Please read the corosync.conf.5 manual page
totem {
\tversion: 2
\tcluster_name: debian
\tcrypto_cipher: none
\tcrypto_hash: none
}
quorum {
\tprovider: corosync_votequorum
}
nodelist {
\tnode {
\t\tname: node1
\t\tnodeid: 1
\t\tring0_addr: 127.0.0.1
\t\t#ring1_addr: 192.168.1.1
\t}
}
"""
"""What of Debian's file counts."""


def cluster(count: int, *, replication: str = "10.0.1.", first: str = "10.0.0.") -> ClusterSpec:
    def node(number: int) -> NodeSpec:
        where = Addresses(
            cluster=ip_address(f"{first}{number}"),
            replication=ip_address(f"{replication}{number}"),
            storage=(ip_address(f"10.0.2.{number}"),),
        )
        return NodeSpec(name=f"n{number}", id=number, addresses=where)

    return ClusterSpec(name="lab", pacemaker=True, nodes=tuple(node(n) for n in range(1, count + 1)))


# The file


@pytest.mark.parametrize("count", [1, 2, 3, 15])
def test_corosync_reads_what_is_wanted(count: int) -> None:
    text = render(cluster(count), Layout())
    assert memory_ring.keys(text) == wanted_keys(cluster(count))
    assert whose(text) is Whose.HACTL
    assert text.count("{") == text.count("}")
    lines = {line.strip() for line in text.splitlines()}
    assert {"crypto_cipher: aes256", "crypto_hash: sha256", "keyfile: /etc/hactl/corosync.key"} <= lines
    assert ("two_node: 1" in lines) is (count == 2)
    # Written, it would be read at the start only, and not follow two_node.
    assert not any(line.startswith("wait_for_all") for line in lines)


def test_a_second_link_where_all_nodes_have_a_replication_network_of_its_own() -> None:
    both = corosync.links(cluster(3))
    assert [str(link[1]) for link in both] == ["10.0.0.2", "10.0.1.2"]
    assert len(corosync.links(cluster(3, replication="10.0.0."))) == 1
    mixed = cluster(2)
    six = mixed.nodes[1].addresses.model_copy(update={"replication": ip_address("fd00::2")})
    nodes = (mixed.nodes[0], mixed.nodes[1].model_copy(update={"addresses": six}))
    assert len(corosync.links(mixed.model_copy(update={"nodes": nodes}))) == 1


def test_cluster_addresses_of_both_families_are_refused() -> None:
    mixed = cluster(2)
    six = mixed.nodes[1].addresses.model_copy(update={"cluster": ip_address("fd00::2")})
    nodes = (mixed.nodes[0], mixed.nodes[1].model_copy(update={"addresses": six}))
    with pytest.raises(Refused) as refused:
        render(mixed.model_copy(update={"nodes": nodes}), Layout())
    assert refused.value.code == "corosync-family"
    assert "n2 fd00::2" in refused.value.message


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (None, Whose.NOBODY),
        ("\n", Whose.NOBODY),
        (PACKAGED, Whose.PACKAGE),
        (PACKAGED.replace("127.0.0.1", "10.0.0.1"), Whose.SOMEBODY),
        (PACKAGED.replace("127.0.0.1", "n1.example.org"), Whose.SOMEBODY),
        (PACKAGED.replace("#ring1", "ring1"), Whose.SOMEBODY),
        ("totem {\n  version: 2\n}\n", Whose.SOMEBODY),
    ],
)
def test_whose_settings(text: str | None, owner: Whose) -> None:
    assert whose(text) is owner


# The tools

CMAP = """\
nodelist.local_node_pos (u32) = 0
nodelist.node.0.name (str) = n1
nodelist.node.0.nodeid (u32) = 1
nodelist.node.0.ring0_addr (str) = 10.0.0.1
nodelist.node.0.ring1_addr (str) = 10.0.1.1
nodelist.node.1.name (str) = n2
nodelist.node.1.nodeid (u32) = 2
nodelist.node.1.ring0_addr (str) = 10.0.0.2
nodelist.node.1.ring1_addr (str) = 10.0.1.2
quorum.two_node (u8) = 1
"""

LINKS = """\
Local node ID 1, transport knet
LINK ID 0 udp
\taddr\t= 10.0.0.1
\tstatus:
\t\tnodeid:          1:\tlocalhost
\t\tnodeid:          2:\tconnected
LINK ID 1 udp
\taddr\t= 10.0.1.1
\tstatus:
\t\tnodeid:          1:\tlocalhost
\t\tnodeid:          2:\tdisconnected
"""


class Tools:
    """A :class:`hactl.runner.Runner` that prints what was recorded, or fails as it is told."""

    def __init__(self, *, status: int = 0, missing: bool = False, late: bool = False) -> None:
        self.status = status
        self.missing = missing
        self.late = late
        self.ran: list[str] = []

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        self.ran.append(" ".join(argv))
        if self.missing:
            raise FileNotFoundError(argv[0])
        if self.late:
            raise CommandTimeout(tuple(argv), timeout)
        printed = {
            "corosync-cmapctl": CMAP,
            "corosync-cfgtool": LINKS,
            "crm_node": "1 n1 member\n2 n2 lost\n3 n3\n",
        }
        done = Completed(tuple(argv), self.status, "" if self.status else printed[argv[0]], "no connection")
        if check and done.status:
            raise CommandFailed(done)
        return done


async def test_what_the_tools_print_is_understood() -> None:
    tools = Tools()
    real = CorosyncRing(tools)
    assert await real.loaded() == wanted_keys(cluster(2))
    assert await real.links() == (Link(0, {2: "connected"}), Link(1, {2: "disconnected"}))
    assert await real.known() == (Known("n1", True), Known("n2", False), Known("n3", False))
    await real.reload()
    await real.forget("n2")
    assert tools.ran[-2:] == ["corosync-cfgtool -R", "crm_node --force --remove n2"]
    assert ring.known("") == ()


@pytest.mark.parametrize(
    ("tools", "kind", "codes"),
    [
        (Tools(status=1), Failed, ("corosync-failed", "pacemaker-failed")),
        (Tools(missing=True), Failed, ("program-missing", "program-missing")),
        (Tools(late=True), Unknown, ("corosync-timeout", "pacemaker-timeout")),
    ],
)
async def test_what_the_tools_cannot_do_is_told(
    tools: Tools, kind: type[Failed | Unknown], codes: tuple[str, str]
) -> None:
    real = CorosyncRing(tools)
    for work in (real.loaded, real.reload, real.links):
        with pytest.raises(kind) as error:
            await work()
        assert error.value.code == codes[0]
    with pytest.raises(kind) as asked:
        await real.known()
    assert asked.value.code == codes[1]


@pytest.mark.parametrize(
    ("state", "began", "found"),
    [
        ("active", 5, Standing.ACTIVE),
        ("activating", 0, Standing.ACTIVE),
        ("failed", 5, Standing.FALLEN),
        # Not started since the boot, as something it needs has failed.
        ("inactive", 0, Standing.FALLEN),
        ("inactive", 5, Standing.STOPPED),
    ],
)
def test_how_a_unit_is(state: str, began: int, found: Standing) -> None:
    assert standing(f"ActiveState={state}\nActiveEnterTimestampMonotonic={began}") is found


# The twin, whose rules are those of votequorum(5)


class Ring:
    """Nodes of a :class:`MemoryCorosync` with their files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.world = MemoryCorosync()
        self._folder = folder

    def write(self, count: int, *nodes: int, key: bytes = b"one") -> None:
        """The files for a cluster of so many nodes, on these."""
        for number in nodes:
            layout = Layout(self._folder / f"n{number}")
            layout.corosync_file.parent.mkdir(parents=True, exist_ok=True)
            layout.corosync_file.write_text(render(cluster(count), layout))
            layout.etc.mkdir(parents=True, exist_ok=True)
            layout.corosync_key.write_bytes(key)

    def start(self, *nodes: int) -> None:
        for number in nodes:
            self.world.start(f"n{number}", Layout(self._folder / f"n{number}").corosync_file)

    def quorate(self) -> list[str]:
        return [node for node in self.world.servers if self.world.quorate(node)]


def test_of_two_one_goes_on_alone_but_does_not_start_alone(tmp_path: Path) -> None:
    made = Ring(tmp_path)
    made.write(2, 1, 2)
    made.start(1)
    assert made.quorate() == []
    made.start(2)
    assert made.quorate() == ["n1", "n2"]
    made.world.stop("n1")
    assert made.quorate() == ["n2"]


def test_one_that_is_told_of_a_second_goes_on(tmp_path: Path) -> None:
    made = Ring(tmp_path)
    made.write(1, 1)
    made.start(1)
    assert made.quorate() == ["n1"]
    made.write(2, 1, 2)
    made.start(2)
    assert made.quorate() == ["n1"]
    assert made.world.members("n2") == {"n2"}
    made.world.reload()
    assert made.quorate() == ["n1", "n2"]


def test_another_key_is_another_cluster(tmp_path: Path) -> None:
    made = Ring(tmp_path)
    made.write(2, 1)
    made.write(2, 2, key=b"other")
    made.start(1, 2)
    assert made.quorate() == []


def test_of_three_two_are_needed(tmp_path: Path) -> None:
    made = Ring(tmp_path)
    made.write(3, 1, 2, 3)
    made.start(1)
    assert made.quorate() == []
    made.start(2)
    assert made.quorate() == ["n1", "n2"]
    made.start(3)
    made.world.stop("n1")
    made.world.stop("n2")
    assert made.quorate() == []
