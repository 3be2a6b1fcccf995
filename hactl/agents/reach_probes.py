"""How a node finds out who answers on its storage network: ICMP echo, TCP, and what the kernel knows of links
and sessions."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import re
import socket
import struct
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import structlog

from hactl.model.spec import ISCSI_PORT, IpAddress
from hactl.runner import CommandFailed, CommandTimeout, Runner

_TOKEN = 16
"""Bytes that tell an answer to this question from all others."""
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
"""Types of ICMP echo messages (RFC 792, RFC 4443)."""
_NO_LINK = frozenset({"DOWN", "LOWERLAYERDOWN", "NOTPRESENT"})
"""States of an interface that carries nothing (RFC 2863 ifOperStatus, as ip(8) words them); UNKNOWN is what
drivers say that do not tell."""
_PROGRAM = 2.0
"""Seconds for a program that only asks the kernel."""
_log = structlog.get_logger("hactl.agent")


class StorageProbes(Protocol):
    """Questions of one node; kept by :class:`KernelProbes` and, in memory,
    :class:`hactl.agents.memory_reach.MemoryProbes`.

    None raises because somebody does not answer, or the kernel does not know.
    """

    async def echo(
        self, portals: Collection[IpAddress], targets: Collection[IpAddress], seconds: float
    ) -> frozenset[IpAddress]:
        """Those of this node's portals that got an answer, from any of the targets, to an ICMP echo request
        sent from there; ends when all have, or after so many seconds."""
        ...

    async def connect(
        self, portals: Collection[IpAddress], targets: Collection[IpAddress], seconds: float
    ) -> frozenset[IpAddress]:
        """The same by a TCP connection to the iSCSI port, which may be refused: that is an answer, too. LIO
        logs a login that failed for each that it accepts, so this is for when nothing else helps."""
        ...

    async def faults(self, portals: Collection[IpAddress]) -> Mapping[IpAddress, str]:
        """Portals that cannot be reached for certain, and why, in words that follow the address."""
        ...

    async def hosts(self, portals: Collection[IpAddress]) -> Mapping[IpAddress, float]:
        """Who has an iSCSI connection to one of the portals, and how many seconds ago that one last sent
        something: infinite if that is not known."""
        ...


class KernelProbes:
    """Keeps :class:`StorageProbes` on the real network. Needs CAP_NET_RAW for the echo requests: the other
    way, ICMP sockets without it, is closed by default (icmp(7), ping_group_range)."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._complained = False

    async def echo(
        self, portals: Collection[IpAddress], targets: Collection[IpAddress], seconds: float
    ) -> frozenset[IpAddress]:
        found = await asyncio.gather(*(self._echo(p, targets, seconds) for p in portals))
        return frozenset(p for p, answered in zip(portals, found, strict=True) if answered)

    async def _echo(self, portal: IpAddress, targets: Collection[IpAddress], seconds: float) -> bool:
        fitting = {str(t) for t in targets if t.version == portal.version and t != portal}
        if not fitting:
            return False
        token = os.urandom(_TOKEN)
        try:
            with _icmp(portal) as asking:
                async with asyncio.timeout(seconds):
                    return await _answered(asking, portal.version, fitting, token)
        except TimeoutError:
            return False
        except PermissionError as error:
            if not self._complained:
                _log.warning("echo requests cannot be sent", error=str(error))
            self._complained = True
            return False
        except OSError:
            # The address is not there, or there is no way: as good as no answer.
            return False

    async def connect(
        self, portals: Collection[IpAddress], targets: Collection[IpAddress], seconds: float
    ) -> frozenset[IpAddress]:
        pairs = [(p, t) for p in portals for t in targets if p.version == t.version and p != t]
        found = await asyncio.gather(*(_connected(p, t, seconds) for p, t in pairs))
        return frozenset(p for (p, _), answered in zip(pairs, found, strict=True) if answered)

    async def faults(self, portals: Collection[IpAddress]) -> Mapping[IpAddress, str]:
        told = await self._told("ip", "-json", "address", "show")
        return {} if told is None else portal_faults(told, portals)

    async def hosts(self, portals: Collection[IpAddress]) -> Mapping[IpAddress, float]:
        told = await self._told("ss", "-tinHO", "state", "established", f"( sport = :{ISCSI_PORT} )")
        return {} if told is None else host_silence(told, portals)

    async def _told(self, *argv: str) -> str | None:
        try:
            return (await self._runner.run(argv, timeout=_PROGRAM)).stdout
        except (CommandFailed, CommandTimeout, OSError) as error:
            _log.info("not known", asked=argv[0], error=str(error))
            return None


