"""An initiator that has no registration, and tries to write all the same; runs on a node of the lab.

Arguments: portal, target, initiator name, and the block of 512 bytes to write. It goes on until SIGTERM,
also over lost sessions, and then prints a line of JSON: how often it was answered with each status of SCSI.
A write that is let through is ``GOOD``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter

from hactl.errors import HactlError
from hactl.pr_sync.initiator.connect import log_in
from hactl.pr_sync.initiator.scsi import execute
from hactl.pr_sync.initiator.session import Session

ISID = "00023d0000ff"
PAUSE = 0.05
"""Seconds between two writes, and two logins: it shall not be the load."""


class Stranger:
    def __init__(self, portal: str, target: str, initiator: str, block: int) -> None:
        self._to = (portal, target, initiator)
        self._cdb = b"\x2a\x00" + block.to_bytes(4, "big") + b"\x00\x00\x01\x00"  # WRITE(10), SBC-3 5.29
        self.answers: Counter[str] = Counter()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with contextlib.suppress(HactlError):
                session = await log_in(*self._to, ISID, digests=("None",), timeout=5.0)
                try:
                    while True:
                        await self._write(session)
                        await asyncio.sleep(PAUSE)
                finally:
                    await session.close()
            await asyncio.sleep(PAUSE)

    async def _write(self, session: Session) -> None:
        result = await execute(session, self._cdb, data_out=b"stranger" * 64)
        self.answers[result.status.name] += 1


async def main() -> None:
    portal, target, initiator, block = sys.argv[1:]
    stranger = Stranger(portal, target, initiator, int(block))
    task = asyncio.create_task(stranger.run())
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print(json.dumps(stranger.answers), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
