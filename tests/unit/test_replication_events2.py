"""The events2 folder on recordings of DRBD 9.2.16, compared with status.json of the same state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hactl.errors import Failed
from hactl.replication.events2 import Events2, StreamBrokenError, fold
from hactl.replication.state import (
    ConnectionState,
    DiskState,
    PeerVolume,
    ReplicationState,
    ResourceState,
    Role,
    Volume,
)

DATA = Path(__file__).parent / "data" / "drbd-9.2.16"
STATES = sorted(str(p.parent.relative_to(DATA)) for p in DATA.glob("n?/*/events2-now.txt"))


def from_status(path: Path) -> dict[str, dict[str, Any]]:
    """What drbdsetup status --json says, as far as both speak of it."""
    found = {}
    for resource in json.loads(path.read_text()):
        reasons = ("user", "no-data", "fencing", "quorum")
        suspended = ",".join(r for r in reasons if resource[f"suspended-{r}"]) or "no"
        found[resource["name"]] = {
            "role": resource["role"],
            "suspended": suspended,
            "volumes": {
                d["volume"]: (d["minor"], d["disk-state"], d["size"] * 1024, d["quorum"])
                for d in resource["devices"]
            },
            "connections": {
                c["name"]: (
                    c["connection-state"],
                    c["peer-role"],
                    {
                        p["volume"]: (p["replication-state"], p["peer-disk-state"], p["resync-suspended"])
                        for p in c["peer_devices"]
                    },
                )
                for c in resource["connections"]
            },
        }
    return found


def flat(states: dict[str, ResourceState]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "role": s.role.value,
            "suspended": s.suspended,
            "volumes": {n: (v.minor, v.disk.value, v.size, v.quorum) for n, v in s.volumes.items()},
            "connections": {
                peer: (
                    c.state.value,
                    c.role.value,
                    {
                        n: (v.replication.value, v.disk.value, v.resync_suspended)
                        for n, v in c.volumes.items()
                    },
                )
                for peer, c in s.connections.items()
            },
        }
        for name, s in states.items()
    }


def test_there_are_recordings() -> None:
    assert len(STATES) > 10


@pytest.mark.parametrize("state", STATES)
def test_a_dump_says_what_status_says(state: str) -> None:
    dump = fold((DATA / state / "events2-now.txt").read_text().splitlines())
    assert flat(dump) == from_status(DATA / state / "status.json")


def test_the_stream_passes_through_the_recorded_states() -> None:
    """Each settled state of n1 turns up in the snapshots of the stream, in the order of the recordings."""
    folder = Events2()
    snapshots = [s for line in lines_of_the_stream() if (s := folder.feed(line)) is not None]
    where = 0
    settled = [s for s in STATES if s.startswith("n1/") and "syncsource" not in s and "verify" not in s]
    assert len(settled) > 8
    for state in settled:
        wanted = from_status(DATA / state / "status.json")
        found = [i for i in range(where, len(snapshots)) if flat(snapshots[i]) == wanted]
        assert found, f"the stream never was in state {state}"
        where = found[0]


def lines_of_the_stream() -> list[str]:
    return (DATA / "events2-stream-n1.txt").read_text().splitlines()


def test_progress_of_the_resync_in_the_stream() -> None:
    folder = Events2()
    done = []
    for line in lines_of_the_stream():
        snapshot = folder.feed(line)
        if snapshot and "r0" in snapshot and "n2" in snapshot["r0"].connections:
            volume = snapshot["r0"].connections["n2"].volumes.get(0)
            if volume and volume.replication is ReplicationState.SYNC_SOURCE:
                done.append(volume.done)
            elif volume and volume.replication is ReplicationState.ESTABLISHED:
                assert volume.done is None
    assert done[:4] == [0.0, 15.24, 62.51, 100.0]


def test_nothing_is_known_before_the_dump_is_over() -> None:
    folder = Events2()
    lines = (DATA / "n1/07-primary-open/events2-now.txt").read_text().splitlines()
    for line in lines[:-1]:
        assert folder.feed(line) is None
    assert folder.snapshot is None
    snapshot = folder.feed(lines[-1])
    assert snapshot is not None
    assert snapshot["r0"].role is Role.PRIMARY


def test_an_empty_dump_is_a_state_too() -> None:
    assert Events2().feed("2026-11-23T05:51:41.594918+00:00 exists -") == {}


def test_statistics_alone_change_nothing() -> None:
    folder = Events2()
    for line in (DATA / "n1/07-primary-open/events2-now.txt").read_text().splitlines():
        folder.feed(line)
    assert folder.feed("change device name:r0 volume:0 minor:1000 size:262100 read:9 written:9") is None


def test_a_dump_without_an_end() -> None:
    with pytest.raises(StreamBrokenError):
        fold(["exists resource name:r0 role:Primary suspended:no"])


START = ["exists resource name:r0 role:Secondary suspended:no", "exists -"]


def after(*lines: str) -> dict[str, ResourceState]:
    return fold([*START, *lines])


@pytest.mark.parametrize(
    "line",
    [
        "change resource name:r0 role:Tertiary",
        "change resource name:r0 suspended:bored",
        "create device name:r0 volume:0 minor:1 disk:Sparkling",
        "create device name:r0 volume:0 minor:1 disk:UpToDate quorum:maybe",
        "create device name:r0 volume:x minor:1 disk:UpToDate",
        "create connection name:r0 peer-node-id:1 conn-name:n2 connection:WFConnection role:Unknown",
        "create planet name:r0",
        "explode resource name:r0",
        "create resource role:Primary",
        "nonsense",
    ],
)
def test_unknown_words_are_loud(line: str) -> None:
    with pytest.raises(Failed):
        after(line)


def test_unknown_keys_are_skipped() -> None:
    assert after("change resource name:r0 role:Primary sparkle:yes")["r0"].role is Role.PRIMARY


@pytest.mark.parametrize(
    "line",
    [
        "- skipped 3",
        "2026-11-23T05:51:41.594918+00:00 - skipped 3",
        "change device name:r9 volume:0 minor:1 disk:UpToDate",
        "change peer-device name:r0 peer-node-id:1 conn-name:n2 volume:0 replication:Off",
    ],
)
def test_lost_events_break_the_stream(line: str) -> None:
    with pytest.raises(StreamBrokenError):
        after(line)


def test_a_change_that_overtakes_the_dump_breaks_the_stream() -> None:
    folder = Events2()
    folder.feed("change resource name:r0 role:Primary")
    with pytest.raises(StreamBrokenError):
        folder.feed("exists resource name:r0 role:Secondary suspended:no")


def test_destroying_what_is_not_there_is_nothing() -> None:
    assert (
        after("destroy device name:r0 volume:3", "destroy connection name:r0 peer-node-id:1 conn-name:x")
        == after()
    )
    assert after("destroy resource name:r9") == after()
    assert after("destroy resource name:r0") == {}


def test_rename() -> None:
    assert set(after("rename resource name:r0 new_name:r1")) == {"r1"}


DRBD_8_4 = """\
2026-11-23T05:00:00.000001+00:00 exists resource name:r0 role:Primary suspended:no write-ordering:flush
2026-11-23T05:00:00.000001+00:00 exists connection name:r0 peer-node-id:0 conn-name:peer \
connection:Connected role:Secondary congested:no
2026-11-23T05:00:00.000001+00:00 exists device name:r0 volume:0 minor:16 disk:UpToDate size:1048576 read:0 \
written:0 al-writes:0 bm-writes:0 upper-pending:0 lower-pending:0 al-suspended:no blocked:no
2026-11-23T05:00:00.000001+00:00 exists peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 minor:16 \
replication:SyncSource peer-disk:Inconsistent resync-suspended:no received:0 sent:0 \
out-of-sync:524288 pending:0 unacked:0
2026-11-23T05:00:00.000001+00:00 exists -
"""


def test_drbd_8_4_names_no_peer_and_no_progress() -> None:
    state = fold(DRBD_8_4.splitlines(), {"r0": "beta"})["r0"]
    assert state.volumes == {0: Volume(16, DiskState.UP_TO_DATE, 1 << 30, quorum=True)}
    connection = state.connections["beta"]
    assert (connection.peer, connection.state) == ("beta", ConnectionState.CONNECTED)
    assert connection.volumes[0] == PeerVolume(
        ReplicationState.SYNC_SOURCE, DiskState.INCONSISTENT, done=50.0
    )
    assert set(fold(DRBD_8_4.splitlines())["r0"].connections) == {"peer"}


DISCONNECTED_8_4 = """\
exists resource name:r0 role:Secondary suspended:no
exists connection name:r0 peer-node-id:0 conn-name:peer connection:Connected role:Primary
exists device name:r0 volume:0 minor:16 disk:UpToDate
exists peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 replication:Established peer-disk:UpToDate \
resync-suspended:no
exists -
change connection name:r0 peer-node-id:0 conn-name:peer connection:Disconnecting role:Unknown
change peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 replication:Off peer-disk:DUnknown
change connection name:r0 peer-node-id:0 conn-name:peer
change peer-device name:r0 peer-node-id:0 conn-name:peer volume:0
change connection name:r0 peer-node-id:0 conn-name:peer connection:StandAlone
destroy peer-device name:r0 peer-node-id:0 conn-name:peer volume:0
destroy connection name:r0 peer-node-id:0 conn-name:peer
"""
ALONE_8_4 = """\
exists resource name:r0 role:Secondary suspended:no
exists connection name:r0 peer-node-id:0 connection:StandAlone role:Unknown
exists device name:r0 volume:0 minor:16 disk:UpToDate
exists peer-device name:r0 peer-node-id:0 volume:0 replication:Off peer-disk:DUnknown resync-suspended:no
exists -
"""


def test_on_drbd_8_4_a_connection_that_is_destroyed_is_alone() -> None:
    """Recorded while somebody ran ``drbdadm disconnect r0``, and asked anew afterwards."""
    folder = Events2({"r0": "beta"})
    for line in DISCONNECTED_8_4.splitlines():
        folder.feed(line)
    assert folder.snapshot == fold(ALONE_8_4.splitlines(), {"r0": "beta"})
    assert folder.snapshot is not None
    assert folder.snapshot["r0"].connections["beta"].state is ConnectionState.STANDALONE
    for line in ("destroy device name:r0 volume:0 minor:16", "destroy resource name:r0"):
        folder.feed(line)
    assert folder.snapshot == {}


def test_the_recorded_stream_of_drbd_8_4() -> None:
    folder = Events2({"hactl-contract": "elsewhere"})
    seen = []
    for line in (DATA.parent / "drbd-8.4.11" / "events2-stream-one-node.txt").read_text().splitlines():
        snapshot = folder.feed(line)
        for state in (snapshot or {}).values():
            assert set(state.connections) <= {"elsewhere"}
            disk = state.volumes[0].disk if state.volumes else None
            if (state.role, disk) not in seen:
                seen.append((state.role, disk))
    assert folder.snapshot == {}
    assert (Role.PRIMARY, DiskState.UP_TO_DATE) in seen
    assert (Role.SECONDARY, DiskState.INCONSISTENT) in seen


def test_a_size_that_is_not_known_is_none() -> None:
    line = "create device name:r0 volume:0 minor:1 disk:Diskless size:{}"
    for unset in (0, 9223372036854775807):
        assert after(line.format(unset))["r0"].volumes[0].size is None
