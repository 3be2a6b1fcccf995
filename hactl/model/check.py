"""What values of a specification must not do to each other; all problems at once. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from ipaddress import IPv4Address

from hactl.model.chap import chap_problems
from hactl.model.check_adopt import adopt_problems
from hactl.model.check_disks import disk_problems, pool_problems
from hactl.model.check_exports import export_problems
from hactl.model.check_leftovers import leftover_problems
from hactl.model.desired import Leftover
from hactl.model.fence import fence_problems
from hactl.model.problem import Path, Problem, Unique
from hactl.model.size import format_size
from hactl.model.spec import ISCSI_PORT, ClusterSpec, IpAddress, ResourceSpec
from hactl.replication.metadata import MAX_DEVICE_SIZE, MIN_DEVICE_SIZE

__all__ = ["Path", "Problem", "check"]

MAX_VOLUMES = 16
"""Volumes of a resource: minors are numbered id * 16 + number."""

GRANULARITY = 4096
"""Sizes are whole multiples of this many bytes: one bit of DRBD's bitmap, and a whole number of blocks of any
logical block size."""

TAKEN_PORTS = {ISCSI_PORT: "iSCSI", 2379: "etcd", 2380: "etcd"}
"""TCP ports that others use on every node."""

AGENT_PORTS = frozenset({7788, 7789})
"""TCP ports of hactl's agents. DRBD may have them where its network is another one; none is given out."""


def check(
    cluster: ClusterSpec,
    leftovers: Iterable[Leftover] = (),
    *,
    max_replicas: int | None = None,
    before: ClusterSpec | None = None,
) -> tuple[Problem, ...]:
    """Everything that is wrong with a specification whose single values are well-formed.

    ``leftovers`` are what nodes have still to take down, which keeps its names, ids and disks until then.
    ``max_replicas`` is what the cluster's DRBD can do: 2 for 8.4, ``None`` for no limit. ``before`` is what
    the cluster is now: a resource that has one replica there may go on so. Nobody makes such a one where DRBD
    has two; they come of nodes that were given up, and nothing else has to wait for a second one.
    """
    return (
        *_nodes(cluster),
        *_addresses(cluster),
        *fence_problems(cluster.nodes),
        *_hosts(cluster),
        *_resources(cluster),
        *_volumes(cluster),
        *_replicas(cluster, max_replicas, before),
        *pool_problems(cluster),
        *disk_problems(cluster),
        *adopt_problems(cluster),
        *export_problems(cluster),
        *leftover_problems(cluster, tuple(leftovers)),
    )


def _nodes(cluster: ClusterSpec) -> Iterator[Problem]:
    names, ids = Unique(), Unique()
    for i, node in enumerate(cluster.nodes):
        owner = f"nodes[{i}]"
        if first := names.taken(node.name, owner):
            yield Problem(
                ("nodes", i, "name"),
                "node-name-duplicate",
                f"{first} is named {node.name} too",
                "give every node a name of its own",
            )
        if first := ids.taken(node.id, owner):
            yield Problem(
                ("nodes", i, "id"),
                "node-id-duplicate",
                f"{first} has id {node.id} too, so that their target ports would share an RTPI and a group",
                "give every node an id of its own, and never change that of a node in use",
            )


def _addresses(cluster: ClusterSpec) -> Iterator[Problem]:
    seen: dict[IpAddress, int] = {}
    for i, node in enumerate(cluster.nodes):
        a = node.addresses
        base: Path = ("nodes", i, "addresses")
        storage = [((*base, "storage", k), s) for k, s in enumerate(a.storage)]
        for path, address in [
            ((*base, "cluster"), a.cluster),
            ((*base, "replication"), a.replication),
            *storage,
        ]:
            if fault := _unusable(address):
                yield Problem(
                    path,
                    "address-unusable",
                    f"{address} is {fault}",
                    "write a unicast address of this node that the others and the hosts can reach",
                )
            elif seen.setdefault(address, i) != i:
                yield Problem(
                    path,
                    "address-duplicate",
                    f"{address} is an address of node {cluster.nodes[seen[address]].name} too",
                    "give each node addresses of its own",
                )
        if len(set(a.storage)) < len(a.storage):
            yield Problem(
                (*base, "storage"),
                "address-duplicate",
                f"node {node.name} lists one storage address twice",
                "list every portal once",
            )
        for what in ("cluster", "replication"):
            mine, theirs = getattr(a, what), getattr(cluster.nodes[0].addresses, what)
            if mine.version != theirs.version:
                yield Problem(
                    (*base, what),
                    "address-family-mixed",
                    f"{mine} is IPv{mine.version}, but {cluster.nodes[0].name}'s {what} address is "
                    f"IPv{theirs.version}; one link cannot have both",
                    f"write all {what} addresses in the same family",
                )


