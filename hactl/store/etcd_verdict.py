"""What a failed call says about the transaction that it carried: pure, from etcd's sources (3.4 and 3.5).

A request to change something goes through these steps in a member: checks on arrival, proposal to Raft, and
later, on every member alike, checks and changes when it is applied. A refusal by the checks of either end
certainly changed nothing. Whatever ends the waiting in between (``request timed out`` in all its forms,
``server stopped``, a lost connection, a time limit) leaves open whether it is applied after all.

gRPC's status codes do not tell these apart: UNAVAILABLE and RESOURCE_EXHAUSTED come from checks on arrival as
well as from connections that broke after sending. So etcd's words decide, and everything else is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hactl.store.protocol import DENIED, FULL, LEASE_LOST, OUTCOME_UNKNOWN, REJECTED, TOO_LARGE, UNREACHABLE


class Outcome(Enum):
    """What may be done next."""

    ELSEWHERE = "not carried out; another member, or this one a little later, may take it"
    REFUSED = "not carried out, and no member would"
    UNKNOWN = "may have been carried out, or may still be"


@dataclass(frozen=True)
class Verdict:
    """``code``: for the error that is raised if nothing better comes."""

    outcome: Outcome
    code: str
    hint: str = ""


COMPACTED = "store-compacted"
"""Code used inside the adapter only: the revision asked for is gone."""

_TOO_LARGE = Verdict(
    Outcome.REFUSED,
    TOO_LARGE,
    "change less at once, or raise max-txn-ops and max-request-bytes in the members' configuration",
)
_DENIED = Verdict(Outcome.REFUSED, DENIED, "the node's certificate or etcd's own users do not allow it")
_ELSEWHERE = Verdict(Outcome.ELSEWHERE, UNREACHABLE)
_REJECTED = Verdict(Outcome.REFUSED, REJECTED)
_UNKNOWN = Verdict(Outcome.UNKNOWN, OUTCOME_UNKNOWN)

_WORDS: dict[str, Verdict] = {
    # Checks on arrival that depend on the member or the moment.
    "etcdserver: no leader": _ELSEWHERE,
    "etcdserver: not leader": _ELSEWHERE,
    "etcdserver: not capable": _ELSEWHERE,
    "etcdserver: too many requests": _ELSEWHERE,
    "etcdserver: rpc not supported for learner": _ELSEWHERE,
    # This member's own Raft did not take the proposal: its leader is just handing over, or unknown.
    "raft proposal dropped": _ELSEWHERE,
    # Checks on arrival that every member makes alike.
    "etcdserver: request is too large": _TOO_LARGE,
    "etcdserver: too many operations in txn request": _TOO_LARGE,
    "etcdserver: key is not provided": _REJECTED,
    "etcdserver: duplicate key given in txn request": _REJECTED,
    "etcdserver: too large lease TTL": _REJECTED,
    "etcdserver: user name is empty": _DENIED,
    "etcdserver: invalid auth token": _DENIED,
    # Checks when applied, the same on every member.
    "etcdserver: permission denied": _DENIED,
    "etcdserver: requested lease not found": Verdict(
        Outcome.REFUSED, LEASE_LOST, "the node's agent gets a new lease by itself once it reaches the store"
    ),
    "etcdserver: mvcc: database space exceeded": Verdict(
        Outcome.REFUSED,
        FULL,
        "free space with `etcdctl defrag`, then `etcdctl alarm disarm`; raise quota-backend-bytes",
    ),
    "etcdserver: corrupt cluster": Verdict(
        Outcome.REFUSED,
        REJECTED,
        "a member's data differs from the others': `etcdctl alarm list`; replace that member",
    ),
    "etcdserver: mvcc: required revision has been compacted": Verdict(Outcome.REFUSED, COMPACTED),
    # A read on a member that lags behind.
    "etcdserver: mvcc: required revision is a future revision": _ELSEWHERE,
}

_GO_RECEIVE_LIMIT = "grpc: received message"
"""How the *server's* refusal of a request that is too long begins. The same limit in this process, on an
answer, is worded differently ("CLIENT: Received message ..."), and comes after the fact."""


def judge(details: str) -> Verdict:
    """The verdict on a call that failed with these words (a gRPC status' details)."""
    if details.startswith(_GO_RECEIVE_LIMIT) and "larger than max" in details:
        return _TOO_LARGE
    return _WORDS.get(details, _UNKNOWN)
