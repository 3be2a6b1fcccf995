"""What hactl relies on in LIO's tree, checked on the twin and, with HACTL_REAL=1, on the kernel.

Backstores are fileio on files in a temporary folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from hactl.alua.groups import observe_states, set_states
from hactl.alua.states import AccessState
from hactl.errors import Failed, Refused
from hactl.model.spec import (
    Addresses,
    ChapSpec,
    ClusterSpec,
    HostSpec,
    NodeSpec,
    ResourceSpec,
    VolumeSpec,
)
from hactl.target import processors
from hactl.target.apply import apply
from hactl.target.attributes import DEVICE, LOCKED
from hactl.target.configfs import ConfigFs, RealConfigFs
from hactl.target.observe import access_state, lun_group, members, observe
from hactl.target.plan import plan
from hactl.target.tree import DEFAULT_GROUP, HBA_BASE, Tree, desired
from tests.contract.conftest import IQN

HOST = "iqn.1994-05.com.example.contract:h1"
TARGET = f"iscsi/{IQN}t1"
TPG = f"{TARGET}/tpgt_1"
OTHER = f"{TARGET}/tpgt_2"
SIZE = 1 << 20


class Unit:
    """A backstore, a target with two disabled portal groups, and how to go on from there."""

    def __init__(self, fs: ConfigFs, folder: Path) -> None:
        self.fs = fs
        self.folder = folder
        self.path = self.backstore(0)
        for path in (TARGET, TPG, OTHER):
            fs.mkdir(path)

    def backstore(self, number: int, *, enabled: bool = True) -> str:
        """Make a backstore."""
        hba = f"core/fileio_{HBA_BASE + number}"
        path = f"{hba}/hactl.contract.{number}"
        self.fs.mkdir(hba)
        self.fs.mkdir(path)
        if enabled:
            self.fs.write(f"{path}/control", f"fd_dev_name={self.folder}/{number},fd_dev_size={SIZE}")
            self.fs.write(f"{path}/enable", "1")
        return path

    def group(self, name: str = "g", number: str = "7") -> str:
        """Make a port group."""
        path = f"{self.path}/alua/{name}"
        self.fs.mkdir(path)
        self.fs.write(f"{path}/tg_pt_gp_id", number)
        return path

    def lun(self, tpg: str = TPG) -> str:
        """Link the backstore as LUN 0."""
        path = f"{tpg}/lun/lun_0"
        self.fs.mkdir(path)
        self.fs.symlink(self.path, f"{path}/link")
        return path

    def acl(self, tpg: str = TPG) -> str:
        """Make an ACL."""
        path = f"{tpg}/acls/{HOST}"
        self.fs.mkdir(path)
        return path

    def mapped(self) -> str:
        """Show LUN 0 to the initiator."""
        lun, path = self.lun(), f"{self.acl()}/lun_0"
        self.fs.mkdir(path)
        self.fs.symlink(lun, f"{path}/link")
        return path


@pytest.fixture
def unit(configfs: ConfigFs, tmp_path: Path) -> Unit:
    """See :class:`Unit`."""
    return Unit(configfs, tmp_path)


def test_what_is_there_after_making(unit: Unit) -> None:
    fs = unit.fs
    unit.mapped()
    for path, names in {
        "core": {"alua"},
        unit.path: {"attrib", "wwn", "pr", "alua", "statistics", "control", "enable", "info", "udev_path"},
        f"{unit.path}/alua": {DEFAULT_GROUP},
        "iscsi": {"discovery_auth", "cpus_allowed_list"},
        TPG: {"lun", "acls", "np", "attrib", "param", "auth", "enable", "rtpi"},
        f"{TPG}/acls/{HOST}": {"attrib", "auth", "param", "lun_0"},
        f"{TPG}/lun/lun_0": {"alua_tg_pt_gp", "statistics", "link"},
        f"{TPG}/acls/{HOST}/lun_0": {"write_protect", "statistics", "link"},
    }.items():
        assert names <= set(fs.listdir(path)), path
    assert fs.listdir(f"{TPG}/np") == []
    assert set(DEVICE) <= set(fs.listdir(f"{unit.path}/attrib"))


def test_the_processors_of_lios_threads(unit: Unit) -> None:
    fs = unit.fs
    unit.mapped()
    before = fs.read(processors.ATTRIBUTE)
    assert processors.parse(before) >= {0}
    fs.write(processors.ATTRIBUTE, "0")
    assert processors.parse(fs.read(processors.ATTRIBUTE)) == {0}
    fs.write(processors.ATTRIBUTE, before)


def test_what_new_objects_say(unit: Unit) -> None:
    fs = unit.fs
    default = f"{unit.path}/alua/{DEFAULT_GROUP}"
    assert access_state(fs, default) is AccessState.ACTIVE_OPTIMIZED
    assert fs.read(f"{default}/alua_access_type") == "Implicit and Explicit"
    assert fs.read(f"{default}/tg_pt_gp_id") == "0"
    fs.mkdir(f"{unit.path}/alua/new")
    assert fs.read(f"{unit.path}/alua/new/tg_pt_gp_id") == ""
    assert fs.read(f"{TPG}/enable") == "0"
    assert fs.read(f"{TPG}/attrib/authentication") == "1"
    assert fs.read(f"{TPG}/param/AuthMethod") == "CHAP"
    assert int(fs.read(f"{TPG}/rtpi"), 0) == 0
    assert fs.read(f"{unit.acl()}/attrib/authentication") == "-1"
    assert fs.read(f"{unit.path}/attrib/force_pr_aptpl") == "0"
    assert f"{unit.folder}/0" in fs.read(f"{unit.path}/info")


def _exported(act: Callable[[Unit], None]) -> Callable[[Unit], None]:
    def after_linking(unit: Unit) -> None:
        unit.lun()
        act(unit)

    return after_linking


def _enabled(act: Callable[[Unit], None]) -> Callable[[Unit], None]:
    def after_enabling(unit: Unit) -> None:
        unit.fs.write(f"{TPG}/rtpi", "4242")
        unit.fs.write(f"{TPG}/enable", "1")
        act(unit)

    return after_enabling


def _write(path: str, value: str) -> Callable[[Unit], None]:
    return lambda unit: unit.fs.write(path.replace("UNIT", unit.path), value)


def _same_rtpi(unit: Unit) -> None:
    unit.fs.write(f"{OTHER}/rtpi", "4242")
    unit.fs.write(f"{OTHER}/enable", "1")


def _same_portal(unit: Unit) -> None:
    unit.fs.mkdir(f"{TPG}/np/127.0.0.1:3260")
    unit.fs.mkdir(f"{OTHER}/np/127.0.0.1:3260")


def _same_id(unit: Unit) -> None:
    unit.group("a", "7")
    unit.group("b", "7")


def _not_implicit(unit: Unit) -> None:
    group = unit.group()
    unit.fs.write(f"{group}/alua_access_type", "2")
    unit.fs.write(f"{group}/alua_access_state", "2")


def _state_without_id(unit: Unit) -> None:
    unit.fs.mkdir(f"{unit.path}/alua/g")
    unit.fs.write(f"{unit.path}/alua/g/alua_access_state", "2")


def _mapped_across(unit: Unit) -> None:
    lun, acl = unit.lun(OTHER), unit.acl(TPG)
    unit.fs.mkdir(f"{acl}/lun_0")
    unit.fs.symlink(lun, f"{acl}/lun_0/link")


def _mapped_to_nothing(unit: Unit) -> None:
    unit.fs.mkdir(f"{TPG}/lun/lun_0")
    unit.fs.mkdir(f"{unit.acl()}/lun_0")
    unit.fs.symlink(f"{TPG}/lun/lun_0", f"{TPG}/acls/{HOST}/lun_0/link")


def _second_link(unit: Unit) -> None:
    unit.fs.symlink(unit.backstore(1), f"{unit.lun()}/second")


def _link_disabled(unit: Unit) -> None:
    unit.fs.mkdir(f"{TPG}/lun/lun_0")
    unit.fs.symlink(unit.backstore(1, enabled=False), f"{TPG}/lun/lun_0/link")


def _no_device(unit: Unit) -> None:
    hba = f"core/iblock_{HBA_BASE}"
    unit.fs.mkdir(hba)
    unit.fs.mkdir(f"{hba}/hactl.none.0")
    unit.fs.write(f"{hba}/hactl.none.0/control", "udev_path=/dev/none")
    unit.fs.write(f"{hba}/hactl.none.0/enable", "1")


def _remove_mapped_lun(unit: Unit) -> None:
    unit.mapped()
    unit.fs.rmdir(f"{TPG}/lun/lun_0")


def _remove_acl_in_use(unit: Unit) -> None:
    unit.mapped()
    unit.fs.rmdir(f"{TPG}/acls/{HOST}")


def _remove_tpg_in_use(unit: Unit) -> None:
    unit.acl()
    unit.fs.rmdir(TPG)


REFUSALS: list[tuple[str, str, Callable[[Unit], None]]] = [
    ("a name twice", "eexist", lambda u: u.fs.mkdir(TPG)),
    ("a folder nobody knows", "eperm", lambda u: u.fs.mkdir(f"{TPG}/attrib/x")),
    ("a parent that is not there", "enoent", lambda u: u.fs.mkdir(f"{TARGET}-/tpgt_1")),
    ("a portal group without number", "einval", lambda u: u.fs.mkdir(f"{TARGET}/tpgt_x")),
    ("a LUN without number", "einval", lambda u: u.fs.mkdir(f"{TPG}/lun/lun_x")),
    ("a portal without port", "einval", lambda u: u.fs.mkdir(f"{TPG}/np/127.0.0.1")),
    ("removing what is not there", "enoent", lambda u: u.fs.rmdir(f"{TARGET}/tpgt_9")),
    ("removing the default group", "eperm", lambda u: u.fs.rmdir(f"{u.path}/alua/{DEFAULT_GROUP}")),
    ("removing a target with portal groups", "enotempty", lambda u: u.fs.rmdir(TARGET)),
    ("removing a portal group with ACLs", "enotempty", _remove_tpg_in_use),
    ("removing an ACL with LUNs", "enotempty", _remove_acl_in_use),
    ("removing a linked LUN", "enotempty", _exported(lambda u: u.fs.rmdir(f"{TPG}/lun/lun_0"))),
    ("removing a LUN that is shown", "ebusy", _remove_mapped_lun),
    ("removing an exported backstore", "ebusy", _exported(lambda u: u.fs.rmdir(u.path))),
    ("an attribute that is not there", "enoent", _write("UNIT/attrib/none", "1")),
    ("an attribute to read only", "eacces", _write("UNIT/attrib/hw_max_sectors", "1")),
    ("reading what is not there", "enoent", lambda u: _ignore(u.fs.read(f"{u.path}/attrib/none"))),
    (
        "enabling without device",
        "einval",
        lambda u: u.fs.write(f"{u.backstore(1, enabled=False)}/enable", "1"),
    ),
    ("enabling on no device", "enoent", _no_device),
    ("enabling twice", "eexist", _write("UNIT/enable", "1")),
    ("a block size of 513", "einval", _write("UNIT/attrib/block_size", "513")),
    ("a number that is none", "einval", _write("UNIT/attrib/max_write_same_len", "many")),
    ("more sectors than the device takes", "einval", _write("UNIT/attrib/optimal_sectors", "4294967295")),
    ("a vendor too long", "eoverflow", _write("UNIT/wwn/vendor_id", "123456789")),
    ("a port identifier of 0", "einval", _write(f"{TPG}/rtpi", "0")),
    ("a port identifier of 17 bits", "erange", _write(f"{TPG}/rtpi", "65536")),
    ("a port identifier while enabled", "einval", _enabled(_write(f"{TPG}/rtpi", "4243"))),
    ("a port identifier twice", "einval", _enabled(_same_rtpi)),
    ("a portal twice in a target", "einval", _same_portal),
    ("a group id twice", "einval", _same_id),
    ("another group id", "einval", lambda u: u.fs.write(f"{u.group()}/tg_pt_gp_id", "8")),
    ("a state without id", "einval", _state_without_id),
    ("a state without implicit ALUA", "einval", _not_implicit),
    ("a state nobody knows", "einval", lambda u: u.fs.write(f"{u.group()}/alua_access_state", "7")),
    ("an access type nobody knows", "einval", lambda u: u.fs.write(f"{u.group()}/alua_access_type", "4")),
    ("the group of no LUN", "enodev", lambda u: _unlinked_group(u)),
    ("a group that is not there", "enodev", _exported(_write(f"{TPG}/lun/lun_0/alua_tg_pt_gp", "none"))),
    ("a second backstore in a LUN", "eexist", _second_link),
    ("a backstore that is not enabled", "enodev", _link_disabled),
    ("a LUN of another portal group", "einval", _mapped_across),
    ("a LUN without backstore", "einval", _mapped_to_nothing),
    ("authentication of 2", "einval", lambda u: u.fs.write(f"{u.acl()}/attrib/authentication", "2")),
    ("a serial while exported", "einval", _exported(_write("UNIT/wwn/vpd_unit_serial", "abc"))),
    ("a vendor while exported", "einval", _exported(_write("UNIT/wwn/vendor_id", "abc"))),
    ("a product while exported", "einval", _exported(_write("UNIT/wwn/product_id", "abc"))),
]


def _ignore(_: str) -> None:
    return None


def _unlinked_group(unit: Unit) -> None:
    unit.fs.mkdir(f"{TPG}/lun/lun_0")
    _ignore(unit.fs.read(f"{TPG}/lun/lun_0/alua_tg_pt_gp"))


@pytest.mark.parametrize(("code", "act"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_refusals(unit: Unit, code: str, act: Callable[[Unit], None]) -> None:
    with pytest.raises(Failed) as failed:
        act(unit)
    assert failed.value.code == f"configfs-{code}"


@pytest.mark.parametrize("name", sorted(LOCKED & set(DEVICE)))
def test_attributes_that_are_locked_while_exported(unit: Unit, name: str) -> None:
    path = f"{unit.path}/attrib/{name}"
    unit.fs.write(path, DEVICE[name])
    unit.lun()
    with pytest.raises(Failed) as failed:
        unit.fs.write(path, DEVICE[name])
    assert failed.value.code == "configfs-einval"
    unit.fs.unlink(f"{TPG}/lun/lun_0/link")
    unit.fs.write(path, DEVICE[name])


@pytest.mark.parametrize("name", sorted(set(DEVICE) - LOCKED))
def test_attributes_that_are_set_while_exported(unit: Unit, name: str) -> None:
    unit.lun()
    unit.fs.write(f"{unit.path}/attrib/{name}", DEVICE[name])
    assert unit.fs.read(f"{unit.path}/attrib/{name}") == DEVICE[name]


def test_the_model_alias_overwrites_the_product(unit: Unit) -> None:
    for value, product in (("0", "FILEIO"), ("1", "hactl.contract."), ("0", "FILEIO")):
        unit.fs.write(f"{unit.path}/wwn/product_id", "VIRTUAL-DISK")
        unit.fs.write(f"{unit.path}/attrib/emulate_model_alias", value)
        assert unit.fs.read(f"{unit.path}/wwn/product_id") == product


def test_an_empty_value_is_refused_before_the_kernel_sees_it(unit: Unit) -> None:
    with pytest.raises(Refused) as refused:
        unit.fs.write(f"{unit.path}/wwn/vpd_unit_serial", "")
    assert refused.value.code == "configfs-empty"


def test_a_new_lun_is_in_the_default_group(unit: Unit) -> None:
    lun = unit.lun()
    assert lun_group(unit.fs, lun) == DEFAULT_GROUP
    assert members(unit.fs, unit.path) == [f"iSCSI/{IQN}t1/tpgt_1/lun_0"]
    group = unit.group()
    unit.fs.write(f"{lun}/alua_tg_pt_gp", "g")
    assert lun_group(unit.fs, lun) == "g"
    assert unit.fs.read(f"{unit.path}/alua/{DEFAULT_GROUP}/members") == ""
    # Whoever removes a group sends its LUNs back, without a word.
    unit.fs.rmdir(group)
    assert lun_group(unit.fs, lun) == DEFAULT_GROUP


def test_the_default_group_can_be_put_to_standby(unit: Unit) -> None:
    default = f"{unit.path}/alua/{DEFAULT_GROUP}"
    unit.fs.write(f"{default}/alua_access_state", "2")
    unit.fs.write(f"{default}/alua_access_type", "1")
    assert access_state(unit.fs, default) is AccessState.STANDBY
    assert unit.fs.read(f"{default}/alua_access_type") == "Implicit"


def test_transitioning_stays_until_it_is_left(unit: Unit) -> None:
    group = unit.group()
    for state in (AccessState.TRANSITIONING, AccessState.STANDBY, AccessState.ACTIVE_OPTIMIZED):
        unit.fs.write(f"{group}/alua_access_state", str(state.value))
        assert access_state(unit.fs, group) is state


def test_links(unit: Unit) -> None:
    mapped = unit.mapped()
    assert unit.fs.links(mapped) == {"link": f"{TPG}/lun/lun_0"}
    assert unit.fs.readlink(f"{TPG}/lun/lun_0/link") == unit.path
    unit.fs.unlink(f"{mapped}/link")
    assert unit.fs.links(mapped) == {}
    assert unit.fs.exists(mapped)
    assert not unit.fs.exists(f"{mapped}/link")


def test_authentication_edits_what_is_offered(unit: Unit) -> None:
    fs, methods = unit.fs, f"{TPG}/param/AuthMethod"
    fs.write(f"{TPG}/attrib/authentication", "0")
    assert fs.read(methods) == "CHAP,None"
    fs.write(f"{TPG}/attrib/authentication", "1")
    assert fs.read(methods) == "CHAP"
    fs.write(methods, "CHAP,None")
    fs.write(f"{TPG}/rtpi", "4242")
    fs.write(f"{TPG}/enable", "1")
    assert fs.read(methods) == "CHAP"
    fs.write(methods, "CHAP,None")
    assert fs.read(methods) == "CHAP,None"


def test_credentials_are_kept_and_cleared(unit: Unit) -> None:
    acl = unit.acl()
    unit.fs.write(f"{acl}/auth/password", "correct-horse-battery")
    assert unit.fs.read(f"{acl}/auth/password") == "correct-horse-battery"
    unit.fs.write(f"{acl}/auth/password", "NULL")
    assert unit.fs.read(f"{acl}/auth/password") in ("", "NULL")


def test_enabling_and_disabling_may_be_repeated(unit: Unit) -> None:
    unit.fs.write(f"{TPG}/rtpi", "4242")
    for value in "1100":
        unit.fs.write(f"{TPG}/enable", value)
        assert unit.fs.read(f"{TPG}/enable") == value
    assert int(unit.fs.read(f"{TPG}/rtpi"), 0) == 4242


def test_portals_of_both_families(unit: Unit) -> None:
    for portal in ("127.0.0.1:3260", "[::1]:3260"):
        unit.fs.mkdir(f"{TPG}/np/{portal}")
    assert unit.fs.listdir(f"{TPG}/np") == ["127.0.0.1:3260", "[::1]:3260"]


def test_the_ledger(unit: Unit) -> None:
    assert unit.fs.claims() == frozenset()
    unit.fs.release(f"{IQN}t1")
    for _ in range(2):
        unit.fs.claim(f"{IQN}t1")
    assert unit.fs.claims() == {f"{IQN}t1"}
    unit.fs.release(f"{IQN}t1")
    assert unit.fs.claims() == frozenset()


def _cluster() -> ClusterSpec:
    nodes = [
        NodeSpec(
            name=f"n{i}",
            id=i,
            addresses=Addresses(
                cluster=ip_address(f"127.0.1.{i}"),
                replication=ip_address(f"127.0.2.{i}"),
                storage=(ip_address(f"127.0.0.{i}"),),
            ),
        )
        for i in (1, 2)
    ]
    chap = ChapSpec(
        user="user",
        password=SecretStr("correct-horse-battery"),
        mutual_user="target",
        mutual_password=SecretStr("staple-of-the-battery"),
    )
    volumes = [VolumeSpec(number=n, lun=n, size=SIZE, disks={"n1": "/dev/x"}) for n in (0, 1)]
    return ClusterSpec(
        name="contract",
        nodes=tuple(nodes),
        hosts=(
            HostSpec(name="h1", initiators=(HOST,), chap=chap),
            HostSpec(name="h2", initiators=(HOST + "2",)),
        ),
        resources=(
            ResourceSpec(
                name="contract",
                id=4000,
                iqn=f"{IQN}whole",
                nodes=("n1", "n2"),
                volumes=tuple(volumes),
                hosts=("h1", "h2"),
            ),
        ),
    )


def _bring_up(fs: ConfigFs, folder: Path) -> tuple[ClusterSpec, Tree]:
    spec = _cluster()
    tree = desired(spec, "n1", {("contract", n): f"{folder}/{n}" for n in (0, 1)})
    for change in plan(tree, observe(fs)):
        apply(fs, change)
    return spec, tree


def test_a_whole_tree_comes_and_goes(configfs: ConfigFs, tmp_path: Path) -> None:
    before = configfs.listdir("core"), configfs.listdir("iscsi")
    _, tree = _bring_up(configfs, tmp_path)
    assert observe(configfs) == tree
    assert plan(tree, observe(configfs)) == ()
    for change in plan(Tree(), observe(configfs)):
        apply(configfs, change)
    assert (configfs.listdir("core"), configfs.listdir("iscsi")) == before


def test_a_plan_can_be_stopped_after_any_step(configfs: ConfigFs, tmp_path: Path) -> None:
    spec = _cluster()
    tree = desired(spec, "n1", {("contract", n): f"{tmp_path}/{n}" for n in (0, 1)})
    for goal in (tree, Tree()):
        rest = plan(goal, observe(configfs))
        while rest:
            apply(configfs, rest[0])
            before, rest = len(rest), plan(goal, observe(configfs))
            assert len(rest) < before
        assert observe(configfs) == goal


def test_states_of_a_whole_tree(configfs: ConfigFs, tmp_path: Path) -> None:
    spec, tree = _bring_up(configfs, tmp_path)
    resource = spec.resources[0]
    active = {"n1": AccessState.ACTIVE_OPTIMIZED, "n2": AccessState.STANDBY}
    assert set_states(configfs, spec, resource, active) == 2
    assert observe_states(configfs, spec, resource) == {0: active, 1: active}
    assert plan(tree, observe(configfs)) == ()


@pytest.mark.real
def test_rtslib_sees_the_same_tree(real_configfs: RealConfigFs, tmp_path: Path) -> None:
    from rtslib_fb import RTSRoot  # type: ignore[import-not-found,import-untyped,unused-ignore]  # on lab nodes only

    _, tree = _bring_up(real_configfs, tmp_path)
    with warnings.catch_warnings():
        # rtslib wants to move dbroot, which the kernel refuses as soon as there are backstores.
        warnings.simplefilter("ignore")
        dump: dict[str, Any] = RTSRoot().dump()
    stores = {so["name"]: so for so in dump["storage_objects"] if so["name"].startswith("hactl.contract.")}
    for backstore in tree.backstores:
        theirs = stores.pop(backstore.name)
        assert (theirs["plugin"], theirs["dev"], theirs["size"]) == ("fileio", backstore.path, SIZE)
        assert theirs["wwn"] == backstore.serial
        attributes = {name: str(theirs["attributes"][name]) for name, _ in backstore.attributes}
        assert attributes == dict(backstore.attributes)
        groups = {g["name"]: g for g in theirs["alua_tpgs"] if g["name"] != DEFAULT_GROUP}
        assert {(name, g["tg_pt_gp_id"]) for name, g in groups.items()} == {
            (g.name, g.id) for g in backstore.groups
        }
    assert stores == {}
    target = tree.targets[0]
    theirs = next(t for t in dump["targets"] if t["wwn"] == target.iqn)
    for tpg, other in zip(target.tpgs, sorted(theirs["tpgs"], key=lambda t: int(t["tag"])), strict=True):
        assert (other["tag"], other["enable"]) == (tpg.tag, tpg.enabled)
        assert {f"{p['ip_address'].strip('[]')}:{p['port']}" for p in other["portals"]} == set(tpg.portals)
        assert {
            (x["index"], x["storage_object"].rpartition("/")[2], x["alua_tg_pt_gp_name"])
            for x in other["luns"]
        } == {(x.number, x.backstore, x.group) for x in tpg.luns}
        assert {
            (a["node_wwn"], a.get("chap_userid") or "", m["index"], m["tpg_lun"], m["write_protect"])
            for a in other["node_acls"]
            for m in a["mapped_luns"]
        } == {
            (a.initiator, a.chap.user if a.chap else "", m.number, m.lun, m.write_protect)
            for a in tpg.acls
            for m in a.luns
        }
