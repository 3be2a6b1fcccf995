"""Edits of hosts and of what they see. Pure; each refuses with the reason, or gives the new state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hactl.errors import Refused
from hactl.model import allocate, find
from hactl.model.desired import Desired
from hactl.model.edit_nodes import KEEP, Keep
from hactl.model.put import put_host, put_resources
from hactl.model.spec import ChapSpec, HostSpec, ResourceSpec
from hactl.model.values import changed, make


def chap(
    user: str, password: str, mutual_user: str | None = None, mutual_password: str | None = None
) -> ChapSpec:
    """CHAP credentials."""
    return make(
        ChapSpec,
        "CHAP",
        user=user,
        password=password,
        mutual_user=mutual_user,
        mutual_password=mutual_password,
    )


def _put_host(desired: Desired, host: HostSpec) -> Desired:
    others = [h for h in desired.cluster.hosts if h.name != host.name]
    hosts = tuple(sorted([*others, host], key=lambda h: h.name))
    return replace(desired, cluster=changed(desired.cluster, "", hosts=hosts))


def _refuse_taken(desired: Desired, name: str, initiators: Iterable[str]) -> None:
    owners = {i: h.name for h in desired.cluster.hosts for i in h.initiators if h.name != name}
    for initiator in initiators:
        if initiator in owners:
            raise Refused(
                "initiator-duplicate",
                f"{initiator} belongs to host {owners[initiator]} already",
                "give cloned machines names of their own (iscsi-iname), or take it from that host first",
            )


def add_host(
    desired: Desired, name: str, initiators: Sequence[str], credentials: ChapSpec | None = None
) -> Desired:
    """A new host. Added already with the same: unchanged."""
    host = make(HostSpec, f"host {name}", name=name, initiators=list(initiators), chap=credentials)
    there = next((h for h in desired.cluster.hosts if h.name == name), None)
    if there == host:
        return desired
    if there is not None:
        raise Refused(
            "host-exists",
            f"there is a host {name} already, with other settings",
            "choose another name, or change that host: hactl host set",
        )
    _refuse_taken(desired, name, host.initiators)
    return put_host(desired, host)


def change_host(
    desired: Desired,
    name: str,
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    credentials: ChapSpec | Keep | None = KEEP,
) -> Desired:
    """A host with initiator names added and removed (there or gone already: as it is), or with other CHAP
    credentials, None for none."""
    host = find.host(desired, name)
    kept = [i for i in host.initiators if i not in remove]
    initiators = (*kept, *(i for i in dict.fromkeys(add) if i not in kept))
    if not initiators:
        raise Refused(
            "last-initiator",
            f"host {name} would have no initiator name left",
            f"remove the host instead: hactl host remove {name}",
        )
    chosen = host.chap if isinstance(credentials, Keep) else credentials
    new = changed(host, f"host {name}", initiators=initiators, chap=chosen)
    _refuse_taken(desired, name, new.initiators)
    return desired if new is host else put_host(desired, new)


def remove_host(desired: Desired, name: str) -> Desired:
    """Without a host that sees nothing any more."""
    find.host(desired, name)
    seen = [r.name for r in desired.cluster.resources if name in r.hosts or name in r.exports]
    if seen:
        raise Refused(
            "host-in-use",
            f"host {name} sees {', '.join(seen)}",
            f"take them from it first: hactl unexport {seen[0]} {name}",
        )
    hosts = tuple(h for h in desired.cluster.hosts if h.name != name)
    return replace(desired, cluster=changed(desired.cluster, "", hosts=hosts))


def export(
    desired: Desired, resource: str, host: str, luns: Mapping[int, int | None] | None = None
) -> Desired:
    """Let a host see a resource: all volumes, also future ones, under their own LUNs; or with ``luns`` those
    volumes, each under the LUN given (None: the volume's own, or if the host sees another there, the smallest
    free), besides those it sees already.

    Seen already in that way: unchanged. A LUN that the host knows a volume by is not changed.
    """
    spec = find.resource(desired, resource)
    find.host(desired, host)
    own = {v.number: v.lun for v in spec.volumes}
    if host in spec.hosts:
        # It sees all of them under their own LUNs; what is asked for can only be a part of that.
        _refuse_other_luns(spec, host, own, luns or {})
        return desired
    seen = dict(spec.exports.get(host, {}))
    if luns is None:
        _refuse_other_luns(spec, host, own, seen)
        exports = {h: e for h, e in spec.exports.items() if h != host}
        new = changed(spec, f"resource {resource}", exports=exports, hosts=tuple(sorted([*spec.hosts, host])))
        return put_resources(desired, [new])
    _refuse_other_luns(spec, host, seen, luns)
    for number, lun in sorted(luns.items(), key=lambda item: (item[1] is None, item[0])):
        find.volume(spec, number)
        if number in seen:
            continue
        if lun in seen.values():
            raise Refused(
                "lun-duplicate",
                f"host {host} sees another volume of {resource} under LUN {lun}",
                "choose another LUN, or leave it out",
            )
        seen[number] = allocate.lun(own[number], seen.values()) if lun is None else lun
    if not seen:
        raise Refused("export-empty", f"host {host} is given no volume of {resource}", "name volumes")
    new = changed(spec, f"resource {resource}", exports={**spec.exports, host: dict(sorted(seen.items()))})
    return desired if new is spec else put_resources(desired, [new])


def _refuse_other_luns(
    spec: ResourceSpec, host: str, known: Mapping[int, int], wanted: Mapping[int, int | None]
) -> None:
    for number, lun in wanted.items():
        if lun is not None and known.get(number, lun) != lun:
            raise Refused(
                "lun-change",
                f"host {host} would know volume {number} of {spec.name} by LUN {lun} instead of "
                f"{known[number]}",
                f"stop using it there, take it from the host (hactl unexport {spec.name} {host}), and export "
                "it again",
            )
        find.volume(spec, number)


def unexport(desired: Desired, resource: str, host: str, volumes: Iterable[int] | None = None) -> Desired:
    """Let a host not see a resource any more, or not those volumes. Not seen already: unchanged.

    A host that saw all volumes and loses some keeps the others, and does not get future ones.
    """
    spec = find.resource(desired, resource)
    find.host(desired, host)
    own = {v.number: v.lun for v in spec.volumes}
    seen = own if host in spec.hosts else spec.exports.get(host, {})
    gone = set(seen) if volumes is None else set(volumes)
    for number in gone:
        find.volume(spec, number)
    if gone.isdisjoint(seen):
        return desired
    kept = {number: lun for number, lun in seen.items() if number not in gone}
    exports = {h: e for h, e in spec.exports.items() if h != host} | ({host: kept} if kept else {})
    hosts = tuple(h for h in spec.hosts if h != host)
    return put_resources(desired, [changed(spec, f"resource {resource}", hosts=hosts, exports=exports)])
