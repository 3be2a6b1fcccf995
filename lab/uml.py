"""User-mode Linux: a kernel that is a process, nearly as fast as the host without any help of its
processor."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lab.control import SERIAL_WINDOW
from lab.machines import Machine


class UserMode(Machine):
    """A machine in Debian's user-mode-linux, run in the tree of ``place.runtime``.

    The lab's folder is /lab there and the cache /cache: see lab/supervisor.py. The root disk is a
    copy-on-write file over the image, written by the kernel itself.
    """

    window = SERIAL_WINDOW
    panic_ends_it = True

    def root(self) -> Path | None:
        return self.place.runtime

    def missing(self) -> Path | None:
        runtime = self.place.runtime
        if runtime is not None and not (runtime / "usr/bin/linux.uml").exists():
            return runtime
        return super().missing()

    async def put(self, path: str, data: bytes, mode: int) -> None:
        assert self.control is not None
        folder = self.place.folder / "exchange"
        folder.mkdir(exist_ok=True)
        # The kernel reads it from the host: two hundred times as fast as the serial line.
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(data)
            file.flush()
            source = Path(file.name).name
            exchange = f"hostfs=/lab/{self.spec.name}/exchange"
            await self.control.call("put", path=path, mode=mode, exchange=exchange, source=source)

    def command(self, line: int) -> list[str]:
        assert self.place.runtime is not None
        inside = f"/lab/{self.spec.name}"
        # gro=1 stands for "may receive frames larger than the MTU". A neighbour's segmentation offload sends
        # them, and without it they are cut off and each costs a retransmission time-out. From the client to a
        # node, in MB/s: 0.2 without, 9 with segmentation offload switched off everywhere instead, 25 with it.
        networks = [
            f"vec{i}:transport=tap,ifname={self.spec.tap(n)},depth=64,gro=1,mac={self.spec.mac(n)}"
            for i, n in enumerate(self.spec.networks)
        ]
        fast = ["seccomp=on"] if self.place.runtime.name.startswith("runtime-sid") else []
        disks = [f"ubd0={inside}/root.cow,/cache/{self.place.image.folder.name}/root.raw"]
        if self.spec.data_size:
            disks.append(f"ubd1={inside}/data.raw")
        return [
            "/usr/bin/linux.uml", f"umid={self.spec.name}", f"mem={self.spec.memory}M", *fast, *disks,
            # A kernel that starts itself anew finds its taps busy, and would go on without a network.
            "noreboot",
            "root=/dev/ubda", "rw", "quiet", "net.ifnames=0", "systemd.show_status=0", *networks,
            "con=null", "con0=null,fd:1", "console=tty0", f"ssl0=fd:{line}", "TERM=dumb",
            "systemd.journald.forward_to_console=1", "printk.time=1",
            *self.spec.command_line(self.place.everyone).split(),
        ]  # fmt: skip
