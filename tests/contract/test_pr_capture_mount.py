"""The capture process on /dev/fuse: what no kernel of the tests' own could show."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.pr_capture_world import SECONDS, Listener, RealWorld

pytestmark = pytest.mark.real


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealWorld]:
    made = RealWorld(tmp_path)
    try:
        async with asyncio.timeout(SECONDS):
            await made.start()
            yield made
    finally:
        await made.close()


def below(world: RealWorld) -> dict[str, str]:
    return {path.name: path.read_text() for path in world.below.iterdir()}


async def test_a_large_file_waits_once_and_can_be_read(real: RealWorld) -> None:
    async with real.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        await capture.set_units(["one"])
        text = "0123456789abcdef" * 160_000
        writer = real.write("one", text)
        held = await listener.held()
        # A buffer of a process that does not start at the start of a page costs one page of the request.
        assert (1 << 20) - 4096 < held.size <= 1 << 20
        assert (await asyncio.to_thread((real.pr / "aptpl_one").read_text)) == text[: held.size]
        assert not below(real)
        await capture.release(held.id)
        await asyncio.wait_for(asyncio.shield(writer), 5)
        assert (await asyncio.to_thread((real.pr / "aptpl_one").read_text)) == text + "\0"


async def test_a_write_that_is_let_go_returns_at_once(real: RealWorld) -> None:
    async with real.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        await capture.set_units(["one"])
        ended: list[float] = []
        took = []
        for _ in range(20):
            writer = real.write("one", "a" * 10_000)
            writer.add_done_callback(lambda _: ended.append(time.monotonic()))
            held = await listener.held()
            started = time.monotonic()
            await capture.release(held.id)
            await writer
            took.append(time.monotonic() - started)
        print(f"release to return: median {sorted(took)[10] * 1e3:.2f} ms, worst {max(took) * 1e3:.2f} ms")
        assert sorted(took)[10] < 0.02


async def test_a_writer_that_is_killed_does_not_get_away(real: RealWorld) -> None:
    async with real.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        await capture.set_units(["one"])
        code = "import sys; open(sys.argv[1], 'wb', 0).write(b'a')"
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", code, real.pr / "aptpl_one")
        held = await listener.held()
        writer.send_signal(signal.SIGINT)
        writer.kill()
        # Both have reached the kernel, which asks the capture process to give up the write.
        await capture.ping()
        assert writer.returncode is None
        assert await capture.release(held.id)
        assert await writer.wait() == -signal.SIGKILL


async def test_files_of_others_are_those_of_the_directory_below(real: RealWorld) -> None:
    (real.below / "aptpl_old").write_text("from before")

    def work() -> None:
        pr = real.pr
        assert (pr / "aptpl_old").read_text() == "from before"
        (pr / "aptpl_other").write_text("x" * 3_000_000)
        (pr / "aptpl_other").chmod(0o640)
        os.utime(pr / "aptpl_other", ns=(10**18, 2 * 10**18))
        with (pr / "aptpl_other").open("a") as file:
            file.write("end")
            os.fsync(file.fileno())
        os.truncate(pr / "aptpl_old", 4)
        (pr / "temporary").write_text("a")
        (pr / "temporary").rename(pr / "final")
        (pr / "aptpl_other").unlink()
        (pr / "aptpl_third").write_text("b")
        assert sorted(path.name for path in pr.iterdir()) == [
            "aptpl_old",
            "aptpl_one",
            "aptpl_third",
            "final",
        ]
        assert os.statvfs(pr).f_blocks > 0
        for forbidden in ((pr / "aptpl_one").unlink, (pr / "directory").mkdir):
            with pytest.raises(PermissionError):
                forbidden()
        with pytest.raises(PermissionError):
            (pr / "final").rename(pr / "aptpl_one")
        with pytest.raises(FileNotFoundError):
            (pr / "none").read_text()
        with pytest.raises(FileExistsError):
            (pr / "final").open("x")

    async with real.client() as capture:
        await capture.set_units(["one"])
        await real.in_thread(work)
    assert below(real) == {
        "aptpl_old": "from",
        "aptpl_third": "b",
        "final": "a",
    }


async def test_open_files_of_others_survive_a_restart(real: RealWorld) -> None:
    async with real.client() as capture:
        await capture.set_units(["one"])
        opened = await asyncio.to_thread((real.pr / "aptpl_other").open, "w+", buffering=1)
        with opened as file:
            await asyncio.to_thread(file.write, "before\n")
            await real.crash()
            await real.start()
            await asyncio.to_thread(file.write, "after\n")
            await asyncio.to_thread(file.seek, 0)
            assert await asyncio.to_thread(file.read) == "before\nafter\n"
    assert (real.below / "aptpl_other").read_text() == "before\nafter\n"


async def test_there_is_one_mount_after_any_number_of_starts(real: RealWorld) -> None:
    async with real.client() as capture:
        listener = Listener(capture)
        names = {(await listener.mounted()).mount}
        await capture.set_units(["one"])
        for _ in range(2):
            await real.crash()
            await real.start()
            await real.write("other", "a")
            await real.lose()
            names.add((await listener.mounted()).mount)
            await real.write("other", "a")
            assert real.mounts() == 1
    assert len(names) == 3
    assert (real.below / "aptpl_other").exists()


async def test_an_unmounted_file_system_is_mounted_anew(real: RealWorld) -> None:
    async with real.client() as capture:
        listener = Listener(capture)
        first = await listener.mounted()
        await capture.set_units(["one"])
        await real.unmount()
        assert await real.manager.ended() == 1
        assert b"unmounted" in real.manager.said
        await real.start()
        assert (await listener.mounted()).mount != first.mount
        writer = real.write("one", "a")
        held = await listener.held()
        await capture.release(held.id)
        await writer


async def test_a_second_capture_refuses_to_start(real: RealWorld, tmp_path: Path) -> None:
    async with real.client() as capture:
        await capture.set_units(["one"])

        async def second(run: str) -> str:
            serve = [sys.executable, "-m", "hactl.pr_sync.capture", "serve", str(real.manager.dbroot), run]
            process = await asyncio.create_subprocess_exec(
                *real.inside, *serve, stderr=subprocess.PIPE, cwd="/", env=os.environ
            )
            _, said = await process.communicate()
            assert process.returncode == 1
            return said.decode()

        assert "another capture process has" in await second(str(real.manager.run))
        assert "another process serves the file system" in await second(str(tmp_path / "run2"))
        # Also while the one that serves it is dead: whoever keeps the descriptor is going to start it again.
        await real.crash()
        assert "another process serves the file system" in await second(str(tmp_path / "run2"))
        await real.start()
        await capture.ping()
        assert real.mounts() == 1


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def test_a_keeper_does_what_systemd_does(real: RealWorld, tmp_path: Path) -> None:
    await real.manager.ready.wait()
    await real.crash()
    real.manager.lose()
    await real.unmount()
    keep = [
        sys.executable,
        "-m",
        "hactl.pr_sync.capture",
        "keep",
        str(real.manager.dbroot),
        str(real.manager.run),
    ]
    keeper = await asyncio.create_subprocess_exec(*real.inside, *keep)
    try:
        async with real.client() as capture:
            listener = Listener(capture)
            await listener.mounted()
            await capture.set_units(["one"])
            writer = real.write("one", "a")
            held = await listener.held()
            os.kill(child_of(keeper.pid), signal.SIGKILL)
            assert await capture.release(held.id)
            await writer
    finally:
        keeper.terminate()
        assert await keeper.wait() == 0
    assert real.mounts() == 0
