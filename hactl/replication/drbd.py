"""DRBD of this node through drbd-utils; keeps :class:`hactl.replication.protocol.Replication`.

drbd-utils 9 drives both kernels: on DRBD 8.4 it hands over to its compatible tools, whose ``primary``,
``secondary`` and ``new-current-uuid`` take a minor where those of DRBD 9 take a resource (drbdsetup-8.4(8),
drbdsetup-9.0(8)).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

import structlog

from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication import config, events2, metadata, proc
from hactl.replication.drbdmeta import DrbdMeta
from hactl.replication.errors import refusal
from hactl.replication.state import ConnectionState, DiskState, ReplicationState, ResourceState, Role
from hactl.replication.stream import Lines, stream_lines
from hactl.runner import CommandFailed, CommandTimeout, Completed, Runner
from hactl.thread import in_thread

log = structlog.get_logger(__name__)

_EVENTS = ("drbdsetup", "events2", "--timestamps", "--statistics")
# The code and not DRBD_KERNEL_VERSION, which the tools for 8.4 do not print: 0x090210 is 9.2.16.
_KERNEL_VERSION = re.compile(r"^DRBD_KERNEL_VERSION_CODE=0x([0-9a-f]{6})$", re.MULTILINE)
_UNKNOWN_RESOURCE = "(158)"
_BACKOFF = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds to wait before an event stream is begun anew, by how many broke in a row before their dump was
over."""


