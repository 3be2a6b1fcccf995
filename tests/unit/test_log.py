"""Messages of parts that commands and the agent share."""

from __future__ import annotations

import json

import pytest

from hactl.cli.exits import Exit
from hactl.errors import Refused
from hactl.log import Log, muted
from hactl.store.memory import MemoryStore
from hactl.store.protocol import Snapshot
from tests.unit.cli_world import World


class Failing(MemoryStore):
    """One that says of each member why it did not answer."""

    async def read(self, prefix: str) -> Snapshot:
        Log().warning("store-member-failed", member="n1")
        raise Refused("store-unreachable", "no member of the store took it", "wait")


class FailingWorld(World):
    def store(self) -> MemoryStore:
        return MemoryStore(self.state) if not self.outputs else Failing(self.state)


@pytest.fixture
def world() -> FailingWorld:
    world = FailingWorld()
    world.ok("node", "list")
    return world


def test_an_error_as_json_is_all_that_a_command_says(world: FailingWorld) -> None:
    result = world.cli("node", "list", "--json")
    assert result.exit_code == Exit.UNREACHABLE
    assert json.loads(result.stderr)["error"]["code"] == "store-unreachable"


def test_with_debug_it_says_more(world: FailingWorld, capsys: pytest.CaptureFixture[str]) -> None:
    result = world.cli("--debug", "node", "list")
    assert "store-member-failed" in result.stderr
    assert "member=n1" in result.stderr


def test_afterwards_messages_are_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    with muted():
        Log().error("unheard")
    Log().error("heard", where="here")
    told = capsys.readouterr().err
    assert "unheard" not in told
    assert "heard" in told
