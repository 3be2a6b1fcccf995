"""What may be concluded from etcd's words, and what a transaction may look like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.errors import Refused
from hactl.store.etcd import EtcdStore, Tls
from hactl.store.etcd_verdict import Outcome, judge
from hactl.store.protocol import FULL, LEASE_LOST, TOO_LARGE, UNREACHABLE, Delete, Put, Unchanged
from hactl.store.request import checked, first_after


@pytest.mark.parametrize(
    "details",
    [
        "etcdserver: request timed out",
        "etcdserver: request timed out, possibly due to previous leader failure",
        "etcdserver: request timed out, possible due to connection lost",
        "etcdserver: server stopped",
        "etcdserver: leader changed",
        "Deadline Exceeded",
        "Socket closed",
        "failed to connect to all addresses; last error: UNKNOWN: Connection refused",
        "CLIENT: Received message larger than max (5000000 vs. 4194304)",
        "etcdserver: a word of a later version",
        "",
    ],
)
def test_what_is_not_known_to_have_been_refused_is_unknown(details: str) -> None:
    assert judge(details).outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(
    "details",
    ["etcdserver: no leader", "etcdserver: too many requests", "etcdserver: rpc not supported for learner"],
)
def test_what_another_member_may_take(details: str) -> None:
    assert judge(details).outcome is Outcome.ELSEWHERE


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ("etcdserver: requested lease not found", LEASE_LOST),
        ("etcdserver: mvcc: database space exceeded", FULL),
        ("etcdserver: too many operations in txn request", TOO_LARGE),
        ("etcdserver: request is too large", TOO_LARGE),
        ("grpc: received message larger than max (3000123 vs. 2097152)", TOO_LARGE),
    ],
)
def test_what_no_member_takes(details: str, code: str) -> None:
    verdict = judge(details)
    assert (verdict.outcome, verdict.code) == (Outcome.REFUSED, code)
    assert verdict.hint


@given(st.text(), st.text())
def test_the_range_of_a_prefix_holds_what_begins_with_it_and_nothing_else(prefix: str, key: str) -> None:
    start, end, found = prefix.encode(), first_after(prefix), key.encode()
    assert (start <= found and (end == b"\0" or found < end)) == key.startswith(prefix)


def test_a_transaction_is_read_once_from_anything() -> None:
    known, wanted = checked((Unchanged(k, 0) for k in "ab"), (Delete(k) for k in "ab"))
    assert known == (Unchanged("a", 0), Unchanged("b", 0))
    assert wanted == (Delete("a"), Delete("b"))
    with pytest.raises(ValueError, match=r"twice.*: a, b"):
        checked((), [Delete("b"), Delete("a"), Put("a", b""), Put("b", b""), Put("c", b"")])
    with pytest.raises(ValueError, match="empty"):
        checked([Unchanged("", 0)], [])


@pytest.mark.parametrize(
    "endpoint", ["http://10.0.0.1:2379", "10.0.0.1:2379", "https://10.0.0.1", "https://a:1/b"]
)
def test_endpoints_are_of_one_form(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tls")
    with pytest.raises(ValueError, match="https://ADDRESS:PORT"):
        EtcdStore([endpoint], Tls(folder / "ca", folder / "crt", folder / "key"))
    with pytest.raises(Refused, match=str(folder / "ca")) as refusal:
        EtcdStore(["https://10.0.0.1:2379"], Tls(folder / "ca", folder / "crt", folder / "key"))
    assert refusal.value.code == UNREACHABLE


def test_values_are_not_shown() -> None:
    assert "secret" not in repr(Put("/a", b"secret"))
