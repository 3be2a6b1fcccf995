"""The events2 folder on recordings of DRBD 8.4.11, compared with what drbdadm said in the same state."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.replication.events2 import Events2, fold
from hactl.replication.state import ConnectionState, DiskState, ReplicationState, ResourceState, Role

DATA = Path(__file__).parent / "data" / "drbd-8.4.11"
STATES = sorted(str(p.parent.relative_to(DATA)) for p in DATA.glob("n?/*/events2-now.txt"))
DOWN = "n1/18-down"


def words(state: str, what: str) -> list[str]:
    """What ``drbdadm role|cstate|dstate`` printed."""
    return (DATA / state / f"drbdadm-{what}.txt").read_text().strip().split("/")


def folded(state: str) -> ResourceState:
    return fold((DATA / state / "events2-now.txt").read_text().splitlines(), {"r0": "peer-node"})["r0"]


def test_there_are_recordings() -> None:
    assert len(STATES) == 18


@pytest.mark.parametrize("state", [s for s in STATES if s != DOWN])
def test_a_dump_says_what_drbdadm_says(state: str) -> None:
    seen = folded(state)
    assert seen.up_to_date == (words(state, "dstate")[0] == "UpToDate")
    role, peer_role = words(state, "role")
    disk, peer_disk = words(state, "dstate")
    (cstate,) = words(state, "cstate")
    connection = seen.connections["peer-node"]
    volume = connection.volumes[0]
    assert (seen.role, connection.role) == (Role(role), Role(peer_role))
    assert (seen.volumes[0].disk, volume.disk) == (DiskState(disk), DiskState(peer_disk))
    # 8.4's connection state is both of what DRBD 9 keeps apart.
    if cstate in ("StandAlone", "WFConnection"):
        wanted = ConnectionState.CONNECTING if cstate == "WFConnection" else ConnectionState.STANDALONE
        assert (connection.state, volume.replication) == (wanted, ReplicationState.OFF)
    else:
        assert connection.state is ConnectionState.CONNECTED
        expected = "Established" if cstate == "Connected" else cstate
        assert volume.replication is ReplicationState(expected)


def test_a_dump_without_a_resource() -> None:
    assert fold((DATA / DOWN / "events2-now.txt").read_text().splitlines()) == {}


def test_progress_follows_from_what_is_out_of_sync() -> None:
    done = folded("n1/03-primary-syncsource").connections["peer-node"].volumes[0].done
    # 1,047,884 of 1,048,508 KiB were out of sync; drbdsetup status said 0.06.
    assert done == pytest.approx(0.06, abs=0.005)
    assert folded("n1/06-primary-uptodate").connections["peer-node"].volumes[0].done is None


def test_the_stream_passes_through_the_recorded_states() -> None:
    """Each settled state of n1 turns up in the snapshots of the stream, in the order of the recordings."""
    folder = Events2({"r0": "peer-node"})
    lines = (DATA / "events2-stream-two-nodes-n1.txt").read_text().splitlines()
    snapshots = [s["r0"] for line in lines if (s := folder.feed(line)) is not None and "r0" in s]
    where = 0
    passing = ("syncsource", "paused", "verify", "down")
    settled = [s for s in STATES if s.startswith("n1/") and not any(word in s for word in passing)]
    assert len(settled) > 8
    for state in settled:
        wanted = folded(state)
        found = [i for i in range(where, len(snapshots)) if snapshots[i] == wanted]
        assert found, f"the stream never was in state {state}"
        where = found[0]
    assert folder.snapshot == {}
