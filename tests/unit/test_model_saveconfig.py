"""targetcli's saved configuration: what is taken over stays as hosts know it, what cannot be is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.errors import Refused
from hactl.model import edit
from hactl.model.desired import Desired
from hactl.model.spec import LvmPool, PoolSpec
from hactl.model.takeover import Takeover, take_over
from hactl.model.takeover_data import Keeping
from hactl.replication.metadata import required_disk_size
from tests.unit.desired_world import cluster, node_addresses
from tests.unit.test_edit_nodes import good, refused
from tests.unit.test_model_load import ODD, paths

G = 1 << 30
SIZES = {"/dev/vg/disk0": G + (64 << 20), "/dev/vg/disk1": 2 * G + (64 << 20), "/dev/sdc": G}
SEEN = {"/dev/vg/disk0": G, "/dev/vg/disk1": 2 * G}
SECRET = "Secret-of-web-01"
IQN = "iqn.2003-01.org.linux-iscsi.san.x8664:sn.0123456789ab"


def store(number: int, **changes: Any) -> dict[str, Any]:
    """A block storage object as rtslib-fb dumps it."""
    return {
        "alua_tpgs": [{"alua_access_state": 0, "name": "default_tg_pt_gp", "tg_pt_gp_id": 0}],
        "attributes": {"block_size": 512, "emulate_3pc": 1, "emulate_tpu": 0, "optimal_sectors": 16384},
        "dev": f"/dev/vg/disk{number}",
        "exclusive": True,
        "name": f"disk{number}",
        "plugin": "block",
        "readonly": False,
        "write_back": False,
        "wwn": f"2b8c1b7e-6ab4-4c64-8f3b-3d0f2f6e5a0{number}",
    } | changes


def saved() -> dict[str, Any]:
    """One target with two LUNs: web sees both, under the target's numbers; db the second one as LUN 0."""
    return {
        "fabric_modules": [],
        "storage_objects": [store(0), store(1)],
        "targets": [
            {
                "fabric": "iscsi",
                "parameters": {"cmd_completion_affinity": "-1"},
                "tpgs": [
                    {
                        "attributes": {"authentication": 1, "generate_node_acls": 0, "t10_pi": 0},
                        "enable": True,
                        "luns": [
                            {
                                "alias": "0c8b1f9d1e",
                                "alua_tg_pt_gp_name": "default_tg_pt_gp",
                                "index": number,
                                "storage_object": f"/backstores/block/disk{number}",
                            }
                            for number in (1, 0)
                        ],
                        "node_acls": [
                            acl("iqn.1993-08.org.debian:01:web", {0: 0, 1: 1}, "web-user"),
                            acl("iqn.1993-08.org.debian:01:db", {0: 1}, "db-user"),
                        ],
                        "parameters": {"AuthMethod": "CHAP,None"},
                        "portals": [{"ip_address": "0.0.0.0", "iser": False, "offload": False, "port": 3260}],
                        "tag": 1,
                    }
                ],
                "wwn": IQN,
            }
        ],
    }


def acl(initiator: str, luns: dict[int, int], user: str) -> dict[str, Any]:
    return {
        "attributes": {"authentication": -1, "dataout_timeout": 3},
        "chap_userid": user,
        "chap_password": SECRET,
        "mapped_luns": [
            {"alias": "x", "index": index, "tpg_lun": lun, "write_protect": False}
            for index, lun in luns.items()
        ],
        "node_wwn": initiator,
    }


ALWAYS = ["data-not-adopted", "vendor-changes"]
"""Remarks of an import that does not say what becomes of the data."""


def taken(value: Any, current: Desired | None = None, **options: Any) -> Takeover:
    result = take_over(
        json.dumps(value), current or cluster(), "n1", **{"sizes": SIZES, "seen": SEEN, **options}
    )
    good(result.desired)
    assert not any(SECRET in str(remark) for remark in result.remarks)
    return result


Change = Callable[[dict[str, Any]], None]


def skipped(change: Change, **options: Any) -> str:
    """Code of why the one target is left out after a change; nothing is taken over then."""
    value = saved()
    change(value)
    current = cluster()
    result = taken(value, current, **options)
    assert result.desired is current
    assert result.resources == {}
    assert not result.complete
    found = [remark for remark in result.remarks if remark.skipped]
    assert len(found) == 1
    assert found[0].message
    return found[0].code


def group(value: dict[str, Any]) -> dict[str, Any]:
    return value["targets"][0]["tpgs"][0]  # type: ignore[no-any-return]


def in_group(key: str, to: Any) -> Change:
    return lambda value: group(value).update({key: to})


