"""The control line: the host's end against the machines' agent, over a socket in place of a serial line."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.control import CHUNK, SERIAL_WINDOW, Control, LineLostError

GUEST = Path(__file__).parents[2] / "lab" / "guest" / "control.py"
SERVE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("guest_control", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
control = module.Control(int(sys.argv[2]))
control.send(id=0, ready=True)
control.serve()
"""


def start_agent(line: socket.socket) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-S", "-E", "-c", SERVE, str(GUEST), str(line.fileno())]
    return subprocess.Popen(command, pass_fds=[line.fileno()])


@asynccontextmanager
async def machine(window: int = SERIAL_WINDOW) -> AsyncIterator[tuple[Control, subprocess.Popen[bytes]]]:
    """A control line with the real agent at its other end."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = start_agent(theirs)
    control = Control(ours, window)
    try:
        await asyncio.wait_for(control.ready.wait(), 20)
        yield control, process
    finally:
        process.kill()
        process.wait()
        await control.close()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def run(
    control: Control, *argv: str, given: AsyncIterator[bytes] | None = None, timeout: float | None = 20
) -> tuple[int, bytes, bytes]:
    """Exit status, output and errors."""
    out, err, status = b"", b"", -1
    async for message in control.run(list(argv), timeout, given):
        out += base64.b64decode(message.get("out", ""))
        err += base64.b64decode(message.get("err", ""))
        status = message.get("exit", status)
    return status, out, err


async def test_output_errors_and_status_come_back() -> None:
    async with machine() as (control, _):
        assert await run(control, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


async def test_every_byte_of_a_large_output_comes_back() -> None:
    writes = "import sys\nfor _ in range(512): sys.stdout.buffer.write(bytes(range(256)) * 16)"
    async with machine() as (control, _):
        status, out, _err = await run(control, sys.executable, "-c", writes)
    assert status == 0
    assert out == bytes(range(256)) * 16 * 512


@pytest.mark.parametrize("window", [64, SERIAL_WINDOW, 1 << 18])
async def test_input_is_taken_whole_in_whatever_pieces_it_comes(window: int) -> None:
    data = os.urandom(3 * CHUNK + 17)
    async with machine(window) as (control, _):
        given = pieces(b"", data[:5], data[5 : CHUNK + 9], data[CHUNK + 9 :])
        assert await run(control, "cat", given=given) == (0, data, b"")


async def test_a_program_may_leave_its_input_unread() -> None:
    async with machine() as (control, _):
        assert await run(control, "true", given=pieces(*[b"x" * CHUNK] * 8)) == (0, b"", b"")
        assert await run(control, "echo", "still here") == (0, b"still here\n", b"")


async def test_without_input_a_program_reads_the_end_at_once() -> None:
    async with machine() as (control, _):
        assert await run(control, "cat") == (0, b"", b"")


async def test_input_that_never_ends_does_not_outlive_the_program() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"one line\n"
        await asyncio.Event().wait()

    async with machine() as (control, _):
        assert await run(control, "head", "-n1", given=endless()) == (0, b"one line\n", b"")


@pytest.mark.parametrize(("name", "status"), [("/no/such/program", 127), ("/etc/passwd", 126)])
async def test_what_cannot_be_started_ends_as_in_a_shell(name: str, status: int) -> None:
    async with machine() as (control, _):
        got, out, err = await run(control, name)
    assert (got, out) == (status, b"")
    assert name.encode() in err


async def test_death_by_a_signal_gives_128_and_its_number() -> None:
    async with machine() as (control, _):
        assert (await run(control, "sh", "-c", "kill -9 $$"))[0] == 137


async def test_a_time_out_kills_the_program_and_what_it_started() -> None:
    async with machine() as (control, _):
        status, _out, err = await run(control, "sh", "-c", "sleep 600 & sleep 600", timeout=0.2)
    assert status == 137
    assert b"time-out" in err


async def test_a_child_left_behind_that_writes_for_ever_delays_nobody() -> None:
    async with machine() as (control, _):
        status, out, _err = await run(control, "sh", "-c", "echo first; yes & exit 3")
        assert status == 3
        assert out.startswith((b"first\n", b"y\n"))


async def test_who_stops_listening_ends_the_program(tmp_path: Path) -> None:
    note = tmp_path / "ended"
    script = f"trap 'echo yes > {note}; exit' TERM; echo ready; while :; do sleep 0.05; done"
    async with machine() as (control, _):
        messages = control.run(["sh", "-c", script], None, None)
        await anext(messages)
        await messages.aclose()
        await run(control, "sh", "-c", f"until [ -s {note} ]; do sleep 0.02; done")
    assert note.read_text() == "yes\n"


async def test_requests_run_side_by_side() -> None:
    async with machine() as (control, _):
        slow = asyncio.create_task(run(control, "sh", "-c", "read line; echo $line", given=_later(control)))
        assert await asyncio.wait_for(slow, 20) == (0, b"went\n", b"")


async def _later(control: Control) -> AsyncIterator[bytes]:
    assert (await run(control, "echo", "other"))[1] == b"other\n"
    yield b"went\n"


async def test_a_file_is_put_with_its_mode(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK + 1)
    async with machine() as (control, _):
        await control.put(str(tmp_path / "new" / "file"), data, 0o640)
        await control.put(str(tmp_path / "empty"), b"", 0o600)
    assert (tmp_path / "new" / "file").read_bytes() == data
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "empty").read_bytes() == b""


async def test_an_unknown_operation_is_refused() -> None:
    async with machine() as (control, _):
        with pytest.raises(RuntimeError, match="unknown operation 'dance'"):
            await control.call("dance")


async def test_a_machine_that_dies_ends_every_request() -> None:
    async with machine() as (control, process):
        asked = asyncio.create_task(run(control, "sleep", "600"))
        await control.call("hello")
        process.kill()
        with pytest.raises(LineLostError):
            await asyncio.wait_for(asked, 20)
        assert control.lost.is_set()
        with pytest.raises(LineLostError):
            await control.call("hello")


async def test_never_more_than_the_window_is_under_way() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    control = Control(ours, 100)
    asked = asyncio.create_task(control.put("/x", b"y" * 1000, 0o600))
    received = b""
    while not received.endswith(b"\n"):
        part = await asyncio.wait_for(loop.sock_recv(theirs, 1 << 16), 20)
        assert len(part) <= 100
        received += part
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            theirs.recv(1, socket.MSG_PEEK)
        theirs.sendall(json.dumps({"ack": len(part)}).encode() + b"\n")
    message: dict[str, Any] = json.loads(received)
    theirs.sendall(json.dumps({"id": message["id"], "exit": 0}).encode() + b"\n")
    await asyncio.wait_for(asked, 20)
    await control.close()
    theirs.close()


async def test_an_agent_started_again_ends_what_the_last_one_was_asked() -> None:
    ours, theirs = socket.socketpair()
    control = Control(ours, 100)
    theirs.sendall(b'noise\n{"id": 0, "ready": true}\n')
    await asyncio.wait_for(control.ready.wait(), 20)
    asked = asyncio.create_task(control.call("hello"))
    theirs.setblocking(False)
    await asyncio.get_running_loop().sock_recv(theirs, 1 << 16)
    theirs.sendall(b'{"id": 0, "ready": true}\n')
    with pytest.raises(LineLostError):
        await asyncio.wait_for(asked, 20)
    again = asyncio.create_task(control.call("hello"))
    request = json.loads(await asyncio.get_running_loop().sock_recv(theirs, 1 << 16))
    theirs.sendall(json.dumps({"id": request["id"], "exit": 0}).encode() + b"\n")
    await asyncio.wait_for(again, 20)
    await control.close()
    theirs.close()
