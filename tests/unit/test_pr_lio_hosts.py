"""Whom a cut is for: addresses of the initiators that are meant, and of more where LIO does not show all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from hactl.pr_sync.lio import LioUnit, Surroundings
from hactl.target.tree import CONTROL
from tests.unit.pr_world import INITIATORS, unit

A, B, C = INITIATORS
TARGET = "iscsi/iqn.2026-11.org.example:r0"
COUNT = f"{TARGET}/fabric_statistics/iscsi_instance/sessions"


class Files:
    """As much of :class:`hactl.target.configfs.ConfigFs` as is read: files by path."""

    def __init__(self, sessions: dict[tuple[int, str], str], count: int | None) -> None:
        self.files = {
            f"{TARGET}/tpgt_{tag}/acls/{name}/info": f"InitiatorName: {name}\n  Address {ip} TCP  StatSN: 1\n"
            if ip
            else f"No active iSCSI Session for Initiator Endpoint: {name}\n"
            for (tag, name), ip in sessions.items()
        }
        if count is not None:
            self.files[COUNT] = str(count)

    def listdir(self, path: str) -> list[str]:
        return sorted(
            {f.removeprefix(f"{path}/").partition("/")[0] for f in self.files if f.startswith(f"{path}/")}
        )

    def exists(self, path: str) -> bool:
        return any(f == path or f.startswith(f"{path}/") for f in self.files)

    def read(self, path: str) -> str:
        return self.files[path]


SESSIONS = {
    (1, A): "192.0.2.11",
    (1, B): "[2001:db8::12]",
    (1, C): "",
    (1, CONTROL): "192.0.2.1",
    (2, A): "127.0.0.1",
}


def hosts(count: int | None, initiators: frozenset[str] | None) -> set[str]:
    around = SimpleNamespace(
        node="n1",
        portal=lambda: "192.0.2.1:3260",
        fs=Files(SESSIONS, count),
        peers=lambda: {"192.0.2.1", "192.0.2.11", "192.0.2.99"},
    )
    return LioUnit(unit(), cast("Surroundings", around), lambda: None)._hosts(initiators)


def test_only_those_that_are_meant() -> None:
    assert hosts(4, frozenset({A})) == {"192.0.2.11"}
    assert hosts(4, frozenset({A, B, C})) == {"192.0.2.11", "2001:db8::12"}
    assert hosts(4, None) == {"192.0.2.11", "2001:db8::12"}


def test_all_that_are_connected_where_there_are_more_sessions_than_are_shown() -> None:
    assert hosts(5, frozenset({A})) == {"192.0.2.11", "192.0.2.99"}
    assert hosts(None, frozenset({C})) == {"192.0.2.11", "192.0.2.99"}