class Drbd:
    """DRBD on the node this runs on; ``node`` is its name in the specification, which must be its host name.

    ``role_timeout`` bounds changes of role, in seconds; ``timeout`` everything else that does not copy data.
    """

    def __init__(
        self,
        runner: Runner,
        config_dir: Path = Path("/etc/drbd.d"),
        *,
        node: str | None = None,
        stream: Callable[[Sequence[str]], contextlib.AbstractAsyncContextManager[Lines]] = stream_lines,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        role_timeout: float = 20.0,
        timeout: float = 30.0,
        proc_drbd: Path = Path("/proc/drbd"),
    ) -> None:
        self._runner = runner
        self._config_dir = config_dir
        self._node = node or os.uname().nodename
        self._stream = stream
        self._sleep = sleep
        self._role_timeout = role_timeout
        self._timeout = timeout
        self._proc = proc_drbd
        self._version: tuple[int, int, int] | None = None
        self._peer_names: dict[str, str] = {}
        self._meta = DrbdMeta(self._run, self.version, self._attached)

    # What is there

    async def version(self) -> tuple[int, int, int]:
        if self._version is None:
            done = await self._run(["drbdadm", "--version"], "DRBD")
            found = _KERNEL_VERSION.search(done.stdout)
            code = int(found[1], 16) if found else 0
            if not code:
                raise Failed(
                    "drbd-no-module",
                    "the kernel module of DRBD is not loaded",
                    "load it with 'modprobe drbd'",
                )
            self._version = code >> 16, code >> 8 & 0xFF, code & 0xFF
        return self._version

    async def observe(self) -> dict[str, ResourceState]:
        done = await self._run([*_EVENTS, "--now"], "DRBD")
        await self._peers()
        return self._fold(done)

    def _fold(self, done: Completed) -> dict[str, ResourceState]:
        try:
            return events2.fold(done.stdout.splitlines(), self._peer_names)
        except events2.StreamBrokenError as error:
            raise Failed(
                "drbd-bad-event", f"the state of DRBD cannot be read: {error}", "try again"
            ) from None

    async def watch(self) -> AsyncGenerator[dict[str, ResourceState] | None]:
        broken = 0
        while True:
            # Nothing of a stream that ended is carried over: what happened meanwhile is not known.
            folder = events2.Events2(await self._peers())
            reason = "ended"
            try:
                async with self._stream(_EVENTS) as lines:
                    async for line in lines:
                        snapshot = folder.feed(line)
                        if snapshot is not None:
                            broken = 0
                            yield snapshot
            except (events2.StreamBrokenError, OSError) as error:
                reason = str(error)
            yield None
            delay = _BACKOFF[min(broken, len(_BACKOFF) - 1)]
            broken += 1
            await self._sleep(delay)
            # Only now: a service manager that stops everything at once ends the stream a moment before
            # whoever reads it.
            log.warning("drbd-events-restart", reason=reason, delay=delay)

    def device(self, minor: int) -> str:
        return f"/dev/drbd{minor}"

    async def _peers(self) -> dict[str, str]:
        """Peer of each resource of hactl's on DRBD 8.4, which names no peers itself; kept up to date."""
        if await self.version() < (9,):
            for resource, text in await in_thread(self._files):
                self._learn_peer(resource, text)
        return self._peer_names

    def _files(self) -> list[tuple[str | None, str]]:
        found = []
        for path in self._config_dir.glob(config.file_name("*")):
            with contextlib.suppress(OSError):
                found.append((config.resource_of(path.name), path.read_text()))
        return found

    def _learn_peer(self, resource: str | None, text: str) -> None:
        # A file by that name which hactl did not write is somebody's mistake, and says nothing of peers.
        with contextlib.suppress(Failed):
            peer = config.read_peer(text, self._node)
            if resource is not None and peer is not None:
                self._peer_names[resource] = peer

    # Files

    async def configured(self, cluster: ClusterSpec, resource: ResourceSpec) -> bool:
        wanted = config.render(cluster, resource, await self.version())
        return await self._read(resource.name) == wanted

    async def write_config(self, cluster: ClusterSpec, resource: ResourceSpec) -> None:
        text = config.render(cluster, resource, await self.version())
        await in_thread(lambda: _replace(self._path(resource.name), text))
        if await self.version() < (9,):
            # For the event stream that runs already, before the resource turns up in it.
            self._learn_peer(resource.name, text)

    async def remove_config(self, name: str) -> None:
        await in_thread(lambda: self._path(name).unlink(missing_ok=True))

    async def placed(self, name: str) -> dict[int, str]:
        return {v.number: v.disk for v in await self._volumes(name) or () if v.disk is not None}

    async def _volumes(self, name: str) -> tuple[config.LocalVolume, ...] | None:
        """This node's part of a resource file; None if there is no file, or the node is not in it."""
        text = await self._read(name)
        return None if text is None else config.read_nodes(text).get(self._node)

    async def _read(self, name: str) -> str | None:
        # Not in the event loop: a root file system that is slow stops one resource's failover, not all.
        def read() -> str | None:
            try:
                return self._path(name).read_text()
            except FileNotFoundError:
                return None

        return await in_thread(read)

    def _path(self, name: str) -> Path:
        return self._config_dir / config.file_name(name)

    # Meta-data

    async def has_metadata(self, resource: ResourceSpec, volume: int) -> bool:
        minor, disk = self._local(resource, volume)
        return await self._meta.exists(resource.name, minor, disk)

    async def create_metadata(self, resource: ResourceSpec, volume: int) -> None:
        await self._write_metadata(self._meta.create, resource, volume)

    async def adopt_metadata(self, resource: ResourceSpec, volume: int) -> None:
        await self._write_metadata(self._meta.adopt, resource, volume)

    async def _write_metadata(
        self, write: Callable[[str, int, str, int, int], Awaitable[None]], resource: ResourceSpec, volume: int
    ) -> None:
        minor, disk = self._local(resource, volume)
        peers = metadata.max_peers(resource, await self.version())
        await write(resource.name, minor, disk, resource.volume(volume).size, peers)

    async def wipe_metadata(self, name: str, minor: int, disk: str) -> None:
        if any(v.minor == minor for s in (await self.observe()).values() for v in s.volumes.values()):
            raise Refused(
                "drbd-in-use", f"resource {name}: minor {minor} is configured", "take the resource down first"
            )
        await self._meta.wipe(name, minor, disk)

    async def _attached(self, minor: int) -> bool:
        volumes = [v for state in (await self.observe()).values() for v in state.volumes.values()]
        return any(v.minor == minor and v.disk is not DiskState.DISKLESS for v in volumes)

    def _local(self, resource: ResourceSpec, number: int) -> tuple[int, str]:
        for volume in resource.volumes:
            if volume.number == number and self._node in volume.disks:
                return resource.minor(volume), volume.disks[self._node]
        raise Refused(
            "drbd-no-disk",
            f"resource {resource.name}: volume {number} has no disk on node {self._node}",
        )

    # Changes

    async def up(self, name: str) -> None:
        if await self.version() < (9,):
            await self._demote_removed(name)
        await self._run(["drbdadm", "adjust", name], name)

    async def _demote_removed(self, name: str) -> None:
        """Make volumes Secondary that the resource file has no more: 8.4 has a role for each, ``adjust`` does
        not change it, and a Primary minor cannot be deleted (drbd_nl.c, adm_del_minor)."""
        primaries = await self._primaries(name)
        if not primaries - {str(v.minor) for v in await self._volumes(name) or ()}:
            # The common case, and the cheap one: no program is started.
            return
        state = await self._observe_one(name)
        if state is None or state.role is not Role.PRIMARY:
            return
        gone = {str(v.minor) for v in state.volumes.values()} - set(await self._minors(name))
        for minor in sorted(gone & primaries):
            await self._role("secondary", minor, name)

    async def _observe_one(self, name: str) -> ResourceState | None:
        """One resource, at a cost that does not grow with the others; None if the kernel does not have it."""
        done = await self._run([*_EVENTS, "--now", name], name, check=False)
        if done.status:
            if _UNKNOWN_RESOURCE in done.stderr:
                return None
            raise refusal(done, name)
        return self._fold(done).get(name)

    async def down(self, name: str) -> None:
        done = await self._run(["drbdsetup", "down", name], name, check=False)
        if done.status and _UNKNOWN_RESOURCE not in done.stderr:
            raise refusal(done, name)

    async def skip_initial_sync(self, name: str, volumes: Collection[int]) -> None:
        state = (await self.observe()).get(name)
        reason = why_not_new(state, volumes)
        if state is None or reason:
            raise Refused("drbd-not-new", f"resource {name}: cannot skip the first copy: {reason}")
        # What is observed may change until the kernel acts: it checks by itself that the data generation of
        # the connected device is "just created", and refuses otherwise.
        for number in volumes:
            minor = state.volumes[number].minor
            await self._run(["drbdsetup", "new-current-uuid", "--clear-bitmap", str(minor)], name)

    async def primary(self, name: str) -> None:
        if await self.version() >= (9,):
            await self._role("primary", name, name)
            return
        minors = await self._minors(name)
        before = await self._primaries(name) if len(minors) > 1 else set()
        done: list[str] = []
        for minor in minors:
            try:
                await self._role("primary", minor, name)
            except HactlError:
                # 8.4 has a role for each volume; a resource that is half primary would belong to nobody. What
                # was Primary before this call may be in use.
                for other in done:
                    with contextlib.suppress(HactlError):
                        await self._role("secondary", other, name)
                raise
            if minor not in before:
                done.append(minor)

    async def _primaries(self, name: str) -> set[str]:
        """Minors that are Primary here; for DRBD 8.4, whose events tell one role for the whole resource."""
        try:
            text = await in_thread(self._proc.read_text)
        except OSError as error:
            raise Failed(
                "drbd-failed", f"resource {name}: cannot read {self._proc}: {error.strerror}", "try again"
            ) from None
        return {minor for minor, role in proc.roles(text).items() if role is Role.PRIMARY}

    async def secondary(self, name: str) -> None:
        if await self.version() >= (9,):
            await self._role("secondary", name, name)
            return
        for minor in await self._minors(name):
            await self._role("secondary", minor, name)

    async def _role(self, role: str, which: str, name: str) -> None:
        # drbdsetup and not drbdadm, which would read all of the configuration first: this is part of every
        # failover.
        await self._run(["drbdsetup", role, which], name, timeout=self._role_timeout)

    async def _minors(self, name: str) -> list[str]:
        volumes = await self._volumes(name)
        if volumes is None:
            raise self._not_configured(name)
        return [str(volume.minor) for volume in volumes]

    def _not_configured(self, name: str) -> Refused:
        return Refused(
            "drbd-not-configured",
            f"resource {name} is not configured on node {self._node}",
            "wait until the agent has written its configuration",
        )

    async def outdate(self, name: str) -> None:
        for number, minor in await self._disks(name, DiskState.UP_TO_DATE, DiskState.CONSISTENT):
            try:
                await self._run(["drbdsetup", "outdate", minor], name)
            except Refused:
                # It may have got worse meanwhile, which is as good; but not Primary.
                if (number, minor) in await self._disks(name, DiskState.UP_TO_DATE, DiskState.CONSISTENT):
                    raise

    async def _disks(self, name: str, *states: DiskState) -> list[tuple[int, str]]:
        """Volumes whose disk is in one of ``states``, with their minors."""
        state = await self._observe_one(name)
        if state is None:
            raise self._not_configured(name)
        return [(n, str(v.minor)) for n, v in sorted(state.volumes.items()) if v.disk in states]

    async def resume(self, name: str) -> None:
        # The first one lets the whole resource go on (the flag is the resource's, drbd_nl.c
        # drbd_adm_resume_io); each of them gives its own volume a new generation first.
        for minor in await self._minors(name):
            await self._run(["drbdsetup", "resume-io", minor], name)

    async def resize(self, name: str) -> None:
        await self._run(["drbdadm", "resize", name], name)

    async def _run(
        self, argv: list[str], name: str, *, timeout: float | None = None, check: bool = True
    ) -> Completed:
        try:
            return await self._runner.run(argv, timeout=timeout or self._timeout, check=check)
        except CommandTimeout as error:
            raise Unknown("drbd-timeout", f"resource {name}: {error}", "observe it, then try again") from None
        except CommandFailed as error:
            raise refusal(error.completed, name) from None