def in_store(**changes: Any) -> Change:
    return lambda value: value["storage_objects"][0].update(changes)


def in_acl(**changes: Any) -> Change:
    return lambda value: group(value)["node_acls"][0].update(changes)


def test_a_target_stays_as_its_hosts_know_it() -> None:
    result = taken(saved())
    assert result.complete
    assert result.resources == {"sn-0123456789ab": IQN}
    made = result.desired.cluster.resource("sn-0123456789ab")
    assert (made.iqn, made.nodes, made.replicas, made.preferred) == (IQN, ("n1",), ("n1",), "n1")
    assert [(v.number, v.lun, v.size, v.disks) for v in made.volumes] == [
        (0, 0, G, {"n1": "/dev/vg/disk0"}),
        (1, 1, 2 * G, {"n1": "/dev/vg/disk1"}),
    ]
    assert made.volumes[0].serial == "2b8c1b7e6ab44c648f3b3d0f2f6e5a00"
    assert made.hosts == ("web",)
    assert made.exports == {"db": {1: 0}}
    web = result.desired.cluster.host("web")
    assert web.initiators == ("iqn.1993-08.org.debian:01:web",)
    assert web.chap is not None
    assert (web.chap.user, web.chap.password.get_secret_value()) == ("web-user", SECRET)
    assert [r.code for r in result.remarks] == ALWAYS


def test_taken_over_twice_is_once() -> None:
    first = taken(saved())
    again = taken(saved(), first.desired)
    assert again.desired is first.desired
    assert again.complete
    assert [r.code for r in again.remarks] == ["resource-exists"]


def test_hosts_that_are_there_are_used() -> None:
    current = edit.add_host(
        cluster(), "front", ["iqn.1993-08.org.debian:01:web"], edit.chap("web-user", SECRET)
    )
    made = taken(saved(), current).desired.cluster
    assert made.resources[0].hosts == ("front",)
    other = edit.change_host(current, "front", credentials=None)
    assert [r.code for r in taken(saved(), other).remarks] == ["chap-differs"]
    wider = edit.change_host(current, "front", add=["iqn.1993-08.org.debian:01:other"])
    assert [r.code for r in taken(saved(), wider).remarks] == ["host-differs"]


def test_a_device_without_room_for_meta_data_is_not_taken() -> None:
    value = saved()
    result = taken(value, seen={})
    remark = result.remarks[0]
    assert (remark.code, remark.skipped) == ("disk-too-small", True)
    size = SIZES["/dev/vg/disk0"]
    assert f"lvextend -L {required_disk_size(size, 7)}b /dev/vg/disk0" in remark.hint
    assert f"--size /dev/vg/disk0={size}" in remark.hint
    needed = {dev: required_disk_size(seen, 7) for dev, seen in SEEN.items()}
    assert taken(value, sizes=needed).complete
    assert not taken(value, sizes={dev: size - 4096 for dev, size in needed.items()}).complete


def test_what_hosts_see_is_rounded_up_never_down() -> None:
    seen = {**SEEN, "/dev/vg/disk0": G - 512}
    assert taken(saved(), seen=seen).desired.cluster.resources[0].volumes[0].size == G


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (in_group("attributes", {"generate_node_acls": 1}), "target-open"),
        (in_group("enable", False), "target-disabled"),
        (in_group("luns", []), "target-empty"),
        (in_group("luns", {}), "saveconfig-damaged"),
        (in_group("luns", [{"index": 0, "storage_object": "/backstores/block/none"}]), "saveconfig-damaged"),
        (in_group("luns", [{"index": 0, "storage_object": "disk0"}]), "saveconfig-damaged"),
        (in_group("luns", [{"index": True, "storage_object": []}]), "saveconfig-damaged"),
        (lambda v: v["targets"][0].update(tpgs=[]), "target-empty"),
        (lambda v: v["targets"][0].update(tpgs=[{}, {}]), "several-portal-groups"),
        (lambda v: v["targets"][0].update(fabric="tcm_fc"), "fabric-unsupported"),
        (lambda v: v["targets"][0].update(wwn="naa.x"), "invalid"),
        (in_store(plugin="pscsi"), "saveconfig-damaged"),
        (in_store(readonly=True), "write-protected"),
        (in_store(wwn=""), "serial-unusable"),
        (in_store(wwn="my-disk"), "serial-unusable"),
        (in_store(wwn=7), "saveconfig-damaged"),
        (in_store(dev="/dev/none"), "size-unknown"),
        (in_store(dev="/dev/../etc/passwd"), "size-unknown"),
        (in_store(attributes={"block_size": 4096}), "block-size"),
        (in_store(dev="/dev/vg/disk1"), "disk-duplicate"),
        (in_store(wwn="2b8c1b7e-6ab4-4c64-8f3b-3d0f2f6e5a01"), "serial-duplicate"),
        (in_acl(chap_userid="", chap_password=""), "chap-missing"),
        (in_acl(chap_password="short"), "too-short"),
        (in_acl(chap_password="x" * 40), "chap-secret-length"),
        (in_acl(chap_mutual_userid="lab"), "chap-mutual-incomplete"),
        (in_acl(node_wwn="web"), "invalid"),
        (in_acl(mapped_luns=[{"index": 0, "tpg_lun": 9}]), "saveconfig-damaged"),
        (in_acl(mapped_luns=[{"index": 0, "tpg_lun": 0}, {"index": 1, "tpg_lun": 0}]), "saveconfig-damaged"),
        (in_acl(mapped_luns=[{"index": 0, "tpg_lun": 0, "write_protect": True}]), "write-protected"),
        (in_acl(mapped_luns=[{"index": 0, "tpg_lun": 0, "write_protect": "maybe"}]), "saveconfig-damaged"),
    ],
)
def test_what_cannot_be_taken_over_is_left_out(change: Change, code: str) -> None:
    assert skipped(change) == code


