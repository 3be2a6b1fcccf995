"""Processes that are machines: user-mode Linux and QEMU, started and stopped by the supervisor."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.control import Control
from lab.images import CACHE, Image
from lab.layout import Kind, MachineSpec

WARM_UP = (
    "modprobe -a iscsi_tcp dm_multipath scsi_dh_alua sd_mod sg dm_queue_length dm_service_time dm_round_robin;"
    "fio --version; iscsiadm --version; multipath -h; sg_persist -V; iscsi-test-cu --list; dmsetup ls; true"
)
"""Run in a client before it is snapshot, so that programs are in its page cache."""


NO_OFFLOAD = "for i in /sys/class/net/[ev]*; do ip link set ${i##*/} gso_max_segs 1; done"
"""User-mode Linux drops frames above the MTU, and taps pass on whole GSO packets: without this one segment in six of a
bulk transfer is lost, and each loss costs a retransmission time-out of 200 ms (measured: 0.2 instead of 9 MB/s)."""


@dataclass(frozen=True)
class Place:
    """Where a machine finds its things: its own folder, its image, the tree user-mode Linux runs in."""

    folder: Path
    image: Image
    runtime: Path | None
    everyone: tuple[MachineSpec, ...]


class Machine:
    """One machine of any kind. All its processes are one process group."""

    def __init__(self, spec: MachineSpec, kind: Kind, place: Place) -> None:
        self.spec = spec
        self.kind = kind
        self.place = place
        self.process: subprocess.Popen[bytes] | None = None
        self.control: Control | None = None
        self.frozen = False
        self.boots = 0

    @property
    def console(self) -> Path:
        return self.place.folder / "console.log"

    @property
    def data(self) -> Path:
        """The disk for replicas: a sparse raw file that outlives crashes."""
        return self.place.folder / "data.raw"

    @property
    def state(self) -> str:
        if self.process is None or self.process.poll() is not None:
            return "off"
        if self.frozen:
            return "frozen"
        return "up" if self.control is not None and self.control.ready.is_set() else "booting"

    async def start(self) -> None:
        """Power on; returns once the control line answers."""
        if self.state != "off":
            return
        await self._release()
        self.place.folder.mkdir(parents=True, exist_ok=True)
        if self.spec.data_size and not self.data.exists():
            with self.data.open("w") as file:
                file.truncate(self.spec.data_size)
        ours, theirs = socket.socketpair()
        snapshot = self._snapshot()
        restored = self.kind is not Kind.UML and not self._overlay().exists() and snapshot.exists()
        if self.kind is Kind.UML:
            argv, root = self._uml(theirs.fileno()), self.place.runtime
        else:
            self._qmp().unlink(missing_ok=True)
            await asyncio.to_thread(self._make_overlay, snapshot if restored else None)
            argv, root = self._qemu(theirs.fileno(), snapshot if restored else None), None
        with self.console.open("ab") as console:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin"), "HOME": "/tmp", "TMPDIR": "/tmp"},  # noqa: S108
                preexec_fn=None if root is None else lambda: _enter(root),
            )
        theirs.close()
        self.boots += 1
        self.control = Control(ours)
        if restored:
            await self._continue()
            await self._until_hello(self.control)
        else:
            await self._until_ready(self.control)
        if self.kind is not Kind.UML:
            await self.control.set_clock()
        await self.control.run("sh", "-c", NO_OFFLOAD)

    async def _until_ready(self, control: Control) -> None:
        waits = [asyncio.create_task(e.wait()) for e in (control.ready, control.lost)]
        try:
            async with asyncio.timeout(600):
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if not control.ready.is_set():
            raise RuntimeError(f"{self.spec.name} ended while booting; see {self.console}")

    async def _until_hello(self, control: Control) -> None:
        # A restored machine said "ready" long ago, in another life.
        async with asyncio.timeout(120):
            await control.call("hello")
        control.ready.set()

    def crash(self) -> None:
        """Power off at once."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.frozen = False

    async def _release(self) -> None:
        if self.control is not None:
            await self.control.close()
            self.control = None

    def freeze(self, frozen: bool) -> None:
        """Stop or continue every process of the machine."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{self.spec.name} is off")
        os.killpg(self.process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)
        self.frozen = frozen

    # --- user-mode Linux -------------------------------------------------------------------------------------------

    def _uml(self, line: int) -> list[str]:
        assert self.place.runtime is not None
        inside = f"/lab/{self.spec.name}"
        networks = [
            f"vec{i}:transport=tap,ifname={self.spec.tap(n)},depth=64,mac={self.spec.mac(n)}"
            for i, n in enumerate(self.spec.networks)
        ]
        fast = ["seccomp=on"] if self.place.runtime.name.startswith("runtime-sid") else []
        return [
            "/usr/bin/linux.uml", f"umid={self.spec.name}", f"mem={self.spec.memory}M", *fast,
            f"ubd0={inside}/root.cow,/cache/{self.place.image.folder.name}/root.raw", f"ubd1={inside}/data.raw",
            "root=/dev/ubda", "rw", "quiet", "net.ifnames=0", "systemd.show_status=0", *networks,
            "con=null", "con0=null,fd:1", "console=tty0", f"ssl0=fd:{line}", "TERM=dumb",
            *self.spec.command_line(self.place.everyone).split(),
        ]  # fmt: skip

    # --- QEMU ------------------------------------------------------------------------------------------------------

    def _overlay(self) -> Path:
        return self.place.folder / "root.qcow2"

    def _make_overlay(self, snapshot: Path | None) -> None:
        overlay = self._overlay()
        if overlay.exists():
            return
        if snapshot is not None:
            shutil.copy(snapshot / "root.qcow2", overlay)
            return
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self.place.image.root), "-F", "raw"]
        subprocess.run([*command, str(overlay)], check=True)

    def _hardware(self) -> list[str]:
        """What makes up the machine; a snapshot is good for exactly this."""
        accelerator = ["-accel", "kvm", "-cpu", "host"]
        if self.kind is Kind.TCG:
            accelerator = ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"]
        argv = [*accelerator, "-smp", "1", "-m", str(self.spec.memory), "-nodefaults", "-no-user-config", "-no-reboot",
                "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]  # fmt: skip
        for index, network in enumerate(self.spec.networks):
            argv += ["-netdev", f"tap,id=n{index},ifname={self.spec.tap(network)},script=no,downscript=no",
                     "-device", f"virtio-net-pci,netdev=n{index},mac={self.spec.mac(network)}"]  # fmt: skip
        words = self.spec.command_line(self.place.everyone)
        argv += ["-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off nokaslr audit=0 "
                 f"random.trust_cpu=on systemd.show_status=0 {words}"]  # fmt: skip
        return argv

    def _qemu(self, line: int, snapshot: Path | None) -> list[str]:
        argv = [
            "qemu-system-x86_64", *self._hardware(),
            "-kernel", str(self.place.image.kernel), "-initrd", str(self.place.image.initrd),
            "-drive", f"file={self._overlay()},if=virtio,cache=unsafe",
            "-display", "none", "-serial", f"file:{self.console}.serial",
            "-chardev", f"socket,id=control,fd={line}", "-device", "virtserialport,chardev=control,name=lab.control",
            "-qmp", f"unix:{self._qmp()},server=on,wait=off",
        ]  # fmt: skip
        if self.spec.data_size:
            argv += ["-drive", f"file={self.data},if=virtio,format=raw,cache=unsafe"]
        if snapshot is not None:
            argv += ["-incoming", f"exec:cat {snapshot / 'memory'}"]
        return argv

    def _qmp(self) -> Path:
        return self.place.folder / "qmp.sock"

    def _snapshot(self) -> Path:
        if self.spec.image != "client":
            return self.place.folder / "no-snapshot"
        version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True).stdout
        text = json.dumps([version.decode(), self._hardware(), self.place.image.folder.name, WARM_UP])
        return CACHE / f"snapshot-{self.spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    async def _continue(self) -> None:
        """Let a restored machine run: it was stopped when it was saved, and is again once it has been read."""
        async with asyncio.timeout(60):
            while not self._qmp().is_socket() or (await self._command("query-status"))["status"] == "inmigrate":
                await asyncio.sleep(0.02)
        await self._command("cont")

    async def save_snapshot(self) -> None:
        """Keep the freshly booted machine for the next time, if there is no such snapshot yet."""
        snapshot = self._snapshot()
        if self.kind is Kind.UML or self.spec.image != "client" or snapshot.exists() or self.boots != 1:
            return
        assert self.control is not None
        await self.control.run("sh", "-c", f"systemctl is-system-running --wait; {WARM_UP}", timeout=300)
        scratch = snapshot.with_name(f".{snapshot.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        await self._command("stop")
        await self._command("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
        await self._command("migrate", uri=f"exec:cat > {scratch / 'memory'}")
        async with asyncio.timeout(120):
            while (status := (await self._command("query-migrate")).get("status")) != "completed":
                if status == "failed":
                    raise RuntimeError("QEMU could not save its state")
                await asyncio.sleep(0.05)
        shutil.copy(self._overlay(), scratch / "root.qcow2")
        await self._command("cont")
        if not snapshot.exists():
            scratch.rename(snapshot)

    async def _command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """One command of the QEMU machine protocol."""
        reader, writer = await asyncio.open_unix_connection(str(self._qmp()))
        try:
            await reader.readline()
            for execute, given in (("qmp_capabilities", {}), (name, arguments)):
                writer.write(json.dumps({"execute": execute, "arguments": given}).encode() + b"\n")
                while "return" not in (answer := json.loads(await reader.readline())):
                    if "error" in answer:
                        raise RuntimeError(f"QEMU: {name}: {answer['error'].get('desc')}")
            result = answer["return"]
            return result if isinstance(result, dict) else {}
        finally:
            writer.close()


def _enter(root: Path) -> None:
    os.chroot(root)
    os.chdir("/")
