"""Does one change of a plan, after checking again, right before, that what it relies on holds.

A precondition that does not hold raises :class:`Refused` with code ``precondition``: the world has moved
since it was observed, so the rest of the plan is void. Every change that takes several writes can be done
again after it was interrupted anywhere. The work is proportional to the change, not to what exists.
"""

from __future__ import annotations

from hactl.alua.states import AccessState
from hactl.errors import Refused
from hactl.target import changes as c
from hactl.target.attributes import LOCKED
from hactl.target.configfs import ConfigFs
from hactl.target.observe import (
    access_state,
    chap_of,
    devices_of,
    implicit_only,
    in_range,
    links_to_own,
    lun_group,
    members,
    numbers,
    own_backstore,
    tags,
)
from hactl.target.tree import DEFAULT_GROUP, Chap

IMPLICIT = "1"
BOTH = "3"


def apply(fs: ConfigFs, change: c.Change) -> None:
    """Do one change. :class:`Refused`: nothing was changed. :class:`Failed`: the kernel refused a write;
    those before it in the same change may have been done."""
    match change:
        case c.OfBackstore():
            _backstore(fs, change)
        case c.RemoveHba(hba=hba):
            _need(in_range(hba), f"{hba} is not in hactl's range")
            if fs.exists(f"core/{hba}"):
                _need(not devices_of(fs, hba), f"{hba} is not empty")
                fs.rmdir(f"core/{hba}")
        case c.OfAcl():
            _acl(fs, change)
        case c.CreateLun() | c.SetLunGroup() | c.RemoveLun():
            _lun(fs, change)
        case c.OfTpg():
            _tpg(fs, change)
        case c.OfTarget():
            _target(fs, change)
        case _:
            raise TypeError(f"not a change: {change!r}")


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Refused("precondition", otherwise, "somebody else changed LIO's tree; observe and plan again")


def _ensure(fs: ConfigFs, path: str) -> None:
    if not fs.exists(path):
        fs.mkdir(path)


def _backstore(fs: ConfigFs, change: c.OfBackstore) -> None:
    path = change.backstore
    _need(own_backstore(path) is not None, f"{path} is not hactl's")
    match change:
        case c.CreateBackstore():
            hba = path.rpartition("/")[0]
            _ensure(fs, hba)
            _need(not devices_of(fs, hba.removeprefix("core/")), f"{hba} is in use")
            fs.mkdir(path)
        case c.EnableBackstore(wanted=wanted):
            _need(fs.read(f"{path}/enable") == "0", f"{path} is enabled already")
            if wanted.plugin == "iblock":
                fs.write(f"{path}/control", f"udev_path={wanted.path}")
            else:
                fs.write(f"{path}/control", f"fd_dev_name={wanted.path},fd_dev_size={wanted.size}")
            # What rtslib and targetcli show as the device of the backstore.
            fs.write(f"{path}/udev_path", wanted.path)
            fs.write(f"{path}/enable", "1")
        case c.SetIdentity(field=field, value=value):
            _need_unused(fs, path)
            fs.write(f"{path}/wwn/{field}", value)
        case c.SetDeviceAttribute(name=name, value=value):
            if not fs.exists(f"{path}/attrib/{name}"):
                raise Refused(
                    "kernel-too-old",
                    f"this kernel's LIO has no device attribute {name}",
                    "hactl needs it to keep units equal on all paths; use Linux 6.2 or newer",
                )
            if name in LOCKED:
                _need_unused(fs, path)
            fs.write(f"{path}/attrib/{name}", value)
        case c.ImportReservations(lines=lines):
            # The kernel takes them only while nothing links to the backstore.
            _need_unused(fs, path)
            for line in lines:
                fs.write(f"{path}/pr/res_aptpl_metadata", line)
        case c.QuietDefaultGroup():
            _standby(fs, f"{path}/alua/{DEFAULT_GROUP}", always=True)
        case c.SetUpPortGroup(group=group):
            where = f"{path}/alua/{group.name}"
            _ensure(fs, where)
            now = fs.read(f"{where}/tg_pt_gp_id")
            _need(now in ("", str(group.id)), f"{where} has id {now}, not {group.id}")
            if not now:
                fs.write(f"{where}/tg_pt_gp_id", str(group.id))
            _standby(fs, where, always=False)
        case c.RemovePortGroup(name=name):
            # The kernel would move its LUNs to the default group without a word.
            users = fs.read(f"{path}/alua/{name}/members").strip("\0\n")
            _need(not users, f"port group {name} of {path} still has LUNs: {users}")
            fs.rmdir(f"{path}/alua/{name}")
        case c.RemoveBackstore():
            _need_unused(fs, path)
            fs.rmdir(path)
        case _:
            raise TypeError(f"not a change: {change!r}")


