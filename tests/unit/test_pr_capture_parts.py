"""Parts of the capture process one by one: the list of units, what is answered, what the agent may send."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from struct import Struct

import pytest

from hactl.errors import Failed
from hactl.pr_sync.capture import lines, wire
from hactl.pr_sync.capture.below import Below
from hactl.pr_sync.capture.client import CaptureClient
from hactl.pr_sync.capture.filesystem import FileSystem, HeldWrite
from hactl.pr_sync.capture.protocol import Mounted
from hactl.pr_sync.capture.serve import Server
from hactl.pr_sync.capture.units import Units
from tests.contract.pr_capture_world import IN, KernelWorld

TREE = Path(__file__).parents[2]


def test_the_list_of_units_comes_back(tmp_path: Path) -> None:
    units = Units(f"{tmp_path}/units")
    assert not units.holds("aptpl_one")
    units.replace(frozenset({"one", "two"}))
    numbers = dict(units.numbers)
    again = Units(f"{tmp_path}/units")
    assert again.holds("aptpl_one")
    assert not again.holds("aptpl_three")
    assert not again.holds("one")
    assert again.numbers == numbers
    assert again.serial(numbers["two"]) == "two"
    assert (tmp_path / "units").stat().st_mode & 0o777 == 0o600


def test_a_number_is_never_given_to_another_serial(tmp_path: Path) -> None:
    units = Units(f"{tmp_path}/units")
    units.replace(frozenset({"one"}))
    first = units.numbers["one"]
    units.replace(frozenset())
    units = Units(f"{tmp_path}/units")
    units.replace(frozenset({"two"}))
    assert units.numbers["two"] != first
    assert units.serial(first) == "one"
    units.replace(frozenset({"one"}))
    assert units.numbers["one"] == first


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "listed": [], "numbers": {}}',
        '{"version": 1, "listed": ["one"], "numbers": {}}',
        '{"version": 1, "listed": [], "numbers": {"one": 1, "two": 1}}',
        '{"version": 1, "listed": [], "numbers": {"one": "x"}}',
        "\0",
    ],
)
def test_without_a_list_that_can_be_read_every_file_of_lio_s_is_held(tmp_path: Path, text: str) -> None:
    (tmp_path / "units").write_text(text)
    units = Units(f"{tmp_path}/units")
    assert units.problem
    assert units.holds("aptpl_anything")
    assert not units.holds("anything")
    # A successor that cannot read it either must not take one serial for another.
    assert units.number("aptpl_a") != Units(f"{tmp_path}/units").number("aptpl_b")
    units.replace(frozenset({"one"}))
    assert not units.holds("aptpl_anything")
    assert Units(f"{tmp_path}/units").holds("aptpl_one")


def test_a_list_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    units = Units(f"{tmp_path}/units")
    units.replace(frozenset({"one"}))
    (tmp_path / "units.new").mkdir()
    with pytest.raises(IsADirectoryError):
        units.replace(frozenset({"two"}))
    assert units.holds("aptpl_one")
    assert not units.holds("aptpl_two")
    assert set(units.numbers) == {"one"}


class Harness:
    """A file system without a kernel: requests in, answers out."""

    def __init__(self, directory: Path) -> None:
        self.real = directory / "real"
        self.real.mkdir()
        self.units = Units(f"{directory}/units")
        self.directory = os.open(self.real, os.O_RDONLY)
        self.answers: list[bytes] = []
        self.held: list[HeldWrite] = []
        self.files = FileSystem(self.units, Below(self.directory), self.answers.append, self.held.append)

    def send(self, opcode: int, node: int, body: bytes = b"", unique: int = 2) -> None:
        packet = IN.pack(IN.size + len(body), opcode, unique, node, 0, 0, 1, 0, 0) + body
        self.files.handle(memoryview(packet))

    def ask(self, opcode: int, node: int, body: bytes = b"", unique: int = 2) -> bytes:
        self.send(opcode, node, body, unique)
        answer = self.answers.pop()
        assert not self.answers
        size, error, number = Struct("=IiQ").unpack_from(answer)
        assert (size, number) == (len(answer), unique)
        if error:
            raise OSError(-error, os.strerror(-error))
        return answer[16:]

    def node(self, name: str) -> int:
        return int.from_bytes(self.ask(wire.LOOKUP, wire.ROOT, name.encode() + b"\0")[:8], sys.byteorder)

    def write(self, node: int, data: bytes, *, offset: int = 0, unique: int = 4) -> None:
        self.send(wire.WRITE, node, wire.IO_IN.pack(0, offset, len(data), 0, 0, 0, 0) + data, unique)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    made = Harness(tmp_path)
    yield made
    os.close(made.directory)


def test_only_the_first_piece_of_a_file_waits(harness: Harness) -> None:
    harness.units.replace(frozenset({"one"}))
    node = harness.node("aptpl_one")
    harness.write(node, b"abc")
    assert not harness.answers
    assert [write.serial for write in harness.held] == ["one"]
    assert harness.files.release(4)
    assert harness.answers.pop() == wire.reply(4, wire.written(3))
    harness.write(node, b"def", offset=3, unique=6)
    assert harness.answers.pop() == wire.reply(6, wire.written(3))
    assert harness.ask(wire.READ, node, wire.IO_IN.pack(0, 0, 100, 0, 0, 0, 0)) == b"abcdef"
    assert len(harness.held) == 1


def test_a_write_that_comes_again_has_its_number_and_is_answered_as_it_came(harness: Harness) -> None:
    harness.units.replace(frozenset({"one"}))
    node = harness.node("aptpl_one")
    harness.write(node, b"abc", unique=8 | wire.RESENT)
    assert harness.held[0].resent
    assert harness.files.release(8)
    assert harness.answers.pop() == wire.reply(8 | wire.RESENT, wire.written(3))


def test_a_held_write_whose_serial_was_lost_waits_all_the_same(harness: Harness) -> None:
    harness.units.replace(frozenset({"one"}))
    node = harness.node("aptpl_one") + (99 << 32)
    harness.write(node, b"abc")
    assert [write.serial for write in harness.held] == [""]


def test_a_writer_that_is_gone_is_no_error(harness: Harness) -> None:
    harness.units.replace(frozenset({"one"}))
    harness.write(harness.node("aptpl_one"), b"abc")

    def gone(packet: bytes) -> None:
        raise FileNotFoundError(errno.ENOENT, "no such request")

    harness.files._answer = gone
    assert harness.files.release(4)
    assert not harness.files.release(4)


@pytest.mark.parametrize("opcode", sorted(wire.UNANSWERED))
def test_some_requests_have_no_answer(harness: Harness, opcode: int) -> None:
    harness.send(opcode, wire.ROOT, bytes(16))
    assert not harness.answers


@pytest.mark.parametrize("opcode", [21, 22, 33, 39, 43, 45, 47, 50, 52, 9999])
def test_what_is_not_known_is_left_to_the_kernel(harness: Harness, opcode: int) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        harness.ask(opcode, wire.ROOT, bytes(64))


@pytest.mark.parametrize(
    "opcode", [wire.LOOKUP, wire.SETATTR, wire.OPEN, wire.CREATE, wire.READ, wire.RENAME]
)
def test_a_mangled_request_fails_alone(harness: Harness, opcode: int) -> None:
    harness.units.replace(frozenset({"one"}))
    node = harness.node("aptpl_one")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        harness.ask(opcode, node, b"x")
    harness.write(node, b"abc")
    assert len(harness.held) == 1


def test_a_file_of_hactl_s_does_not_grow_without_bounds(harness: Harness) -> None:
    harness.units.replace(frozenset({"one"}))
    node = harness.node("aptpl_one")
    body = wire.SETATTR_IN.pack(wire.SET_SIZE, 0, 0, 1 << 60, *[0] * 12)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        harness.ask(wire.SETATTR, node, body)
    harness.write(node, b"abc", offset=1 << 60)
    assert harness.answers.pop() == wire.reply(4, wire.written(3))
    assert harness.ask(wire.GETATTR, node)[24:32] == bytes(8)


def test_only_regular_files_of_the_directory_below_are_seen(harness: Harness) -> None:
    (harness.real / "directory").mkdir()
    (harness.real / "link").symlink_to("/etc/shadow")
    (harness.real / "file").write_text("a")
    for name in ("directory", "link", "none"):
        with pytest.raises(FileNotFoundError):
            harness.node(name)
    assert harness.node("file")
    listing = harness.ask(wire.READDIR, wire.ROOT, wire.IO_IN.pack(0, 0, 4096, 0, 0, 0, 0))
    assert b"file" in listing
    assert b"link" not in listing


def test_a_kernel_that_cannot_send_again_is_told_apart(tmp_path: Path) -> None:
    # The kernel's answer to what it does not know, from a descriptor that takes no writes at all.
    with select.epoll() as device:
        below = os.open(tmp_path, os.O_RDONLY)
        server = Server(device.fileno(), "m", Below(below), Units(f"{tmp_path}/units"))
        assert not server.take_over()
        os.close(below)


def test_the_server_imports_little() -> None:
    """What is imported on a restart, an initiator's command waits for."""
    code = "import hactl.pr_sync.capture.__main__, sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=TREE, capture_output=True, text=True, check=True, timeout=60
    )
    found = set(run.stdout.split())
    assert "hactl.pr_sync.capture.serve" in found
    assert not found & {"asyncio", "dataclasses", "typing", "pathlib", "inspect", "pydantic", "hactl.errors"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[KernelWorld]:
    made = KernelWorld(tmp_path)
    await made.mount()
    try:
        async with asyncio.timeout(30):
            await made.manager.ready.wait()
            yield made
    finally:
        await made.close()


@pytest.mark.parametrize(
    "said",
    [
        b"no JSON\n",
        b"[]\n",
        b"{}\n",
        b'{"type": "release"}\n',
        b'{"type": "hello"}\n',
        b'{"type": "hello", "version": 2}\n',
        b'{"type": "hello", "version": 1}\n{"type": "release", "id": "x"}\n',
        b'{"type": "hello", "version": 1}\n{"type": "release", "ref": 1}\n',
        b'{"type": "hello", "version": 1}\n{"type": "release", "ref": 1, "id": "m1-xyz"}\n',
        b'{"type": "hello", "version": 1}\n{"type": "units", "ref": 1, "serials": "one"}\n',
        b'{"type": "hello", "version": 1}\n{"type": "units", "ref": 1, "serials": [1]}\n',
        b'{"type": "hello", "version": 1}\n{"type": "other", "ref": 1}\n',
    ],
)
async def test_an_agent_that_talks_nonsense_is_sent_away_and_nothing_is_let_go(
    world: KernelWorld, said: bytes
) -> None:
    async with world.client() as capture:
        await capture.set_units(["one"])
    writer = world.write("one", "a")
    reader, stream = await asyncio.open_unix_connection(world.manager.run / "capture.sock")
    stream.write(said)
    *_, last = (await reader.read()).splitlines()
    assert json.loads(last)["type"] == "refused"
    stream.close()
    async with world.client() as capture:
        events = aiter(capture)
        assert isinstance(await anext(events), Mounted)
        held = await anext(events)
        assert not isinstance(held, Mounted)
        assert not writer.done()
        assert await capture.release(held.id)
        await writer


async def test_the_list_that_cannot_be_kept_is_refused(world: KernelWorld) -> None:
    (world.manager.run / "capture-units.new").mkdir()
    async with world.client() as capture:
        with pytest.raises(Failed, match="cannot write down") as caught:
            await capture.set_units(["one"])
        assert caught.value.code == "capture-units-not-kept"
        await world.write("one", "passes")


async def test_a_list_that_cannot_be_read_is_complained_about_and_holds_everything(
    world: KernelWorld,
) -> None:
    await world.crash()
    (world.manager.run / "capture-units").write_text("rubbish")
    writer = world.write("any", "a")
    await world.start()
    await world.manager.ready.wait()
    async with world.client() as capture:
        events = aiter(capture)
        await anext(events)
        held = await anext(events)
        assert not isinstance(held, Mounted)
        assert held.serial == "any"
        await capture.release(held.id)
        await writer
    await world.crash()
    assert b"cannot be read" in world.manager.said


async def test_a_client_gets_its_units_to_a_capture_that_lost_them(world: KernelWorld) -> None:
    async with world.client() as capture:
        await capture.set_units(["one"])
        await world.crash()
        (world.manager.run / "capture-units").unlink()
        await world.start()
        await capture.ping()
        assert json.loads((world.manager.run / "capture-units").read_text())["listed"] == ["one"]


async def test_a_client_says_that_nobody_is_there(tmp_path: Path) -> None:
    async with CaptureClient(tmp_path / "socket") as capture:
        problem = await capture.trouble()
        assert problem.code == "capture-silent"
        assert str(tmp_path / "socket") in problem.message


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lines.encode("hello", version=lines.VERSION + 1, mount="m", resend=True), "capture-version"),
        (lines.encode("refused", message="no"), "capture-version"),
        (lines.encode("other"), "capture-version"),
        (lines.encode("replaced"), "capture-replaced"),
        (b"rubbish\n", "capture-silent"),
        (b"", "capture-silent"),
    ],
)
async def test_a_client_says_why_it_was_not_served(tmp_path: Path, answer: bytes, code: str) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, tmp_path / "socket"):
        async with CaptureClient(tmp_path / "socket") as capture:
            waiting = asyncio.create_task(capture.ping())
            assert (await capture.trouble()).code == code
            assert not capture.connected
            assert not waiting.done()
        with pytest.raises(asyncio.CancelledError):
            await waiting
