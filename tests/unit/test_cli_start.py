"""What a command imports before it does anything: a storage node would wait for it every time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from hactl.cli import main
from hactl.cli.exits import Exit
from hactl.log import Log

DEAR = frozenset({"aiohttp", "asyncio", "cryptography", "grpc", "pydantic", "rich", "structlog", "yaml"})
"""What takes long to import."""
ASKS_AGENT = DEAR - {"pydantic"}
"""typer itself needs pydantic for options."""
ASKS_STORE = frozenset({"aiohttp", "cryptography", "rich", "structlog"})
PROGRAM = """
import sys
from hactl.cli.main import main
sys.argv = ["hactl", *{arguments}]
try:
    main()
except SystemExit as end:
    code = end.code
print("imported", code, *({dear} & sys.modules.keys()), *sorted(m for m in sys.modules if m[:6] == "hactl."))
"""


def imported(arguments: Sequence[str]) -> tuple[int, set[str]]:
    """Exit code of a command, run on its own, and which dear modules and modules of hactl it imported."""
    program = PROGRAM.format(arguments=list(arguments), dear=set(DEAR))
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    _, code, *names = run.stdout.splitlines()[-1].split()
    return int(code), set(names)


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_nothing_dear_for_a_word_about_the_program(word: str) -> None:
    code, names = imported([word])
    assert (code, names & DEAR) == (Exit.OK, set())


@pytest.mark.parametrize("command", [["status", "--json"], ["plan"], ["promote", "r0"], ["switchover", "r0"]])
def test_commands_that_ask_the_agent_need_its_socket_only(command: list[str], tmp_path: Path) -> None:
    code, names = imported([*command, "--socket", str(tmp_path / "none")])
    assert code == Exit.UNREACHABLE
    assert "hactl.cli.client" in names
    assert names & ASKS_AGENT == set()
    assert not [
        name for name in names if name.startswith(("hactl.agents", "hactl.store", "hactl.model.spec"))
    ]


@pytest.mark.parametrize(
    "command", [["host", "list", "--json"], ["host", "add", "h", "--initiator", "iqn.2026-11.a:h"]]
)
def test_commands_that_ask_the_store_need_nothing_of_the_agent(command: list[str], tmp_path: Path) -> None:
    place = tmp_path / "node.yaml"
    place.write_text("schema: 1\ncluster: c\nnode: n1\netcd: ['https://127.0.0.1:1']\n")
    # Far enough to be about to ask: this machine has no certificates, or nobody answers.
    code, names = imported(["--node-file", str(place), *command])
    assert code in {Exit.REFUSED, Exit.UNREACHABLE}
    assert {"grpc", "hactl.store.etcd"} <= names
    assert names & ASKS_STORE == set()
    assert not [name for name in names if name.startswith("hactl.agents")]


def commands(program: typer.Typer) -> dict[str, Any]:
    group: Any = typer.main.get_command(program)
    return dict(group.commands)


def test_the_table_of_modules_is_what_the_modules_have() -> None:
    told = [name for names in main.MODULES.values() for name in names]
    assert list(commands(main.program())) == [*told, *main.GROUPS]
    for module, names in main.MODULES.items():
        assert tuple(commands(main.program(module))) == names
    for group in main.GROUPS:
        part = commands(main.program(group))
        assert list(part) == [group]
        assert list(part[group].commands) == list(commands(main.program())[group].commands)


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["status", "--json"], "status"),
        (["--debug", "host", "list"], "host"),
        (["import", "f"], "imports"),
        (["man", "--output", "d"], None),
        (["--node-file", "host", "status"], None),
        (["--help"], None),
        (["statsu"], None),
        ([], None),
    ],
)
def test_which_module_a_command_line_needs(words: list[str], module: str | None) -> None:
    assert main.needed(words) == module


def test_a_message_is_not_mixed_with_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    Log().warning("store-member-failed", member="https://192.0.2.1:2379", reason="refused")
    out, err = capsys.readouterr()
    assert out == ""
    assert "store-member-failed" in err
    assert "member=https://192.0.2.1:2379" in err