def _standby(fs: ConfigFs, group: str, *, always: bool) -> None:
    """Put a group to standby, which the kernel takes only with implicit access enabled (a new group has both
    kinds), then leave only implicit access. A group that has LUNs already keeps its state: it is not this
    plan's."""
    if not implicit_only(fs, group):
        if (
            not always
            and not fs.read(f"{group}/members")
            and access_state(fs, group) is not AccessState.STANDBY
        ):
            fs.write(f"{group}/alua_access_type", BOTH)
            fs.write(f"{group}/alua_access_state", str(AccessState.STANDBY.value))
        fs.write(f"{group}/alua_access_type", IMPLICIT)
    if always and access_state(fs, group) is not AccessState.STANDBY:
        fs.write(f"{group}/alua_access_state", str(AccessState.STANDBY.value))


def _need_unused(fs: ConfigFs, backstore: str) -> None:
    users = members(fs, backstore)
    _need(not users, f"{backstore} is exported as {', '.join(users)}")


def _target(fs: ConfigFs, change: c.OfTarget) -> None:
    path = f"iscsi/{change.iqn}"
    match change:
        case c.ClaimTarget(adopt=False):
            # Before the target is made: one that is there now is somebody else's.
            _need(not fs.exists(path), f"target {change.iqn} exists and hactl has not made it")
            fs.claim(change.iqn)
        case c.ClaimTarget():
            _need(
                links_to_own(fs, change.iqn), f"no LUN of target {change.iqn} links to a backstore of hactl's"
            )
            fs.claim(change.iqn)
        case c.CreateTarget():
            _need(change.iqn in fs.claims(), f"target {change.iqn} is not in the ledger")
            fs.mkdir(path)
        case c.RemoveTarget():
            _need(change.iqn in fs.claims(), f"target {change.iqn} is not in the ledger")
            _need(not tags(fs, change.iqn), f"target {change.iqn} still has portal groups")
            fs.rmdir(path)
        case c.ReleaseTarget():
            _need(not fs.exists(path), f"target {change.iqn} still exists")
            fs.release(change.iqn)
        case _:
            raise TypeError(f"not a change: {change!r}")


def _tpg(fs: ConfigFs, change: c.OfTpg) -> None:
    path = change.path
    _need(change.iqn in fs.claims(), f"target {change.iqn} is not in the ledger")
    match change:
        case c.CreateTpg():
            fs.mkdir(path)
        case c.SetRtpi(rtpi=rtpi):
            if not fs.exists(f"{path}/rtpi"):
                raise Refused(
                    "kernel-too-old",
                    "this kernel's LIO cannot set relative port identifiers",
                    "use Linux 6.5 or newer",
                )
            _need(fs.read(f"{path}/enable") == "0", f"{change.name} is enabled")
            fs.write(f"{path}/rtpi", str(rtpi))
        case c.SetTpgAttribute(attribute=attribute, value=value):
            fs.write(f"{path}/attrib/{attribute}", value)
        case c.SetAuthMethods(methods=methods):
            fs.write(f"{path}/param/AuthMethod", methods)
        case c.EnableTpg(rtpi=rtpi):
            _need_complete(fs, change, rtpi)
            fs.write(f"{path}/enable", "1")
        case c.DisableTpg():
            fs.write(f"{path}/enable", "0")
        case c.RemoveTpg():
            _need(fs.read(f"{path}/enable") == "0", f"{change.name} is enabled")
            for child in ("lun", "acls", "np"):
                _need(not fs.listdir(f"{path}/{child}"), f"{change.name} is not empty")
            fs.rmdir(path)
        case c.AddPortal(portal=portal):
            fs.mkdir(f"{path}/np/{portal}")
        case c.RemovePortal(portal=portal):
            fs.rmdir(f"{path}/np/{portal}")
        case _:
            raise TypeError(f"not a change: {change!r}")


def _need_complete(fs: ConfigFs, change: c.OfTpg, rtpi: int) -> None:
    """Every LUN linked and out of the default group, every mapped LUN linked, the identifier in place."""
    path = change.path
    _need(int(fs.read(f"{path}/rtpi"), 0) == rtpi, f"{change.name} has not the port identifier {rtpi}")
    for number in numbers(fs, f"{path}/lun"):
        lun = f"{path}/lun/lun_{number}"
        _need(bool(fs.links(lun)), f"LUN {number} of {change.name} is not linked")
        _need(
            lun_group(fs, lun) != DEFAULT_GROUP, f"LUN {number} of {change.name} is in the default port group"
        )
    for initiator in fs.listdir(f"{path}/acls"):
        for number in numbers(fs, f"{path}/acls/{initiator}"):
            mapped = f"{path}/acls/{initiator}/lun_{number}"
            _need(bool(fs.links(mapped)), f"LUN {number} of {initiator} on {change.name} is not linked")


