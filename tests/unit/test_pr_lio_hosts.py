"""Whom a cut is for: addresses of the initiators that are meant, and of more where LIO does not show all; and
the end of their connections."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from pydantic import SecretStr

from hactl.errors import Refused
from hactl.pr_sync.capture.protocol import Held
from hactl.pr_sync.doors import Doors
from hactl.pr_sync.kernel import OCCUPIED, Removal
from hactl.pr_sync.lio import LioUnit, Surroundings
from hactl.runner import Completed
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
        self.files |= {f"{TARGET}/tpgt_{tag}/acls/{name}/cmdsn_depth": "64" for tag, name in sessions}
        self.changed: list[str] = []
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

    def write(self, path: str, value: str) -> None:
        if self.files[path] != value:
            self.files[path] = value
            self.changed.append(path)


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


class Host:
    """Two connections at the kernel's end. ``deaf``: what is said on them does not come back as a reset."""

    def __init__(self, *, deaf: bool) -> None:
        self.deaf = deaf
        self.files = Files(SESSIONS, 4)
        self.serving = {101: A, 102: B}
        self.cut = 0

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        self.cut += 1 if stdin is not None else -1
        return Completed(tuple(argv), 0, "", "")

    async def release(self, id: str) -> None:  # noqa: A002 - the capture's name
        assert self.cut, "an answer would get through"
        if not self.deaf:
            self.serving.pop(int(id))

    def threads(self) -> set[int]:
        ended = {path.split("/")[4] for path in self.files.changed}
        return {number for number, initiator in self.serving.items() if initiator not in ended}


@pytest.mark.parametrize("deaf", [False, True])
async def test_the_connection_that_was_cut_has_ended_before_the_cut_ends(deaf: bool) -> None:
    host = Host(deaf=deaf)
    around = SimpleNamespace(
        node="n1",
        portal=lambda: "192.0.2.1:3260",
        fs=host.files,
        runner=host,
        capture=host,
        doors=host,
        now=lambda: 0.0,
        waiting=set(),
    )
    lio = LioUnit(unit(), cast("Surroundings", around), lambda: None)
    lio.arrived(Held("101", lio.unit.serial, 0.0, 1, "", thread=101))
    async with lio.cut(["101"], frozenset({A})):
        assert host.threads() == {102}
        assert host.cut == 1
    assert host.cut == 0
    own = [f"{TARGET}/tpgt_1/acls/{A}/cmdsn_depth"]
    assert host.files.changed == (own if deaf else []), (
        "others' sessions go on, and so do this one's elsewhere"
    )


class Threads(Doors):
    """LIO's threads as /proc shows them: by number, what they do."""

    def __init__(self, proc: Path, **doing: str) -> None:
        async def switch(target: str, tag: int, enabled: bool) -> None:
            raise AssertionError

        super().__init__(switch, SecretStr(""), proc)
        self.folder = proc
        for number, what in doing.items():
            self.does(int(number.removeprefix("t")), what)

    def does(self, number: int, what: str) -> None:
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "comm").write_text("iscsi_trx\n")
        (folder / "stat").write_text(f"{number} (iscsi_trx) {'R' if what == 'runs' else 'S'} 2 0 0\n")
        frame = {"waits for the capture": "fuse_send_write+0x9e/0x133"}.get(what, "sk_wait_data+0xd0/0x14d")
        (folder / "stack").write_text(f"[<0>] schedule+0x3c/0x60\n[<0>] {frame}\n")


def held(number: int, serial: str) -> Held:
    return Held(str(number), serial, 0.0, 1, "", thread=number)


async def test_a_registration_is_removed_only_when_no_thread_can_be_using_it(tmp_path: Path) -> None:
    async def release(id: str) -> bool:  # noqa: A002 - the capture's name
        return bool(id)

    doors = Threads(tmp_path, t101="waits for the capture", t102="waits for its connection", t103="runs")
    around = SimpleNamespace(
        node="n1", doors=doors, now=lambda: 0.0, waiting=set(), capture=SimpleNamespace(release=release)
    )
    lio = LioUnit(unit(), cast("Surroundings", around), lambda: None)
    removal = Removal(frozenset({A}))
    # 101 waits, and nobody has told of it yet; then somebody has, of this unit or of another.
    with pytest.raises(Refused) as refused:
        await lio._nothing_uses_what_goes(removal)
    assert refused.value.code == OCCUPIED
    other = LioUnit(unit(), cast("Surroundings", around), lambda: None)
    other.arrived(held(101, "b" * 32))
    await lio._nothing_uses_what_goes(removal)
    await other.release(["101"])
    lio.arrived(held(101, lio.unit.serial))
    with pytest.raises(Refused):
        await lio._nothing_uses_what_goes(removal)
    await lio._nothing_uses_what_goes(Removal(frozenset({A}), besides=frozenset({"101"})))
    # Let go, it has not run yet.
    await lio.release(["101"])
    doors.does(101, "runs")
    going = asyncio.ensure_future(lio._nothing_uses_what_goes(removal))
    await asyncio.sleep(0.05)
    assert not going.done()
    doors.does(101, "waits for its connection")
    await going