@pytest.mark.parametrize("plugin", ["fileio", "pscsi", "ramdisk", "user"])
def test_other_storage_objects(plugin: str) -> None:
    def change(value: dict[str, Any]) -> None:
        value["storage_objects"][0] |= {"plugin": plugin, "dev": "/srv/disk.img"}
        group(value)["luns"][1]["storage_object"] = f"/backstores/{plugin}/disk0"

    assert skipped(change) == "backstore-unsupported"


def test_a_fileio_backstore_on_a_block_device() -> None:
    value = saved()
    value["storage_objects"][0] |= {"plugin": "fileio", "size": G - 4096}
    group(value)["luns"][1]["storage_object"] = "/backstores/fileio/disk0"
    result = taken(value, seen={"/dev/vg/disk1": 2 * G})
    assert [v.size for v in result.desired.cluster.resources[0].volumes] == [G - 4096, 2 * G]


def test_one_target_that_cannot_be_does_not_keep_others_back() -> None:
    value = saved()
    second = copy.deepcopy(value["targets"][0])
    second["wwn"] = "iqn.2026-01.com.example:second"
    value["targets"].append(second)
    result = taken(value)
    told = [(r.target, r.code) for r in result.remarks if r.skipped]
    both = {IQN, "iqn.2026-01.com.example:second"}
    assert len(result.resources) == 1
    assert told == [((both - set(result.resources.values())).pop(), "serial-duplicate")]


def test_credentials_that_are_not_asked_for() -> None:
    value = saved()
    group(value)["attributes"]["authentication"] = 0
    result = taken(value)
    assert result.desired.cluster.host("web").chap is None
    assert [r.code for r in result.remarks] == [*["chap-unused"] * 2, *ALWAYS]
    group(value)["node_acls"][0]["attributes"]["authentication"] = 1
    assert taken(value).desired.cluster.host("web").chap is not None


@pytest.mark.parametrize(
    ("portal", "told"),
    [
        ({"ip_address": "[::0]", "port": 3260}, False),
        ({"ip_address": "10.0.3.1", "port": 3260}, False),
        ({"ip_address": "10.0.3.1", "port": 3261}, True),
        ({"ip_address": "10.0.9.9", "port": 3260}, True),
        ({"ip_address": "10.0.3.1", "port": 3260, "iser": True}, True),
        ({"ip_address": "somewhere", "port": 3260}, True),
    ],
)
def test_portals_that_move(portal: dict[str, Any], told: bool) -> None:
    value = saved()
    group(value)["portals"] = [portal]
    result = taken(value)
    assert result.complete
    assert ("portal-moves" in {r.code for r in result.remarks}) == told


def test_discovery_credentials_and_a_host_that_sees_nothing() -> None:
    value = saved()
    value["fabric_modules"] = [{"name": "iscsi", "userid": "u", "password": SECRET}]
    group(value)["node_acls"][1]["mapped_luns"] = []
    result = taken(value)
    assert [r.code for r in result.remarks] == ["export-empty", "discovery-auth", *ALWAYS]
    assert result.desired.cluster.resources[0].exports == {}


def test_names_are_made_and_kept_apart() -> None:
    current = edit.add_host(cluster(), "web", ["iqn.2026-01.com.example:other-web"])
    value = saved()
    value["targets"][0]["wwn"] = "iqn.2026-01.com.example:" + "x" * 60
    made = taken(value, current).desired.cluster
    assert made.resources[0].hosts == ("web-2",)
    assert made.resources[0].name == "x" * 28