# ICMP


def _icmp(portal: IpAddress) -> socket.socket:
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        if portal.version == 6
        else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        made.bind((str(portal), 0))
    except OSError:
        made.close()
        raise
    return made


async def _answered(asking: socket.socket, version: int, targets: Collection[str], token: bytes) -> bool:
    loop = asyncio.get_running_loop()
    request, sent = echo_request(version, token), False
    for target in targets:
        try:
            await loop.sock_sendto(asking, request, (target, 0))
        except OSError:
            # No way to this one.
            continue
        sent = True
    while sent:
        # Every ICMP message to this address comes here, whoever it is meant for.
        message, address = await loop.sock_recvfrom(asking, 2048)
        if address[0] in targets and is_reply(version, message, token):
            return True
    return False


def echo_request(version: int, token: bytes) -> bytes:
    """An ICMP echo request with ``token`` for its data (RFC 792); of version 6 without a checksum, which the
    kernel adds (RFC 3542, 3.1)."""
    unsummed = struct.pack("!BBHHH", _REQUEST[version], 0, 0, 0, 0) + token
    if version == 6:
        return unsummed
    return unsummed[:2] + struct.pack("!H", _checksum(unsummed)) + unsummed[4:]


def is_reply(version: int, message: bytes, token: bytes) -> bool:
    """Whether what a raw socket gave is the answer to the request with that token. Of version 4 it begins
    with the IP header (raw(7))."""
    start = (message[0] & 15) * 4 if version == 4 and message else 0
    icmp = message[start:]
    return len(icmp) >= 8 and icmp[0] == _REPLY[version] and icmp[8 : 8 + len(token)] == token


def _checksum(message: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# TCP


async def _connected(portal: IpAddress, target: IpAddress, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(str(target), ISCSI_PORT, local_addr=(str(portal), 0))
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


# What the kernel knows


def portal_faults(told: str, portals: Collection[IpAddress]) -> dict[IpAddress, str]:
    """What is wrong with portals' addresses and their interfaces, from ``ip -json address show``; nothing if
    that is not what was expected."""
    try:
        links: list[dict[str, Any]] = json.loads(told or "[]")
        where = {ipaddress.ip_address(info["local"]): link for link in links for info in link["addr_info"]}
    except (ValueError, KeyError, TypeError):
        return {}
    found = {}
    for portal in portals:
        link = where.get(portal)
        if link is None:
            found[portal] = "is on no interface"
        elif link.get("operstate") in _NO_LINK or "UP" not in link.get("flags", ()):
            found[portal] = f"is on {link.get('ifname')}, which has no link"
    return found


def host_silence(told: str, portals: Collection[IpAddress]) -> dict[IpAddress, float]:
    """How long the peers of connections to the portals have been silent, in seconds, from ``ss -tinHO`` with
    a filter for a state. It leaves a time out that is zero, and all of them if the kernel tells none."""
    found: dict[IpAddress, float] = {}
    for line in told.splitlines():
        words = line.split()
        if len(words) < 4:
            continue
        portal, host = _address(words[2]), _address(words[3])
        if portal not in portals or host is None:
            continue
        times = {k: int(v) / 1000 for k, v in re.findall(r"\b(lastrcv|rto):(\d+)", line)}
        silence = times.get("lastrcv", 0.0) if times else math.inf
        found[host] = min(silence, found.get(host, math.inf))
    return found


def _address(text: str) -> IpAddress | None:
    """The address of ``10.0.0.1:3260``, ``[fd00::1]:3260`` or ``[fe80::1%eth0]:3260``."""
    plain = text.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(plain)
    except ValueError:
        return None
