"""What becomes of the data of targets that are taken over from targetcli. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hactl.errors import Refused
from hactl.model import find
from hactl.model.desired import Desired
from hactl.model.saveconfig import Saved, Store


@dataclass(frozen=True)
class Keeping:
    """What becomes of the data. ``adopt``: the node's agent is to keep them in place. ``growing``: devices
    that it can make room in by itself, by the path in the file. ``copy``: the node of a second, empty
    replica, on ``disks`` by the path in the file, or in ``pool`` (its only one if neither is given)."""

    adopt: bool = False
    growing: Collection[str] = ()
    copy: str | None = None
    disks: Mapping[str, str] = field(default_factory=dict)
    pool: str | None = None


def refuse_copy(desired: Desired, node: str, keeping: Keeping, saved: Saved) -> None:
    """:class:`Refused` unless the second replica can be where it is to be."""
    copy = find.node(desired, keeping.copy or "")
    if copy.name == node:
        raise Refused(
            "replica-exists", f"node {node} has the disks already", "name another node for the copy"
        )
    known = {s.device for s in saved.stores.values() if isinstance(s, Store)}
    unknown = sorted(keeping.disks.keys() - known)
    if unknown:
        raise Refused(
            "import-no-device",
            f"a disk is named for the copy of {unknown[0]}, which is no device in the file",
            f"devices are: {', '.join(sorted(known)) or 'none'}",
        )
    if keeping.pool is not None and all(p.name != keeping.pool for p in copy.pools):
        listed = ", ".join(p.name for p in copy.pools) or "none"
        raise Refused("pool-unknown", f"node {copy.name} has no pool {keeping.pool}", f"it has: {listed}")
