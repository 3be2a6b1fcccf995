"""The lab's BMCs, asked with the stock fence agent: off is off, whatever state a machine is in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import story
from lab.api import Lab, LabError, Machine, Result

TREE = Path(__file__).parents[3]
PASSWORD = "/root/bmc-password"
SECONDS = 300
"""A fence agent starts Python and several ipmitool, on machines whose time is slow."""


def fence(asker: Machine, victim: Machine, action: str, *options: str) -> Result:
    """What the stock agent says, run on one machine against the BMC of another."""
    bmc = victim.bmc
    asker.write(PASSWORD, f"#!/bin/sh\necho {bmc.password}\n", 0o700)
    # With its cipher suite named, ipmitool does not ask for the list, which ipmi_sim leaves unanswered.
    argv = ["fence_ipmilan", "--lanplus", "--cipher=3", f"--ip={bmc.address}", f"--username={bmc.user}",
            f"--password-script={PASSWORD}", f"--action={action}", "--power-wait=0", *options]  # fmt: skip
    return asker.execute(argv, timeout=SECONDS)


def power(lab: Lab, victim: Machine) -> str:
    """``ON`` or ``OFF``, as the agent reads it."""
    return fence(lab["n1"], victim, "status").out.strip().removeprefix("Status: ")


@pytest.fixture
def victim(lab: Lab) -> Iterator[Machine]:
    """n3; it is up afterwards."""
    node = lab["n3"]
    yield node
    if node.state in ("frozen", "panicked"):
        node.crash()
    node.start()


def test_status_is_the_truth_however_power_was_switched(lab: Lab, victim: Machine) -> None:
    assert power(lab, victim) == "ON"
    victim.crash()
    assert power(lab, victim) == "OFF"
    victim.start()
    assert power(lab, victim) == "ON"


def test_a_machine_that_was_fenced_boots_with_its_disks(lab: Lab, victim: Machine) -> None:
    boots = lab.status()["machines"][2]["boots"]
    before = victim.succeed("cat /proc/sys/kernel/random/boot_id")
    victim.succeed("echo kept > /root/kept; sync /root/kept")
    result = fence(lab["n1"], victim, "reboot")
    assert result.status == 0, result
    victim.start()  # waits until it is up
    assert victim.succeed("cat /proc/sys/kernel/random/boot_id") != before
    assert victim.succeed("cat /root/kept") == "kept\n"
    assert lab.status()["machines"][2]["boots"] == boots + 1


def test_off_stays_off_until_on(lab: Lab, victim: Machine) -> None:
    assert fence(lab["n1"], victim, "off").status == 0
    assert victim.state == "off"
    assert fence(lab["n1"], victim, "on").status == 0
    assert victim.state != "off"


def test_a_frozen_machine_is_switched_off(lab: Lab, victim: Machine) -> None:
    victim.freeze()
    assert power(lab, victim) == "ON"
    assert fence(lab["n1"], victim, "off").status == 0
    assert victim.state == "off"


def test_a_machine_that_is_only_booting_is_switched_off(lab: Lab, victim: Machine) -> None:
    assert fence(lab["n1"], victim, "off").status == 0
    assert fence(lab["n1"], victim, "on").status == 0
    assert fence(lab["n1"], victim, "off").status == 0
    assert victim.state == "off"


def test_a_kernel_that_panicked_is_switched_off(lab: Lab, victim: Machine) -> None:
    victim.panic()
    assert "Kernel panic - not syncing" in victim.console
    assert victim.state in ("off", "panicked")
    with pytest.raises(LabError, match=r"it is (off|panicked)"):
        victim.succeed("true")
    assert fence(lab["n1"], victim, "off").status == 0
    assert victim.state == "off"


def test_a_bmc_that_is_cut_off_answers_nobody_and_its_machine_goes_on(lab: Lab, victim: Machine) -> None:
    lab.cut("bmc", victim.name)
    assert lab.status()["cut"].keys() == {f"{victim.name}-bmc"}
    assert fence(lab["n1"], victim, "off", "--ipmitool-timeout=1").status != 0
    assert victim.state == "up"
    lab["n1"].succeed(f"ping -nc 1 -W 5 {story.addresses(lab, victim.name, 'cluster')[0]}")
    lab.heal()
    assert power(lab, victim) == "ON"


def test_without_the_password_nothing_happens(lab: Lab, victim: Machine) -> None:
    victims = victim.bmc
    ask = f"ipmitool -I lanplus -C 3 -N 1 -H {victims.address} -U {victims.user}"
    lab["n1"].fail(f"{ask} -P {lab['n1'].bmc.password} chassis power off", timeout=SECONDS)
    assert victim.state == "up"


def test_a_password_is_in_its_file_and_nowhere_that_others_can_read(lab: Lab) -> None:
    secret = lab["n2"].bmc.password
    assert secret not in repr(lab["n2"].bmc)
    assert secret not in str(lab.status())
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        assert secret.encode() not in seen
    file = lab["n2"].bmc.password_file
    assert file.read_text().strip() == secret
    assert [place.stat().st_mode & 0o077 for place in (file, file.parent, lab.folder)] == [0, 0, 0]
    shown = [
        subprocess.run(
            [sys.executable, "-m", "lab.cli", "bmc", "n2", "--lab", lab.name, *option],
            capture_output=True, text=True, check=True, cwd=TREE, env={**os.environ, "COLUMNS": "200"},
        ).stdout
        for option in ([], ["--show-secrets"])
    ]  # fmt: skip
    assert [secret in text for text in shown] == [False, True]
    assert all(lab["n2"].bmc.address in text for text in shown)


def test_a_bmc_outlives_its_machine(lab: Lab, victim: Machine) -> None:
    def process() -> str:
        return subprocess.run(
            ["pgrep", "--full", "--ns", str(lab.supervisor), "--nslist", "pid", "^ipmi_sim "],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    before = process()
    assert len(before.split()) == len(lab.machines)
    victim.crash()
    victim.start()
    assert process() == before
    assert power(lab, victim) == "ON"
