"""What the agent asks of DRBD; kept by ``drbd.Drbd`` (drbd-utils) and ``memory.MemoryDrbd``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Protocol

from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication.state import ResourceState


class Replication(Protocol):
    """DRBD on one node. Refusals by DRBD raise :class:`hactl.errors.Refused` with DRBD's own reason,
    time-outs raise :class:`hactl.errors.Unknown`."""

    async def version(self) -> tuple[int, int, int]:
        """Version of the kernel module, such as (8, 4, 11) or (9, 2, 16)."""
        ...

    async def observe(self) -> dict[str, ResourceState]:
        """Every resource that is configured in this node's kernel, by name; others' resources included."""
        ...

    def watch(self) -> AsyncIterator[dict[str, ResourceState] | None]:
        """The same at once and then again after each change, until the iterator is closed. A stream that
        breaks is begun anew; None says so, and that what was known before may not be so any more."""
        ...

    def device(self, minor: int) -> str:
        """Path of a minor's block device."""
        ...

    async def configured(self, cluster: ClusterSpec, resource: ResourceSpec) -> bool:
        """Whether the resource file on disk is exactly what the specification asks for."""
        ...

    async def write_config(self, cluster: ClusterSpec, resource: ResourceSpec) -> None:
        """Write the resource file, atomically; the kernel is not touched."""
        ...

    async def remove_config(self, name: str) -> None:
        """Remove a resource file that ``write_config`` wrote; no file is no error."""
        ...

    async def placed(self, name: str) -> dict[int, str]:
        """This node's disks by volume number in the resource file that ``write_config`` wrote; empty if there
        is none."""
        ...

    async def has_metadata(self, resource: ResourceSpec, volume: int) -> bool:
        """Whether the local disk of a volume carries DRBD meta-data."""
        ...

    async def create_metadata(self, resource: ResourceSpec, volume: int) -> None:
        """Write fresh meta-data to the local disk of a volume. Never over existing meta-data or a file
        system."""
        ...

    async def adopt_metadata(self, resource: ResourceSpec, volume: int) -> None:
        """Write meta-data to the local disk of a volume which say that the volume's bytes on it are good, and
        that no other replica has them: each peer with fresh meta-data is copied to in full. Those bytes stay
        as they are. Never over existing meta-data; done at once or not at all. Only for a disk whose data
        somebody has said to be the volume's (:attr:`hactl.model.spec.VolumeSpec.adopt`)."""
        ...

    async def wipe_metadata(self, name: str, minor: int, disk: str) -> None:
        """Make a disk forget that it was DRBD's, for good, so that it can be used anew; other data stays.
        Works without a resource file. Refused while the minor is configured, or while anything else has the
        disk open; no meta-data is no error."""
        ...

    async def up(self, name: str) -> None:
        """Attach and connect; brings a partly configured resource to the state of its file (drbdadm
        adjust)."""
        ...

    async def down(self, name: str) -> None:
        """Disconnect, detach and remove from the kernel; not configured is no error."""
        ...

    async def skip_initial_sync(self, name: str, volumes: Collection[int]) -> None:
        """Declare all replicas of brand-new, connected, Inconsistent/Inconsistent volumes equal without
        copying (new-current-uuid --clear-bitmap); refused if one has any data generation already."""
        ...

    async def primary(self, name: str) -> None:
        """Become primary; never forced. With DRBD's fencing, and a peer that is not connected and not known
        to be outdated, the kernel first runs the handler (:data:`hactl.replication.config.HANDLER`), up to
        four times, and refuses (``drbd-peer-not-outdated``) unless that settles it."""
        ...

    async def secondary(self, name: str) -> None:
        """Become secondary; refused while the device is open."""
        ...

    async def outdate(self, name: str) -> None:
        """Have the local disks remember that their data may be old: what was UpToDate or Consistent is
        Outdated, until a peer with good data connects. Refused while primary; without effect, and no error,
        while connected; what is worse than Outdated, or has no disk, stays as it is."""
        ...

    async def resume(self, name: str) -> None:
        """Let I/O go on that was suspended, with a new data generation where the peer's is left behind. Not
        suspended is no error. Call it only when what it waits for is certain."""
        ...

    async def resize(self, name: str) -> None:
        """Grow to the size the backing disks of all replicas now offer; all must be connected."""
        ...
