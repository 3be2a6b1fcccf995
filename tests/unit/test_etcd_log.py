"""The log of etcd as hactl reads it, and adds to it; by records as etcd writes them.

That etcd takes what is added is shown with real servers in test_cluster_recover.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.cluster.etcd_log import CRC, ENTRY, SNAPSHOT, STATE, FileLog, LogEnd, LogState, crc32c
from hactl.errors import Failed

ROOM = 4096
METADATA = 1


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def text(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def entry(term: int, index: int, data: bytes = b"x") -> tuple[int, bytes]:
    return ENTRY, number(1, 0) + number(2, term) + number(3, index) + text(4, data)


def state(term: int, vote: int, commit: int) -> tuple[int, bytes]:
    return STATE, number(1, term) + number(2, vote) + number(3, commit)


class Wal:
    """A data folder with files of records; each file goes on with the sum of the one before."""

    def __init__(self, folder: Path, *files: list[tuple[int, bytes]]) -> None:
        self.data = folder
        self.paths: list[Path] = []
        self.length = 0
        where = folder / "member" / "wal"
        where.mkdir(parents=True)
        sum_ = 0
        for count, records in enumerate(files):
            content = self.frame(CRC, sum_, b"")
            for kind, data in [(METADATA, b"node and cluster"), *records]:
                sum_ = crc32c(sum_, data)
                content += self.frame(kind, sum_, data)
            self.length = len(content)
            path = where / f"{count:016x}-{count:016x}.wal"
            path.write_bytes(content + bytes(ROOM - len(content)))
            self.paths.append(path)

    @staticmethod
    def frame(kind: int, sum_: int, data: bytes) -> bytes:
        record = number(1, kind) + number(2, sum_) + (text(3, data) if data else b"")
        padding = -len(record) % 8
        length = len(record) | ((0x80 | padding) << 56 if padding else 0)
        return length.to_bytes(8, "little") + record + bytes(padding)


def test_the_sum_is_the_one_that_everybody_knows() -> None:
    # RFC 3720, B.4, and the check value of CRC-32C.
    assert crc32c(0, b"123456789") == 0xE3069283
    assert crc32c(0, bytes(32)) == 0x8A9136AA
    assert crc32c(crc32c(0, b"12345"), b"6789") == 0xE3069283


def test_what_is_not_known_as_committed_becomes_so(tmp_path: Path) -> None:
    big = 2**63 + 5
    written = [state(3, big, 6), entry(3, 7), entry(3, 8, b"long" * 100), state(3, big, 7), entry(3, 9)]
    wal = Wal(tmp_path, written)
    log = FileLog()
    assert log.read(tmp_path) == LogState(LogEnd(3, 9), 7, 3, big)
    before = wal.paths[0].read_bytes()

    assert log.commit(tmp_path) == LogState(LogEnd(3, 9), 9, 3, big)

    after = wal.paths[0].read_bytes()
    assert len(after) == len(before)
    assert after[: wal.length] == before[: wal.length]
    # A second time there is nothing to be added.
    assert log.commit(tmp_path) == LogState(LogEnd(3, 9), 9, 3, big)
    assert wal.paths[0].read_bytes() == after


def test_the_last_word_on_an_index_counts(tmp_path: Path) -> None:
    """A new leader has had entries replaced that were never committed."""
    Wal(tmp_path, [entry(2, 5), entry(2, 6), entry(2, 7), entry(4, 6), state(4, 1, 5)])
    assert FileLog().read(tmp_path) == LogState(LogEnd(4, 6), 5, 4, 1)


def test_a_snapshot_that_was_received_stands_for_entries(tmp_path: Path) -> None:
    Wal(tmp_path, [entry(2, 5), (SNAPSHOT, number(1, 90) + number(2, 6)), state(6, 1, 90)])
    assert FileLog().read(tmp_path) == LogState(LogEnd(6, 90), 90, 6, 1)


def test_several_files(tmp_path: Path) -> None:
    wal = Wal(tmp_path, [entry(2, 5), entry(2, 6), state(2, 1, 5)], [state(2, 1, 5)])
    first = wal.paths[0].read_bytes()
    assert FileLog().commit(tmp_path).committed == 6
    assert wal.paths[0].read_bytes() == first
    assert FileLog().read(tmp_path) == LogState(LogEnd(2, 6), 6, 2, 1)


@pytest.mark.parametrize("harm", ["flipped", "cut", "torn", "none"])
def test_what_is_not_whole_is_refused_and_left_alone(tmp_path: Path, harm: str) -> None:
    wal = Wal(tmp_path, [entry(2, 5, bytes(range(200))), state(2, 1, 4), entry(2, 6, bytes(range(200)))])
    path = wal.paths[0]
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        content[wal.length - 20] ^= 1
    elif harm == "torn":
        content[wal.length - 100 :] = bytes(len(content) - wal.length + 100)
    elif harm == "cut":
        del content[wal.length - 100 :]
    path.write_bytes(content)
    if harm == "none":
        path.unlink()
    with pytest.raises(Failed) as failed:
        FileLog().commit(tmp_path)
    assert failed.value.code == "etcd-log"
    assert "systemctl start hactl-etcd" in failed.value.hint
    assert harm == "none" or path.read_bytes() == content
