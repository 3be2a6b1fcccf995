"""A cluster in a store in memory, and the command line in front of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from hactl.cli.main import app
from hactl.cli.reporting import Mode
from hactl.model.desired import Desired
from hactl.model.load import parse
from hactl.store import desired
from hactl.store.memory import MemoryState, MemoryStore

CLUSTER = """\
name: lab
nodes:
  - name: n1
    id: 1
    addresses: {cluster: 10.0.1.1, replication: 10.0.2.1, storage: [10.0.3.1]}
    pools: [{name: fast, lvm: {vg: vg0}}]
  - name: n2
    id: 2
    addresses: {cluster: 10.0.1.2, replication: 10.0.2.2, storage: [10.0.3.2]}
    pools: [{name: fast, lvm: {vg: vg0}}]
  - name: n3
    id: 3
    addresses: {cluster: 10.0.1.3, replication: 10.0.2.3, storage: [10.0.3.3, "fd00::3"]}
"""

IQN = "iqn.1993-08.org.debian:01:c1"
SECRET = "correct-horse-9"
OTHER_SECRET = "battery-staple-7"


@dataclass
class World:
    """``cli`` runs a command; ``desired`` is what the store has then."""

    state: MemoryState = field(default_factory=MemoryState)
    socket: Path = Path("/nonexistent/agent.sock")
    outputs: list[str] = field(default_factory=list)
    cluster: str = CLUSTER

    def __post_init__(self) -> None:
        asyncio.run(desired.create(self.store(), parse(self.cluster), desired.Origin("n1")))

    def store(self) -> MemoryStore:
        return MemoryStore(self.state)

    def mode(self, terminal: bool = False) -> Mode:
        return Mode(open_store=lambda: (self.store(), "lab", "n1"), terminal=terminal)

    def cli(self, *arguments: str, terminal: bool = False, text: str | None = None) -> Result:
        environment = {"HACTL_SOCKET": str(self.socket)}
        mode = self.mode(terminal)
        result = CliRunner().invoke(app, list(arguments), obj=mode, env=environment, input=text)
        self.outputs.append(result.output)
        return result

    def json(self, *arguments: str) -> Any:
        """The document that a command prints, which has to succeed."""
        result = self.cli(*arguments, "--json")
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return json.loads(result.stdout)

    def ok(self, *arguments: str, text: str | None = None) -> str:
        """What a command prints, which has to succeed."""
        result = self.cli(*arguments, text=text)
        assert result.exit_code == 0, result.output
        return result.stdout

    def code(self, *arguments: str, terminal: bool = False, text: str | None = None) -> str:
        """The code of a command's error; the store is as it was before."""
        before = dict(self.state.items)
        result = self.cli(*arguments, "--json", terminal=terminal, text=text)
        assert result.exit_code == 3, result.output
        # Where something is typed, its echo is on standard output.
        assert terminal or result.stdout == ""
        assert self.state.items == before
        return str(json.loads(result.stderr[result.stderr.index("{") :])["error"]["code"])

    @property
    def desired(self) -> Desired:
        return asyncio.run(desired.read(self.store(), "lab"))
