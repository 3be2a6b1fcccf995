"""Parts of the configuration as documents for ``--json`` and for people. Pure.

Passwords are left out unless they are asked for; ``chap.password`` is then null.
"""

from __future__ import annotations

from typing import Any

from hactl.model.desired import Desired, Leftover
from hactl.model.size import format_size
from hactl.model.spec import ClusterSpec, HostSpec, NodeSpec, PoolSpec, ResourceSpec


def node_document(cluster: ClusterSpec, node: NodeSpec) -> dict[str, Any]:
    """A node, with the resources on it."""
    return {
        "name": node.name,
        "id": node.id,
        "addresses": {
            "cluster": str(node.addresses.cluster),
            "replication": str(node.addresses.replication),
            "storage": [str(address) for address in node.addresses.storage],
        },
        "failure_domain": node.failure_domain,
        "pools": [pool_document(pool) for pool in node.pools],
        "fencing": fencing_document(node),
        "resources": [r.name for r in cluster.resources if node.name in r.nodes],
        "replicas": [r.name for r in cluster.resources if node.name in r.replicas],
    }


def fencing_document(node: NodeSpec, *, secrets: bool = False) -> dict[str, Any] | None:
    """How a node is switched off; None if it cannot be. Secrets by name, null unless asked for."""
    if node.fencing is None:
        return None
    return {
        "agent": node.fencing.agent,
        "options": dict(node.fencing.options),
        "secrets": {
            name: secret.get_secret_value() if secrets else None
            for name, secret in node.fencing.secrets.items()
        },
    }


def pool_document(pool: PoolSpec) -> dict[str, Any]:
    """A pool: its name, and its kind with what it is made of."""
    return pool.model_dump(mode="json", exclude_none=True)


def pool_words(pool: PoolSpec) -> str:
    """A pool in a word or two: ``fast=lvm:vg0``."""
    if pool.lvm is not None:
        return f"{pool.name}=lvm:{pool.lvm.vg}"
    if pool.lvm_thin is not None:
        return f"{pool.name}=lvm_thin:{pool.lvm_thin.vg}/{pool.lvm_thin.thin_pool}"
    return f"{pool.name}=files:{pool.files.path if pool.files else ''}"


def host_document(cluster: ClusterSpec, host: HostSpec, *, secrets: bool = False) -> dict[str, Any]:
    """A host, and what it sees: by resource, LUN by volume number."""
    chap: dict[str, Any] | None = None
    if host.chap is not None:
        mutual = host.chap.mutual_password
        chap = {
            "user": host.chap.user,
            "password": host.chap.password.get_secret_value() if secrets else None,
            "mutual_user": host.chap.mutual_user,
            "mutual_password": mutual.get_secret_value() if secrets and mutual is not None else None,
        }
    return {
        "name": host.name,
        "initiators": list(host.initiators),
        "chap": chap,
        "exports": {r.name: luns for r in cluster.resources if (luns := luns_of(r, host.name))},
    }


def luns_of(resource: ResourceSpec, host: str) -> dict[str, int]:
    """LUN by volume number (as text, as JSON has it) that a host sees of a resource."""
    if host in resource.hosts:
        return {str(v.number): v.lun for v in resource.volumes}
    return {str(number): lun for number, lun in resource.exports.get(host, {}).items()}


def resource_document(cluster: ClusterSpec, resource: ResourceSpec) -> dict[str, Any]:
    """A resource with everything that follows from it."""
    return {
        "name": resource.name,
        "id": resource.id,
        "iqn": resource.iqn,
        "nodes": list(resource.nodes),
        "replicas": list(resource.replicas),
        "preferred": resource.preferred,
        "failback": resource.failback,
        "maintenance": resource.maintenance,
        "port": resource.drbd_port,
        "volumes": [
            {
                "number": v.number,
                "lun": v.lun,
                "size": v.size,
                "minor": resource.minor(v),
                "serial": cluster.serial(resource, v),
                "disks": dict(v.disks),
                "adopt": v.adopt,
                "devices": {node: cluster.device(resource, v, node) for node in v.disks},
            }
            for v in resource.volumes
        ],
        "hosts": list(resource.hosts),
        "exports": {
            host: {str(number): lun for number, lun in luns.items()}
            for host, luns in resource.exports.items()
        },
    }


def leftover_document(leftover: Leftover) -> dict[str, Any]:
    """What a node has still to take down."""
    return {
        "node": leftover.node,
        "resource": leftover.resource,
        "volume": leftover.volume,
        "disk": leftover.disk,
        "destroy": leftover.destroy,
    }


def leftovers_of(desired: Desired, resource: str) -> list[dict[str, Any]]:
    """What is still to be taken down of a resource of that name."""
    return [leftover_document(left) for left in desired.leftovers if left.resource == resource]


def resource_row(resource: ResourceSpec) -> dict[str, object]:
    """A resource as a line of a table."""
    return {
        "name": resource.name,
        "size": " + ".join(format_size(v.size) for v in resource.volumes),
        "nodes": ", ".join(resource.nodes),
        "preferred": resource.preferred or "-",
        "hosts": ", ".join((*resource.hosts, *resource.exports)) or "-",
        "iqn": resource.iqn,
    }


def lines(document: Any, indent: str = "") -> list[str]:
    """A document as ``key: value`` lines for people; what is null or empty is a dash."""
    found: list[str] = []
    for key, value in document.items():
        shown = format_size(value) if key == "size" else value
        if isinstance(value, dict) and value:
            found += [f"{indent}{key}:", *lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                found += [f"{indent}{key}:", *lines(item, indent + "  ")]
        elif isinstance(value, list):
            found.append(f"{indent}{key}: {', '.join(map(str, value)) or '-'}")
        else:
            found.append(f"{indent}{key}: {'-' if value in (None, {}) else shown}")
    return found
