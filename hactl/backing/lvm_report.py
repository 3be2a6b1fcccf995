"""What LVM's commands print, as frozen values, and the devices that they must not look at. Pure.

Sources: lvmreport(7), lvm.conf(5) ``devices/global_filter``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hactl.backing.protocol import Key
from hactl.errors import Failed

T = TypeVar("T")

VG_FIELDS = "vg_name,vg_size,vg_free,vg_extent_size"
LV_FIELDS = "vg_name,lv_name,lv_size,lv_tags,lv_active,lv_device_open,lv_layout,pool_lv,data_percent"
"""Of logical volumes only: a field of segments would make a line of each segment."""

TAG = "hactl"
"""Tag of what hactl made."""
NEW_TAG = "hactl.new"
"""Tag of what hactl has not finished making; it may still carry signatures of what was there before."""

REJECTED = ("r|^/dev/drbd|", "r|^/dev/mapper/hactl[.]|", "r|^/dev/hactl/|")
"""Whatever initiators keep on their units is none of this node's business; and LVM would wait, not to be
killed, for a gate that holds I/O."""

_ACCEPT_ALL = re.compile(r"a(.)\^?(\.\*)?/?(\.\*)?\1")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NAME = re.compile(r"hactl\.([a-z0-9-]+)\.([0-9]+)\Z")


@dataclass(frozen=True)
class VolumeGroup:
    """Sizes in bytes."""

    name: str
    size: int
    free: int
    extent: int


@dataclass(frozen=True)
class LogicalVolume:
    """``size`` in bytes; ``data`` is the share of a thin pool that is used, 0 to 1."""

    vg: str
    name: str
    size: int
    tags: frozenset[str]
    active: bool
    open: bool
    layout: frozenset[str]
    pool: str
    data: float

    @property
    def thin_pool(self) -> bool:
        return {"thin", "pool"} <= self.layout


def lv_name(resource: str, volume: int) -> str:
    """Name of the logical volume of a disk."""
    return f"hactl.{resource}.{volume}"


def key_of(name: str) -> Key | None:
    """The disk whose logical volume has that name, if any."""
    found = _NAME.match(name)
    return (found[1], int(found[2])) if found else None


def volume_groups(text: str) -> dict[str, VolumeGroup]:
    """The output of ``vgs`` with :data:`VG_FIELDS`."""
    return {group.name: group for group in _rows(text, "vg", _volume_group)}


def logical_volumes(text: str) -> dict[tuple[str, str], LogicalVolume]:
    """The output of ``lvs`` with :data:`LV_FIELDS`, by volume group and name."""
    return {(lv.vg, lv.name): lv for lv in _rows(text, "lv", _logical_volume)}


def _volume_group(row: dict[str, str]) -> VolumeGroup:
    return VolumeGroup(row["vg_name"], int(row["vg_size"]), int(row["vg_free"]), int(row["vg_extent_size"]))


def _logical_volume(row: dict[str, str]) -> LogicalVolume:
    return LogicalVolume(
        vg=row["vg_name"],
        name=row["lv_name"],
        size=int(row["lv_size"]),
        tags=frozenset(filter(None, row["lv_tags"].split(","))),
        active=row["lv_active"] == "active",
        open=row["lv_device_open"] == "open",
        layout=frozenset(row["lv_layout"].split(",")),
        pool=row["pool_lv"],
        data=float(row["data_percent"] or 0) / 100,
    )


def _rows(text: str, kind: str, read: Callable[[dict[str, str]], T]) -> list[T]:
    try:
        report: Any = json.loads(text)
        return [read(row) for part in report["report"] for row in part.get(kind, ())]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(
            "backing-failed", f"LVM printed what cannot be understood: {error!r}", "try lvs by hand"
        ) from None


def filter_setting(configured: str) -> str:
    """Value of ``--config`` that keeps LVM away from DRBD devices and gates, and else leaves its filter as it
    is. ``configured``: output of ``lvmconfig devices/global_filter``, empty if it is not set."""
    patterns = _STRING.findall(configured.partition("=")[2])
    # One that accepts everything says nothing that the default does not, but would let a gate in by another
    # of its names (/dev/dm-3): a device is accepted if one of its names is.
    while patterns and _ACCEPT_ALL.fullmatch(patterns[-1]):
        patterns.pop()
    quoted = ",".join(f'"{pattern}"' for pattern in (*REJECTED, *patterns))
    return f"devices/global_filter=[{quoted}]"
