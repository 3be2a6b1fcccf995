"""The desired state split into the store's keys and values, and back. Pure.

Keys, below the cluster's prefix (:func:`prefix`):

    config                               generation and last change
    cluster                              cluster-wide settings
    nodes/NAME                           a node, without its fence device's secrets
    secrets/nodes/NAME                   those, if it has any
    hosts/NAME                           a host, without passwords
    secrets/hosts/NAME                   its CHAP passwords
    resources/NAME                       a resource with volumes, disks and exports
    leftovers/NODE/RESOURCE/VOLUME       what a node has still to take down

Others (``members/``, ``observed/``, ``secrets/join/``) are none of this module's business. Values are JSON
objects with ``schema``, a whole number that is greater where a value holds something that older readers do
not know (:mod:`hactl.model.record`); names are in the key alone. What is as by default is left out, keys are
sorted and nothing is indented, so that equal values are equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from pydantic import SecretStr, TypeAdapter, ValidationError

from hactl.errors import Refused
from hactl.model.desired import Change, Desired, Leftover
from hactl.model.record import Json, checked, damaged, decode, encode
from hactl.model.spec import ClusterSpec, Frozen, HostSpec, Name, NodeSpec, ResourceSpec, VolumeNumber

CONFIG = "config"
CLUSTER = "cluster"
NODES = "nodes/"
HOSTS = "hosts/"
SECRETS = "secrets/hosts/"
NODE_SECRETS = "secrets/nodes/"
RESOURCES = "resources/"
LEFTOVERS = "leftovers/"

SETTINGS = frozenset(
    {"iqn_prefix", "pacemaker", "unfenced_promotion", "manual_failover", "storage_witnesses"}
)
"""Fields of the cluster that have no key of their own."""

RECENT = 32
"""How many ids of changes ``config`` remembers."""

_KINDS = (NODES, NODE_SECRETS, HOSTS, SECRETS, RESOURCES, LEFTOVERS)
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_NUMBER: TypeAdapter[int] = TypeAdapter(VolumeNumber)
_SECRETS = ("password", "mutual_password")
_LEFTOVER = TypeAdapter(Leftover)
_CHANGE = TypeAdapter(Change)
Model = TypeVar("Model", bound=Frozen)
Named = TypeVar("Named", NodeSpec, HostSpec)


class _Passwords(Frozen):
    """What is in ``secrets/hosts/NAME``."""

    password: SecretStr
    mutual_password: SecretStr | None = None


def prefix(cluster: str) -> str:
    """What all keys of a cluster begin with."""
    return f"/hactl/{cluster}/"


def is_desired(key: str) -> bool:
    """Whether a key (without the prefix) is a part of the desired state."""
    return key in (CONFIG, CLUSTER) or key.startswith(_KINDS)


# Writing


def split(desired: Desired) -> dict[str, bytes]:
    """All records of a desired state but ``config``, by key."""
    records = {CLUSTER: _cluster(desired.cluster)}
    for node in desired.cluster.nodes:
        records.update(_node(node))
    for host in desired.cluster.hosts:
        records.update(_host(host))
    for resource in desired.cluster.resources:
        records[RESOURCES + resource.name] = encode(_plain(resource, exclude={"name"}))
    for left in desired.leftovers:
        records[leftover_key(left)] = _leftover(left)
    return records


def differences(old: Desired, new: Desired) -> dict[str, bytes | None]:
    """The records to write to get from one state to the other, by key, None for those to remove; without
    ``config``. Only what differs is encoded."""
    changes: dict[str, bytes | None] = {}
    before, after = _part(old, new), _part(new, old)
    if _cluster(old.cluster) != _cluster(new.cluster):
        changes[CLUSTER] = _cluster(new.cluster)
    was, now = split(before), split(after)
    changes.update(dict.fromkeys(was.keys() - now.keys()))
    changes.update((key, value) for key, value in now.items() if was.get(key) != value)
    return dict(sorted(changes.items()))


def _part(one: Desired, other: Desired) -> Desired:
    """What of ``one`` is not the same in ``other``."""
    parts: dict[str, Any] = {}
    for what in ("nodes", "hosts", "resources"):
        known = {item.name: item for item in getattr(other.cluster, what)}
        parts[what] = tuple(
            item
            for item in getattr(one.cluster, what)
            if (same := known.get(item.name)) is not item and same != item
        )
    known_leftovers = set(other.leftovers)
    leftovers = tuple(left for left in one.leftovers if left not in known_leftovers)
    return replace(one, cluster=one.cluster.model_copy(update=parts), leftovers=leftovers)


def config(generation: int, change: Change) -> bytes:
    """The record ``config``."""
    return encode(
        {
            "generation": generation,
            "id": change.id,
            "changed_at": change.at,
            "changed_by": change.who,
            "what": change.what,
            "recent": list(change.recent[-RECENT:]),
        }
    )


def leftover_key(left: Leftover) -> str:
    """Key of a leftover."""
    return f"{LEFTOVERS}{left.node}/{left.resource}/{left.volume}"


def _plain(value: Frozen, **options: Any) -> Json:
    return value.model_dump(mode="json", exclude_defaults=True, **options)


def _cluster(cluster: ClusterSpec) -> bytes:
    return encode(_plain(cluster, include=set(SETTINGS)))


def _node(node: NodeSpec) -> dict[str, bytes]:
    records = {NODES + node.name: encode(_plain(node, exclude={"name": True, "fencing": {"secrets"}}))}
    if node.fencing is not None and node.fencing.secrets:
        secrets = {option: secret.get_secret_value() for option, secret in node.fencing.secrets.items()}
        records[NODE_SECRETS + node.name] = encode({"fencing": secrets})
    return records


def _host(host: HostSpec) -> dict[str, bytes]:
    records = {HOSTS + host.name: encode(_plain(host, exclude={"name": True, "chap": set(_SECRETS)}))}
    if host.chap is not None:
        secrets = {name: getattr(host.chap, name) for name in _SECRETS}
        records[SECRETS + host.name] = encode(
            {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}
        )
    return records


def _leftover(left: Leftover) -> bytes:
    value = {
        f.name: getattr(left, f.name) for f in fields(left) if f.name not in ("node", "resource", "volume")
    }
    return encode({name: part for name, part in value.items() if part is not None})


# Reading


@dataclass(frozen=True)
class View:
    """Records as they were parsed: what did not change stays the same object."""

    cluster_name: str
    settings: Json
    nodes: Mapping[str, NodeSpec]
    hosts: Mapping[str, HostSpec]
    resources: Mapping[str, ResourceSpec]
    leftovers: Mapping[str, Leftover]
    generation: int
    change: Change | None

    @staticmethod
    def of(desired: Desired) -> View:
        """The view of a state that was read before."""
        cluster = desired.cluster
        return View(
            cluster.name,
            _plain(cluster, include=set(SETTINGS)),
            {n.name: n for n in cluster.nodes},
            {h.name: h for h in cluster.hosts},
            {r.name: r for r in cluster.resources},
            {leftover_key(left): left for left in desired.leftovers},
            desired.generation,
            desired.change,
        )


def join(cluster: str, records: Mapping[str, bytes], revision: int = 0) -> Desired:
    """The desired state of a cluster from its records by key (without prefix).

    :class:`Refused` with ``no-cluster`` if there is none, ``schema-newer`` or ``record-damaged``, each naming
    the key.
    """
    if CONFIG not in records:
        raise Refused(
            "no-cluster",
            f"the store has no cluster {cluster}",
            "create it on its first node: hactl cluster init NAME",
        )
    empty = View(cluster, {}, {}, {}, {}, {}, 0, None)
    return _desired(_applied(empty, records), None, revision)


def apply(desired: Desired, changes: Mapping[str, bytes | None], revision: int) -> Desired:
    """The state after ``changes`` of records (by key without prefix, None: removed). Only those are parsed;
    all other parts are the same objects as before. Refused as by :func:`join`."""
    if changes.get(CONFIG, b"") is None:
        raise Refused(
            "no-cluster",
            f"the store has no cluster {desired.cluster.name} any more",
            "restore it from a backup, or create it anew",
        )
    return _desired(_applied(View.of(desired), changes), desired, revision)


def reuse(old: Desired, new: Desired) -> Desired:
    """``new`` with the objects of ``old`` wherever they are equal."""
    cluster = new.cluster.model_copy(
        update={
            what: _reused(getattr(old.cluster, what), getattr(new.cluster, what))
            for what in ("nodes", "hosts", "resources")
        }
    )
    return replace(new, cluster=cluster)


def _reused(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
    known = {item.name: item for item in old}
    made = tuple(same if (same := known.get(item.name)) == item else item for item in new)
    unchanged = len(made) == len(old) and all(a is b for a, b in zip(made, old, strict=True))
    return old if unchanged else made


def _applied(view: View, changes: Mapping[str, bytes | None]) -> View:
    parts: dict[str, Any] = {}
    resources, leftovers = dict(view.resources), dict(view.leftovers)
    hosts: set[str] = set()
    nodes: set[str] = set()
    for key, value in changes.items():
        if key == CONFIG and value is not None:
            parts["generation"], parts["change"] = _read_config(key, value)
        elif key == CLUSTER:
            parts["settings"] = {} if value is None else decode(key, value)
        elif key.startswith((NODES, NODE_SECRETS)):
            nodes.add(_name(key, NODES if key.startswith(NODES) else NODE_SECRETS))
        elif key.startswith(RESOURCES):
            parts["resources"] = resources
            name = _name(key, RESOURCES)
            if value is None:
                resources.pop(name, None)
            else:
                resources[name] = _model(ResourceSpec, key, _read_named(key, value, name))
        elif key.startswith(LEFTOVERS):
            parts["leftovers"] = leftovers
            if value is None:
                leftovers.pop(key, None)
            else:
                leftovers[key] = _read_leftover(key, value)
        elif key.startswith((HOSTS, SECRETS)):
            hosts.add(_name(key, HOSTS if key.startswith(HOSTS) else SECRETS))
    if hosts:
        parts["hosts"] = _hosts(view, changes, hosts)
    if nodes:
        parts["nodes"] = _nodes(view, changes, nodes)
    return replace(view, **parts)


@dataclass(frozen=True)
class _Read:
    """A record with secrets apart, as read: its key and what it holds; the key of its secrets and their
    record, None if there is none."""

    key: str
    parts: Json
    secret: str
    secrets: bytes | None


def _with_secrets(
    objects: dict[str, Named],
    changes: Mapping[str, bytes | None],
    names: Iterable[str],
    prefixes: tuple[str, str],
    records: Callable[[Named], Mapping[str, bytes]],
) -> Iterator[tuple[str, _Read]]:
    """Take what is named out of ``objects``, and give its two records if it still exists; whichever of them
    did not change is taken from the object as it was. ``prefixes``: of the record's key, and its secrets'."""
    for name in names:
        key, secret = (prefix + name for prefix in prefixes)
        old = objects.pop(name, None)
        known = {} if old is None else records(old)
        value, secrets = changes.get(key, known.get(key)), changes.get(secret, known.get(secret))
        if value is not None:
            yield name, _Read(key, _read_named(key, value, name), secret, secrets)
        elif secrets is not None:
            damaged(secret, f"there is no {key} that it belongs to")


def _nodes(view: View, changes: Mapping[str, bytes | None], names: Iterable[str]) -> dict[str, NodeSpec]:
    """Nodes with their secrets."""
    nodes = dict(view.nodes)
    for name, read in _with_secrets(nodes, changes, names, (NODES, NODE_SECRETS), _node):
        fencing = read.parts.get("fencing")
        if isinstance(fencing, dict) and "secrets" in fencing:
            damaged(read.key, "it has a secret in it, which belongs elsewhere")
        if read.secrets is not None:
            if not isinstance(fencing, dict):
                damaged(read.secret, f"{read.key} has no fence device that it belongs to")
            read.parts["fencing"] = {**fencing, "secrets": _fence_secrets(read.secret, read.secrets)}
        nodes[name] = _model(NodeSpec, read.key, read.parts)
    return nodes


def _hosts(view: View, changes: Mapping[str, bytes | None], names: Iterable[str]) -> dict[str, HostSpec]:
    """Hosts with their secrets."""
    hosts = dict(view.hosts)
    for name, read in _with_secrets(hosts, changes, names, (HOSTS, SECRETS), _host):
        chap = read.parts.get("chap")
        if isinstance(chap, dict) and read.secrets is not None:
            if any(part in chap for part in _SECRETS):
                damaged(read.key, "it has a password in it, which belongs elsewhere")
            read.parts["chap"] = {**chap, **dict(_passwords(read.secret, read.secrets))}
        elif chap is not None or read.secrets is not None:
            damaged(read.secret if chap is None else read.key, "CHAP credentials are only half there")
        hosts[name] = _model(HostSpec, read.key, read.parts)
    return hosts


def _desired(view: View, old: Desired | None, revision: int) -> Desired:
    before = View.of(old) if old is not None else None
    parts: dict[str, Any] = {}
    for what in ("nodes", "hosts", "resources"):
        kept: Mapping[str, Any] = getattr(view, what)
        if old is not None and before is not None and kept == getattr(before, what):
            parts[what] = getattr(old.cluster, what)
        else:
            parts[what] = tuple(kept[name] for name in sorted(kept))
    if old is not None and before is not None and view.settings == before.settings and parts["nodes"]:
        cluster = old.cluster.model_copy(update=parts)
    else:
        if view.settings.keys() & ClusterSpec.model_fields.keys() - SETTINGS:
            damaged(CLUSTER, "it holds what has a key of its own")
        cluster = _model(ClusterSpec, CLUSTER, {**view.settings, "name": view.cluster_name, **parts})
    leftovers = tuple(sorted(view.leftovers.values(), key=lambda left: left.key))
    return Desired(cluster, leftovers, view.generation, revision, view.change)


def _read_named(key: str, value: bytes, name: str) -> Json:
    parts = decode(key, value)
    if "name" in parts:
        damaged(key, "it holds its name, which is in the key alone")
    return {**parts, "name": name}


def _passwords(key: str, value: bytes) -> _Passwords:
    try:
        return _Passwords.model_validate(decode(key, value))
    except ValidationError:
        # Not even which part is wrong: an unknown one may be a password that slipped.
        damaged(key, "it does not hold passwords as it should")


def _fence_secrets(key: str, value: bytes) -> Json:
    parts = decode(key, value)
    secrets = parts.pop("fencing", None)
    if parts or not isinstance(secrets, dict) or not all(isinstance(s, str) for s in secrets.values()):
        damaged(key, "it does not hold secrets of a fence device as it should")
    return secrets


def _read_config(key: str, value: bytes) -> tuple[int, Change]:
    parts = decode(key, value)
    names = {"id": "id", "at": "changed_at", "who": "changed_by", "what": "what", "recent": "recent"}
    generation = parts.get("generation")
    if type(generation) is not int or generation < 1:
        damaged(key, "it has no generation")
    change = checked(_CHANGE.validate_python, key, {own: parts.get(name) for own, name in names.items()})
    return generation, change


def _read_leftover(key: str, value: bytes) -> Leftover:
    steps = key.removeprefix(LEFTOVERS).split("/")
    if len(steps) != 3:
        damaged(key, "its key is not leftovers/NODE/RESOURCE/VOLUME")
    parts = decode(key, value)
    for name in ("disk", "device"):
        parts.setdefault(name, None)
    node, resource = (checked(_NAME.validate_python, key, step) for step in steps[:2])
    number = checked(_NUMBER.validate_python, key, steps[2])
    unknown = parts.keys() - {f.name for f in fields(Leftover)}
    if unknown:
        damaged(key, f"it has unknown parts: {', '.join(sorted(unknown))[:80]}")
    whole = {**parts, "node": node, "resource": resource, "volume": number}
    return checked(_LEFTOVER.validate_python, key, whole)


def _name(key: str, kind: str) -> str:
    return checked(_NAME.validate_python, key, key.removeprefix(kind))


def _model(model: type[Model], key: str, parts: Json) -> Model:
    return checked(model.model_validate, key, parts)
