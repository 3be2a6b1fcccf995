"""etcd run once, apart from systemd, so that it makes its data those of a cluster of itself alone.

What tells it so is in no file: nothing can be left behind that would do it a second time, when there are
other members again. It ends with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from hactl.cluster.etcd_config import variables
from hactl.cluster.layout import Layout
from hactl.cluster.machine import ETCD
from hactl.errors import Failed
from hactl.runner import ENVIRONMENT

SECONDS = 30.0
"""For it to end in good order."""


class EtcdAlone:
    """A server on this node's data and settings, with ``--force-new-cluster``."""

    def __init__(self, layout: Layout, binary: Path = ETCD) -> None:
        self._layout = layout
        self._binary = binary
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and return at once; one that runs already is ended first. :class:`Failed`
        ``program-missing``."""
        await self.stop()
        settings = variables(self._layout.etcd_file.read_text(encoding="utf-8"))
        log = self._layout.recovery_log
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", str(self._binary),
                stdin=asyncio.subprocess.DEVNULL, stdout=descriptor, stderr=descriptor,
                env={**ENVIRONMENT, **settings, "ETCD_FORCE_NEW_CLUSTER": "true"},
                start_new_session=True, umask=0o077,
            )  # fmt: skip
        except FileNotFoundError:
            raise Failed("program-missing", "setpriv is not installed", "install util-linux") from None
        finally:
            os.close(descriptor)

    async def stop(self) -> None:
        """End it, with everything written; none there is no error."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
