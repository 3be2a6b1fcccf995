"""Manual pages and completion are made from the commands, and miss none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hactl.cli.exits import Exit
from hactl.cli.main import app
from hactl.cli.manual import COMPLETE
from hactl.cli.roff import EXITS, commands, escape, pages

PROGRAM: Any = typer.main.get_command(app)
PAGES = pages(PROGRAM, "1.2.3")


def test_there_is_a_page_for_every_command() -> None:
    words = {words for words, _ in commands(PROGRAM, ("hactl",))}
    assert ("hactl", "node", "pool", "add") in words
    assert set(PAGES) == {"-".join(w) + ".1" for w in words}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_has_everything(name: str) -> None:
    text = PAGES[name]
    command: Any = dict(commands(PROGRAM, ("hactl",)))[tuple(_words(name))]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            for option in parameter.opts:
                assert escape(option) in text, option
            assert parameter.help, f"{name} {parameter.name} has no help"
        else:
            assert escape(parameter.metavar) in text
            assert parameter.help, f"{name} {parameter.name} has no help"
    for below in getattr(command, "commands", {}):
        assert rf"\fB{escape(below)}\fR" in text
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"):
        assert f".SH {heading}\n" in text
    for page in re.findall(r"\\fB(hactl[a-z\\-]*)\\fR\(1\)", text):
        assert page.replace("\\-", "-") + ".1" in PAGES


def _words(page: str) -> list[str]:
    """The words of a command from its page's name, whose hyphens may also be within a word."""
    return next(list(w) for w, _ in commands(PROGRAM, ("hactl",)) if "-".join(w) + ".1" == page)


def test_exit_codes_are_those_of_the_program() -> None:
    assert [int(code) for code, _ in EXITS] == list(Exit)


def test_text_is_printed_as_it_is() -> None:
    assert escape(".x \\ 'a' -b …") == r"\&.x \e \(aqa\(aq \-b \[u2026]"


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff to ask; the other tests do without")
def test_groff_has_no_complaint() -> None:
    for name, text in PAGES.items():
        run = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert run.stderr == "", name


def test_pages_are_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["man", "--output", str(tmp_path / "man")])
    assert result.exit_code == Exit.OK
    assert {path.name for path in (tmp_path / "man").iterdir()} == set(PAGES)
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["man", "--output", str(tmp_path / "file" / "x")])
    assert result.exit_code == Exit.FAILED
    assert "file-unwritable" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = CliRunner().invoke(app, ["completion", shell])
    assert result.exit_code == Exit.OK
    assert COMPLETE in result.stdout
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True, timeout=60)


def test_completing_a_word() -> None:
    environment = os.environ | {
        COMPLETE: "complete_bash",
        "COMP_WORDS": "hactl resource add-",
        "COMP_CWORD": "2",
    }
    run = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'hactl'; from hactl.cli.main import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.stdout.split() == ["add-replica"], run.stderr
