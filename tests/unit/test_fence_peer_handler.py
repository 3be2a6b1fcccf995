"""The handler that DRBD runs: real shell and curl, and an agent that answers, is late, or never comes."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

HANDLER = Path(__file__).parents[2] / "ocf" / "fence-peer"
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


class FakeAgent:
    def __init__(self, answer: Callable[[], web.Response]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []

    async def _fence_peer(self, request: web.Request) -> web.Response:
        self.asked.append((request.match_info["resource"], str((await request.post())["peer"])))
        return self.answer()

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/v1/resources/{resource}/fence-peer", self._fence_peer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        try:
            yield
        finally:
            await runner.cleanup()


async def handle(
    folder: Path, *, patience: int = 30, told: asyncio.Event | None = None, **environment: str
) -> tuple[int, str]:
    """Run the handler as drbdadm does; its exit code and what it said, at which ``told`` is set."""
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        str(HANDLER),
        env={
            "PATH": os.environ["PATH"],
            "HACTL_SOCKET": str(folder / "agent.sock"),
            "HACTL_PATIENCE": str(patience),
            **environment,
        },
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    assert process.stderr is not None
    said = b""
    async for line in process.stderr:
        said += line
        if told is not None:
            told.set()
    return await process.wait(), said.decode()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("4 n2 knows that its data is old\n", 4),
        ("7 n2 was fenced\n", 7),
        ("3 x\n", 3),
        ("5 x\n", 5),
        ("6 x\n", 6),
        ("1 not known\n", 1),
        ("0 never\n", 1),
        ("44 never\n", 1),
        ("", 1),
        ("what?\n", 1),
    ],
)
async def test_exit_codes(tmp_path: Path, text: str, code: int) -> None:
    agent = FakeAgent(lambda: web.Response(text=text))
    async with agent.listening(tmp_path / "agent.sock"):
        found, _ = await handle(tmp_path, DRBD_RESOURCE="r0", DRBD_PEER="n2")
    assert found == code
    assert agent.asked == [("r0", "n2")]


async def test_the_peer_on_drbd_9_goes_by_its_number(tmp_path: Path) -> None:
    agent = FakeAgent(lambda: web.Response(text="4 yes\n"))
    async with agent.listening(tmp_path / "agent.sock"):
        code, _ = await handle(
            tmp_path, DRBD_RESOURCE="r0", DRBD_PEER_NODE_ID="3", DRBD_NODE_ID_1="n1", DRBD_NODE_ID_3="n3"
        )
    assert code == 4
    assert agent.asked == [("r0", "n3")]


async def test_an_agent_that_is_late_is_waited_for(tmp_path: Path) -> None:
    agent = FakeAgent(lambda: web.Response(text="4 yes\n"))
    told = asyncio.Event()
    running = asyncio.create_task(handle(tmp_path, told=told, DRBD_RESOURCE="r0", DRBD_PEER="n2"))
    await told.wait()
    async with agent.listening(tmp_path / "agent.sock"):
        code, said = await running
    assert code == 4
    assert said.count("no answer of hactl-agent yet") == 1


async def test_an_agent_that_dies_in_the_middle_is_asked_again(tmp_path: Path) -> None:
    answers = [web.Response(status=500), web.Response(status=504), web.Response(text="7 off\n")]
    agent = FakeAgent(lambda: answers.pop(0))
    async with agent.listening(tmp_path / "agent.sock"):
        code, _ = await handle(tmp_path, DRBD_RESOURCE="r0", DRBD_PEER="n2")
    assert code == 7
    assert len(agent.asked) == 3


async def test_without_an_agent_it_ends_and_says_that_nothing_is_known(tmp_path: Path) -> None:
    code, said = await handle(tmp_path, patience=2, DRBD_RESOURCE="r0", DRBD_PEER="n2")
    assert code == 1
    assert "I/O is held" in said


async def test_an_agent_that_never_answers_does_not_keep_it_for_ever(tmp_path: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(deaf, tmp_path / "agent.sock")
    async with server:
        code, _ = await handle(tmp_path, patience=2, DRBD_RESOURCE="r0", DRBD_PEER="n2")
    assert code == 1


async def test_without_a_resource(tmp_path: Path) -> None:
    assert (await handle(tmp_path))[0] == 1
