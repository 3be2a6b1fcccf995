"""Clusters, trees and invariants that the tests of hactl.target and hactl.alua share."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from pydantic import SecretStr

from hactl.alua.states import AccessState
from hactl.model.spec import (
    Addresses,
    ChapSpec,
    ClusterSpec,
    HostSpec,
    NodeSpec,
    ResourceSpec,
    VolumeSpec,
)
from hactl.target.apply import apply
from hactl.target.configfs import ConfigFs
from hactl.target.gates import gate_name
from hactl.target.memory import MemoryConfigFs
from hactl.target.observe import access_state, find_backstore, lun_group, numbers, observe, tags
from hactl.target.plan import plan
from hactl.target.tree import DEFAULT_GROUP, Tree, desired

FOREIGN = "iqn.2003-01.org.example:theirs"
OWN = "iqn.2026-11.org.example:"
SECRET = "correct-horse-battery"
MUTUAL = "staple-of-the-battery"

NODES = tuple(
    NodeSpec(
        name=f"n{i}",
        id=i,
        addresses=Addresses(
            cluster=ip_address(f"10.0.0.{i}"),
            replication=ip_address(f"10.0.1.{i}"),
            storage=(ip_address(f"10.0.2.{i}"), ip_address(f"2001:db8::{i}")),
        ),
    )
    for i in (1, 2, 3)
)


def host(name: str, *, chap: bool = False, mutual: bool = False, secret: str = SECRET) -> HostSpec:
    """A host with one initiator."""
    credentials = ChapSpec(
        user=f"{name}-user",
        password=SecretStr(secret),
        mutual_user="target" if mutual else None,
        mutual_password=SecretStr(MUTUAL) if mutual else None,
    )
    return HostSpec(
        name=name, initiators=(f"iqn.1994-05.com.example:{name}",), chap=credentials if chap else None
    )


def resource(number: int, **changes: Any) -> ResourceSpec:
    """Resource ``r<number>`` on n1 and n2 with one volume on LUN 0, but for the changes."""
    values: dict[str, Any] = {
        "name": f"r{number}",
        "id": number,
        "iqn": f"{OWN}r{number}",
        "nodes": ("n1", "n2"),
        "volumes": (volume(0, 0),),
        "hosts": ("h1",),
    }
    return ResourceSpec(**{**values, **changes})


def volume(number: int, lun: int) -> VolumeSpec:
    """A volume with replicas on n1 and n2."""
    return VolumeSpec(number=number, lun=lun, size=1 << 20, disks={"n1": "/dev/vg/a", "n2": "/dev/vg/a"})


def cluster(*resources: ResourceSpec, hosts: Iterable[HostSpec] = ()) -> ClusterSpec:
    """A cluster of three nodes; host h1 without CHAP unless others are given."""
    return ClusterSpec(name="c1", nodes=NODES, hosts=tuple(hosts) or (host("h1"),), resources=resources)


def wanted(spec: ClusterSpec, node: str = "n1") -> Tree:
    """The tree of a node, gates under /dev/mapper."""
    devices = {
        (r.name, v.number): f"/dev/mapper/{gate_name(r.name, v.number)}"
        for r in spec.resources
        for v in r.volumes
    }
    return desired(spec, node, devices)


def converge(fs: ConfigFs, tree: Tree) -> int:
    """Plan and apply until done; the number of changes."""
    changes = plan(tree, observe(fs))
    for change in changes:
        apply(fs, change)
    assert observe(fs) == tree
    assert plan(tree, observe(fs)) == ()
    return len(changes)


def with_foreign() -> MemoryConfigFs:
    """A tree that somebody else uses already."""
    fs = MemoryConfigFs()
    fs.mkdir("core/iblock_0")
    fs.mkdir("core/iblock_0/disk")
    fs.write("core/iblock_0/disk/control", "udev_path=/dev/sdz")
    fs.write("core/iblock_0/disk/enable", "1")
    fs.mkdir(f"iscsi/{FOREIGN}")
    fs.mkdir(f"iscsi/{FOREIGN}/tpgt_1")
    fs.mkdir(f"iscsi/{FOREIGN}/tpgt_1/lun/lun_0")
    fs.symlink("core/iblock_0/disk", f"iscsi/{FOREIGN}/tpgt_1/lun/lun_0/abcdef")
    fs.mkdir(f"iscsi/{FOREIGN}/tpgt_1/np/0.0.0.0:3260")
    fs.write(f"iscsi/{FOREIGN}/tpgt_1/enable", "1")
    return fs


def dump(fs: ConfigFs, path: str) -> dict[str, str]:
    """Everything below a path: attribute values, links, and objects as empty text."""
    found: dict[str, str] = {}
    links = fs.links(path)
    for name in fs.listdir(path):
        below = f"{path}/{name}"
        if name in links:
            found[below] = links[name]
            continue
        try:
            found[below] = fs.read(below)
        except Exception:  # noqa: BLE001 - an object, or an attribute that cannot be read
            found[below] = ""
            try:
                found.update(dump(fs, below))
            except Exception:  # noqa: BLE001 - an attribute that can only be written
                continue
    return found


def foreign_state(fs: ConfigFs) -> dict[str, str]:
    """All there is of the objects of ``with_foreign``."""
    return dump(fs, "core/iblock_0") | dump(fs, f"iscsi/{FOREIGN}")


def check_invariants(fs: ConfigFs, spec: ClusterSpec) -> None:
    """What must hold at every moment, between any two writes."""
    for res in spec.resources:
        for vol in res.volumes:
            backstore = find_backstore(fs, gate_name(res.name, vol.number))
            if backstore is None:
                continue
            default = f"{backstore}/alua/{DEFAULT_GROUP}"
            if fs.read(f"{default}/members"):
                assert access_state(fs, default) is AccessState.STANDBY
            for group in fs.listdir(f"{backstore}/alua"):
                if fs.read(f"{backstore}/alua/{group}/members"):
                    assert access_state(fs, f"{backstore}/alua/{group}") is AccessState.STANDBY
        if not fs.exists(f"iscsi/{res.iqn}"):
            continue
        for tag in tags(fs, res.iqn):
            check_tpg(fs, f"iscsi/{res.iqn}/tpgt_{tag}")


def check_tpg(fs: ConfigFs, tpg: str) -> None:
    """Nothing that an initiator can see is in a default port group, and what it sees it has to be allowed
    to."""
    for initiator in fs.listdir(f"{tpg}/acls"):
        acl = f"{tpg}/acls/{initiator}"
        shown = [source for n in numbers(fs, acl) for source in fs.links(f"{acl}/lun_{n}").values()]
        for lun in shown:
            assert lun_group(fs, lun) != DEFAULT_GROUP
        if shown:
            assert fs.read(f"{acl}/attrib/authentication") in ("0", "1")
