"""A machine as making or joining a cluster sees it, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hactl.model.spec import IpAddress, PoolSpec


class MemoryMachine:
    """Keeps :class:`hactl.cluster.machine.Machine`; a test changes what it answers."""

    def __init__(self, hostname: str, addresses: Sequence[IpAddress]) -> None:
        self.name = hostname
        self.here = tuple(addresses)
        self.root = True
        self.etcd = True
        self.missing: set[Path] = set()
        """Programs that are not installed."""
        self.ports: set[tuple[IpAddress, int]] = set()
        self.others: set[tuple[IpAddress, int]] = set()
        """Ports of other machines that take connections."""
        self.pools: set[str] = set()
        """Names of pools that can be used."""
        self.since = datetime(2026, 1, 1, tzinfo=UTC)

    def is_root(self) -> bool:
        return self.root

    def hostname(self) -> str:
        return self.name

    async def addresses(self) -> tuple[IpAddress, ...]:
        return self.here

    def in_use(self, address: IpAddress, port: int, *, udp: bool = False) -> bool:  # noqa: ARG002 - as its protocol
        return (address, port) in self.ports

    async def reaches(self, address: IpAddress, port: int) -> bool:
        return (address, port) in self.others

    def has_etcd(self) -> bool:
        return self.etcd

    def has_program(self, path: Path) -> bool:
        return path not in self.missing

    def installed(self) -> datetime:
        return self.since

    async def pool_fault(self, pool: PoolSpec) -> str:
        return "" if pool.name in self.pools else f"there is no place for {pool.name}"
