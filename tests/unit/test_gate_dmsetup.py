"""Reading dmsetup's output, and what hactl takes a table for."""

from __future__ import annotations

import pytest

from hactl.errors import Failed, Refused
from hactl.target.dmsetup import Device, SysBlock, Target, is_error, linear_device, parse
from hactl.target.gate_plan import mode
from hactl.target.gates import Mode

TABLES = """\
vg-root: 0 4096 linear 8:1 0
vg-root: 4096 4096 linear 8:2 2048
hactl.r0.0: 0 2048 error\x20
hactl.r0.0.hold:\x20
"""
INFO = """\
vg-root|LVM-abc|254|0|L--w|1
hactl.r0.0|HACTL-gate-hactl.r0.0|254|2|LIsw|3
hactl.r0.0.hold|HACTL-hold-hactl.r0.0|254|1|---w|0
"""


def test_parse() -> None:
    devices = parse(TABLES, INFO)
    gate = devices["hactl.r0.0"]
    assert gate == Device(
        "hactl.r0.0", "HACTL-gate-hactl.r0.0", "254:2", True, True, 3, (Target(0, 2048, "error"),)
    )
    assert (gate.node, gate.size) == ("/dev/dm-2", 1 << 20)
    assert devices["hactl.r0.0.hold"].table == ()
    assert len(devices["vg-root"].table) == 2
    assert parse("No devices found\n", "No devices found\n") == {}


@pytest.mark.parametrize(
    ("tables", "info"),
    [("nonsense\n", ""), ("x: 0 error\n", ""), ("", "x|y|254\n"), ("", "x|y|254|0|L--w|many\n")],
)
def test_other_output_is_loud(tables: str, info: str) -> None:
    with pytest.raises(Failed) as caught:
        parse(tables, info)
    assert caught.value.code == "gate-unreadable"


@pytest.mark.parametrize(
    "table",
    [
        (Target(0, 2048, "linear", "8:1", 8),),
        (Target(0, 1024, "linear", "8:1", 0), Target(1024, 1024, "error")),
        (Target(0, 2048, "zero"),),
    ],
)
def test_a_table_that_hactl_does_not_write_is_foreign(table: tuple[Target, ...]) -> None:
    gate = Device("g", "u", "254:1", False, False, 0, table)
    hold = Device("h", "u", "254:0", True, False, 0, (Target(0, 2048, "error"),))
    assert mode(gate, hold) is Mode.FOREIGN
    assert not is_error(table)
    assert linear_device(table) is None


def test_what_is_no_block_device() -> None:
    for path in ("/dev/null", "/nowhere"):
        with pytest.raises(Refused):
            SysBlock().number(path)
    assert SysBlock().size("0:0") == 0
    assert SysBlock().path("0:0") == "/dev/block/0:0"
