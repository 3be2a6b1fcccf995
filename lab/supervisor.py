"""The process that is a lab: first of its PID namespace, so that all machines, taps and bridges end with it.

Started by :mod:`lab.launch` through unshare(1). Serves a Unix socket in the lab's folder: see
:mod:`lab.wire`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from lab.bmc import Bmc
from lab.control import Control, LineLostError
from lab.images import CACHE, Image
from lab.layout import BMC_USER, Kind, machines
from lab.machines import Machine, Place
from lab.network import Networks
from lab.qemu import Qemu
from lab.uml import UserMode

LIMIT = 256 << 20
"""Largest request, in bytes: files are sent whole."""
GRACE = 30.0
"""Seconds that a machine may be late in telling that a command's time is over."""
SYNC_SECONDS = 5.0
"""How long an orderly end waits for the machines to write what they hold in memory."""


class Talk:
    """One connection: a request, answers, and more from the other side where the request wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue(4)
        self.gone = asyncio.Event()

    async def send(self, **message: Any) -> None:
        """Tell the other side something; one that is gone does not matter."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()

    async def listen(self) -> None:
        """Read what comes until the other side is gone."""
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                await self._inbox.put(json.loads(line))
        self.gone.set()

    async def given(self) -> AsyncIterator[bytes]:
        """Standard input that is sent along: ``{"input": BASE64}`` any number of times, then ``{"input":
        null}``."""
        while (data := (await self._inbox.get())["input"]) is not None:
            yield base64.b64decode(data)


