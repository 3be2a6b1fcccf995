"""targetcli's saved configuration (saveconfig.json(5), as rtslib-fb writes it), as frozen values. Pure.

Only shapes are judged here, and only of what hactl has a use for; ``hactl.model.takeover`` decides what of it
becomes resources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pydantic import SecretStr

from hactl.errors import Refused

MAX_BYTES = 32 << 20
"""The longest file that is read; a LUN takes about 3 KiB of it."""


class OddError(Exception):
    """A part of the file is not of the shape it has to be; the text says what and where, not its value."""


@dataclass(frozen=True)
class Store:
    """A storage object. ``device``: its path; ``size`` in bytes where the file tells."""

    plugin: str
    name: str
    device: str
    size: int | None
    serial: str
    read_only: bool
    block_size: int


@dataclass(frozen=True)
class Acl:
    """An initiator that may log in; ``luns``: the target's LUN by the LUN it sees."""

    initiator: str
    luns: dict[int, int]
    write_protected: bool
    authentication: bool | None
    user: str | None
    password: SecretStr | None
    mutual_user: str | None
    mutual_password: SecretStr | None
    tag: str | None


@dataclass(frozen=True)
class Portal:
    """Where a target listens; ``transport`` is TCP, or iSER or an offload."""

    address: str
    port: int
    transport: str


@dataclass(frozen=True)
class Target:
    """An iSCSI target with its one portal group. ``demo``: initiators without an ACL may log in."""

    iqn: str
    enabled: bool
    demo: bool
    authentication: bool
    luns: dict[int, tuple[str, str]]
    acls: tuple[Acl, ...]
    portals: tuple[Portal, ...]


@dataclass(frozen=True)
class Unusable:
    """A target that is not of a kind or shape that hactl knows."""

    name: str
    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class Saved:
    """The file. ``stores`` by plugin and name."""

    targets: tuple[Target | Unusable, ...]
    stores: dict[tuple[str, str], Store | str] = field(default_factory=dict)
    """A text where the storage object is not of the shape it has to be."""
    discovery_auth: bool = False


