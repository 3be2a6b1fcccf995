"""Commands without an agent, and how errors are reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hactl import __version__, multipath
from hactl.cli.check import Drbd
from hactl.cli.exits import AgentUnreachable, Exit, code_of
from hactl.cli.main import app
from hactl.cli.reporting import Mode
from hactl.errors import Failed, HactlError, Refused, Unknown
from tests.unit.test_model_load import SECRET, TEXT, WITH_SECRET


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    return path


def test_check_of_a_valid_file(spec: Path) -> None:
    result = cli("check", str(spec))
    assert (result.exit_code, result.stdout) == (Exit.OK, f"{spec}: OK: 2 nodes, 1 hosts, 1 resources\n")
    assert json.loads(cli("check", str(spec), "--json").stdout)["ok"] is True


def test_check_reports_every_finding(spec: Path) -> None:
    spec.write_text(TEXT.replace("lun: 0", "lum: 0").replace("size: 10G", "size: 10X"))
    result = cli("check", str(spec))
    assert result.exit_code == Exit.REFUSED
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{spec}:20:9: resources.r0.volumes[0].lum: this key is not known",
        "    did you mean lun?",
        f"{spec}:21:9: resources.r0.volumes[0].size: '10X' is not a size; write a whole number of bytes, "
        "or of K, M, G or T as in 10G",
        "    correct the value",
        f"hactl: spec-invalid: {spec} has 2 errors; nothing was changed",
        f"hint: correct the file and run: hactl check {spec}",
    ]
    document = json.loads(cli("check", str(spec), "--json").stdout)
    assert document["ok"] is False
    assert [(f["line"], f["code"]) for f in document["findings"]] == [(20, "unknown-key"), (21, "invalid")]


def test_check_for_an_older_drbd(spec: Path) -> None:
    addresses = "{cluster: 10.0.1.3, replication: 10.0.2.3, storage: [10.0.3.3]}"
    third = f"  - name: n3\n    id: 3\n    addresses: {addresses}\n"
    text = TEXT.replace("hosts:\n", third + "hosts:\n", 1).replace("[n1, n2]", "[n1, n2, n3]")
    spec.write_text(text + "          n3: /dev/sdb\n")
    assert cli("check", str(spec)).exit_code == Exit.OK
    assert cli("check", str(spec), "--drbd", "9").exit_code == Exit.OK
    result = cli("check", str(spec), "--drbd", Drbd.V84.value)
    assert result.exit_code == Exit.REFUSED
    assert "replicates between 2 at most" in result.stderr


def test_check_of_a_file_with_secrets(spec: Path) -> None:
    spec.write_text(WITH_SECRET)
    spec.chmod(0o644)
    for arguments in (["check", str(spec)], ["--debug", "check", str(spec)], ["check", str(spec), "--json"]):
        result = cli(*arguments)
        assert result.exit_code == Exit.REFUSED
        assert f"chmod 600 {spec}" in result.output
        assert SECRET not in result.output


def test_multipath_conf() -> None:
    assert cli("multipath-conf").stdout == multipath.render()
    longer = cli("multipath-conf", "--queue-seconds", "600", "--polling-interval", "5", "--json")
    assert json.loads(longer.stdout)["text"] == multipath.render(queue_seconds=600, polling_interval=5)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["check"],
        ["check", "a", "b"],
        ["switchover"],
        ["resource", "create", "r0"],
        ["multipath-conf", "--queue-seconds", "1"],
        ["promote", "r0", "--timeout", "0"],
        ["status", "--nonsense"],
    ],
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    result = cli(*arguments)
    assert result.exit_code == Exit.USAGE
    assert "Usage" in result.output


def test_help_names_the_exit_codes() -> None:
    text = " ".join(cli("--help").stdout.split())
    for code in Exit:
        assert f"{code.value} " in text


def test_version() -> None:
    assert cli("--version").stdout == f"hactl {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("a", "b"), 3),
        (Failed("a", "b"), 1),
        (Unknown("a", "b"), 5),
        (AgentUnreachable("a", "b"), 4),
        (HactlError("a", "b"), 1),
    ],
)
def test_exit_codes_are_stable(error: HactlError, code: int) -> None:
    assert code_of(error) == code


def test_a_traceback_only_with_debug(spec: Path) -> None:
    missing = str(spec) + ".none"
    assert "Traceback" not in cli("check", missing).output
    result = cli("--debug", "check", missing)
    assert "Traceback" in result.stderr
    assert result.exit_code == Exit.REFUSED


class Broken(Mode):
    """A mode that fails when a command touches it, as an error in hactl would."""

    def __init__(self, failure: BaseException, *, ordering: bool = False) -> None:
        super().__init__(ordering=ordering)
        self.__dict__["failure"] = failure

    def __setattr__(self, name: str, value: object) -> None:
        if "failure" in self.__dict__ and name == "json":
            raise self.__dict__["failure"]
        super().__setattr__(name, value)


@pytest.mark.parametrize(
    ("failure", "ordering", "code"),
    [
        (RuntimeError("oops"), False, Exit.FAILED),
        (RuntimeError("oops"), True, Exit.UNKNOWN),
        (KeyboardInterrupt(), False, Exit.INTERRUPTED),
        (KeyboardInterrupt(), True, Exit.UNKNOWN),
    ],
)
def test_errors_in_hactl_and_interruptions(failure: BaseException, ordering: bool, code: Exit) -> None:
    result = CliRunner().invoke(app, ["multipath-conf"], obj=Broken(failure, ordering=ordering))
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_starting_is_cheap() -> None:
    """Modules that cost much are not imported before a command needs them."""
    dear = ("pydantic", "aiohttp", "rich", "grpc", "yaml", "cryptography")
    program = f"import sys, hactl.cli.main; print([m for m in {dear} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout == "[]\n"
