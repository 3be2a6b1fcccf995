"""Records of the store: what is split joins again, in the same bytes; what is not understood is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.errors import Refused
from hactl.model import edit, record, records
from hactl.model.desired import Change, Desired
from hactl.model.spec import ClusterSpec
from tests.unit.desired_world import CLUSTER, FILES, THIN, cluster, serials

CHANGE = Change("c1", "2026-03-01T12:00:00+00:00", "n1", "a test", ("c0", "c1"))


DEVICE = edit.fence_device("fence_ipmilan", {"ip": "10.0.9.1"}, {"password": "bmc-secret"})


def full() -> Desired:
    """One of everything that a state can hold."""
    new = serials()
    state = cluster()
    state = edit.add_pool(edit.add_pool(state, "n1", THIN), "n2", FILES)
    state = edit.change_node(state, "n1", failure_domain="rack-1")
    settings = {"iqn_prefix": "iqn.2026-01.com.example", "pacemaker": True, "manual_failover": True}
    state = replace(state, cluster=state.cluster.model_copy(update=settings))
    state = edit.set_fencing(state, "n1", DEVICE)
    state = edit.set_fencing(state, "n2", edit.fence_device("fence_sbd", {"devices": "/dev/sda1"}, {}))
    state = edit.create_resource(state, "r1", "1G", serial=new, pool="ssd", hosts=["h1"], port=9000)
    state = edit.add_volume(state, "r1", "2G", serial=new)
    state = edit.export(state, "r1", "h2", {1: 5})
    state = edit.create_resource(state, "r2", "1G", serial=new, pool="ssd", nodes=["n1", "n2", "n3"])
    state = edit.delete_resource(state, "r2", destroy=True)
    return replace(state.ordered(), generation=4, revision=9, change=CHANGE)


def stored() -> dict[str, bytes]:
    return {**records.split(full()), records.CONFIG: records.config(4, CHANGE)}


def test_what_is_split_joins_again() -> None:
    joined = records.join(CLUSTER, stored(), 9)
    assert joined == full()
    assert joined.change == CHANGE
    assert records.split(joined) == records.split(full())


def test_equal_values_are_equal_bytes() -> None:
    other = full()
    disks = dict(reversed(other.cluster.resource("r1").volumes[0].disks.items()))
    volumes = (other.cluster.resource("r1").volumes[0].model_copy(update={"disks": disks}),)
    turned = other.cluster.resource("r1").model_copy(
        update={"volumes": volumes + other.cluster.resource("r1").volumes[1:]}
    )
    assert turned == other.cluster.resource("r1")
    same = replace(other, cluster=other.cluster.model_copy(update={"resources": (turned,)}))
    assert records.split(same) == records.split(full())


def test_keys() -> None:
    assert sorted(stored()) == [
        "cluster",
        "config",
        "hosts/h1",
        "hosts/h2",
        "leftovers/n1/r2/0",
        "leftovers/n2/r2/0",
        "leftovers/n3/r2/0",
        "nodes/n1",
        "nodes/n2",
        "nodes/n3",
        "resources/r1",
        "secrets/hosts/h1",
        "secrets/nodes/n1",
    ]
    assert all(records.is_desired(key) for key in stored())


@pytest.mark.parametrize("key", ["members/n1", "observed/n1/r1", "secrets/join/ab", "configs", "x"])
def test_keys_of_others(key: str) -> None:
    assert not records.is_desired(key)
    assert records.join(CLUSTER, {**stored(), key: b"\xff"}, 9) == full()


def test_only_what_differs_is_written() -> None:
    old = full()
    new = edit.unexport(edit.change_host(old, "h1", credentials=None), "r1", "h2").ordered()
    changes = records.differences(old, new)
    assert sorted(changes) == ["hosts/h1", "resources/r1", "secrets/hosts/h1"]
    assert changes["secrets/hosts/h1"] is None
    assert records.differences(old, full()) == {}
    after = {**records.split(old), **{k: v for k, v in changes.items() if v is not None}}
    assert {k: v for k, v in after.items() if changes.get(k, b"") is not None} == records.split(new)


def test_a_password_alone_is_one_record() -> None:
    new = edit.change_host(
        full(), "h1", credentials=edit.chap("h1", "changed-secret", "lab", "first-secret-2")
    )
    assert sorted(records.differences(full(), new)) == ["secrets/hosts/h1"]
    applied = records.apply(full(), records.differences(full(), new), 10)
    assert applied.same(new.ordered())


def test_what_did_not_change_is_the_same_object() -> None:
    old = full()
    new = edit.export(edit.unexport(old, "r1", "h2"), "r1", "h2", {0: 3}).ordered()
    applied = records.apply(old, records.differences(old, new), 10)
    assert applied.same(new)
    assert applied.revision == 10
    for what in ("nodes", "hosts"):
        assert getattr(applied.cluster, what) is getattr(old.cluster, what)


def damaged(key: str, value: bytes, *, code: str = "record-damaged") -> str:
    reads: list[Callable[[], object]] = [
        lambda: records.join(CLUSTER, {**stored(), key: value}),
        lambda: records.apply(full(), {key: value}, 10),
    ]
    for read in reads:
        with pytest.raises(Refused) as error:
            read()
        assert error.value.code == code
        assert key in error.value.message
        assert error.value.hint
    return error.value.message


@pytest.mark.parametrize("key", sorted(stored()))
def test_a_newer_schema_is_refused_whatever_is_in_it(key: str) -> None:
    newer = record.SCHEMA + 1
    message = damaged(key, b'{"schema":%d,"shape":"new"}' % newer, code="schema-newer")
    assert f"schema {newer}" in message
    assert f"up to {record.SCHEMA}" in message


def test_what_older_readers_know_is_written_as_they_know_it() -> None:
    schemas = {key: json.loads(value)["schema"] for key, value in stored().items()}
    new = {key for key, schema in schemas.items() if schema == 2}
    assert new == {"cluster", "nodes/n1", "nodes/n2", "secrets/nodes/n1"}
    assert {schemas[key] for key in schemas.keys() - new} == {1}
    kept = edit.set_policy(edit.set_preferred(full(), "r1", "n1"), "r1", failback=True)
    assert json.loads(records.split(kept)["resources/r1"])["schema"] == 2


def test_secrets_of_a_fence_device_are_a_record_of_their_own() -> None:
    old = full()
    assert b"bmc-secret" not in b"".join(v for k, v in stored().items() if not k.startswith("secrets/"))
    other = edit.fence_device("fence_ipmilan", {"ip": "10.0.9.1"}, {"password": "changed"})
    new = edit.set_fencing(old, "n1", other)
    assert sorted(records.differences(old, new)) == ["secrets/nodes/n1"]
    assert records.apply(old, records.differences(old, new), 10).same(new)
    gone = edit.remove_fencing(old, "n1")
    changes = records.differences(old, gone)
    assert sorted(changes) == ["nodes/n1", "secrets/nodes/n1"]
    assert changes["secrets/nodes/n1"] is None
    assert records.apply(old, changes, 10).same(gone)


ODD = [
    b"", b"\xff", b"null", b"[]", b"{}", b'{"schema":"1"}', b'{"schema":true}', b'{"schema":0}',
    b'{"schema":1.0}',
    b'{"schema":1,"x":NaN}', b'{"schema":1,"size":1e400}', b"[" * 100_000, b'{"schema":1,"unknown":1}',
    b'{"schema":1,"name":"r1"}',
]  # fmt: skip


@pytest.mark.parametrize("key", sorted(set(stored()) - {"config", "cluster"}))
@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_what_is_not_a_record_is_refused(key: str, value: bytes) -> None:
    damaged(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", b'{"schema":1}'),
        ("config", b'{"schema":1,"generation":0}'),
        ("config", b'{"schema":1,"generation":1,"id":7,"changed_at":"","changed_by":"","what":""}'),
        ("cluster", b'{"schema":1,"nodes":[]}'),
        ("cluster", b'{"schema":1,"iqn_prefix":"x"}'),
        ("nodes/N1", b'{"schema":1,"id":9,"addresses":{}}'),
        ("nodes/a/b", b'{"schema":1}'),
        ("leftovers/n1/r2", b'{"schema":1}'),
        ("leftovers/n1/r2/x", b'{"schema":1}'),
        ("leftovers/n1/r2/00", b'{"schema":1}'),
        ("secrets/hosts/h9", b'{"schema":1,"password":"first-secret-1"}'),
        ("secrets/hosts/h2", b'{"schema":1,"password":"first-secret-1"}'),
        ("secrets/nodes/n3", b'{"schema":2,"fencing":{"password":"bmc-secret"}}'),
        ("secrets/nodes/n9", b'{"schema":2,"fencing":{"password":"bmc-secret"}}'),
        ("secrets/nodes/n1", b'{"schema":2,"fencing":["bmc-secret"]}'),
        ("secrets/nodes/n1", b'{"schema":2,"fencing":{"password":1}}'),
        ("secrets/nodes/n1", b'{"schema":2,"fencing":{},"password":"bmc-secret"}'),
        ("nodes/n2", b'{"schema":2,"id":2,"fencing":{"agent":"fence_sbd","secrets":{"password":"x"}}}'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(key: str, value: bytes) -> None:
    damaged(key, value)


def test_half_of_the_credentials_is_refused() -> None:
    half = {key: value for key, value in stored().items() if key != "secrets/hosts/h1"}
    with pytest.raises(Refused) as error:
        records.join(CLUSTER, half)
    assert error.value.code == "record-damaged"
    with pytest.raises(Refused) as error:
        records.apply(full(), {"secrets/hosts/h1": None}, 10)
    assert "only half there" in error.value.message


def test_no_message_shows_a_secret() -> None:
    secret = b"s3cr3t-of-h0st"
    for value in (
        b'{"schema":1,"password":["%s"]}' % secret,
        b'{"schema":1,"password":"x","mutual_password":{"%s":1}}' % secret,
        b'{"schema":1,"password":"first-secret-1","%s":1}' % secret,
        b'{"schema":1,"password":"%s' % secret,
    ):
        assert secret.decode() not in damaged("secrets/hosts/h1", value)


def test_without_config_there_is_no_cluster() -> None:
    reads: list[Callable[[], object]] = [
        lambda: records.join(CLUSTER, {}),
        lambda: records.join(CLUSTER, records.split(full())),
        lambda: records.apply(full(), {"config": None}, 10),
    ]
    for read in reads:
        with pytest.raises(Refused) as error:
            read()
        assert error.value.code == "no-cluster"


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "iqn", "nodes", "volumes", "lun", "size", "disks", "chap", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def read_or_refuse(changes: dict[str, bytes | None]) -> None:
    try:
        state = records.apply(full(), changes, 10)
    except Refused as error:
        assert error.code in ("record-damaged", "schema-newer")  # noqa: PT017 - it need not be raised
    else:
        assert ClusterSpec.model_validate(state.cluster.model_dump()) == state.cluster


@given(st.sampled_from(sorted(stored())), st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(key: str, value: bytes) -> None:
    read_or_refuse({key: value})


@given(st.sampled_from(sorted(stored())), st.data())
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_record_is_read_or_refused(key: str, data: st.DataObject) -> None:
    value = json.loads(stored()[key])
    paths = list(_paths(value))
    here: Any = value
    path = data.draw(st.sampled_from(paths)) if paths else ()
    for step in path[:-1]:
        here = here[step]
    if path:
        here[path[-1]] = data.draw(JSON)
    read_or_refuse({key: json.dumps(value).encode(errors="surrogatepass")})


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _paths(item, (*path, key))


@given(st.text(max_size=30).filter(lambda text: text not in ("config", "cluster")), JSON)
@settings(max_examples=200, deadline=None)
def test_any_key_is_read_or_refused(key: str, value: Any) -> None:
    body = json.dumps(value).encode(errors="surrogatepass")
    for kind in ("nodes/", "hosts/", "secrets/hosts/", "resources/", "leftovers/"):
        read_or_refuse({kind + key: body})
