"""Reads hactl's part of LIO's tree; of everything else only names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import SecretStr

from hactl.alua.states import AccessState
from hactl.errors import Failed
from hactl.target.attributes import DEVICE, PORTAL_GROUP
from hactl.target.configfs import ConfigFs
from hactl.target.tree import (
    DEFAULT_GROUP,
    HBA_BASE,
    HBA_END,
    HBA_STEP,
    PREFIX,
    Acl,
    Backstore,
    Chap,
    Lun,
    MappedLun,
    Pairs,
    PortGroup,
    Target,
    Tpg,
    Tree,
)

PLUGINS = ("iblock", "fileio")
_HBA = re.compile(r"^[a-z_]+_(\d+)$")
_IBLOCK = re.compile(r"UDEV PATH: (\S+)")
_FILEIO = re.compile(r"File: (\S+)\s+Size: (\d+)")
_ALIAS = re.compile(r"^TG Port Alias: (\S+)$", re.MULTILINE)
_ACCESS_TYPES = {"None": 0, "Implicit": 1, "Explicit": 2, "Implicit and Explicit": 3}


@dataclass(frozen=True)
class Scope:
    """One resource's part of the tree. With its ``id``, HBAs that are another resource's by their number are
    not looked into, except those in ``astray``."""

    resource: str
    iqn: str
    id: int | None = None
    astray: frozenset[str] = frozenset()

    def looks_into(self, hba: str) -> bool:
        if self.id is None or hba in self.astray:
            return True
        # Asked of every HBA there is, so its name is taken apart once.
        number = _number(hba)
        return number is None or _slot(number) == self.id

    def has(self, backstore: str) -> bool:
        return backstore.rpartition(".")[0] == f"{PREFIX}{self.resource}"


def observe(fs: ConfigFs, scope: Scope | None = None) -> Tree:
    """Everything that is hactl's: backstores by their prefix; targets by the ledger or by a LUN that links to
    such a backstore. Words that the kernel is not known to use raise :class:`Failed`.

    With a ``scope`` only that resource's; of everything else no more than names are read.
    """
    backstores: list[Backstore] = []
    empty, taken = set(), set()
    for hba in hbas(fs):
        if scope is not None and not scope.looks_into(hba):
            continue
        devices = devices_of(fs, hba)
        own = [d for d in devices if d.startswith(PREFIX) and plugin_of(hba) in PLUGINS]
        if scope is not None:
            own = [d for d in own if scope.has(d)]
        backstores.extend(_backstore(fs, hba, d) for d in own)
        if len(own) < len(devices):
            taken.add(hba)
        if not devices and in_range(hba) and scope is None:
            empty.add(hba)
    targets: list[Target] = []
    foreign: set[str] = set()
    claims = fs.claims()
    if scope is not None:
        claims &= {scope.iqn}
    for iqn in target_names(fs):
        if scope is not None and iqn != scope.iqn:
            continue
        if iqn in claims or links_to_own(fs, iqn):
            targets.append(_target(fs, iqn))
        else:
            foreign.add(iqn)
    return Tree(
        tuple(sorted(backstores, key=lambda b: b.name)),
        tuple(targets),
        frozenset(empty),
        frozenset(taken),
        claims,
        frozenset(foreign),
    )


def hbas(fs: ConfigFs) -> list[str]:
    """Names of all HBAs, whosever they are."""
    return [name for name in fs.listdir("core") if _HBA.match(name)]


def devices_of(fs: ConfigFs, hba: str) -> list[str]:
    """Names of the backstores in an HBA."""
    return [name for name in fs.listdir(f"core/{hba}") if name not in ("hba_info", "hba_mode")]


def plugin_of(hba: str) -> str:
    """``iblock`` of ``iblock_7``."""
    return hba.rpartition("_")[0]


def in_range(hba: str) -> bool:
    """Whether an HBA has a number that hactl gives, of a plugin that hactl uses."""
    return _number(hba) is not None


def in_slots(hba: str, resource_id: int) -> bool:
    """Whether an HBA is one that the backstores of a resource are put into."""
    found = _HBA.match(hba)
    return found is not None and _slot(int(found[1])) == resource_id


def _number(hba: str) -> int | None:
    """Number of an HBA, if it is in the range that hactl gives, of a plugin that hactl uses."""
    plugin, _, digits = hba.rpartition("_")
    number = int(digits) if digits.isdecimal() and plugin in PLUGINS else -1
    return number if HBA_BASE <= number < HBA_END else None


def _slot(number: int) -> int:
    """Id of the resource whose backstores an HBA of a number in the range is for."""
    return (number - HBA_BASE) % HBA_STEP // 16


def target_names(fs: ConfigFs) -> list[str]:
    """Names of all iSCSI targets, whosever they are; none if the fabric does not exist yet."""
    if not fs.exists("iscsi"):
        return []
    return [n for n in fs.listdir("iscsi") if n.startswith(("iqn.", "eui.", "naa."))]


def links_to_own(fs: ConfigFs, iqn: str) -> bool:
    """Whether a LUN of the target links to one of hactl's backstores."""
    return any(
        own_backstore(source) is not None
        for tag in tags(fs, iqn)
        for number in numbers(fs, f"iscsi/{iqn}/tpgt_{tag}/lun")
        for source in fs.links(f"iscsi/{iqn}/tpgt_{tag}/lun/lun_{number}").values()
    )


