"""Running the programs that make storage, with their outcomes as hactl's errors."""

from __future__ import annotations

from collections.abc import Sequence

from hactl.errors import Failed, Unknown
from hactl.runner import CommandTimeout, Completed, Runner


class Commands:
    """``timeout``: seconds after which a program is killed, and what it did is unknown."""

    def __init__(self, runner: Runner, timeout: float = 120.0) -> None:
        self._runner = runner
        self._timeout = timeout

    async def run(self, argv: Sequence[str]) -> Completed:
        """Run a program to its end, whatever its status. :class:`hactl.errors.Failed` ``program-missing``,
        :class:`hactl.errors.Unknown` ``backing-timeout``."""
        try:
            return await self._runner.run(argv, timeout=self._timeout, check=False)
        except FileNotFoundError:
            raise Failed("program-missing", f"there is no program {argv[0]}", f"install {argv[0]}") from None
        except CommandTimeout as error:
            raise Unknown("backing-timeout", str(error), "it is looked at again; see dmesg") from None

    async def read(self, argv: Sequence[str]) -> str:
        """Output of a program that changes nothing; ``backing-failed`` if it ends with a status other than
        0."""
        done = await self.run(argv)
        if done.status:
            text = " ".join((done.stderr.strip() or done.stdout.strip()).split())
            raise Failed(
                "backing-failed", f"{argv[0]} ended with status {done.status}: {text}", "try it by hand"
            )
        return done.stdout
