"""A program that runs on and on, line by line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from hactl.runner import ENVIRONMENT

Lines = AsyncIterator[str]


@contextlib.asynccontextmanager
async def stream_lines(argv: Sequence[str]) -> AsyncGenerator[Lines]:
    """Start ``argv`` and give the lines it prints; the iterator ends when the program does.

    Leaving the block kills the program and its children. Its standard input is a pipe that stays open: at the
    end of its input ``drbdsetup events2`` ends, and so it also does when this process is killed.
    :class:`OSError` if it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield _decode(process.stdout)
    finally:
        # The group is killed even if its first process ended: it may have left children behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await process.wait()


async def _decode(reader: asyncio.StreamReader) -> Lines:
    async for line in reader:
        yield line.decode(errors="replace")