def _unusable(address: IpAddress) -> str:
    kinds: tuple[tuple[bool, str], ...] = (
        (address.is_unspecified, "the wildcard address"),
        (address.is_loopback, "a loopback address"),
        (address.is_multicast, "a multicast address"),
        (address.is_link_local, "a link-local address, which is ambiguous without an interface"),
        (address == IPv4Address("255.255.255.255"), "the broadcast address"),
        (address.is_reserved, "a reserved address"),
    )
    return next((words for true, words in kinds if true), "")


def _hosts(cluster: ClusterSpec) -> Iterator[Problem]:
    names, initiators = Unique(), Unique()
    targets = {r.iqn: r.name for r in cluster.resources}
    for i, host in enumerate(cluster.hosts):
        if first := names.taken(host.name, f"hosts[{i}]"):
            yield Problem(
                ("hosts", i, "name"),
                "host-name-duplicate",
                f"{first} is named {host.name} too",
                "give every host a name of its own",
            )
        for k, name in enumerate(host.initiators):
            path: Path = ("hosts", i, "initiators", k)
            if first := initiators.taken(name, f"host {host.name} (hosts[{i}].initiators[{k}])"):
                yield Problem(
                    path,
                    "initiator-duplicate",
                    f"{name} belongs to {first} already",
                    "list each initiator name once; give cloned machines names of their own (iscsi-iname)",
                )
            if name in targets:
                yield Problem(
                    path,
                    "initiator-is-target",
                    f"{name} is the name of the target of resource {targets[name]}",
                    "write the host's own name, which is in its /etc/iscsi/initiatorname.iscsi",
                )
    yield from (
        Problem(("hosts", i, "chap", key), code, message, hint)
        for i, key, code, message, hint in chap_problems(cluster.hosts)
    )


def _resources(cluster: ClusterSpec) -> Iterator[Problem]:
    names, ids, iqns, ports = Unique(), Unique(), Unique(), Unique()
    nodes, hosts = {n.name for n in cluster.nodes}, {h.name for h in cluster.hosts}
    for i, resource in enumerate(cluster.resources):
        base: Path = ("resources", i)
        owner = f"resource {resource.name} (resources[{i}])"
        if first := names.taken(resource.name, owner):
            yield Problem(
                (*base, "name"),
                "resource-name-duplicate",
                f"{first} has that name too",
                "choose another name",
            )
        if first := ids.taken(resource.id, owner):
            yield Problem(
                (*base, "id"),
                "resource-id-duplicate",
                f"id {resource.id} is that of {first} too, so that their RTPIs would clash on every node",
                "give every resource an id of its own, and never change that of a resource in use",
            )
        if first := iqns.taken(resource.iqn, owner):
            yield Problem(
                (*base, "iqn"),
                "iqn-duplicate",
                f"{resource.iqn} is the target of {first} too",
                "a resource is one target: give each its own IQN, or make one resource of several volumes",
            )
        if first := ports.taken(resource.drbd_port, owner):
            yield Problem(
                (*base, "port"),
                "port-duplicate",
                f"DRBD port {resource.drbd_port} is that of {first} too",
                "choose another port, or leave it out for 7000 + id",
            )
        if taken := TAKEN_PORTS.get(resource.drbd_port):
            yield Problem(
                (*base, "port"),
                "port-taken",
                f"port {resource.drbd_port} is {taken}'s",
                "choose another port, or leave it out for 7000 + id",
            )
        if resource.failback and resource.preferred is None:
            yield Problem(
                (*base, "failback"),
                "failback-nowhere",
                f"{resource.name} prefers no node that it could go back to",
                "name the preferred node, or leave failback out",
            )
        yield from _references((*base, "nodes"), "node", resource.nodes, nodes)
        yield from _references((*base, "hosts"), "host", resource.hosts, hosts)


def _references(base: Path, what: str, names: tuple[str, ...], known: set[str]) -> Iterator[Problem]:
    listed = Unique()
    for k, name in enumerate(names):
        if name not in known:
            known_ones = f"known are: {', '.join(sorted(known))}" if known else f"there are no {what}s"
            yield Problem(
                (*base, k),
                f"{what}-unknown",
                f"there is no {what} {name}",
                f"correct the name, or add it to {what}s ({known_ones})",
            )
        if listed.taken(name, f"{what}s[{k}]"):
            yield Problem(
                (*base, k), f"{what}-listed-twice", f"{what} {name} is listed twice", "list it once"
            )


