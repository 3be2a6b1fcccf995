"""Whether the disks that a specification names on a node can hold its volumes. Pure.

The judgement is on what :mod:`hactl.replication.blockdev` observed. Nothing in hactl ever wipes a device: a
hint names the command, the operator decides.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from hactl.model.check import Path, Problem
from hactl.model.size import format_size
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication.metadata import max_peers, required_disk_size

DRBD_SIGNATURE = "drbd"
"""What libblkid calls DRBD meta-data."""

_KINDS = {
    "filesystem": "a file system",
    "partition-table": "a partition table",
    "raid": "part of a RAID or volume group",
    "crypto": "encrypted data",
    "other": "data",
}


@dataclass(frozen=True)
class Signature:
    """What libblkid recognises on a device: ``type`` such as ``ext4``, ``LVM2_member``, ``swap``, ``gpt``;
    ``usage`` such as ``filesystem``, ``raid``, ``crypto``, ``partition-table``, ``other``."""

    type: str
    usage: str = "other"
    label: str = ""

    def __str__(self) -> str:
        kind = "swap space" if self.type == "swap" else _KINDS.get(self.usage, self.usage)
        return f"{kind} ({self.type}{f', label {self.label!r}' if self.label else ''})"


@dataclass(frozen=True)
class BlockDevice:
    """One path on a node as observed. ``size`` in bytes.

    ``holders`` are the devices above it (partitions, logical volumes, RAID, multipath); ``mountpoints`` are
    its own and those of everything above it, with ``[SWAP]`` for swap in use; ``in_use_by`` is the DRBD
    resource and volume that has it attached, as ``(name, number)``. ``kind`` as lsblk calls it (``disk``,
    ``part``, ``lvm``, …); ``exported_by``: the backstore of LIO's that exports it (``block/NAME``);
    ``claimed``: something has it open for itself alone, whatever that is.
    """

    path: str
    exists: bool = True
    is_block: bool = True
    size: int = 0
    read_only: bool = False
    holders: tuple[str, ...] = ()
    mountpoints: tuple[str, ...] = ()
    signatures: tuple[Signature, ...] = ()
    in_use_by: tuple[str, int] | None = None
    kind: str = ""
    exported_by: str | None = None
    claimed: bool = False

    @property
    def has_drbd(self) -> bool:
        """DRBD meta-data is on it."""
        return any(s.type == DRBD_SIGNATURE for s in self.signatures)


def judge(
    cluster: ClusterSpec,
    node: str,
    devices: Mapping[str, BlockDevice],
    *,
    version: tuple[int, int, int],
    own: Collection[tuple[str, int]] = (),
    adopt: Collection[tuple[str, int]] = (),
) -> tuple[Problem, ...]:
    """Everything that keeps the node's disks from holding their volumes, by path in the specification.

    ``devices`` is what was observed, by the path in the specification; a disk that is missing from it is a
    :class:`KeyError`, since not having looked is not a judgement. ``version`` is that of DRBD's kernel
    module, which decides how much room its meta-data takes. ``own`` are the volumes (resource, number) whose
    meta-data is known to be on this node already; DRBD meta-data on the disk of any other volume is refused,
    because it may belong to data that somebody still wants. ``adopt`` are the volumes whose disk holds their
    data already: they may be there, but nobody else may have them open, and behind them there has to be room
    for DRBD's meta-data. A logical volume is made larger where that is missing.
    """
    found: list[Problem] = []
    for i, resource in enumerate(cluster.resources):
        for k, volume in enumerate(resource.volumes):
            if node not in volume.disks or node not in resource.nodes:
                continue
            device = devices[volume.disks[node]]
            path: Path = ("resources", i, "volumes", k, "disks", node)
            need = required_disk_size(volume.size, max_peers(resource, version))
            mine = (resource.name, volume.number) in own or device.in_use_by == (resource.name, volume.number)
            if (resource.name, volume.number) in adopt and not mine:
                found += _adopted(path, device, need, volume.size)
            else:
                found += _device(path, device, need, volume.size, mine)
            found += _attached(path, device, resource, volume.number)
    return tuple(found)


def _adopted(path: Path, device: BlockDevice, need: int, size: int) -> Iterator[Problem]:
    """A disk with data that are to stay; partitions on it are a part of them."""
    holders = _others(device)
    room = need if extensible(device) and device.size >= size else device.size
    kept = replace(device, holders=holders, size=max(device.size, room), signatures=())
    yield from _device(path, kept, need, size, mine=False)
    if device.has_drbd:
        yield _foreign_metadata(path, device.path)
    known = holders or device.mountpoints or device.in_use_by or device.exported_by
    if device.claimed and not known:
        yield Problem(
            path,
            "disk-busy",
            f"{device.path} is in use, and its data cannot be taken over while something else may write them",
            f"find out by what: lsblk {shlex.quote(device.path)}; dmsetup ls --tree; targetcli ls",
        )


def _others(device: BlockDevice) -> tuple[str, ...]:
    """What has a disk that holds a unit's data; the kernel lists the hosts' own partitions on it, too."""
    return tuple(h for h in device.holders if not h.endswith(" (part)"))


def extensible(device: BlockDevice) -> bool:
    """Whether an agent can make it larger by itself."""
    return device.kind == "lvm"


def _foreign_metadata(path: Path, at: str) -> Problem:
    return Problem(
        path,
        "disk-has-drbd",
        f"{at} has DRBD meta-data that is not known to be this volume's",
        f"if nobody needs the data behind it, remove it: wipefs --all --types drbd {shlex.quote(at)}",
    )


def _device(path: Path, device: BlockDevice, need: int, size: int, mine: bool) -> Iterator[Problem]:
    at, quoted = device.path, shlex.quote(device.path)
    if not device.exists:
        yield Problem(
            path,
            "disk-missing",
            f"{at} does not exist",
            "attach or create it, or correct the path; see: lsblk",
        )
        return
    if not device.is_block:
        yield Problem(
            path, "disk-not-block", f"{at} is not a block device", "name a disk, partition or volume"
        )
        return
    if device.read_only:
        yield Problem(
            path, "disk-read-only", f"{at} is read-only", f"see: lsblk {quoted}; blockdev --setrw {quoted}"
        )
    if device.size < need:
        yield Problem(
            path,
            "disk-too-small",
            f"{at} has {device.size} bytes; a volume of {format_size(size)} with DRBD meta-data needs {need}",
            f"make it {need - device.size} bytes larger, or the volume smaller",
        )
    if device.mountpoints:
        where = ", ".join(device.mountpoints)
        swap = "[SWAP]" in device.mountpoints
        remedy = "swapoff" if swap else "umount"
        yield Problem(
            path,
            "disk-mounted",
            f"{at} is in use as {where}" if swap else f"{at} is mounted on {where}",
            f"is it the right disk? If so: {remedy}, and remove it from /etc/fstab",
        )
    if holders := _others(device) if mine else device.holders:
        yield Problem(
            path,
            "disk-held",
            f"{at} is in use by {', '.join(holders)}",
            f"is it the right disk? See: lsblk {quoted}",
        )
    if device.exported_by is not None:
        plugin, _, name = device.exported_by.partition("/")
        yield Problem(
            path,
            "disk-exported",
            f"{at} is exported by LIO already, as backstore {device.exported_by}, which hactl did not make",
            "is it the right disk? If so: log its hosts out, and have targetcli let go of it (targetcli "
            f"/iscsi delete IQN, targetcli /backstores/{plugin} delete {name}, targetcli saveconfig)",
        )
    if mine:
        # What else is recognised on it is the content of the volume: an initiator's own file system.
        return
    if device.has_drbd:
        yield _foreign_metadata(path, at)
        return
    if device.signatures:
        yield Problem(
            path,
            "disk-has-data",
            f"{at} carries {' and '.join(str(s) for s in device.signatures)}",
            "is it the right disk? If nobody needs its data, destroy it for good by: wipefs --all "
            f"{quoted}; if they are the unit's own: hactl resource adopt",
        )


def _attached(path: Path, device: BlockDevice, resource: ResourceSpec, number: int) -> Iterator[Problem]:
    if device.in_use_by is not None and device.in_use_by != (resource.name, number):
        other, volume = device.in_use_by
        yield Problem(
            path,
            "disk-in-use",
            f"{device.path} is the disk of volume {volume} of DRBD resource {other}",
            f"name another disk, or give that one up first: drbdadm down {other}",
        )
