"""The machine that hactl runs on, as far as making or joining a cluster asks about it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from hactl.errors import Failed
from hactl.model.spec import IpAddress, PoolSpec
from hactl.runner import CommandFailed, CommandTimeout, Runner

ETCD = Path("/usr/bin/etcd")
REACH = 2.0
"""Seconds: longer than one lost packet costs (RFC 6298: 1 s)."""


class Machine(Protocol):
    """Questions only; kept by ``LocalMachine`` and ``memory_machine.MemoryMachine``."""

    def is_root(self) -> bool:
        """Whether this process may change the machine."""
        ...

    def hostname(self) -> str:
        """``uname -n``."""
        ...

    async def addresses(self) -> tuple[IpAddress, ...]:
        """Addresses that other machines can reach: no loopback and no link-local ones."""
        ...

    def in_use(self, address: IpAddress, port: int, *, udp: bool = False) -> bool:
        """Whether something listens on that port of this address."""
        ...

    async def reaches(self, address: IpAddress, port: int) -> bool:
        """Whether somebody takes a TCP connection there, within :data:`REACH` seconds."""
        ...

    def has_etcd(self) -> bool:
        """Whether etcd is installed."""
        ...

    def has_program(self, path: Path) -> bool:
        """Whether there is such a program."""
        ...

    def installed(self) -> datetime:
        """When hactl was installed, UTC: the clock cannot be right if it is earlier."""
        ...

    async def pool_fault(self, pool: PoolSpec) -> str:
        """Why a pool cannot be used here; empty if it can."""
        ...


class LocalMachine:
    """Keeps :class:`Machine` for this machine."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def hostname(self) -> str:
        return os.uname().nodename

    async def addresses(self) -> tuple[IpAddress, ...]:
        try:
            told = await self._runner.run(["ip", "-json", "address", "show", "up"])
            links = json.loads(told.stdout or "[]")
        except (CommandFailed, CommandTimeout, OSError, ValueError) as error:
            raise Failed("program-missing", f"cannot list addresses: {error}", "install iproute2") from None
        return tuple(
            ip_address(info["local"])
            for link in links
            for info in link.get("addr_info", [])
            if info.get("scope") == "global" and not info.get("temporary") and not info.get("deprecated")
        )

    def in_use(self, address: IpAddress, port: int, *, udp: bool = False) -> bool:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        with socket.socket(family, kind | socket.SOCK_CLOEXEC) as trial:
            if not udp:
                # Connections that have just ended must not count; a listener does all the same.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((str(address), port))
                if not udp:
                    trial.listen(1)
            except OSError as error:
                return error.errno == errno.EADDRINUSE
        return False

    async def reaches(self, address: IpAddress, port: int) -> bool:
        try:
            async with asyncio.timeout(REACH):
                _, writer = await asyncio.open_connection(str(address), port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    def has_etcd(self) -> bool:
        return self.has_program(ETCD)

    def has_program(self, path: Path) -> bool:
        return os.access(path, os.X_OK)

    def installed(self) -> datetime:
        return datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC)

    async def pool_fault(self, pool: PoolSpec) -> str:
        if pool.files is not None:
            folder = pool.files.path
            return "" if os.path.isdir(folder) else f"there is no folder {folder}"  # noqa: ASYNC240, PTH112
        if pool.lvm is not None:
            return await self._lvm(
                ["vgs", "--noheadings", "-o", "vg_name", "--", pool.lvm.vg], "volume group"
            )
        thin = pool.lvm_thin
        assert thin is not None  # one of the three: PoolSpec
        pair = f"{thin.vg}/{thin.thin_pool}"
        return await self._lvm(["lvs", "--noheadings", "-o", "segtype", "--", pair], "thin pool")

    async def _lvm(self, argv: Sequence[str], what: str) -> str:
        try:
            found = await self._runner.run(argv, timeout=20)
        except FileNotFoundError:
            return f"{argv[0]} is not installed: install lvm2"
        except CommandTimeout as error:
            return str(error)
        except CommandFailed:
            return f"there is no {what} {argv[-1]}"
        if what == "thin pool" and found.stdout.strip() != "thin-pool":
            return f"{argv[-1]} is no thin pool but {found.stdout.strip()}"
        return ""