def _lun(fs: ConfigFs, change: c.CreateLun | c.SetLunGroup | c.RemoveLun) -> None:
    _need(change.iqn in fs.claims(), f"target {change.iqn} is not in the ledger")
    path = f"{change.path}/lun/lun_{change.lun}"
    if isinstance(change, c.RemoveLun):
        for initiator in fs.listdir(f"{change.path}/acls"):
            acl = f"{change.path}/acls/{initiator}"
            for number in numbers(fs, acl):
                shown = path in fs.links(f"{acl}/lun_{number}").values()
                _need(not shown, f"LUN {change.lun} of {change.name} is still shown to {initiator}")
        for name in fs.links(path):
            fs.unlink(f"{path}/{name}")
        fs.rmdir(path)
        return
    default = f"{change.backstore}/alua/{DEFAULT_GROUP}"
    # A new LUN is in the default group until the next write, and a kill between the two leaves it there.
    _need(access_state(fs, default) is AccessState.STANDBY, f"{default} is not in standby")
    _need(implicit_only(fs, f"{change.backstore}/alua/{change.group}"), f"group {change.group} is not set up")
    if isinstance(change, c.CreateLun):
        _ensure(fs, path)
        _need(not fs.links(path), f"LUN {change.lun} of {change.name} is linked already")
        fs.symlink(change.backstore, f"{path}/{change.backstore.rpartition('/')[2]}")
    fs.write(f"{path}/alua_tg_pt_gp", change.group)


def _acl(fs: ConfigFs, change: c.OfAcl) -> None:
    _need(change.iqn in fs.claims(), f"target {change.iqn} is not in the ledger")
    path = change.acl_path
    match change:
        case c.CreateAcl(acl=acl):
            # A new ACL takes the portal group's word, which is "CHAP required" as soon as one host has CHAP;
            # so it lets nobody in before the next writes.
            fs.mkdir(path)
            _chap(fs, path, bool(acl.authentication), acl.chap)
        case c.SetChap(authentication=authentication, chap=chap):
            _chap(fs, path, authentication, chap)
        case c.RemoveAcl():
            _need(not numbers(fs, path), f"{change.initiator} still sees LUNs of {change.name}")
            fs.rmdir(path)
        case c.MapLun(mapped=mapped, lun=lun):
            source, where = f"{change.path}/lun/lun_{lun}", f"{path}/lun_{mapped}"
            _need(bool(fs.links(source)), f"LUN {lun} of {change.name} is not linked")
            _need(
                lun_group(fs, source) != DEFAULT_GROUP,
                f"LUN {lun} of {change.name} is in the default port group",
            )
            _ensure(fs, where)
            if not fs.links(where):
                fs.symlink(source, f"{where}/lun_{lun}")
            _need(source in fs.links(where).values(), f"{where} links to another LUN")
            if fs.read(f"{where}/write_protect") != "0":
                fs.write(f"{where}/write_protect", "0")
        case c.UnmapLun(mapped=mapped):
            where = f"{path}/lun_{mapped}"
            for name in fs.links(where):
                fs.unlink(f"{where}/{name}")
            fs.rmdir(where)
        case _:
            raise TypeError(f"not a change: {change!r}")


def _chap(fs: ConfigFs, acl: str, authentication: bool, chap: Chap | None) -> None:
    """Write what differs. CHAP is required first and credentials come after it, or, to lift it, credentials
    stay until it is not required any more: never does an ACL let in somebody who has not proved what it asks
    for."""
    switch = f"{acl}/attrib/authentication"
    if authentication and fs.read(switch) != "1":
        fs.write(switch, "1")
    if not authentication and fs.read(switch) != "0":
        fs.write(switch, "0")
    now = chap_of(fs, acl)
    for (name, value), (_, old) in zip(_credentials(chap), _credentials(now), strict=True):
        if value != old:
            fs.write(f"{acl}/auth/{name}", value or "NULL")


def _credentials(chap: Chap | None) -> tuple[tuple[str, str], ...]:
    if chap is None:
        return (("userid", ""), ("password", ""), ("userid_mutual", ""), ("password_mutual", ""))
    return (
        ("userid", chap.user),
        ("password", chap.password.get_secret_value()),
        ("userid_mutual", chap.mutual_user),
        ("password_mutual", chap.mutual_password.get_secret_value()),
    )
