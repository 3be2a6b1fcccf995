"""Pacemaker through its own tools."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hactl.errors import Failed, Unknown
from hactl.pacemaker import read
from hactl.pacemaker.difference import edit
from hactl.pacemaker.protocol import Change, State
from hactl.runner import CommandTimeout, Completed, Runner

_DISCONNECTED = 102
"""Exit status of Pacemaker's tools when its daemons do not run here (CRM_EX_DISCONNECT)."""
_NO_SUCH = 105
"""What is asked for is not there (CRM_EX_NOSUCH)."""
_CHANGED = 1
"""crm_diff(8): the two differ."""
TOLD = Path("/run/hactl/ocf")
"""Where ``ocf/hactl/resource`` remembers the promotion scores that it has told."""
_FENCING = 120
"""Seconds that a node's fencing may take, all attempts together."""


class Tools:
    """Keeps :class:`hactl.pacemaker.protocol.Pacemaker`. ``timeout``: seconds after which a tool is killed.
    ``environment``: variables for the tools; with ``CIB_file`` they work on that file instead of a cluster.
    ``told``: where the resource agent of this node remembers the scores that it has told.
    """

    def __init__(
        self,
        runner: Runner,
        timeout: float = 30.0,
        environment: Mapping[str, str] | None = None,
        told: Path = TOLD,
    ) -> None:
        self._told = told
        self._runner = runner
        self._timeout = timeout
        self._prefix = ["env", *(f"{k}={v}" for k, v in environment.items())] if environment else []

    async def state(self) -> State:
        return read.read(await self._output("crm_mon", *read.ARGUMENTS))

    async def configuration(self) -> str:
        return await self._output("cibadmin", "--query", "--scope=configuration")

    async def commit(self, change: Change) -> None:
        """A copy of the CIB is changed, checked as a whole, and the difference sent as one patch.

        Not ``crm configure`` and ``crm cib commit``: the one does not remove what still runs, and removes
        other people's constraints with it; the other writes the whole configuration over what somebody, a
        node that goes to standby say, has changed since the copy was taken.
        """
        before = await self._output("cibadmin", "--query")
        after = edit(before, change)
        with tempfile.TemporaryDirectory(prefix="hactl-cib-") as folder:
            # For root alone: there may be other people's secrets in it.
            old, new = _files(Path(folder), before, after)
            await self._verify(old, new)
            # Without the version of the copy: the status of resources counts it up all the time, and what is
            # changed is addressed by id, which fails as a whole if it is not there any more.
            argv = ("crm_diff", f"--original={old}", f"--new={new}", "--no-version")
            done = await self._run(*argv, okay=(0, _CHANGED))
        if done.status == _CHANGED:
            await self._run("cibadmin", "--patch", "--xml-pipe", stdin=done.stdout)

    async def _verify(self, old: Path, new: Path) -> None:
        checked = await self._run("crm_verify", "--verbose", f"--xml-file={new}", okay=None)
        if _valid(checked):
            return
        # What was wrong before, and is somebody else's, must not hold up what is hactl's.
        if not _valid(await self._run("crm_verify", f"--xml-file={old}", okay=None)):
            return
        raise Failed(
            "pacemaker-refused",
            f"Pacemaker would not accept its new configuration: {_said(checked)}",
            "compare with: crm configure show; nothing was changed",
        )

    async def refresh(self, clones: Sequence[str]) -> None:
        for clone in clones:
            await self._run("crm_resource", "--refresh", f"--resource={clone}")
        if clones:
            rest = f"--timeout={self._timeout:g}s"
            await self._run("crm_resource", "--wait", rest, timeout=self._timeout + 10)

    async def move(self, clone: str, node: str) -> None:
        await self._run("crm_resource", f"--resource={clone}", "--move", f"--node={node}", "--promoted")

    async def clear(self, clone: str) -> None:
        # crm_resource --clear takes the operator's bans of that resource away as well.
        gone = f'<rsc_location id="cli-prefer-{clone}"/>'
        await self._run(
            "cibadmin", "--delete", "--scope=constraints", f"--xml-text={gone}", okay=(0, _NO_SUCH)
        )

    async def score(self, primitive: str, node: str, score: int) -> None:
        _forget(self._told, primitive)
        name, lifetime = f"--name=master-{primitive}", "--lifetime=reboot"
        await self._run("crm_attribute", f"--node={node}", name, lifetime, f"--update={score}")

    async def fence(self, node: str) -> None:
        await self._run("stonith_admin", f"--reboot={node}", f"--timeout={_FENCING}", timeout=_FENCING + 10)

    async def _output(self, *argv: str) -> str:
        return (await self._run(*argv)).stdout

    async def _run(
        self,
        *argv: str,
        okay: tuple[int, ...] | None = (0,),
        stdin: str | None = None,
        timeout: float | None = None,
    ) -> Completed:
        """Run a tool; ``okay``: its good exit statuses, None for any."""
        try:
            done = await self._runner.run(
                [*self._prefix, *argv], timeout=timeout or self._timeout, check=False, stdin=stdin
            )
        except FileNotFoundError:
            raise Failed(
                "program-missing", f"there is no program {argv[0]}", "install pacemaker-cli-utils"
            ) from None
        except CommandTimeout as error:
            raise Unknown(
                "pacemaker-timeout", str(error), "it is looked at again; see crm_mon --one-shot"
            ) from None
        if done.status == _DISCONNECTED:
            raise Failed(
                "pacemaker-down",
                "Pacemaker does not run on this node",
                "see: systemctl status pacemaker corosync; start it",
            )
        if okay is not None and done.status not in okay:
            raise Failed(
                "pacemaker-failed",
                f"{argv[0]} ended with status {done.status}: {_said(done)}",
                "see crm_mon --one-shot and journalctl --unit=pacemaker",
            )
        return done


def _forget(told: Path, primitive: str) -> None:
    """Have the next monitor tell the score whatever it is: it may be the one that it told last, too."""
    for memory in told.glob(f"score-{primitive}*"):
        # Of this resource, and not of one whose name begins like its name.
        if memory.name.partition(":")[0] == f"score-{primitive}":
            memory.unlink(missing_ok=True)


def _files(folder: Path, before: str, after: str) -> tuple[Path, Path]:
    old, new = folder / "before.xml", folder / "after.xml"
    old.write_text(before)
    new.write_text(after)
    return old, new


def _valid(checked: Completed) -> bool:
    # Warnings have the exit status of errors (a deprecated option, say).
    return checked.status == 0 or "Warnings found" in checked.stderr + checked.stdout


def _said(done: Completed) -> str:
    return " ".join((done.stderr.strip() or done.stdout.strip()).split())
