"""``hactl cluster recover`` as it is typed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from hactl.cli.main import app
from hactl.cli.reporting import Mode
from hactl.cluster import unfinished
from tests.unit.cluster_world import Node, World
from tests.unit.test_cluster_recover import lose, remember
from tests.unit.test_cluster_recover_refused import pair, with_resource
from tests.unit.test_cluster_resume import worlds
from tests.unit.test_cluster_story import edit, found, state

__all__ = ["worlds"]


async def typed(node: Node, monkeypatch: pytest.MonkeyPatch, *words: str, answer: str | None = None) -> Any:
    """``hactl cluster recover`` as it is typed on a node; ``answer``: of somebody at a terminal."""
    monkeypatch.setattr("hactl.cluster.kit.real", lambda: node.kit)
    command = ["cluster", "recover", *words]
    mode = Mode(terminal=answer is not None)
    return await asyncio.to_thread(CliRunner().invoke, app, command, obj=mode, input=answer)


@pytest.mark.parametrize("words", [[], ["--lost", "n2", "--rejoin", "n2"]])
async def test_a_command_line_that_is_wrong(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    assert (await typed(worlds().node("n1"), monkeypatch, *words)).exit_code == 2


async def test_it_is_asked_for_a_sentence(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    n1, n2 = await pair(worlds())
    await lose(n1, n2)
    done = await typed(n1, monkeypatch, "--lost", "n2")
    assert done.exit_code == 3
    assert "--yes-recover lab" in done.stderr
    done = await typed(n1, monkeypatch, "--lost", "n2", "--yes-recover", "other")
    assert "confirmation-wrong" in done.stderr
    done = await typed(n1, monkeypatch, "--lost", "n2", answer="n2\n")
    assert "confirmation-wrong" in done.stderr
    assert unfinished.load(n1.kit.layout) is None
    done = await typed(n1, monkeypatch, "--lost", "n2", answer="n2 off for good\n")
    assert done.exit_code == 0, done.output
    assert "this node as its only member" in done.stdout
    assert "etcd.before-recovery-1" in done.stdout


async def test_what_came_of_it_as_json(worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = worlds()
    n1, n2, n3 = await found(world, "n2", "n3")
    await edit(n1, with_resource)
    await remember(n1)
    await lose(n1, n2, n3)
    words = ["--lost", "n2", "--rejoin", "n3", "--yes-recover", "lab", "--json"]
    done = await typed(n1, monkeypatch, *words)
    assert json.loads(done.stdout) == {
        "schema": 1,
        "cluster": "lab",
        "lost": ["n2"],
        "rejoin": ["n3"],
        "resources": ["r0"],
        "stay": [],
        "behind": 0,
        "aside": str(n1.kit.layout.etcd_data.with_name("etcd.before-recovery-1")),
    }
    assert [n.name for n in (await state(n1)).cluster.nodes] == ["n1", "n3"]
