"""The one way hactl starts other programs: argument list, scrubbed environment, closed stdin, a time-out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
    # systemctl enable would also tell update-rc.d of an init script that lies beside a unit, for seconds.
    "SYSTEMCTL_SKIP_SYSV": "1",
}
"""What every program started by hactl sees of the environment."""


@dataclass(frozen=True)
class Completed:
    """A program that ended: its arguments, exit status and output."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


class CommandFailed(Exception):
    """A program ended with a status other than zero."""

    def __init__(self, completed: Completed) -> None:
        self.completed = completed
        text = completed.stderr.strip() or completed.stdout.strip()
        super().__init__(f"{shlex.join(completed.argv)}: exit status {completed.status}: {text}")


class CommandTimeout(Exception):
    """A program did not end in time and was killed; what it did is unknown."""

    def __init__(self, argv: tuple[str, ...], seconds: float) -> None:
        self.argv = argv
        super().__init__(f"{shlex.join(argv)}: no end after {seconds:g} s")


class Runner(Protocol):
    """Starts programs. The real one is :class:`SubprocessRunner`."""

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        """Run ``argv`` to its end.

        Raises :class:`CommandFailed` on a status other than 0 if ``check``, :class:`CommandTimeout` after
        ``timeout`` seconds (the program and its children are killed first).
        """
        ...


class SubprocessRunner:
    """Starts real programs."""

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout):
                out, err = await process.communicate(None if stdin is None else stdin.encode())
        except TimeoutError:
            raise CommandTimeout(tuple(argv), timeout) from None
        finally:
            if process.returncode is None:
                # The group, not the process: drbdadm leaves drbdsetup behind otherwise. Not awaited for ever,
                # since a program in uninterruptible sleep does not end even by SIGKILL.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await process.wait()
        completed = Completed(
            tuple(argv), process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")
        )
        if check and completed.status != 0:
            raise CommandFailed(completed)
        return completed