def own_backstore(path: str) -> str | None:
    """Name of the backstore that a path such as ``core/iblock_1048592/hactl.r1.0`` leads to, if it is
    hactl's."""
    parts = path.split("/")
    if (
        len(parts) == 3
        and parts[0] == "core"
        and plugin_of(parts[1]) in PLUGINS
        and parts[2].startswith(PREFIX)
    ):
        return parts[2]
    return None


def tags(fs: ConfigFs, iqn: str) -> list[int]:
    """Tags of a target's portal groups, in order."""
    return sorted(int(n[5:]) for n in fs.listdir(f"iscsi/{iqn}") if n.startswith("tpgt_"))


def numbers(fs: ConfigFs, path: str) -> list[int]:
    """Numbers of the ``lun_<n>`` in a folder, in order."""
    return sorted(int(n[4:]) for n in fs.listdir(path) if n.startswith("lun_"))


def members(fs: ConfigFs, backstore: str) -> list[str]:
    """The LUNs, of any fabric and owner, that link to the backstore at a path: all are in one of its port
    groups."""
    found: list[str] = []
    for group in fs.listdir(f"{backstore}/alua"):
        found.extend(fs.read(f"{backstore}/alua/{group}/members").split("\n"))
    # The kernel ends each entry with a NUL as well as a line end.
    return [m for m in (entry.strip("\0") for entry in found) if m]


def implicit_only(fs: ConfigFs, group: str) -> bool:
    """Whether a port group takes implicit ALUA and no other."""
    word = fs.read(f"{group}/alua_access_type")
    if word not in _ACCESS_TYPES:
        raise Failed("alua-type-unknown", f"{group} has an access type {word!r} that hactl does not know")
    return _ACCESS_TYPES[word] == 1


def access_state(fs: ConfigFs, group: str) -> AccessState:
    """State of a port group."""
    word = fs.read(f"{group}/alua_access_state")
    try:
        return AccessState(int(word))
    except ValueError:
        raise Failed(
            "alua-state-unknown", f"{group} is in an access state {word!r} that hactl does not know"
        ) from None


def lun_group(fs: ConfigFs, lun: str) -> str | None:
    """Port group of a linked LUN."""
    found = _ALIAS.search(fs.read(f"{lun}/alua_tg_pt_gp"))
    return found[1] if found else None


def chap_of(fs: ConfigFs, acl: str) -> Chap | None:
    """CHAP credentials in an ACL, None if none of them is set."""
    values = [
        "" if value.startswith("NULL") else value
        for value in (
            fs.read(f"{acl}/auth/{name}")
            for name in ("userid", "password", "userid_mutual", "password_mutual")
        )
    ]
    if not any(values):
        return None
    return Chap(values[0], SecretStr(values[1]), values[2], SecretStr(values[3]))


def find_backstore(fs: ConfigFs, name: str, preferred: str | None = None) -> str | None:
    """Path of one of hactl's backstores, looked for in the HBA ``preferred`` first; None if there is none."""
    if preferred is not None and fs.exists(f"core/{preferred}/{name}"):
        return f"core/{preferred}/{name}"
    for hba in hbas(fs):
        if plugin_of(hba) in PLUGINS and fs.exists(f"core/{hba}/{name}"):
            return f"core/{hba}/{name}"
    return None


