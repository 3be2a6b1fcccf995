"""The contract tests, which the in-memory twins pass anywhere, on the real kernel of a storage node."""

from __future__ import annotations

import re

from lab import story
from lab.api import Lab

PYTEST = "cd /opt/hactl/src && HACTL_REAL=1 HACTL_SCRATCH={} /opt/hactl/venv/bin/python -m pytest"


def test_contracts_hold_on_the_real_kernel(lab: Lab) -> None:
    node = lab["n3"]
    node.succeed("systemctl stop hactl-agent; modprobe -a drbd dm_mod target_core_mod iscsi_target_mod loop")
    command = PYTEST.format(f"$(readlink -f {story.DISK})") + " -p no:cacheprovider -q -rs tests/contract"
    out = node.succeed(f"{command} 2>&1", timeout=600)
    print(out)
    found = re.search(r"(\d+) passed", out)
    assert found
    assert int(found[1]) > 100
    assert "skipped" not in out