class Supervisor:
    """All machines of one lab."""

    def __init__(self, folder: Path, settings: dict[str, Any], owner: int | None) -> None:
        specs = machines(settings["nodes"], settings["client"])
        self.folder = folder
        self.settings = settings
        self.owner = owner
        self.networks = Networks(specs)
        self.machines: dict[str, Machine] = {}
        self.bmcs: list[Bmc] = []
        self.ending = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        runtime = settings["runtime"]
        for spec in specs:
            image = Image(Path(settings["images"][spec.image]))
            place = Place(folder / spec.name, image, Path(runtime) if runtime else None, specs)
            kind = Kind(settings["kinds"][spec.image])
            machine = (UserMode if kind is Kind.UML else Qemu)(spec, kind, place)
            self.machines[spec.name] = machine
            self.bmcs.append(Bmc(spec, place.folder, machine))

    async def serve(self, ready: int) -> None:
        """Answer until told to end; close ``ready`` after a byte when there is somebody to ask."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.ending.set)
        if self.owner is not None:
            # The owner holds the other end of this pipe for as long as it lives, whatever ends it.
            loop.add_reader(self.owner, self.ending.set)
        await asyncio.to_thread(self.networks.create)
        await asyncio.gather(*(bmc.start() for bmc in self.bmcs))
        path = self.folder / "lab.sock"
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._connection, str(path), limit=LIMIT)
        path.chmod(0o600)
        os.write(ready, b"1")
        os.close(ready)
        await self.ending.wait()
        server.close()
        for machine in self.machines.values():
            machine.crash()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._connections.add(me)
        me.add_done_callback(self._connections.discard)
        try:
            await self._answer(reader, writer)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(reader, writer)
        try:
            request = json.loads(await reader.readline() or b"null")
            if request is None:
                return
            op = request.pop("op")
            handler: Callable[..., Awaitable[None]] | None = getattr(self, f"_do_{op}", None)
            if handler is None:
                raise ValueError(
                    f"the lab that runs does not know {op!r}, being of another version: `lab down`"
                )
            listener = asyncio.create_task(talk.listen())
            try:
                await handler(talk, **request)
            finally:
                listener.cancel()
            await talk.send(done=True)
        except LineLostError:
            await talk.send(error="the machine went away")
        except Exception as error:  # noqa: BLE001 (whatever it is, the one who asked has to hear of it)
            await talk.send(error=f"{error}" or type(error).__name__)

    def _machine(self, name: str) -> Machine:
        if name not in self.machines:
            raise ValueError(f"no such machine: there are {', '.join(self.machines)}")
        return self.machines[name]

    def _line(self, name: str) -> Control:
        machine = self._machine(name)
        if machine.control is None or machine.state not in ("up", "frozen"):
            remedy = f": `lab start {name}`" if machine.state == "off" else ""
            raise RuntimeError(f"it is {machine.state}{remedy}")
        return machine.control

    async def _do_status(self, talk: Talk) -> None:
        states = [
            {"name": m.spec.name, "kind": m.kind.value, "state": m.state, "boots": m.boots,
             "addresses": {n: list(m.spec.addresses(n)) for n in m.spec.networks},
             "bmc": {"address": m.spec.bmc_address.partition("/")[0], "user": BMC_USER}}
            for m in self.machines.values()
        ]  # fmt: skip
        cut = await asyncio.to_thread(self.networks.partitions)
        await talk.send(machines=states, cut=cut, settings=self.settings)

    async def _do_boot(self, talk: Talk) -> None:
        """Start all that is off; tell of each machine as it comes up, then of what went wrong."""

        async def one(machine: Machine) -> None:
            begun = time.monotonic()
            await machine.start()
            await talk.send(up=machine.spec.name, seconds=round(time.monotonic() - begun, 2))

        waiting = [m for m in self.machines.values() if m.state in ("off", "booting")]
        results = await asyncio.gather(*(one(m) for m in waiting), return_exceptions=True)
        failed = [
            f"{machine.spec.name}: {error or type(error).__name__}"
            for machine, error in zip(waiting, results, strict=True)
            if error is not None
        ]
        if failed:
            raise RuntimeError("; ".join(failed))
        # All that may be saved is saved while nothing else runs: one after the other, for memory's sake.
        for machine in waiting:
            await talk.send(saving=machine.spec.name)
            await machine.save()

    async def _do_start(self, talk: Talk, machine: str) -> None:
        begun = time.monotonic()
        await self._machine(machine).start()
        await talk.send(seconds=round(time.monotonic() - begun, 2))

    async def _do_crash(self, talk: Talk, machine: str) -> None:  # noqa: ARG002 (handlers are called alike)
        await asyncio.to_thread(self._machine(machine).crash)

    async def _do_panic(self, talk: Talk, machine: str) -> None:  # noqa: ARG002 (handlers are called alike)
        self._line(machine)
        await self._machine(machine).panic()

    async def _do_freeze(self, talk: Talk, machine: str) -> None:  # noqa: ARG002 (handlers are called alike)
        self._machine(machine).freeze(True)

    async def _do_thaw(self, talk: Talk, machine: str) -> None:  # noqa: ARG002 (handlers are called alike)
        self._machine(machine).freeze(False)

    async def _do_cut(self, talk: Talk, network: str, machines: list[str]) -> None:  # noqa: ARG002 (called alike)
        await asyncio.to_thread(self.networks.cut, network, machines)

    async def _do_heal(self, talk: Talk) -> None:  # noqa: ARG002 (handlers are called alike)
        await asyncio.to_thread(self.networks.heal)

    async def _do_exec(
        self, talk: Talk, machine: str, argv: list[str], timeout: float | None, stdin: bool = False
    ) -> None:
        control = self._line(machine)

        async def run() -> None:
            given = talk.given() if stdin else None
            async with contextlib.aclosing(control.run(argv, timeout, given)) as messages:
                async for message in messages:
                    message.pop("id")
                    await talk.send(**message)

        running, gone = asyncio.create_task(run()), asyncio.create_task(talk.gone.wait())
        try:
            late = None if timeout is None else timeout + GRACE
            await asyncio.wait((running, gone), timeout=late, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not talk.gone.is_set():
                raise RuntimeError(f"it does not answer, {GRACE:g} s after the command's time-out")
        finally:
            # Whoever asked is gone, or the lab ends: so does the command.
            gone.cancel()
            running.cancel()
            await asyncio.wait((running,))
        if not running.cancelled():
            running.result()

    async def _do_put(self, talk: Talk, machine: str, path: str, data: str, mode: int) -> None:  # noqa: ARG002
        self._line(machine)
        await self._machine(machine).put(path, base64.b64decode(data), mode)

    async def _do_keep(self, talk: Talk) -> None:  # noqa: ARG002 (handlers are called alike)
        """Outlive the owner."""
        if self.owner is not None:
            asyncio.get_running_loop().remove_reader(self.owner)
            os.close(self.owner)
            self.owner = None

    async def _do_down(self, talk: Talk) -> None:
        """End. What the machines hold in memory is written first, where they do so at once."""

        async def sync(control: Control) -> None:
            async for _ in control.run(["sync"], SYNC_SECONDS, None):
                pass

        lines = [m.control for m in self.machines.values() if m.control is not None and m.state == "up"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SYNC_SECONDS):
                await asyncio.gather(*(sync(line) for line in lines), return_exceptions=True)
        await talk.send(ending=True)
        self.ending.set()


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def prepare_mounts(folder: Path, runtime: Path | None) -> None:
    """In the mount namespace of its own: what user-mode Linux sees once it is in its tree."""
    if runtime is None:
        return
    _mount("--bind", str(runtime), str(runtime))
    _mount("--rbind", "/dev", str(runtime / "dev"))
    _mount("-t", "proc", "proc", str(runtime / "proc"))
    # The guests' memory is a file here; it is executed from.
    _mount("-t", "tmpfs", "-o", "exec,size=90%", "tmpfs", str(runtime / "tmp"))
    _mount("--bind", str(folder), str(runtime / "lab"))
    _mount("--bind", "-o", "ro", str(CACHE), str(runtime / "cache"))


async def _serve(folder: Path, settings: dict[str, Any], owner: int | None, ready: int) -> None:
    await Supervisor(folder, settings, owner).serve(ready)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--owner-fd", type=int)
    parser.add_argument("--ready-fd", type=int, required=True)
    options = parser.parse_args()
    # They came through unshare(1) and must not go on to the machines.
    for inherited in (options.owner_fd, options.ready_fd):
        if inherited is not None:
            os.set_inheritable(inherited, False)
    lock = (options.folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    settings = json.loads((options.folder / "settings.json").read_text())
    prepare_mounts(options.folder, Path(settings["runtime"]) if settings["runtime"] else None)
    asyncio.run(_serve(options.folder, settings, options.owner_fd, options.ready_fd))
    return 0


if __name__ == "__main__":
    sys.exit(main())
