"""How much of a disk DRBD's internal meta-data takes; pure arithmetic.

Source: ``drbdmeta.c`` of drbd-utils (``bm_bytes``, ``re_initialize_md_offsets``) and "The exact way" of
estimating meta-data sizes in the DRBD user's guide. From the end of the disk, which is first rounded down to
whole 4 KiB: a super block of 4 KiB, an activity log of 32 KiB (one stripe), and one bitmap per peer with a
bit for each 4 KiB of the disk, padded to 64-bit words per peer and to 4 KiB altogether.
"""

from __future__ import annotations

from hactl.model.spec import ResourceSpec

MIN_DEVICE_SIZE = 1 << 20
"""The smallest backing disk in bytes: with internal meta-data the kernel refuses to attach less than 1 MiB
(``drbd_adm_attach``, error 111)."""

MAX_DEVICE_SIZE = 1 << 50
"""The largest backing disk in bytes, 1 PiB (``DRBD_MAX_SECTORS``)."""

_BLOCK = 4096
_SUPER_BLOCK = 4096
_ACTIVITY_LOG = 32 << 10
_SPARE_PEERS = 7


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def max_peers(resource: ResourceSpec, version: tuple[int, int, int]) -> int:
    """Bitmaps to make room for: 1 on DRBD 8.4, else 7 or one per other node if those are more, since the
    number cannot be raised later without moving data."""
    return 1 if version < (9,) else max(_SPARE_PEERS, len(resource.nodes) - 1)


def metadata_size(disk_size: int, peers: int) -> int:
    """Bytes of internal meta-data on a disk of ``disk_size`` bytes with room for ``peers`` peers."""
    bits = _up(_up(disk_size, _BLOCK) // _BLOCK, 64)
    return _SUPER_BLOCK + _ACTIVITY_LOG + _up(bits // 8 * peers, _BLOCK)


def usable_size(disk_size: int, peers: int) -> int:
    """Bytes a DRBD device offers on a disk of ``disk_size`` bytes; 0 if the disk is too small for DRBD."""
    if disk_size < MIN_DEVICE_SIZE:
        return 0
    return max(0, disk_size // _BLOCK * _BLOCK - metadata_size(disk_size, peers))


def required_disk_size(size: int, peers: int) -> int:
    """The smallest disk in bytes (a multiple of 4 KiB) whose DRBD device holds ``size`` bytes."""
    data = _up(size, _BLOCK)
    disk = max(data, MIN_DEVICE_SIZE)
    while (needed := data + metadata_size(disk, peers)) > disk:
        disk = needed
    return disk
