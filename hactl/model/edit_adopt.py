"""Edits of which disk holds a resource's data from before hactl. Pure; each refuses with the reason, or gives
the new state."""

from __future__ import annotations

from collections.abc import Collection

from hactl.errors import Refused
from hactl.model import find
from hactl.model.desired import Desired
from hactl.model.put import put_resources
from hactl.model.values import changed


def adopt(desired: Desired, resource: str, node: str, volumes: Collection[int] | None = None) -> Desired:
    """The disks on ``node`` hold the data of the resource, or of these volumes of it: its agent is to keep
    them, and the other replicas are to be copies. Said already: unchanged; of another node: refused."""
    spec = find.resource(desired, resource)
    find.node(desired, node)
    what = f"resource {resource}"
    chosen = {find.volume(spec, n).number for n in volumes} if volumes else {v.number for v in spec.volumes}
    other = next((v for v in spec.volumes if v.adopt not in (None, node)), None)
    if other is not None:
        raise Refused(
            "adopt-two-nodes",
            f"{what} is to take over the data on node {other.adopt} already",
            f"take that back first: hactl resource adopt {resource} --node {other.adopt} --withdraw",
        )
    if node not in spec.replicas:
        raise Refused(
            "adopt-no-disk",
            f"{what} has no disk on node {node}",
            f"it has on: {', '.join(spec.replicas)}",
        )
    made = tuple(changed(v, what, adopt=node) if v.number in chosen else v for v in spec.volumes)
    return put_resources(desired, [changed(spec, what, volumes=made)])


def adopted(desired: Desired, resource: str, node: str, volumes: Collection[int] | None = None) -> Desired:
    """Without the word that ``node`` has the data, of all volumes or of these: it was taken back, or carried
    out, after which it must not be there any more. What is not there is no error."""
    spec = next((r for r in desired.cluster.resources if r.name == resource), None)
    if spec is None:
        return desired
    done = {v.number for v in spec.volumes if v.adopt == node and (volumes is None or v.number in volumes)}
    if not done:
        return desired
    what = f"resource {resource}"
    made = tuple(changed(v, what, adopt=None) if v.number in done else v for v in spec.volumes)
    return put_resources(desired, [changed(spec, what, volumes=made)])
