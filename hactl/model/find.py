"""Parts of the desired state by name; what is not there is refused with the names that are. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hactl.errors import Refused
from hactl.model.desired import Desired
from hactl.model.spec import HostSpec, NodeSpec, ResourceSpec, VolumeSpec


def node(desired: Desired, name: str) -> NodeSpec:
    """The node of that name; :class:`Refused` ``unknown-node``."""
    found = next((n for n in desired.cluster.nodes if n.name == name), None)
    if found is None:
        raise Refused(
            "unknown-node", f"there is no node {name}", _known(n.name for n in desired.cluster.nodes)
        )
    return found


def host(desired: Desired, name: str) -> HostSpec:
    """The host of that name; :class:`Refused` ``unknown-host``."""
    found = next((h for h in desired.cluster.hosts if h.name == name), None)
    if found is None:
        raise Refused(
            "unknown-host", f"there is no host {name}", _known(h.name for h in desired.cluster.hosts)
        )
    return found


def resource(desired: Desired, name: str) -> ResourceSpec:
    """The resource of that name; :class:`Refused` ``unknown-resource``."""
    found = next((r for r in desired.cluster.resources if r.name == name), None)
    if found is None:
        known = _known(r.name for r in desired.cluster.resources)
        raise Refused("unknown-resource", f"there is no resource {name}", known)
    return found


def volume(of: ResourceSpec, number: int) -> VolumeSpec:
    """A resource's volume of that number; :class:`Refused` ``unknown-volume``."""
    found = next((v for v in of.volumes if v.number == number), None)
    if found is None:
        known = _known(str(v.number) for v in of.volumes)
        raise Refused("unknown-volume", f"resource {of.name} has no volume {number}", known)
    return found


def _known(names: Iterable[str]) -> str:
    listed = sorted(names)
    shown = ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
    return f"known are: {shown}" if listed else "there are none yet"
