"""Ending initiators' connections in such a way that nothing that is said later reaches them.

Packets of these connections are answered with a reset in both directions (nftables, reject with tcp reset):
what LIO answers from then on comes back to it as a broken connection. Rules are per host, not per connection:
which of a host's connections is the one that waits is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Collection
from ipaddress import ip_address

import structlog

from hactl.errors import Failed
from hactl.runner import CommandFailed, CommandTimeout, Runner

_numbers = itertools.count(1)
_log = structlog.get_logger("hactl.pr")
PORT = 3260


@contextlib.asynccontextmanager
async def cut_off(runner: Runner, hosts: Collection[str]) -> AsyncIterator[None]:
    """Nothing passes between LIO's port on this node and these addresses until the block ends."""
    table = f"hactl-cut-{next(_numbers)}"
    rules = [f"add table inet {table}"]
    for chain, peer, port in (("input", "saddr", "dport"), ("output", "daddr", "sport")):
        rules.append(f"add chain inet {table} {chain} {{ type filter hook {chain} priority -300; }}")
        for host in sorted(hosts):
            family = "ip6" if ip_address(host).version == 6 else "ip"
            match = f"{family} {peer} {host} tcp {port} {PORT}"
            rules.append(f"add rule inet {table} {chain} {match} reject with tcp reset")
    try:
        await runner.run(["nft", "-f", "-"], stdin="\n".join(rules) + "\n")
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
        await asyncio.shield(_remove(runner, table))


async def _remove(runner: Runner, table: str) -> None:
    try:
        await runner.run(["nft", "delete", "table", "inet", table])
    except (CommandFailed, CommandTimeout, OSError) as error:
        _log.error("hosts stay cut off", table=table, error=str(error))
