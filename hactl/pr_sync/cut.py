"""Ending initiators' connections in such a way that nothing that is said later reaches them.

Packets of these connections are answered with a reset in both directions (nftables, reject with tcp reset):
what LIO answers from then on comes back to it as a broken connection. Rules are per host, not per connection:
which of a host's connections is the one that waits is not known, as LIO tells neither the ports of its
connections nor which thread of its serves which.

Where the kernel's nftables cannot do that (user-mode Linux has none of its families), traffic control turns
every segment that leaves port 3260 for these hosts into a reset with the sequence number that it has, so the
initiator's end is gone and answers what LIO repeats later with a reset of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator, Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import structlog

from hactl.errors import Failed
from hactl.runner import CommandFailed, CommandTimeout, Runner

_numbers = itertools.count(1)
_log = structlog.get_logger("hactl.pr")
PORT = 3260
_LISTENS = "0A"
_PREFIX = "hactl-cut-"
_PREFS = range(26000, 26000 + 64 * 64)
"""Preferences of this module's filters of traffic control: 64 for each block."""


@contextlib.asynccontextmanager
async def cut_off(runner: Runner, hosts: Collection[str]) -> AsyncIterator[None]:
    """Nothing passes between LIO's port on this node and these addresses until the block ends."""
    number = next(_numbers)
    try:
        try:
            await runner.run(["nft", "-f", "-"], stdin=_table(number, hosts))
            undo = [["nft", "delete", "table", "inet", _name(number)]]
        except CommandFailed as error:
            if "Operation not supported" not in error.completed.stderr:
                raise
            undo = await _with_tc(runner, number, hosts)
    except (CommandFailed, CommandTimeout, OSError) as error:
        raise Failed(
            "pr-cut-failed",
            f"initiators cannot be cut off: {error}",
            "install nftables; until then commands that were not committed wait for ever",
        ) from None
    try:
        yield
    finally:
        # Cancelled or not: a rule that stays would keep hosts out for good.
        await asyncio.shield(_remove(runner, undo))


def peers(proc: Path = Path("/proc")) -> set[str]:
    """Addresses that are connected with port 3260 of this node."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            local, remote, state = line.split()[1:4]
            if int(local.rpartition(":")[2], 16) == PORT and state != _LISTENS:
                address = _address(remote.rpartition(":")[0])
                if not address.is_loopback:
                    found.add(str(address))
    return found


def _address(text: str) -> IPv4Address | IPv6Address:
    """From the kernel's tables: words of four bytes in the machine's order."""
    words = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    data = b"".join(words)
    if len(data) == 4:
        return IPv4Address(data)
    return IPv6Address(data).ipv4_mapped or IPv6Address(data)


async def end_all(runner: Runner) -> None:
    """Let everybody in whom a process before this one has cut off, and was killed before it ended that."""
    try:
        shown = (await runner.run(["nft", "list", "tables"])).stdout
        for line in shown.splitlines():
            name = line.removeprefix("table inet ")
            if name != line and name.startswith(_PREFIX):
                await runner.run(["nft", "delete", "table", "inet", name])
    except (CommandFailed, CommandTimeout, OSError) as error:
        # Without nftables there are none.
        _log.info("rules that cut hosts off cannot be listed", error=str(error))
    try:
        for qdisc in json.loads((await runner.run(["tc", "-j", "qdisc", "show"])).stdout or "[]"):
            if qdisc["kind"] == "clsact":
                await _remove_filters(runner, ["dev", qdisc["dev"], "egress"])
    except (CommandFailed, CommandTimeout, OSError, ValueError) as error:
        _log.info("filters that cut hosts off cannot be listed", error=str(error))


async def _remove_filters(runner: Runner, place: list[str]) -> None:
    """All of this module's at one hook of an interface."""
    shown = json.loads((await runner.run(["tc", "-j", "filter", "show", *place])).stdout or "[]")
    for pref in {one["pref"] for one in shown if one.get("pref") in _PREFS}:
        await runner.run(["tc", "filter", "del", *place, "pref", str(pref)])


def _name(number: int) -> str:
    return f"{_PREFIX}{number}"


def _table(number: int, hosts: Collection[str]) -> str:
    table = _name(number)
    rules = [f"add table inet {table}"]
    for chain, peer, port in (("input", "saddr", "dport"), ("output", "daddr", "sport")):
        rules.append(f"add chain inet {table} {chain} {{ type filter hook {chain} priority -300; }}")
        for host in sorted(hosts):
            family = "ip6" if ip_address(host).version == 6 else "ip"
            match = f"{family} {peer} {host} tcp {port} {PORT}"
            rules.append(f"add rule inet {table} {chain} {match} reject with tcp reset")
    return "\n".join(rules) + "\n"


async def _with_tc(runner: Runner, number: int, hosts: Collection[str]) -> list[list[str]]:
    """The same by traffic control; what undoes it."""
    undo: list[list[str]] = []
    try:
        for at, host in enumerate(sorted(hosts)):
            version = ip_address(host).version
            family = "ipv6" if version == 6 else "ip"
            route = (await runner.run(["ip", "-o", f"-{version}", "route", "get", host])).stdout.split()
            device = route[route.index("dev") + 1]
            # Fails if it is there already.
            await runner.run(["tc", "qdisc", "add", "dev", device, "clsact"], check=False)
            place = [
                "dev",
                device,
                "egress",
                "pref",
                str(_PREFS.start + number * 64 % len(_PREFS) + at % 64),
                "protocol",
                family,
            ]
            match = ["flower", "ip_proto", "tcp", "src_port", str(PORT), "dst_ip", host]
            # RST and ACK.
            reset = ["action", "pedit", "ex", "munge", "tcp", "flags", "set", "0x14"]
            await runner.run(["tc", "filter", "add", *place, *match, *reset, "pipe", "action", "csum", "tcp"])
            undo.append(["tc", "filter", "del", *place])
    except BaseException:
        await asyncio.shield(_remove(runner, undo))
        raise
    return undo


async def _remove(runner: Runner, undo: list[list[str]]) -> None:
    for argv in undo:
        try:
            await runner.run(argv)
        except (CommandFailed, CommandTimeout, OSError) as error:
            _log.error("hosts stay cut off", command=" ".join(argv), error=str(error))
