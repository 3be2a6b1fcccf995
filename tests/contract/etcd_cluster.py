"""A real etcd of three members with TLS on loopback ports, that tests can hurt and heal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from hactl.store.etcd import Tls
from hactl.store.etcd_rpc import LEADER_NEEDED, OPTIONS, rpc
from tests.contract.etcd_servers import Host
from tests.contract.tls import Authority

MEMBERS = 3
_STARTUP = 30.0
"""Seconds for the members to find each other, on a machine that is busy with other things."""


class EtcdCluster:
    """``folder``: for data, certificates and logs."""

    def __init__(self, folder: Path, host: Host) -> None:
        self._folder = folder
        self._host = host
        self.authority = Authority(folder / "tls")
        self.tls: Tls = self.authority.issue("client")
        ports = host.ports(2 * MEMBERS)
        self.endpoints = tuple(f"https://127.0.0.1:{port}" for port in ports[:MEMBERS])
        self._peers = tuple(f"https://127.0.0.1:{port}" for port in ports[MEMBERS:])
        server = self.authority.issue("server")
        self._servers = [
            host.server(f"m{index}", self._arguments(index, server), folder) for index in range(MEMBERS)
        ]
        self._up = [False] * MEMBERS

    def _arguments(self, index: int, tls: Tls) -> list[str]:
        client, peer = self.endpoints[index], self._peers[index]
        return [
            "--name", f"m{index}", "--data-dir", str(self._folder / f"m{index}"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", ",".join(f"m{i}={url}" for i, url in enumerate(self._peers)),
            "--initial-cluster-token", str(self._folder),
            "--client-cert-auth", "--trusted-ca-file", str(tls.ca),
            "--cert-file", str(tls.cert), "--key-file", str(tls.key),
            "--peer-client-cert-auth", "--peer-trusted-ca-file", str(tls.ca),
            "--peer-cert-file", str(tls.cert), "--peer-key-file", str(tls.key),
            "--logger", "zap",
        ]  # fmt: skip

    def kill(self, index: int) -> None:
        """As by a power failure."""
        self._servers[index].kill()
        self._up[index] = False

    def pause(self, index: int) -> None:
        """Silent from now on; connections stay open."""
        self._servers[index].pause()

    async def heal(self) -> None:
        """All members run, follow one leader and have applied what it has."""
        for index, server in enumerate(self._servers):
            if self._up[index]:
                server.resume()
            else:
                server.start()
                self._up[index] = True
        end = time.monotonic() + _STARTUP
        while not await self._agree():
            for index, server in enumerate(self._servers):
                if not server.running():
                    log = (self._folder / f"m{index}.log").read_text()
                    raise RuntimeError(f"etcd ended: {log[-2000:]}")
            assert time.monotonic() < end, "etcd's members do not agree in time"
            await asyncio.sleep(0.05)

    async def _agree(self) -> bool:
        found = []
        for index in range(MEMBERS):
            try:
                found.append(await self.status(index))
            except grpc.aio.AioRpcError:
                return False
        leaders = {status.leader for status in found}
        return len(leaders) == 1 and 0 not in leaders and len({status.raftTerm for status in found}) == 1

    async def status(self, index: int) -> Any:
        """What a member says of itself."""
        async with self._channel(index) as channel:
            return await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=1)

    async def leader(self) -> int:
        """Index of the leader, when all agree on it."""
        for index in range(MEMBERS):
            status = await self.status(index)
            if status.leader == status.header.member_id:
                return index
        raise AssertionError("no leader")

    async def move_leader(self) -> int:
        """Hand the lead to another member; its index."""
        old = await self.leader()
        new = (old + 1) % MEMBERS
        target = (await self.status(new)).header.member_id
        async with self._channel(old) as channel:
            await rpc.MaintenanceStub(channel).MoveLeader(rpc.MoveLeaderRequest(targetID=target), timeout=10)
        return new

    async def compact(self, asked: int = 0) -> None:
        """Forget all history up to now."""
        async with self._channel(asked) as channel:
            kv = rpc.KVStub(channel)
            now = await kv.Range(rpc.RangeRequest(key=b"\0"), timeout=5, metadata=LEADER_NEEDED)
            if now.header.revision > 1:
                # Twice is refused; that is as good.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await kv.Compact(
                        rpc.CompactionRequest(revision=now.header.revision, physical=True), timeout=5
                    )

    async def wipe(self) -> None:
        """Remove all keys."""
        async with self._channel(0) as channel:
            await rpc.KVStub(channel).DeleteRange(
                rpc.DeleteRangeRequest(key=b"\0", range_end=b"\0"), timeout=5
            )

    @contextlib.asynccontextmanager
    async def _channel(self, index: int) -> AsyncIterator[grpc.aio.Channel]:
        credentials = grpc.ssl_channel_credentials(
            self.tls.ca.read_bytes(), self.tls.key.read_bytes(), self.tls.cert.read_bytes()
        )
        address = self.endpoints[index].removeprefix("https://")
        async with grpc.aio.secure_channel(address, credentials, options=OPTIONS) as channel:
            yield channel
