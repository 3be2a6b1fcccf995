"""The lab's BMCs without ipmi_sim: what it runs for a question of power, and a machine that is only a
switch."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lab.bmc import PROGRAM, Bmc, configuration
from lab.layout import machines

(N1,) = machines(1, client=False)


class Switch:
    """A machine as far as its power goes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.powered = False
        self.starts = True
        self.hangs = False

    def crash(self) -> None:
        if self.hangs:
            raise OSError("does not let go")
        self.log.append("off")
        self.powered = False

    async def start(self) -> None:
        if not self.starts:
            raise RuntimeError("no image")
        self.log.append("on")
        self.powered = True


@asynccontextmanager
async def answering(folder: Path, machine: Switch) -> AsyncIterator[Bmc]:
    bmc = Bmc(N1, folder, machine)
    bmc.listen()
    try:
        yield bmc
    finally:
        bmc.close()


async def asked(bmc: Bmc, words: str) -> tuple[int, str]:
    """Exit status and output of the program, run as ipmi_sim runs it: a line for the shell."""
    process = await asyncio.create_subprocess_shell(
        f"sh {shlex.quote(str(PROGRAM))} {words}",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, cwd=bmc.folder,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_power_is_switched_and_told(tmp_path: Path) -> None:
    machine = Switch()
    async with answering(tmp_path, machine) as bmc:
        assert await asked(bmc, "get power") == (0, "power:0\n")
        assert await asked(bmc, 'set power "1"') == (0, "")
        assert await asked(bmc, "get power") == (0, "power:1\n")
        assert await asked(bmc, 'set power "1"') == (0, "")
        assert await asked(bmc, 'set reset "1"') == (0, "")
        assert await asked(bmc, 'set power "0"') == (0, "")
        assert await asked(bmc, "get power") == (0, "power:0\n")
        assert await asked(bmc, 'set reset "1"') == (0, "")  # it has no effect on what is off
    assert machine.log == ["on", "off", "on", "off"]


async def test_an_off_that_failed_is_not_confirmed(tmp_path: Path) -> None:
    machine = Switch()
    machine.powered = machine.hangs = True
    async with answering(tmp_path, machine) as bmc:
        assert await asked(bmc, 'set power "0"') == (1, "does not let go\n")
        assert await asked(bmc, "get power") == (0, "power:1\n")


@pytest.mark.parametrize("words", ["get boot", 'set shutdown "1"', 'set power "2"', ""])
async def test_what_it_cannot_do_fails(tmp_path: Path, words: str) -> None:
    machine = Switch()
    async with answering(tmp_path, machine) as bmc:
        status, said = await asked(bmc, words)
    assert status == 1
    assert said == f"not known here: {words.replace(chr(34), '')}".rstrip() + "\n"
    assert machine.log == []


async def test_the_answer_for_a_program_that_was_killed_is_nobody_elses(tmp_path: Path) -> None:
    machine = Switch()
    machine.powered = True
    async with answering(tmp_path, machine) as bmc:
        with (bmc.folder / "requests").open("r+b", buffering=0) as requests:
            requests.write(b"1 get power\n")  # nobody reads what comes for it
        assert await asked(bmc, 'set power "0"') == (0, "")
        assert await asked(bmc, "get power") == (0, "power:0\n")


async def test_a_machine_that_does_not_start_is_told_of_and_stays_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Switch()
    machine.starts = False
    async with answering(tmp_path, machine) as bmc:
        assert await asked(bmc, 'set power "1"') == (0, "")
        assert await asked(bmc, "get power") == (0, "power:0\n")
    assert capsys.readouterr().err == "n1, switched on by its BMC: no image\n"


async def test_the_password_is_made_once_and_only_root_can_read_it(tmp_path: Path) -> None:
    async with answering(tmp_path, Switch()) as bmc:
        password = bmc.password_file.read_text()
        assert bmc.password_file.stat().st_mode & 0o777 == 0o600
        assert bmc.folder.stat().st_mode & 0o777 == 0o700
    async with answering(tmp_path, Switch()) as bmc:
        assert bmc.password_file.read_text() == password
    assert len(password.strip()) == 16
    assert f'"{password.strip()}" admin' in configuration(N1, password.strip())
    async with answering(tmp_path / "other", Switch()) as bmc:
        assert bmc.password_file.read_text() != password
