"""Targets of a single node that targetcli configured, as resources of the cluster. Pure.

Every target becomes a resource with one replica, on the node that has the disks; IQN, LUNs, serials (and with
them the WWIDs that hosts know units by), hosts and their CHAP credentials stay. A second replica is added
afterwards like any other. What cannot be taken over as it was is left out as a whole target, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from hactl.errors import Refused
from hactl.model import allocate, find, leave
from hactl.model.check import GRANULARITY, check
from hactl.model.desired import Desired
from hactl.model.put import put_host, put_resources
from hactl.model.saveconfig import Acl, Saved, Store, Target, Unusable, parse
from hactl.model.size import format_size
from hactl.model.spec import ISCSI_PORT, POOL, ChapSpec, HostSpec, ResourceSpec, VolumeSpec
from hactl.model.takeover_data import Keeping, refuse_copy
from hactl.model.takeover_limits import SkipError, refuse_store, refuse_target
from hactl.model.values import make, refusal
from hactl.replication.metadata import required_disk_size

PEERS = 7
"""Room for this many peers is counted into the meta-data, as DRBD 9 is given; 8.4 needs less."""


@dataclass(frozen=True)
class Remark:
    """Something to know about a target (its IQN; empty: about all); ``skipped``: it is not taken over."""

    target: str
    code: str
    message: str
    hint: str
    skipped: bool

    def __str__(self) -> str:
        where = f"{self.target}: " if self.target else ""
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")

    def as_dict(self) -> dict[str, str | bool]:
        """The remark as ``--json`` shows it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Takeover:
    """The state with what is taken over (the same if nothing is), by resource name its target's IQN, and what
    to know."""

    desired: Desired
    resources: Mapping[str, str]
    remarks: tuple[Remark, ...]

    @property
    def complete(self) -> bool:
        """Whether every target of the file is there now."""
        return not any(remark.skipped for remark in self.remarks)


def take_over(
    data: bytes | str,
    desired: Desired,
    node: str,
    *,
    sizes: Mapping[str, int],
    seen: Mapping[str, int] | None = None,
    peers: int = PEERS,
    keeping: Keeping | None = None,
) -> Takeover:
    """What becomes of a saveconfig.json on ``node``.

    ``sizes``: bytes that each block device has now, by the path in the file. ``seen``: bytes that hosts have
    seen of devices that were grown since, which is what makes room for DRBD's meta-data at their end: without
    that room, meta-data would overwrite the end of the data, so such a target is left out. ``keeping``: where
    the data are to stay and to be copied to.

    :class:`Refused` ``saveconfig-damaged`` or ``unknown-node``. In :func:`hactl.store.desired.change`:
    ``lambda desired: take_over(data, desired, ...).desired``.
    """
    find.node(desired, node)
    saved = parse(data)
    keeping = keeping or Keeping()
    if keeping.copy is not None:
        refuse_copy(desired, node, keeping, saved)
    work = _Work(saved, desired, node, sizes, seen or {}, peers, keeping)
    without: dict[str, Remark] = {}
    while True:
        result = work.run(without)
        problems = check(result.desired.cluster, result.desired.leftovers)
        if not problems:
            return result
        found = False
        cluster = result.desired.cluster
        for problem in problems:
            for iqn in _culprits(problem.path, result):
                found = found or iqn not in without
                remark = Remark(iqn, problem.code, problem.message, problem.hint, True)
                without.setdefault(iqn, remark)
        if not found:
            raise refusal(problems, f"cluster {cluster.name}")


def _culprits(path: tuple[str | int, ...], result: Takeover) -> list[str]:
    """Targets that are taken over and have to do with a problem."""
    cluster = result.desired.cluster
    match path:
        case ("resources", int(i), *_):
            iqn = result.resources.get(cluster.resources[i].name)
            return [] if iqn is None else [iqn]
        case ("hosts", int(i), *_):
            host = cluster.hosts[i].name
            return [
                result.resources[r.name]
                for r in cluster.resources
                if r.name in result.resources and (host in r.hosts or host in r.exports)
            ]
    return []