def parse(data: bytes | str) -> Saved:
    """The file's contents; :class:`Refused` ``saveconfig-damaged`` if it is not targetcli's."""
    if len(data) > MAX_BYTES:
        raise _damaged(f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        value = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise _damaged("it is not JSON") from None
    try:
        whole = _object(value, "the file")
        if not {"storage_objects", "targets"} & whole.keys():
            raise OddError("it has neither storage_objects nor targets")
        stores: dict[tuple[str, str], Store | str] = {}
        for k, item in enumerate(_list(whole, "storage_objects", "the file")):
            where = f"storage_objects[{k}]"
            one = _object(item, where)
            key = _text(one, "plugin", where), _text(one, "name", where)
            stores[key] = _store(one, key)
        targets = tuple(
            _target(item, f"targets[{k}]") for k, item in enumerate(_list(whole, "targets", "the file"))
        )
        modules = _list(whole, "fabric_modules", "the file")
    except OddError as odd:
        raise _damaged(str(odd)) from None
    return Saved(targets, stores, bool(modules))


def _damaged(why: str) -> Refused:
    return Refused(
        "saveconfig-damaged",
        f"this is not what targetcli saves: {why}",
        "name the file that targetcli saveconfig wrote: /etc/rtslib-fb-target/saveconfig.json on Debian",
    )


def _no_number(text: str) -> NoReturn:
    raise ValueError(text[:20])


def _store(one: dict[str, Any], key: tuple[str, str]) -> Store | str:
    where = f"storage object {_short(key[1])}"
    try:
        attributes = _object(one.get("attributes", {}), f"attributes of {where}")
        return Store(
            *key,
            device=_text(one, "dev", where, ""),
            size=_whole(one, "size", where, None),
            serial=_text(one, "wwn", where, ""),
            read_only=_flag(one, "readonly", where, False),
            block_size=_whole(attributes, "block_size", where, 512) or 0,
        )
    except OddError as odd:
        return str(odd)


def _target(item: Any, where: str) -> Target | Unusable:
    one = _object(item, where)
    name = _text(one, "wwn", where)
    fabric = _text(one, "fabric", where)
    if fabric != "iscsi":
        return Unusable(
            name,
            "fabric-unsupported",
            f"it is exported by {_short(fabric)}, and hactl exports by iSCSI only",
            "let its hosts use iSCSI, or leave it where it is",
        )
    try:
        groups = _list(one, "tpgs", f"target {_short(name)}")
        if len(groups) != 1:
            return Unusable(
                name,
                "several-portal-groups" if groups else "target-empty",
                f"it has {len(groups)} portal groups; hactl makes one for each node of a target that has one",
                "make a target of each portal group, or leave it where it is",
            )
        return _portal_group(name, _object(groups[0], "its portal group"))
    except OddError as odd:
        return Unusable(name, "saveconfig-damaged", str(odd), "save it again with targetcli saveconfig")


def _portal_group(iqn: str, group: dict[str, Any]) -> Target:
    attributes = _object(group.get("attributes", {}), "its attributes")
    luns: dict[int, tuple[str, str]] = {}
    for k, item in enumerate(_list(group, "luns", "its portal group")):
        where = f"its luns[{k}]"
        one = _object(item, where)
        found = re.fullmatch(r"/backstores/([^/]+)/(.+)", _text(one, "storage_object", where), re.DOTALL)
        if found is None:
            raise OddError(f"{where} names no storage object")
        index = _number(one, "index", where)
        if index in luns:
            raise OddError(f"LUN {index} is there twice")
        luns[index] = found[1], found[2]
    return Target(
        iqn=iqn,
        enabled=_flag(group, "enable", "its portal group", True),
        demo=_flag(attributes, "generate_node_acls", "its attributes", False),
        # The kernel's default; a file that a person wrote may leave it out.
        authentication=_flag(attributes, "authentication", "its attributes", True),
        luns=dict(sorted(luns.items())),
        acls=tuple(_acls(group)),
        portals=tuple(_portals(group)),
    )


def _acls(group: dict[str, Any]) -> Iterator[Acl]:
    for k, item in enumerate(_list(group, "node_acls", "its portal group")):
        where = f"its node_acls[{k}]"
        one = _object(item, where)
        attributes = _object(one.get("attributes", {}), f"{where}.attributes")
        luns: dict[int, int] = {}
        protected = False
        for n, mapped in enumerate(_list(one, "mapped_luns", where)):
            inner = f"{where}.mapped_luns[{n}]"
            lun = _object(mapped, inner)
            index = _number(lun, "index", inner)
            if index in luns:
                raise OddError(f"{inner}: LUN {index} is there twice")
            luns[index] = _number(lun, "tpg_lun", inner)
            protected |= _flag(lun, "write_protect", inner, False)
        own = _whole(attributes, "authentication", where, -1, least=-1)
        secret, mutual = (_text(one, key, where, "") for key in ("chap_password", "chap_mutual_password"))
        yield Acl(
            initiator=_text(one, "node_wwn", where),
            luns=dict(sorted(luns.items())),
            write_protected=protected,
            authentication=None if own in (None, -1) else bool(own),
            user=_text(one, "chap_userid", where, "") or None,
            password=SecretStr(secret) if secret else None,
            mutual_user=_text(one, "chap_mutual_userid", where, "") or None,
            mutual_password=SecretStr(mutual) if mutual else None,
            tag=_text(one, "tag", where, "") or None,
        )


def _portals(group: dict[str, Any]) -> Iterator[Portal]:
    for k, item in enumerate(_list(group, "portals", "its portal group")):
        where = f"its portals[{k}]"
        one = _object(item, where)
        iser, offload = (_flag(one, key, where, False) for key in ("iser", "offload"))
        yield Portal(
            _text(one, "ip_address", where).strip("[]"),
            _number(one, "port", where),
            "iSER" if iser else "an offload" if offload else "TCP",
        )


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OddError(f"{where} is not an object")
    return value


def _list(of: dict[str, Any], key: str, where: str) -> list[Any]:
    value = of.get(key, [])
    if not isinstance(value, list):
        raise OddError(f"{key} of {where} is not a list")
    return value


def _text(of: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = of.get(key, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not value.isprintable():
        raise OddError(f"{key} of {where} is missing, or is not text")
    return value


def _number(of: dict[str, Any], key: str, where: str) -> int:
    value = _whole(of, key, where, None)
    if value is None:
        raise OddError(f"{key} of {where} is missing")
    return value


def _whole(of: dict[str, Any], key: str, where: str, default: int | None, *, least: int = 0) -> int | None:
    """A number, also as text: "attributes may be string, boolean, or numeric values" (saveconfig.json(5))."""
    value = of.get(key, default)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII):
        value = int(value)
    if value is default:
        return default
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, int) or not least <= value < 1 << 63:
        raise OddError(f"{key} of {where} is not a number that can be")
    return value


def _flag(of: dict[str, Any], key: str, where: str, default: bool) -> bool:
    value = of.get(key, default)
    words = {"0": False, "1": True, "false": False, "true": True}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if isinstance(value, bool | int) and value in (0, 1):
        return bool(value)
    raise OddError(f"{key} of {where} is neither true nor false")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
