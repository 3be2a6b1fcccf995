"""etcd's members through its own gRPC interface (rpc.proto: Cluster and Maintenance)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from hactl.cluster.certificates import Certificates
from hactl.cluster.members import NOT_YET, UNKNOWN, UNREACHABLE, Member, MemberStatus
from hactl.cluster.node_config import host_port
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.store.etcd_rpc import OPTIONS, rpc

T = TypeVar("T")
SECONDS = 7.0
"""For one request: longer than an election and etcd's own time-out of 7 s for a change of members."""
LOOK = 2.0
"""For a question to one member."""

# What etcd says (api/v3/v3rpc/rpctypes/error.go) when it refuses before anything was proposed and may not in
# a moment, and when there is nobody to ask.
_NOT_YET = (
    "unhealthy cluster",
    "learner member which is in sync with leader",
    "too many learner members",
    "not enough started members",
)
_NOBODY = ("no leader", "not supported for learner", "not capable", "failed to connect", "connections to all")
_REFUSED = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)


class GrpcMembers:
    """Keeps :class:`hactl.cluster.members.Members`. ``endpoints``: client URLs, asked in turn."""

    def __init__(self, endpoints: Sequence[str], certificates: Certificates) -> None:
        self._endpoints = tuple(endpoints)
        self._certificates = certificates
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def list(self) -> tuple[Member, ...]:
        return await self._any(self._list)

    async def add_learner(self, peer_url: str) -> None:
        async def add(channel: grpc.aio.Channel) -> None:
            request = rpc.MemberAddRequest(peerURLs=[peer_url], isLearner=True)
            await rpc.ClusterStub(channel).MemberAdd(request, timeout=SECONDS)

        await self._change("add a member", add)

    async def promote(self, member: int) -> None:
        async def promote(channel: grpc.aio.Channel) -> None:
            await rpc.ClusterStub(channel).MemberPromote(rpc.MemberPromoteRequest(ID=member), timeout=SECONDS)

        await self._change("promote the member", promote)

    async def remove(self, member: int) -> None:
        async def remove(channel: grpc.aio.Channel) -> None:
            try:
                await rpc.ClusterStub(channel).MemberRemove(
                    rpc.MemberRemoveRequest(ID=member), timeout=SECONDS
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise

        await self._change("remove the member", remove)

    async def move_leader(self, leader: Member, to: int) -> None:
        async def move(channel: grpc.aio.Channel) -> None:
            request = rpc.MoveLeaderRequest(targetID=to)
            await rpc.MaintenanceStub(channel).MoveLeader(request, timeout=SECONDS)

        try:
            await move(self._channel(leader.client_urls[0]))
        except grpc.aio.AioRpcError as error:
            raise _told("move the leadership", error) from None

    async def status(self, client_url: str) -> MemberStatus | None:
        try:
            stub = rpc.MaintenanceStub(self._channel(client_url))
            told = await stub.Status(rpc.StatusRequest(), timeout=LOOK)
        except grpc.aio.AioRpcError:
            return None
        return MemberStatus(
            id=told.header.member_id,
            leader=told.leader,
            version=told.version,
            db_size=told.dbSize,
            learner=told.isLearner,
            problems=tuple(told.errors),
            committed=told.raftIndex,
        )

    async def local_list(self, client_url: str) -> tuple[Member, ...] | None:
        try:
            request = rpc.MemberListRequest(linearizable=False)
            answer = await rpc.ClusterStub(self._channel(client_url)).MemberList(request, timeout=LOOK)
        except grpc.aio.AioRpcError:
            return None
        return _members(answer)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def _list(self, channel: grpc.aio.Channel) -> tuple[Member, ...]:
        request = rpc.MemberListRequest(linearizable=True)
        return _members(await rpc.ClusterStub(channel).MemberList(request, timeout=LOOK))

    async def _change(self, what: str, change: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
        """Ask for a change, once, at a member that has just shown a majority behind it: the request is not
        repeated elsewhere, as it may have been carried out."""
        working = await self._any(self._working)
        try:
            await change(working)
        except grpc.aio.AioRpcError as error:
            raise _told(what, error) from None

    async def _working(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        await self._list(channel)
        return channel

    async def _any(self, question: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
        why: list[str] = []
        for endpoint in self._endpoints:
            try:
                return await question(self._channel(endpoint))
            except grpc.aio.AioRpcError as error:
                # gRPC's details tell of every layer; the last one is what happened.
                words = (error.details() or error.code().name.lower()).rpartition(": ")[2]
                why.append(f"{endpoint}: {words}")
        raise Refused(
            UNREACHABLE,
            "no member of the store answers with a majority behind it: " + "; ".join(why),
            "see systemctl status hactl-etcd on the nodes, and the cluster network",
        )

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if endpoint not in self._channels:
            address, port = host_port(endpoint)
            target = f"ipv6:[{address}]:{port}" if address.version == 6 else f"ipv4:{address}:{port}"
            c = self._certificates
            try:
                credentials = grpc.ssl_channel_credentials(
                    c.ca.read_bytes(), c.key.read_bytes(), c.certificate.read_bytes()
                )
            except OSError as error:
                raise Failed("tls", f"cannot use the certificates in {c.ca.parent}: {error}") from None
            self._channels[endpoint] = grpc.aio.secure_channel(target, credentials, options=OPTIONS)
        return self._channels[endpoint]


def _members(answer: Any) -> tuple[Member, ...]:
    found = (
        Member(m.ID, m.name, tuple(m.peerURLs), tuple(m.clientURLs), m.isLearner) for m in answer.members
    )
    return tuple(sorted(found, key=lambda m: (m.name, m.id)))


def _told(what: str, error: grpc.aio.AioRpcError) -> HactlError:
    """etcd's answer as one of hactl's errors: refused only where nothing can have been changed."""
    words = error.details() or ""
    message = f"etcd did not {what}: {words or error.code().name.lower()}"
    if any(text in words for text in _NOT_YET):
        return Refused(NOT_YET, message, "try again in a moment; see: hactl cluster status")
    if any(text in words for text in _NOBODY):
        return Refused(UNREACHABLE, message, "see: hactl cluster status")
    if error.code() in _REFUSED:
        return Refused("etcd-refused", message, "see: hactl cluster status")
    return Unknown(UNKNOWN, message, "see: hactl cluster status")