def read_attributes(fs: ConfigFs, path: str, names: list[str]) -> Pairs:
    """Values of attributes; one that this kernel lacks is left out."""
    return tuple((n, fs.read(f"{path}/attrib/{n}")) for n in sorted(names) if fs.exists(f"{path}/attrib/{n}"))


def _backstore(fs: ConfigFs, hba: str, name: str) -> Backstore:
    path = f"core/{hba}/{name}"
    plugin = plugin_of(hba)
    info = fs.read(f"{path}/info")
    device, size = "", None
    if plugin == "iblock":
        if found := _IBLOCK.search(info):
            device = found[1]
    elif found := _FILEIO.search(info):
        device, size = found[1], int(found[2])
    groups = [
        PortGroup(group, _id(fs, f"{path}/alua/{group}"), implicit_only(fs, f"{path}/alua/{group}"))
        for group in fs.listdir(f"{path}/alua")
        if group != DEFAULT_GROUP
    ]
    default = f"{path}/alua/{DEFAULT_GROUP}"
    return Backstore(
        name=name,
        plugin=plugin,
        path=device,
        size=size,
        serial=fs.read(f"{path}/wwn/vpd_unit_serial").rpartition(": ")[2].strip(),
        vendor=fs.read(f"{path}/wwn/vendor_id").strip(),
        product=fs.read(f"{path}/wwn/product_id").strip(),
        attributes=read_attributes(fs, path, list(DEVICE)),
        groups=tuple(groups),
        enabled=_flag(fs, f"{path}/enable"),
        quiet=implicit_only(fs, default) and access_state(fs, default) is AccessState.STANDBY,
        hba=hba,
    )


def _id(fs: ConfigFs, group: str) -> int | None:
    word = fs.read(f"{group}/tg_pt_gp_id")
    return int(word) if word else None


def _target(fs: ConfigFs, iqn: str) -> Target:
    return Target(iqn, tuple(_tpg(fs, f"iscsi/{iqn}/tpgt_{tag}", tag) for tag in tags(fs, iqn)))


def _tpg(fs: ConfigFs, path: str, tag: int) -> Tpg:
    acls = tuple(_acl(fs, f"{path}/acls/{name}", name) for name in fs.listdir(f"{path}/acls"))
    return Tpg(
        tag=tag,
        rtpi=int(fs.read(f"{path}/rtpi"), 0),
        enabled=_flag(fs, f"{path}/enable"),
        portals=tuple(fs.listdir(f"{path}/np")),
        attributes=read_attributes(fs, path, [*PORTAL_GROUP, "authentication"]),
        auth_methods=fs.read(f"{path}/param/AuthMethod"),
        luns=tuple(_lun(fs, f"{path}/lun/lun_{n}", n) for n in numbers(fs, f"{path}/lun")),
        acls=acls,
    )


def _lun(fs: ConfigFs, path: str, number: int) -> Lun:
    sources = list(fs.links(path).values())
    if not sources:
        return Lun(number, None, None)
    return Lun(number, own_backstore(sources[0]) or sources[0], lun_group(fs, path))


def _acl(fs: ConfigFs, path: str, initiator: str) -> Acl:
    word = fs.read(f"{path}/attrib/authentication")
    if word not in ("-1", "0", "1"):
        raise Failed("authentication-unknown", f"{path}/attrib/authentication is {word!r}, not -1, 0 or 1")
    luns = []
    for number in numbers(fs, path):
        sources = list(fs.links(f"{path}/lun_{number}").values())
        lun = int(sources[0].rpartition("lun_")[2]) if sources else None
        luns.append(
            MappedLun(number, lun, lun is not None and _flag(fs, f"{path}/lun_{number}/write_protect"))
        )
    return Acl(initiator, None if word == "-1" else word == "1", chap_of(fs, path), tuple(luns))


def _flag(fs: ConfigFs, path: str) -> bool:
    word = fs.read(path)
    if word not in ("0", "1"):
        raise Failed("flag-unknown", f"{path} is {word!r}, not 0 or 1")
    return word == "1"
