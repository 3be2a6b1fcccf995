"""The commands of README.md, from installed packages to a unit in use, on a lab in exactly those words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lab import story
from lab.api import Lab

README = Path(__file__).parent.parent / "README.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^(?P<machine>[nc][0-9])# (?P<command>.+)$")
_TOKEN = re.compile(r"hactl cluster join <<< (\S+)")
_COPY = re.compile(r"scp (?P<file>\S+) (?P<to>\w+):$")


@dataclass(frozen=True)
class Step:
    """One line of the block: what is typed as root, and on which machine."""

    machine: str
    command: str


def steps(text: str | None = None) -> tuple[Step, ...]:
    """The lines that begin with a machine's prompt, of the first block that has some; a backslash at the end
    of a line goes on in the next one."""
    for block in _BLOCK.findall(README.read_text() if text is None else text):
        lines = block.replace("\\\n", "").splitlines()
        found = tuple(Step(m["machine"], m["command"].strip()) for m in map(_LINE.match, lines) if m)
        if found:
            return found
    raise ValueError("README.md has no block of commands with prompts such as n1#")


def prepare(lab: Lab) -> None:
    """What a host has before anything of hactl: its name, and the services of its distribution's packages."""
    client = lab["c1"]
    client.write("/etc/iscsi/initiatorname.iscsi", f"InitiatorName={story.INITIATOR}\n", 0o600)
    client.write("/etc/multipath.conf", "defaults {\n\tuser_friendly_names yes\n\tfind_multipaths no\n}\n")


class Typist:
    """Types the commands; the invitation that one prints goes where others say TOKEN, as if pasted."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._token = ""

    def type(self, step: Step) -> str:
        """What it prints; :class:`lab.api.CommandError` if it fails."""
        copy = _COPY.match(step.command)
        if copy:
            # The machines of the lab have no sshd: the lab carries the file.
            file = f"/root/{copy['file']}"
            self._lab[copy["to"]].write(file, self._lab[step.machine].read(file), 0o600)
            return ""
        command = f"cd /root; {step.command.replace('TOKEN', self._token)}"
        printed = self._lab[step.machine].succeed(command, timeout=600)
        given = _TOKEN.search(printed)
        if given and not self._token:
            self._token = given[1]
        return printed
