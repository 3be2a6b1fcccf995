"""Pacemaker's tools: how they are called, and what their endings mean."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hactl.errors import Failed, Unknown
from hactl.pacemaker.protocol import Change
from hactl.pacemaker.tools import Tools
from hactl.runner import CommandTimeout, Completed

CIB = (
    '<cib><configuration><crm_config/><nodes/><resources><primitive id="db" class="ocf" type="x"/>'
    "</resources><constraints/></configuration></cib>"
)
CHANGE = Change(put=(("resources", '<primitive id="hactl-x" class="ocf" type="x"/>'),))
Answer = tuple[int, str, str]


class FakeTools:
    """Programs by name: what each answers, given its arguments and input."""

    def __init__(self, **answers: Callable[[Sequence[str]], Answer]) -> None:
        self.answers = answers
        self.calls: list[tuple[tuple[str, ...], str | None]] = []
        self.files: list[Path] = []

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        self.calls.append((tuple(argv), stdin))
        named = [Path(word.partition("=")[2]) for word in argv if word.partition("=")[2].startswith("/")]
        for path in named:
            self.files.append(path)
            # Other people's secrets are in it.
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        return Completed(tuple(argv), *self.answers[argv[0]](argv))


def query(argv: Sequence[str]) -> Answer:
    return (0, CIB if "--query" in argv else "", "")


def patch(argv: Sequence[str]) -> Answer:
    return (1, "<diff/>", "")


def fine(argv: Sequence[str]) -> Answer:
    return (0, "", "")


async def test_a_change_is_checked_and_sent_as_one_patch() -> None:
    fake = FakeTools(cibadmin=query, crm_verify=fine, crm_diff=patch)
    await Tools(fake).commit(CHANGE)
    assert [c[0][0] for c in fake.calls] == ["cibadmin", "crm_verify", "crm_diff", "cibadmin"]
    assert fake.calls[-1] == (("cibadmin", "--patch", "--xml-pipe"), "<diff/>")
    assert fake.files
    assert not any(path.exists() for path in fake.files)


async def test_what_pacemaker_would_not_accept_is_not_sent_and_nothing_is_left() -> None:
    def verify(argv: Sequence[str]) -> Answer:
        return (78, "", "error: no such thing") if any("after" in word for word in argv) else (0, "", "")

    fake = FakeTools(cibadmin=query, crm_verify=verify, crm_diff=patch)
    with pytest.raises(Failed) as caught:
        await Tools(fake).commit(CHANGE)
    assert (caught.value.code, "no such thing" in caught.value.message) == ("pacemaker-refused", True)
    assert not any("--patch" in c[0] for c in fake.calls)
    assert fake.files
    assert not any(path.exists() for path in fake.files)


@pytest.mark.parametrize("words", ["Warnings found during check: config may not be valid", "error: theirs"])
async def test_warnings_and_errors_that_were_there_before_do_not_hold_it_up(words: str) -> None:
    fake = FakeTools(cibadmin=query, crm_verify=lambda _: (78, "", words), crm_diff=patch)
    await Tools(fake).commit(CHANGE)
    assert fake.calls[-1][0][1] == "--patch"


async def test_no_difference_is_no_patch() -> None:
    fake = FakeTools(cibadmin=query, crm_verify=fine, crm_diff=fine)
    await Tools(fake).commit(CHANGE)
    assert [c[0][0] for c in fake.calls] == ["cibadmin", "crm_verify", "crm_diff"]


async def test_where_pacemaker_does_not_run() -> None:
    def gone(argv: Sequence[str]) -> Answer:
        return (102, "", "Could not connect to the CIB: Transport endpoint is not connected")

    tools = Tools(FakeTools(crm_mon=gone, cibadmin=gone))
    for asked in (tools.state(), tools.configuration(), tools.commit(CHANGE), tools.clear("c")):
        with pytest.raises(Failed) as caught:
            await asked
        assert caught.value.code == "pacemaker-down"


async def test_what_a_tool_says_when_it_fails_is_passed_on() -> None:
    fake = FakeTools(stonith_admin=lambda _: (1, "", "No route to host\n"))
    with pytest.raises(Failed) as caught:
        await Tools(fake).fence("n2")
    assert caught.value.code == "pacemaker-failed"
    assert "stonith_admin" in caught.value.message
    assert "No route to host" in caught.value.message
    assert fake.calls[0][0][1] == "--reboot=n2"


async def test_a_tool_that_does_not_end_leaves_it_open() -> None:
    def late(argv: Sequence[str]) -> Answer:
        raise CommandTimeout(tuple(argv), 30.0)

    with pytest.raises(Unknown) as caught:
        await Tools(FakeTools(crm_resource=late)).move("c", "n1")
    assert caught.value.code == "pacemaker-timeout"


async def test_a_program_that_is_not_installed_is_named() -> None:
    def missing(argv: Sequence[str]) -> Answer:
        raise FileNotFoundError(argv[0])

    with pytest.raises(Failed) as caught:
        await Tools(FakeTools(crm_mon=missing)).state()
    assert caught.value.code == "program-missing"
    assert "crm_mon" in caught.value.message


def files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


async def test_a_score_is_set_and_the_resource_agent_does_not_know_it(tmp_path: Path) -> None:
    for name in ("score-hactl-r0", "score-hactl-r0:1", "score-hactl-r0-other"):
        (tmp_path / name).write_text("20000 1\n")
    tools = FakeTools(crm_attribute=fine)
    await Tools(tools, told=tmp_path).score("hactl-r0", "n1", 5000)
    assert files(tmp_path) == ["score-hactl-r0-other"]
    name = "--name=master-hactl-r0"
    assert tools.calls == [(("crm_attribute", "--node=n1", name, "--lifetime=reboot", "--update=5000"), None)]


async def test_looking_anew_waits_once_for_all() -> None:
    fake = FakeTools(crm_resource=fine)
    tools = Tools(fake)
    await tools.refresh(())
    assert fake.calls == []
    await tools.refresh(("a", "b"))
    assert [c[0][1] for c in fake.calls] == ["--refresh", "--refresh", "--wait"]