def why_not_new(state: ResourceState | None, volumes: Collection[int]) -> str:
    """Why the first copy of ``volumes`` cannot be left out, or an empty string."""
    if state is None or not state.volumes:
        return "it is not configured in the kernel"
    for number in volumes:
        if number not in state.volumes:
            return f"volume {number} is not configured in the kernel"
        if state.volumes[number].disk is not DiskState.INCONSISTENT:
            return f"volume {number} is {state.volumes[number].disk} here"
    for connection in state.connections.values():
        if connection.state is not ConnectionState.CONNECTED:
            return f"the connection to {connection.peer} is {connection.state}"
        for number in volumes:
            peer = connection.volumes.get(number)
            if peer is None:
                return f"volume {number} is not known of {connection.peer}"
            if peer.disk not in (DiskState.INCONSISTENT, DiskState.DISKLESS):
                return f"volume {number} is {peer.disk} on {connection.peer}"
            if peer.replication is not ReplicationState.ESTABLISHED:
                return f"volume {number} is {peer.replication} with {connection.peer}"
    if not state.connections:
        return "it has no connection"
    return ""


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader, or a machine after a power loss, sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that does not end in .res, so that drbdadm never reads half a file.
    with NamedTemporaryFile("w", dir=path.parent, prefix=".hactl-", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