class _Work:
    def __init__(
        self,
        saved: Saved,
        desired: Desired,
        node: str,
        sizes: Mapping[str, int],
        seen: Mapping[str, int],
        peers: int,
        keeping: Keeping,
    ) -> None:
        self.keeping = keeping
        self.saved = saved
        self.before = desired
        self.node = node
        self.sizes = sizes
        self.seen = seen
        self.peers = peers

    def run(self, without: Mapping[str, Remark]) -> Takeover:
        """Everything but the targets in ``without``, which are told."""
        self.state = self.before
        self.ids = allocate.ResourceIds(self.before)
        self.remarks: list[Remark] = []
        self.resources: dict[str, str] = {}
        for target in self.saved.targets:
            if isinstance(target, Unusable):
                self._remark(target.name, target.code, target.message, target.hint, skipped=True)
            elif target.iqn in without:
                self.remarks.append(without[target.iqn])
            else:
                kept, noted = self.state, len(self.remarks)
                try:
                    self._target(target)
                except (SkipError, Refused) as skip:
                    self.state = kept
                    del self.remarks[noted:]
                    told = (
                        skip.remark if isinstance(skip, SkipError) else (skip.code, skip.message, skip.hint)
                    )
                    self._remark(target.iqn, *told, skipped=True)
        if self.saved.discovery_auth:
            self._remark(
                "",
                "discovery-auth",
                "discovery asks for CHAP credentials there; with hactl every host may ask, and is told "
                "only of targets that it may use",
                "remove discovery credentials from the hosts, which would be refused otherwise",
            )
        if self.resources and not self.keeping.adopt:
            self._remark(
                "",
                "data-not-adopted",
                "nobody has said that the disks' data are to stay: agents refuse disks on which they "
                "recognise any, and take others for empty",
                "import with --adopt, or for each resource, before the other nodes have a replica: "
                "hactl resource adopt",
            )
        if self.resources:
            self._remark(
                "",
                "vendor-changes",
                "units will report vendor HACTL instead of LIO-ORG; WWIDs stay",
                "look for LIO-ORG in the hosts' multipath.conf and udev rules",
            )
        return Takeover(self.state, self.resources, tuple(self.remarks))

    def _remark(self, target: str, code: str, message: str, hint: str, *, skipped: bool = False) -> None:
        self.remarks.append(Remark(target, code, message, hint, skipped))

    def _target(self, target: Target) -> None:
        there = next((r for r in self.state.cluster.resources if r.iqn == target.iqn), None)
        if there is not None:
            text = f"resource {there.name} is that target already"
            self._remark(target.iqn, "resource-exists", text, "nothing to do")
            return
        refuse_target(target)
        volumes = [self._volume(number, lun, key) for number, (lun, key) in enumerate(target.luns.items())]
        hosts: list[str] = []
        exports: dict[str, dict[int, int]] = {}
        own = {v.lun: v.number for v in volumes}
        names: dict[str, list[Acl]] = {}
        for acl in target.acls:
            names.setdefault(self._host(target, acl), []).append(acl)
        for name, acls in names.items():
            seen = self._seen(name, acls, own)
            if not seen:
                self._remark(target.iqn, "export-empty", f"host {name} sees none of its LUNs", "")
            elif seen == {number: lun for lun, number in own.items()}:
                hosts.append(name)
            else:
                exports[name] = seen
        name = _free(_name(target.iqn), {r.name for r in self.state.cluster.resources})
        leave.refuse_pending(
            leave.pending(self.state, resource=name), f"resource {name} cannot be created yet"
        )
        spec = make(
            ResourceSpec,
            f"resource {name}",
            name=name,
            id=self.ids.new(),
            iqn=target.iqn,
            nodes=[self.node] if self.keeping.copy is None else self._nodes(self.keeping.copy),
            volumes=volumes,
            hosts=sorted(hosts),
            exports=exports,
            preferred=self.node,
        )
        self._portals(target)
        self.state = put_resources(self.state, [spec])
        self.resources[name] = target.iqn

    def _volume(self, number: int, lun: int, key: tuple[str, str]) -> VolumeSpec:
        store = self.saved.stores.get(key)
        if not isinstance(store, Store):
            why = store if store is not None else f"LUN {lun} leads to {key[0]}/{key[1]}, which is not there"
            raise SkipError("saveconfig-damaged", why, "save it again with targetcli saveconfig")
        what = f"LUN {lun} ({store.plugin}/{store.name})"
        refuse_store(what, store)
        serial = store.serial.replace("-", "").lower()
        if not re.fullmatch(r"[0-9a-f]{32}", serial):
            raise SkipError(
                "serial-unusable",
                f"{what} has no serial (wwn) of 32 hexadecimal digits, and hosts know the unit by the one it "
                "has",
                "leave it where it is, or copy its data to a new volume on a host",
            )
        return make(
            VolumeSpec,
            what,
            number=number,
            lun=lun,
            size=self._size(what, store),
            disks={self.node: store.device, **self._copy(what, store)},
            serial=serial,
            adopt=self.node if self.keeping.adopt else None,
        )

    def _nodes(self, copy: str) -> list[str]:
        return sorted((self.node, copy), key=lambda name: self.state.cluster.node(name).id)

    def _copy(self, what: str, store: Store) -> dict[str, str]:
        """The disk of the second replica, if there is to be one."""
        copy, keeping = self.keeping.copy, self.keeping
        if copy is None:
            return {}
        if store.device in keeping.disks:
            return {copy: keeping.disks[store.device]}
        if keeping.disks and keeping.pool is None:
            raise SkipError(
                "disk-needed",
                f"{what}: no disk on node {copy} is named for the copy of {store.device}",
                f"name one for each: --disk {store.device}=/dev/PATH; or a pool: --pool NAME",
            )
        pool = keeping.pool if keeping.pool is not None else allocate.only_pool([find.node(self.state, copy)])
        return {copy: POOL + pool}

    def _size(self, what: str, store: Store) -> int:
        now = self.sizes.get(store.device)
        if now is None:
            raise SkipError(
                "size-unknown",
                f"{what}: there is no block device {store.device} on node {self.node}",
                "run this on the node that has the devices",
            )
        hosts = self.seen.get(store.device, store.size or now)
        size = -(-hosts // GRANULARITY) * GRANULARITY
        needed = required_disk_size(size, self.peers)
        grows = self.keeping.adopt and store.device in self.keeping.growing and now >= size
        if now < needed and not grows:
            raise SkipError(
                "disk-too-small",
                f"{what}: hosts see {format_size(hosts)} of {store.device}, which has {format_size(now)}; "
                f"DRBD's meta-data would overwrite the last {format_size(needed - now)} of the data",
                f"grow the device to {needed} bytes or more (a logical volume: lvextend -L {needed}b "
                f"{store.device}), and tell what hosts saw before: --size {store.device}={hosts}",
            )
        return size

    def _host(self, target: Target, acl: Acl) -> str:
        """Name of the host that an ACL is of; created if it is not there yet."""
        chap = self._chap(target, acl)
        cluster = self.state.cluster
        there = next((h for h in cluster.hosts if acl.initiator in h.initiators), None)
        if there is None:
            known = {h.name for h in cluster.hosts}
            name = _free(_name(acl.tag or acl.initiator), known)
            host = make(HostSpec, f"host {name}", name=name, initiators=[acl.initiator], chap=chap)
            self.state = put_host(self.state, host)
            return name
        if there.chap != chap:
            raise SkipError(
                "chap-differs",
                f"host {there.name} ({acl.initiator}) has other CHAP credentials elsewhere, or none; with "
                "hactl a host has the same for all targets",
                "make them the same in targetcli and on the host first",
            )
        return there.name

    def _chap(self, target: Target, acl: Acl) -> ChapSpec | None:
        asked = target.authentication if acl.authentication is None else acl.authentication
        if not asked:
            if acl.user is not None:
                self._remark(
                    target.iqn,
                    "chap-unused",
                    f"{acl.initiator} has CHAP credentials that are not asked for (authentication=0); taken "
                    "over without",
                    f"to ask for them: hactl host set {_name(acl.tag or acl.initiator)}",
                )
            return None
        if acl.user is None or acl.password is None:
            raise SkipError(
                "chap-missing",
                f"CHAP is required, and {acl.initiator} has no credentials, so that it cannot log in",
                "give it credentials in targetcli (set auth), or set authentication=0, and save again",
            )
        return make(
            ChapSpec,
            f"CHAP of {acl.initiator}",
            user=acl.user,
            password=acl.password,
            mutual_user=acl.mutual_user,
            mutual_password=acl.mutual_password,
        )

    def _seen(self, name: str, acls: list[Acl], own: Mapping[int, int]) -> dict[int, int]:
        """LUN by volume, as a host sees them."""
        if any(acl.write_protected for acl in acls):
            raise SkipError(
                "write-protected",
                f"host {name} may only read some of its LUNs, which hactl does not offer",
                "let it write, take them from it, or leave the target where it is",
            )
        host = find.host(self.state, name)
        mappings = {tuple(acl.luns.items()) for acl in acls}
        if len(mappings) > 1 or {acl.initiator for acl in acls} != set(host.initiators):
            raise SkipError(
                "host-differs",
                f"the initiators of host {name} do not all see the same of it; with hactl they do",
                "make hosts of their own of them first",
            )
        luns = acls[0].luns
        if len(set(luns.values())) < len(luns) or not set(luns.values()) <= own.keys():
            raise SkipError(
                "saveconfig-damaged",
                f"host {name} sees a LUN twice, or one that is not there",
                "save it again with targetcli saveconfig",
            )
        return {own[lun]: index for index, lun in luns.items()}

    def _portals(self, target: Target) -> None:
        listens = {str(a) for a in self.state.cluster.node(self.node).addresses.storage}
        for portal in target.portals:
            try:
                address = ip_address(portal.address)
            except ValueError:
                address = None
            known = address is not None and (address.is_unspecified or str(address) in listens)
            if portal.transport != "TCP" or portal.port != ISCSI_PORT or not known:
                self._remark(
                    target.iqn,
                    "portal-moves",
                    f"it listens at {portal.address} port {portal.port} by {portal.transport}; the node's "
                    f"portals are {', '.join(sorted(listens))} port {ISCSI_PORT} by TCP",
                    "let hosts log in there, or add the address to the node's storage addresses",
                )


def _name(text: str) -> str:
    """A name made of the last part of an iSCSI name, or of a tag."""
    last = text.rsplit(":", 1)[-1].lower()
    plain = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:28].strip("-")
    return plain or "imported"


def _free(name: str, taken: set[str]) -> str:
    """The name, or with the smallest number that makes it free."""
    number = 2
    free = name
    while free in taken:
        free = f"{name}-{number}"
        number += 1
    return free
