"""Both ways to the same LUNs in the machine this is started in, hactl's and targetctl's, one after the other:

    python -m tests.bench.node_compare tree COUNT ROUNDS NODE ADDRESS
    python -m tests.bench.node_compare agent COUNT DISK NODE ADDRESS

``tree`` compares; ``agent`` is the whole agent, on slices of ``DISK``, which is overwritten. Each needs a
machine that is used for nothing else: its LIO configuration is cleared. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.node_spec import DISK

TARGET = Path("/sys/kernel/config/target")
SAVED = "/root/bench-saveconfig.json"


def run(*argv: str) -> tuple[float, str]:
    """Seconds from start to end of a program, and what it printed."""
    began = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    print(f"{seconds:8.2f} s  {' '.join(argv[-6:])}", file=sys.stderr, flush=True)
    if done.returncode:
        raise SystemExit(f"{argv}: status {done.returncode}: {done.stderr}")
    # It reports errors this way, and always that the folder for PR state is not the one it would choose.
    words = [line for line in done.stderr.splitlines() if line and "dbroot" not in line]
    if argv[0] == "targetctl" and words:
        raise SystemExit(f"{argv}: {done.stderr}")
    return seconds, done.stdout


def exported() -> dict[str, int]:
    """What an initiator could use: enabled portal groups, their LUNs, ACLs and mapped LUNs."""
    groups = [g for g in TARGET.glob("iscsi/iqn.*/tpgt_*") if (g / "enable").read_text().strip() == "1"]
    return {
        "backstores": len([p for p in TARGET.glob("core/iblock_*/*/enable") if p.read_text().strip() == "1"]),
        "targets": len(list(TARGET.glob("iscsi/iqn.*"))),
        "portal groups": len(list(TARGET.glob("iscsi/iqn.*/tpgt_*"))),
        "enabled portal groups": len(groups),
        "LUNs": len(list(TARGET.glob("iscsi/iqn.*/tpgt_*/lun/lun_*"))),
        "mapped LUNs": len(list(TARGET.glob("iscsi/iqn.*/tpgt_*/acls/*/lun_*"))),
    }


class Bench:
    """The programs of both sides."""

    def __init__(self, count: int, node: str, address: str) -> None:
        self.count = count
        self.rest = (str(count), node, address)

    def tree(self, what: str) -> tuple[float, dict[str, Any]]:
        seconds, text = run(sys.executable, "-m", "tests.bench.node_tree", what, *self.rest)
        told: dict[str, Any] = json.loads(text)
        return seconds, told

    def agent(self) -> dict[str, Any]:
        _, text = run(sys.executable, "-m", "tests.bench.node_agent", *self.rest, str(time.monotonic()))
        told: dict[str, Any] = json.loads(text)
        return told

    def round(self) -> dict[str, Any]:
        """One of each, in a tree that is empty before."""
        times: dict[str, Any] = {}
        times["hactl_up"], times["hactl_up_parts"] = self.tree("up")
        made = exported()
        times["hactl_again"], times["hactl_again_parts"] = self.tree("look")
        run("targetctl", "save", SAVED)
        times["targetctl_clear"], _ = run("targetctl", "clear")
        assert exported()["targets"] == exported()["backstores"] == 0
        times["targetctl_up"], _ = run("targetctl", "restore", SAVED)
        restored = exported()
        times["targetctl_again"], _ = run("targetctl", "restore", SAVED)
        assert made["LUNs"] == restored["LUNs"] >= self.count, (made, restored)
        assert made["mapped LUNs"] == restored["mapped LUNs"], (made, restored)
        assert exported() == restored
        run("targetctl", "clear")
        return {**times, "made": made, "restored": restored}


def slices(disk: str, count: int) -> None:
    """Small disks out of a large one, without anything of an earlier run on them."""
    subprocess.run(["wipefs", "--all", "--quiet", disk], check=True)
    length = DISK >> 9
    for n in range(count):
        table = f"0 {length} linear {disk} {n * length}"
        subprocess.run(["dmsetup", "create", f"bench.{n}", "--table", table], check=True)
        with open(f"/dev/mapper/bench.{n}", "wb", buffering=0) as file:  # noqa: PTH123 - a device
            file.write(bytes(1 << 20))
            # DRBD's meta-data is at the end.
            os.lseek(file.fileno(), DISK - (1 << 20), os.SEEK_SET)
            file.write(bytes(1 << 20))


def main() -> None:
    _, what, count, third, node, address = sys.argv
    bench = Bench(int(count), node, address)
    run("modprobe", "--all", "dm_mod", "drbd", "target_core_mod", "iscsi_target_mod")
    if what == "tree":
        gates, _ = bench.tree("gates")
        found = [bench.round() for _ in range(int(third))]
        bench.tree("down")
        print(json.dumps({"gates_s": gates, "rounds": found}))
        return
    assert what == "agent"
    slices(third, int(count))
    up, again = bench.agent(), bench.agent()
    print(json.dumps({"agent_up": up, "agent_again": again}))


if __name__ == "__main__":
    main()
