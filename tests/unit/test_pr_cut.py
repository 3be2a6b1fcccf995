"""Cutting hosts off: what is asked of nftables, and of traffic control where that cannot do it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hactl.errors import Failed
from hactl.pr_sync.cut import cut_off
from hactl.runner import CommandFailed, Completed

HOSTS = {"192.0.2.11", "2001:db8::11"}


class Tools:
    """nft, ip and tc, as far as they are asked. ``broken``: how commands fail, by their first two words."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.ran: list[tuple[str, ...]] = []
        self.tables: list[str] = []

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
