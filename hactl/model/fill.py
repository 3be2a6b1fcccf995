"""What users may leave out of a file that is applied to a cluster: taken from what the cluster has under the
same name, or allocated. Works on values as they were read, which may be of any shape. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hactl.model import allocate
from hactl.model.desired import Desired
from hactl.model.records import SETTINGS
from hactl.model.spec import HostSpec, ResourceSpec, VolumeSpec
from hactl.model.tree import Value

Mapping = dict[str, Value]


def fill(value: Value, current: Desired, serial: Callable[[], str]) -> Value:
    """The value with the cluster's settings, ids of nodes and resources, IQNs, LUNs, serials, minors, ports
    and secrets where they are left out. ``serial`` gives a new serial at each call."""
    if not isinstance(value, dict):
        return value
    cluster = current.cluster
    settings = cluster.model_dump(mode="json", exclude_defaults=True, include=set(SETTINGS))
    filled = {**settings, **value}
    for key, part in (
        ("nodes", _nodes(filled.get("nodes"), current)),
        ("hosts", _hosts(filled.get("hosts"), current)),
        ("resources", _resources(filled, current, serial)),
    ):
        if key in filled:
            filled[key] = part
    return filled


def _mappings(value: Value) -> Iterator[Mapping]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _each(value: Value, change: Callable[[Mapping], Mapping]) -> Value:
    """The list with its mappings changed; whatever else it is stays for the validation to tell."""
    if not isinstance(value, list):
        return value
    return [change(item) if isinstance(item, dict) else item for item in value]


def _int(value: Value) -> int | None:
    return value if type(value) is int else None


def _nodes(value: Value, current: Desired) -> Value:
    known = {n.name: n for n in current.cluster.nodes}
    taken = {n for item in _mappings(value) if (n := _int(item.get("id"))) is not None}
    taken |= {n.id for n in current.cluster.nodes}

    def one(item: Mapping) -> Mapping:
        name = item.get("name")
        if not isinstance(name, str):
            return item
        old = known.get(name)
        filled = dict(item)
        if "id" not in item:
            number = old.id if old is not None else allocate.node_id(taken)
            filled["id"] = number
            taken.add(number)
        fencing = item.get("fencing")
        if isinstance(fencing, dict) and "secrets" not in fencing and old is not None and old.fencing:
            secrets: Mapping = {key: secret.get_secret_value() for key, secret in old.fencing.secrets.items()}
            filled["fencing"] = {**fencing, "secrets": secrets}
        return filled

    return _each(value, one)


def _hosts(value: Value, current: Desired) -> Value:
    known = {h.name: h for h in current.cluster.hosts}

    def one(item: Mapping) -> Mapping:
        name, chap = item.get("name"), item.get("chap")
        if not isinstance(name, str) or name not in known or not isinstance(chap, dict):
            return item
        return {**item, "chap": _chap(chap, known[name])}

    return _each(value, one)


def _chap(chap: Mapping, host: HostSpec) -> Mapping:
    if host.chap is None:
        return chap
    filled = dict(chap)
    if "password" not in chap:
        filled["password"] = host.chap.password.get_secret_value()
    mutual = host.chap.mutual_password
    if mutual is not None and chap.get("mutual_user") is not None and "mutual_password" not in chap:
        filled["mutual_password"] = mutual.get_secret_value()
    return filled


def _resources(whole: Mapping, current: Desired, serial: Callable[[], str]) -> Value:
    value = whole.get("resources")
    known = {r.name: r for r in current.cluster.resources}
    ids = allocate.ResourceIds(current)
    for item in _mappings(value):
        number, port = _int(item.get("id")), _int(item.get("port"))
        minors = [m for v in _mappings(item.get("volumes")) if (m := _int(v.get("minor"))) is not None]
        if number is not None and port is None:
            port = 7000 + number
        if number is not None and 0 < number <= allocate.MAX_RESOURCES:
            minors += range(number * 16, number * 16 + 16)
        ids.take(number, port, minors)
    prefix = whole.get("iqn_prefix")
    if not isinstance(prefix, str):
        prefix = current.cluster.target_prefix

    def one(item: Mapping) -> Mapping:
        name = item.get("name")
        if not isinstance(name, str):
            return item
        old = known.get(name)
        filled = dict(item)
        if "id" not in item:
            filled["id"] = old.id if old is not None else ids.new(port="port" not in item)
        if "port" not in item and old is not None and old.port is not None:
            filled["port"] = old.port
        if "iqn" not in item:
            filled["iqn"] = old.iqn if old is not None else f"{prefix}:{name}"
        if "volumes" in item:
            filled["volumes"] = _volumes(item["volumes"], old, current, serial)
        return filled

    return _each(value, one)


def _volumes(
    value: Value, resource: ResourceSpec | None, current: Desired, serial: Callable[[], str]
) -> Value:
    known: dict[int, VolumeSpec] = {v.number: v for v in resource.volumes} if resource is not None else {}
    luns = {n for item in _mappings(value) if (n := _int(item.get("lun"))) is not None}
    luns |= {v.lun for v in known.values()}

    def one(item: Mapping) -> Mapping:
        number = _int(item.get("number"))
        if number is None:
            return item
        old = known.get(number)
        filled = dict(item)
        if "lun" not in item:
            lun = old.lun if old is not None else allocate.lun(max(number, 0), luns)
            luns.add(lun)
            filled["lun"] = lun
        if "serial" not in item:
            if old is not None and resource is not None:
                filled["serial"] = current.cluster.serial(resource, old)
            else:
                filled["serial"] = serial()
        if "minor" not in item and old is not None and old.minor is not None:
            filled["minor"] = old.minor
        return filled

    return _each(value, one)
