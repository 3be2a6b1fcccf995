"""QEMU, with KVM or emulating: machines of either start from a snapshot of one that has booted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from lab.control import VIRTIO_WINDOW, Control
from lab.images import CACHE
from lab.layout import Kind
from lab.machines import Machine
from lab.scratch import scratch

WARM_UP = {
    "client": "modprobe -a iscsi_tcp dm_multipath scsi_dh_alua sd_mod sg dm_queue_length dm_service_time"
    " dm_round_robin; fio --version; iscsiadm --version; multipath -h; sg_persist -V; iscsi-test-cu --list;"
    " dmsetup ls; true",
    "node": "cat $(command -v drbdadm drbdmeta drbdsetup dmsetup etcd) > /dev/null; crm --version;"
    " pacemakerd --features; corosync -v;"
    " /opt/hactl/venv/bin/python -c 'import aiohttp, pydantic, rich, structlog, tenacity, typer, yaml';"
    " find /usr/lib/modules -name 'drbd.ko*' -o -path '*/target/*' -name '*.ko*' | xargs cat > /dev/null;"
    " true",
}
"""Run in a machine before it is snapshot, so that programs are in its page cache. It leaves a node's kernel
as it is: which modules are loaded is for the tests to see."""


@cache
def _version() -> str:
    return subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, check=True
    ).stdout.decode()


class Qemu(Machine):
    """A machine in QEMU. The root disk is a qcow2 overlay over the image."""

    window = VIRTIO_WINDOW
    restored = False
    """Whether the machine that runs came out of a snapshot."""
    pristine = False
    """Whether it began with empty disks."""

    @property
    def _overlay(self) -> Path:
        return self.place.folder / "root.qcow2"

    @property
    def _qmp(self) -> Path:
        return self.place.folder / "qmp.sock"

    @property
    def _snapshot(self) -> Path:
        """Where its snapshot is or will be. The name stands for everything that it depends on."""
        parts = [_version(), self._hardware(), self.place.image.identity, WARM_UP[self.spec.image]]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return CACHE / f"snapshot-{self.spec.name}-{digest}"

    async def prepare(self) -> None:
        self.pristine = not self._overlay.exists() and not self.data.exists()
        self.restored = self.pristine and self._snapshot.exists()
        self._qmp.unlink(missing_ok=True)
        if self.restored:
            os.utime(self._snapshot)  # it is in use: see KEEP_DAYS in lab/images.py
        await asyncio.to_thread(self._make_overlay)

    def _make_overlay(self) -> None:
        if self._overlay.exists():
            return
        # Under another name first: half an overlay would be taken for a whole one next time.
        made = self._overlay.with_suffix(".new")
        if self.restored:
            shutil.copy(self._snapshot / "root.qcow2", made)
        else:
            command = [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                str(self.place.image.root),
                "-F",
                "raw",
            ]
            subprocess.run([*command, str(made)], check=True)
        made.rename(self._overlay)

    def _hardware(self) -> list[str]:
        """What makes up the machine; a snapshot is good for exactly this."""
        accelerator = ["-accel", "kvm", "-cpu", "host"]
        if self.kind is Kind.TCG:
            accelerator = ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"]
        argv = [*accelerator, "-smp", "1", "-m", str(self.spec.memory), "-nodefaults", "-no-user-config",
                "-no-reboot", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]  # fmt: skip
        for index, network in enumerate(self.spec.networks):
            argv += ["-netdev", f"tap,id=n{index},ifname={self.spec.tap(network)},script=no,downscript=no",
                     "-device", f"virtio-net-pci,romfile=,netdev=n{index},mac={self.spec.mac(network)}",
                     ]  # fmt: skip
        words = self.spec.command_line(self.place.everyone)
        fixed = (
            "root=/dev/vda rw console=ttyS0 quiet loglevel=1 net.ifnames=0 mitigations=off nokaslr audit=0"
            " random.trust_cpu=on systemd.show_status=0"
        )
        if self.spec.image != "client":
            # Under emulation a line on the serial console costs 50 ms of the only CPU: too much for a client
            # whose pauses are measured.
            fixed += " systemd.journald.forward_to_console=1"
        return [*argv, "-append", f"{fixed} {words}"]

    def command(self, line: int) -> list[str]:
        argv = [
            "qemu-system-x86_64", *self._hardware(),
            "-kernel", str(self.place.image.kernel), "-initrd", str(self.place.image.initrd),
            "-drive", f"file={self._overlay},if=virtio,cache=unsafe",
            "-display", "none",
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-chardev", f"socket,id=control,fd={line}",
            "-device", "virtserialport,chardev=control,name=lab.control",
            "-qmp", f"unix:{self._qmp},server=on,wait=off",
        ]  # fmt: skip
        if self.spec.data_size:
            argv += ["-drive", f"file={self.data},if=virtio,format=raw,cache=unsafe"]
        if self.restored:
            argv += ["-incoming", f"exec:cat {shlex.quote(str(self._snapshot / 'memory'))}"]
        return argv

    async def settle(self, control: Control) -> None:
        if self.restored:
            # It was stopped when it was saved, and is again once it has been read.
            await self._while("query-status", ("inmigrate",))
            await self._command("cont")
            await control.call("hello")  # it said "ready" long ago, in another life
            control.ready.set()
        else:
            await control.ready.wait()
        await control.set_clock()

    async def save(self) -> None:
        snapshot = self._snapshot
        if snapshot.exists() or not self.pristine or self.boots != 1 or self.control is None:
            return
        warm_up = f"systemctl is-system-running --wait; {WARM_UP[self.spec.image]}"
        async for _ in self.control.run(["sh", "-c", warm_up], 300, None):
            pass
        with scratch(CACHE) as folder:
            made = folder / "snapshot"
            made.mkdir()
            await self._command("stop")
            try:
                await self._command("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
                await self._command("migrate", uri=f"exec:cat > {shlex.quote(str(made / 'memory'))}")
                async with asyncio.timeout(120):
                    while (status := (await self._command("query-migrate")).get("status")) != "completed":
                        if status == "failed":
                            raise RuntimeError("QEMU could not save its state: is the cache's disk full?")
                        await asyncio.sleep(
                            0.05
                        )  # QEMU tells of it by an event only where migration events are on
                await asyncio.to_thread(shutil.copy, self._overlay, made / "root.qcow2")
            finally:
                await self._command("cont")
            try:
                made.rename(snapshot)
            except OSError:
                if not snapshot.exists():  # else another lab was faster
                    raise

    async def _while(self, query: str, states: tuple[str | None, ...]) -> str | None:
        """Ask QEMU until the status is none of those; gives the status."""
        while True:
            # Between its bind(2) and its listen(2) the socket is there and refuses.
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                status: str | None = (await self._command(query)).get("status")
                if status not in states:
                    return status
            await asyncio.sleep(0.02)  # its events go only to those who were there before

    async def _command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """One command of the QEMU machine protocol."""
        reader, writer = await asyncio.open_unix_connection(str(self._qmp))
        try:
            await reader.readline()
            answer: dict[str, Any] = {}
            given: dict[str, Any]
            for execute, given in (("qmp_capabilities", {}), (name, arguments)):
                writer.write(json.dumps({"execute": execute, "arguments": given}).encode() + b"\n")
                while "return" not in (answer := json.loads(await reader.readline())):
                    if "error" in answer:
                        raise RuntimeError(f"QEMU: {name}: {answer['error'].get('desc')}")
            result = answer["return"]
            return result if isinstance(result, dict) else {}
        finally:
            writer.close()
