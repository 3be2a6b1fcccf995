"""Cutting hosts off: what is asked of nftables, and of traffic control where that cannot do it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from hactl.errors import Failed
from hactl.pr_sync.cut import cut_off, end_all, peers
from hactl.runner import CommandFailed, Completed

HOSTS = {"192.0.2.11", "2001:db8::11"}


class Tools:
    """nft, ip and tc, as far as they are asked. ``broken``: how commands fail, by their first two words."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.ran: list[tuple[str, ...]] = []
        self.tables: list[str] = []
        self.listed = ""
        self.shown: dict[tuple[str, ...], list[dict[str, object]]] = {}

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        argv = tuple(argv)
        self.ran.append(argv)
        why = self.broken.get("_".join(argv[:2]))
        if why is not None:
            done = Completed(argv, 1, "", why)
            if check:
                raise CommandFailed(done)
            return done
        if stdin is not None:
            self.tables.append(stdin)
        if argv == ("nft", "list", "tables"):
            return Completed(argv, 0, self.listed, "")
        if argv[:2] == ("tc", "-j"):
            return Completed(argv, 0, json.dumps(self.shown.get(argv[2:], [])), "")
        out = f"{argv[-1]} via 192.0.2.1 dev eth3 src 192.0.2.2\n" if argv[0] == "ip" else ""
        return Completed(argv, 0, out, "")


async def test_both_directions_are_reset_for_each_host_and_only_meanwhile() -> None:
    tools = Tools()
    async with cut_off(tools, HOSTS):
        (table,) = tools.tables
        for line in (
            "input ip saddr 192.0.2.11 tcp dport 3260 reject with tcp reset",
            "output ip daddr 192.0.2.11 tcp sport 3260 reject with tcp reset",
            "input ip6 saddr 2001:db8::11 tcp dport 3260 reject with tcp reset",
            "output ip6 daddr 2001:db8::11 tcp sport 3260 reject with tcp reset",
        ):
            assert line in table
        assert len(tools.ran) == 1
    name = table.split()[3]
    assert tools.ran[-1] == ("nft", "delete", "table", "inet", name)


async def test_it_ends_also_when_what_it_was_for_fails() -> None:
    tools = Tools()
    with pytest.raises(RuntimeError):
        async with cut_off(tools, HOSTS):
            raise RuntimeError
    assert tools.ran[-1][:3] == ("nft", "delete", "table")


async def test_a_kernel_without_nftables_families_does_it_with_traffic_control() -> None:
    tools = Tools()
    tools.broken = {"nft_-f": "Error: Could not process rule: Operation not supported"}
    async with cut_off(tools, HOSTS):
        added = [argv for argv in tools.ran if argv[:3] == ("tc", "filter", "add")]
        assert [argv[argv.index("dst_ip") + 1] for argv in added] == sorted(HOSTS)
        assert [argv[argv.index("protocol") + 1] for argv in added] == ["ip", "ipv6"]
        assert all("eth3" in argv for argv in added)
    removed = [argv for argv in tools.ran if argv[:3] == ("tc", "filter", "del")]
    assert len(removed) == len(added)
    for there, gone in zip(added, removed, strict=True):
        # The same place: device, direction, preference and protocol.
        assert there[3 : len(gone)] == gone[3:]


async def test_what_was_begun_is_taken_back_when_it_cannot_be_done() -> None:
    tools = Tools()
    tools.broken = {"nft_-f": "Operation not supported", "ip_-o": "unreachable"}
    with pytest.raises(Failed) as failed:
        async with cut_off(tools, HOSTS):
            raise AssertionError("not reached")
    assert failed.value.code == "pr-cut-failed"
    assert not [argv for argv in tools.ran if argv[:3] == ("tc", "filter", "add")]
    tools = Tools()
    tools.broken = {"nft_-f": "nft: no such table"}
    with pytest.raises(Failed):
        async with cut_off(tools, HOSTS):
            raise AssertionError("not reached")


async def test_what_a_killed_process_left_is_removed_and_nothing_else() -> None:
    tools = Tools()
    tools.listed = "table inet filter\ntable inet hactl-cut-3\ntable ip hactl-cut-4\ntable inet hactl-cut-7\n"
    await end_all(tools)
    assert tools.ran[1:3] == [("nft", "delete", "table", "inet", f"hactl-cut-{n}") for n in (3, 7)]
    tools = Tools()
    tools.broken = {"nft_list": "no such command"}
    tools.shown = {
        ("qdisc", "show"): [{"kind": "fq_codel", "dev": "eth0"}, {"kind": "clsact", "dev": "eth3"}],
        ("filter", "show", "dev", "eth3", "egress"): [{"pref": 26064}, {"pref": 26064}, {"pref": 30}, {}],
    }
    await end_all(tools)
    removed = [argv for argv in tools.ran if "del" in argv or "delete" in argv]
    assert removed == [("tc", "filter", "del", "dev", "eth3", "egress", "pref", "26064")]
    tools.broken = {"nft_list": "no such command", "tc_-j": "no such command"}
    await end_all(tools)


def test_who_is_connected_is_read_from_the_kernels_tables(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    order = -1 if sys.byteorder == "little" else 1

    def words(address: str) -> str:
        data = ip_address(address).packed
        return b"".join(data[at : at + 4][::order] for at in range(0, len(data), 4)).hex().upper()

    def line(number: int, local: str, port: int, remote: str, state: str) -> str:
        return f"{number:4}: {words(local)}:{port:04X} {words(remote)}:C001 {state} 00000000:00000000 00:0\n"

    v4 = [
        ("192.0.2.11", 3260, "01"),
        ("192.0.2.12", 22, "01"),
        ("0.0.0.0", 3260, "0A"),
        ("127.0.0.1", 3260, "01"),
    ]
    v6 = [("2001:db8::11", 3260, "08"), ("::ffff:192.0.2.13", 3260, "01")]
    (tmp_path / "net" / "tcp").write_text(
        "head\n" + "".join(line(n, "192.0.2.1", port, ip, s) for n, (ip, port, s) in enumerate(v4))
    )
    (tmp_path / "net" / "tcp6").write_text(
        "head\n" + "".join(line(n, "2001:db8::1", port, ip, s) for n, (ip, port, s) in enumerate(v6))
    )
    assert peers(tmp_path) == {"192.0.2.11", "2001:db8::11", "192.0.2.13"}