def test_files_that_are_not_targetclis() -> None:
    for data in ("", "[]", "{", "\xff", '{"targets": {}}', '{"storage_objects": [1]}', "[" * 100_000, "NaN"):
        error = refused(lambda data=data: take_over(data, cluster(), "n1", sizes={}))  # type: ignore[misc]
        assert error.code == "saveconfig-damaged"
    assert refused(lambda: take_over("{}", cluster(), "n9", sizes={})).code == "unknown-node"
    assert taken({"storage_objects": [], "targets": []}).complete


def test_another_node_is_told() -> None:
    current = edit.add_node(cluster(), "n4", node_addresses(4))
    result = take_over(json.dumps(saved()), current, "n4", sizes=SIZES, seen=SEEN)
    assert result.desired.cluster.resources[0].volumes[0].disks == {"n4": "/dev/vg/disk0"}


def take_or_refuse(data: str | bytes) -> None:
    try:
        result = take_over(data, cluster(), "n1", sizes=SIZES, seen=SEEN)
    except Refused as error:
        assert error.code == "saveconfig-damaged"  # noqa: PT017 - it need not be raised
    else:
        good(result.desired)
        assert all(remark.code and remark.message for remark in result.remarks)


@given(st.sampled_from(paths(saved())[1:]), ODD)
@settings(max_examples=400, deadline=None)
def test_any_value_anywhere_is_taken_over_or_told(path: tuple[str | int, ...], odd: object) -> None:
    value: Any = saved()
    here = value
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = odd
    take_or_refuse(json.dumps(value))


TEXT = json.dumps(saved())


@given(st.integers(0, len(TEXT)), st.integers(0, 30), st.text(max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_edit_of_a_file_is_taken_over_or_told(at: int, cut: int, new: str) -> None:
    take_or_refuse(TEXT[:at] + new + TEXT[at + cut :])


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    take_or_refuse(data)


def pooled(current: Desired) -> Desired:
    """n2 has a pool."""
    return edit.add_pool(current, "n2", PoolSpec(name="fast", lvm=LvmPool(vg="vg1")))


def test_data_that_stay_and_a_copy_of_them() -> None:
    """A logical volume without room behind the data is no hindrance: the agent makes it larger."""
    tight = {dev: SEEN.get(dev, size) for dev, size in SIZES.items()}
    keeping = Keeping(adopt=True, growing=tuple(tight), copy="n2", pool="fast")
    result = taken(saved(), pooled(cluster()), sizes=tight, keeping=keeping)
    assert result.complete
    assert [r.code for r in result.remarks] == ["vendor-changes"]
    made = result.desired.cluster.resources[0]
    assert made.nodes == ("n1", "n2")
    assert made.preferred == "n1"
    assert [v.adopt for v in made.volumes] == ["n1", "n1"]
    assert [v.size for v in made.volumes] == [tight[v.disks["n1"]] for v in made.volumes], "as hosts saw it"
    assert {v.disks["n2"] for v in made.volumes} == {"pool:fast"}
    # What cannot be enlarged has to have room; and so has everything that nobody says the data of.
    for other in (Keeping(adopt=True, copy="n2", pool="fast"), Keeping(growing=tuple(tight))):
        found = taken(saved(), pooled(cluster()), sizes=tight, keeping=other)
        assert "disk-too-small" in {r.code for r in found.remarks if r.skipped}


def test_a_copy_on_disks_that_are_named() -> None:
    disks = {"/dev/vg/disk0": "/dev/vdb", "/dev/vg/disk1": "/dev/vdc"}
    result = taken(saved(), keeping=Keeping(adopt=True, copy="n2", disks=disks))
    assert [v.disks["n2"] for v in result.desired.cluster.resources[0].volumes] == ["/dev/vdb", "/dev/vdc"]
    some = taken(saved(), keeping=Keeping(adopt=True, copy="n2", disks={"/dev/vg/disk0": "/dev/vdb"}))
    assert [r.code for r in some.remarks if r.skipped] == ["disk-needed"]


def test_a_copy_that_cannot_be() -> None:
    def code(keeping: Keeping) -> str:
        return refused(lambda: taken(saved(), pooled(cluster()), keeping=keeping)).code

    assert code(Keeping(copy="n1")) == "replica-exists"
    assert code(Keeping(copy="n9")) == "unknown-node"
    assert code(Keeping(copy="n2", pool="slow")) == "pool-unknown"
    assert code(Keeping(copy="n2", disks={"/dev/other": "/dev/vdb"})) == "import-no-device"