def _volumes(cluster: ClusterSpec) -> Iterator[Problem]:
    luns, minors, serials = Unique(), Unique(), Unique()
    for i, resource in enumerate(cluster.resources):
        numbers = Unique()
        if len(resource.volumes) > MAX_VOLUMES:
            yield Problem(
                ("resources", i, "volumes"),
                "too-many-volumes",
                f"resource {resource.name} has {len(resource.volumes)} volumes; {MAX_VOLUMES} are the most",
                "spread them over several resources",
            )
        for k, volume in enumerate(resource.volumes):
            base: Path = ("resources", i, "volumes", k)
            owner = f"volume {volume.number} of {resource.name} (resources[{i}].volumes[{k}])"
            minor, serial = resource.minor(volume), cluster.serial(resource, volume)
            unique: tuple[tuple[Unique, Hashable, str, str, str, str], ...] = (
                (numbers, volume.number, "number", "volume-number-duplicate", "the number", ""),
                (luns, (resource.iqn, volume.lun), "lun", "lun-duplicate", f"LUN {volume.lun}", ""),
                (
                    minors,
                    minor,
                    "minor",
                    "minor-duplicate",
                    f"DRBD minor {minor}",
                    ", or leave it out for id * 16 + number",
                ),
                (
                    serials,
                    serial,
                    "serial",
                    "serial-duplicate",
                    f"the serial {serial}",
                    ", or leave it out; hosts take units with one serial for paths of one unit",
                ),
            )
            for kept, value, key, code, words, more in unique:
                if first := kept.taken(value, owner):
                    yield Problem(
                        (*base, key), code, f"{words} is that of {first} too", f"choose another{more}"
                    )
            yield from _size(base, volume.size)


def _size(base: Path, size: int) -> Iterator[Problem]:
    path = (*base, "size")
    if size < MIN_DEVICE_SIZE:
        yield Problem(
            path,
            "size-too-small",
            f"{format_size(size)} is less than the {format_size(MIN_DEVICE_SIZE)} that DRBD needs",
            f"write {format_size(MIN_DEVICE_SIZE)} or more",
        )
    elif size > MAX_DEVICE_SIZE:
        yield Problem(
            path,
            "size-too-large",
            f"{format_size(size)} is more than the {format_size(MAX_DEVICE_SIZE)} that DRBD can replicate",
            "split it into several volumes",
        )
    elif size % GRANULARITY:
        yield Problem(
            path,
            "size-not-aligned",
            f"{size} bytes are no multiple of {GRANULARITY}",
            f"write {size // GRANULARITY * GRANULARITY} or {(size // GRANULARITY + 1) * GRANULARITY}",
        )


def _replicas(
    cluster: ClusterSpec, max_replicas: int | None, before: ClusterSpec | None
) -> Iterator[Problem]:
    alone = {r.name for r in before.resources if len(_holders(r)) == 1} if before is not None else set()
    for i, resource in enumerate(cluster.resources):
        with_disk = {node for volume in resource.volumes for node in volume.disks}
        for k, volume in enumerate(resource.volumes):
            base: Path = ("resources", i, "volumes", k, "disks")
            for node in sorted(volume.disks.keys() - set(resource.nodes)):
                yield Problem(
                    (*base, node),
                    "disk-node-not-listed",
                    f"node {node} has a disk here, but is not among the nodes of {resource.name}",
                    f"add {node} to the resource's nodes, or remove its disk",
                )
            for node in sorted((with_disk & set(resource.nodes)) - volume.disks.keys()):
                yield Problem(
                    base,
                    "replica-incomplete",
                    f"node {node} has a disk for another volume of {resource.name}, but none for this one; "
                    "DRBD replicates all volumes of a resource between the same nodes",
                    f"give {node} a disk here too, or none in any volume of {resource.name}",
                )
        if max_replicas is not None and len(_holders(resource)) > max_replicas:
            yield Problem(
                ("resources", i, "volumes"),
                "too-many-replicas",
                f"resource {resource.name} has disks on {len(_holders(resource))} nodes, but this DRBD "
                f"replicates between {max_replicas} at most",
                f"name disks on {max_replicas} nodes only; others can export it without a disk",
            )

        if max_replicas == 2 and len(_holders(resource)) == 1 and resource.name not in alone:
            yield Problem(
                ("resources", i, "volumes"),
                "too-few-replicas",
                f"resource {resource.name} has a disk on one node only, and DRBD 8.4 replicates between two",
                "name a disk on a second node, or use DRBD 9",
            )


def _holders(resource: ResourceSpec) -> set[str]:
    return {n for v in resource.volumes for n in v.disks if n in resource.nodes}
