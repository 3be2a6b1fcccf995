"""The process that is a lab: first of its PID namespace, so that all machines, taps and bridges end with it.

Started by :mod:`lab.api` through unshare(1). Serves JSON, one request a connection, on a Unix socket in the lab's folder.
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
from pathlib import Path
from typing import Any

from lab.control import LineLost
from lab.images import CACHE, Image
from lab.layout import Kind, machines
from lab.machines import Machine, Place
from lab.network import Networks

LIMIT = 256 << 20
"""Largest request, in bytes: files are sent whole."""


class Supervisor:
    """All machines of one lab."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        specs = machines(settings["nodes"])
        self.folder = folder
        self.networks = Networks(specs)
        self.machines: dict[str, Machine] = {}
        self.ending = asyncio.Event()
        runtime = settings["runtime"]
        for spec in specs:
            image = Image(Path(settings["images"][spec.image]))
            place = Place(folder / spec.name, image, Path(runtime) if runtime else None, specs)
            self.machines[spec.name] = Machine(spec, Kind(settings["kinds"][spec.image]), place)

    async def serve(self) -> None:
        """Answer until told to end."""
        await asyncio.to_thread(self.networks.create)
        path = self.folder / "lab.sock"
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._connection, str(path), limit=LIMIT)
        path.chmod(0o600)
        async with server:
            await self.ending.wait()
        for machine in self.machines.values():
            machine.crash()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(**message: Any) -> None:
            writer.write(json.dumps(message).encode() + b"\n")

        try:
            request = json.loads(await reader.readline())
            handler = getattr(self, f"_do_{request.pop('op')}")
            await handler(send, **request)
            send(done=True)
        except LineLost:
            send(error="the machine went away")
        except Exception as error:  # noqa: BLE001 (whatever it is, the one who asked has to hear of it)
            send(error=f"{error}" or type(error).__name__)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.close()

    def _machine(self, name: str) -> Machine:
        if name not in self.machines:
            raise ValueError(f"no machine {name!r}: there are {', '.join(self.machines)}")
        return self.machines[name]

    async def _do_status(self, send: Any) -> None:
        states = [
            {"name": m.spec.name, "kind": m.kind.value, "state": m.state, "boots": m.boots,
             "addresses": {n: list(m.spec.addresses(n)) for n in m.spec.networks}}
            for m in self.machines.values()
        ]  # fmt: skip
        send(machines=states, cut=await asyncio.to_thread(self.networks.partitions))

    async def _do_start(self, send: Any, machine: str) -> None:
        begun = time.monotonic()
        chosen = self._machine(machine)
        await chosen.start()
        send(seconds=round(time.monotonic() - begun, 2))

    async def _do_snapshot(self, send: Any, machine: str) -> None:
        await self._machine(machine).save_snapshot()

    async def _do_crash(self, send: Any, machine: str) -> None:
        await asyncio.to_thread(self._machine(machine).crash)

    async def _do_freeze(self, send: Any, machine: str) -> None:
        self._machine(machine).freeze(True)

    async def _do_thaw(self, send: Any, machine: str) -> None:
        self._machine(machine).freeze(False)

    async def _do_cut(self, send: Any, network: str, machines: list[str]) -> None:
        await asyncio.to_thread(self.networks.cut, network, machines)

    async def _do_heal(self, send: Any) -> None:
        await asyncio.to_thread(self.networks.heal)

    async def _do_exec(
        self, send: Any, machine: str, argv: list[str], timeout: float | None, stdin: str | None = None
    ) -> None:
        control = self._machine(machine).control
        if control is None or self._machine(machine).state not in ("up", "frozen"):
            raise RuntimeError(f"{machine} is {self._machine(machine).state}")
        async for message in control.request("exec", argv=argv, timeout=timeout, stdin=stdin):
            message.pop("id")
            send(**message)

    async def _do_put(self, send: Any, machine: str, path: str, data: str, mode: int) -> None:
        control = self._machine(machine).control
        if control is None:
            raise RuntimeError(f"{machine} is off")
        await control.put(path, base64.b64decode(data), mode)

    async def _do_down(self, send: Any) -> None:
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


async def _main(folder: Path, owner_fd: int | None) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    supervisor = Supervisor(folder, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.ending.set)
    if owner_fd is not None:
        # The owner holds the other end of this pipe for as long as it lives, whatever ends it.
        loop.add_reader(owner_fd, supervisor.ending.set)
    await supervisor.serve()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--owner-fd", type=int)
    options = parser.parse_args()
    lock = (options.folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    settings = json.loads((options.folder / "settings.json").read_text())
    prepare_mounts(options.folder, Path(settings["runtime"]) if settings["runtime"] else None)
    asyncio.run(_main(options.folder, options.owner_fd))
    return 0


if __name__ == "__main__":
    sys.exit(main())
