"""Edits of volumes: added, grown, removed. Pure; each refuses with the reason, or gives the new state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hactl.errors import Refused
from hactl.model import allocate, find, leave
from hactl.model.desired import Desired
from hactl.model.edit_resources import Serials
from hactl.model.put import put_resources
from hactl.model.size import format_size
from hactl.model.spec import ResourceSpec, VolumeSpec
from hactl.model.values import changed, make


def add_volume(
    desired: Desired,
    resource: str,
    size: int | str,
    *,
    serial: Serials,
    disks: Mapping[str, str] | None = None,
    lun: int | None = None,
) -> Desired:
    """Another volume, with the smallest free number, and that as LUN if it is free.

    ``disks``: one for each replica; if not given, in the pool where the replica's first volume is.
    """
    spec = find.resource(desired, resource)
    what = f"resource {resource}"
    number = allocate.volume_number(
        {v.number for v in spec.volumes}
        | {left.volume for left in leave.pending(desired, resource=resource)},
        resource,
    )
    taken = {v.lun: v.number for v in spec.volumes}
    if lun in taken:
        raise Refused(
            "lun-duplicate", f"{what}: volume {taken[lun]} has LUN {lun}", "choose another, or leave it out"
        )
    volume = make(
        VolumeSpec,
        f"{what}: volume {number}",
        number=number,
        lun=allocate.lun(number, taken) if lun is None else lun,
        size=size,
        disks=_like_the_first(spec) if disks is None else dict(disks),
        serial=serial(),
    )
    for node in volume.disks:
        find.node(desired, node)
    if set(volume.disks) != set(spec.replicas):
        raise Refused(
            "replica-incomplete",
            f"{what} has replicas on {', '.join(spec.replicas)}, and disks are named on "
            f"{', '.join(sorted(volume.disks))}; all volumes of a resource are replicated between "
            "the same nodes",
            "name a disk on each node with a replica, and on no other",
        )
    return put_resources(desired, [changed(spec, what, volumes=(*spec.volumes, volume))])


def _like_the_first(spec: ResourceSpec) -> dict[str, str]:
    first = spec.volumes[0]
    plain = [n for n in spec.replicas if not leave.is_pool(first.disks[n])]
    if plain:
        raise Refused(
            "disk-needed",
            f"resource {spec.name}: its disk on {', '.join(plain)} is not in a pool, so that none can be "
            "created for another volume",
            "name a disk for each replica",
        )
    return {n: first.disks[n] for n in spec.replicas}


def remove_volume(desired: Desired, resource: str, number: int, *, destroy: bool) -> Desired:
    """Without a volume: the nodes take it down, and with ``destroy`` remove its data. Hosts lose its LUN."""
    spec = find.resource(desired, resource)
    gone = find.volume(spec, number)
    if len(spec.volumes) == 1:
        raise Refused(
            "last-volume",
            f"volume {number} is the only one of resource {resource}",
            f"delete the resource instead: hactl resource delete {resource}",
        )
    exports = {
        host: kept
        for host, luns in spec.exports.items()
        if (kept := {n: lun for n, lun in luns.items() if n != number})
    }
    volumes = tuple(v for v in spec.volumes if v is not gone)
    left = leave.leftovers(desired.cluster, spec, [gone], spec.nodes, destroy=destroy)
    new = changed(spec, f"resource {resource}", volumes=volumes, exports=exports)
    return put_resources(replace(desired, leftovers=(*desired.leftovers, *left)), [new])


def grow_volume(desired: Desired, resource: str, number: int, size: int | str) -> Desired:
    """A larger volume; as large already: unchanged. Disks in pools are grown by the agents, others must have
    been."""
    spec = find.resource(desired, resource)
    volume = find.volume(spec, number)
    what = f"resource {resource}: volume {number}"
    new = changed(volume, what, size=size)
    refuse_shrink(what, volume, new)
    if new == volume:
        return desired
    volumes = tuple(new if v is volume else v for v in spec.volumes)
    return put_resources(desired, [changed(spec, what, volumes=volumes)])


def refuse_shrink(what: str, old: VolumeSpec, new: VolumeSpec) -> None:
    """:class:`Refused` if the new size is smaller."""
    if new.size < old.size:
        raise Refused(
            "size-shrink",
            f"{what} has {format_size(old.size)}, and {format_size(new.size)} is less; what hosts keep at "
            "its end would be lost",
            "units are never shrunk: create a smaller one and copy the data on a host",
        )
