"""DRBD's meta-data as drbdmeta's ``dump-md`` writes and ``restore-md`` reads it; pure.

Source: ``drbdmeta.c`` of drbd-utils (``meta_dump_md``, ``verify_dumpfile_or_restore``) and what drbdmeta 9.22
prints. The generation is the first UUID; its lowest bit is DRBD's own.
"""

from __future__ import annotations

JUST_CREATED = 4
"""The generation of meta-data that says nothing of the data yet (``UUID_JUST_CREATED``)."""

_CONSISTENT = 1 << 0
_WAS_UP_TO_DATE = 1 << 4
_ACTIVITY_LOG_CLEAN = 1 << 7
_GOOD = _CONSISTENT | _WAS_UP_TO_DATE | _ACTIVITY_LOG_CLEAN
"""``enum mdf_flag`` of the kernel: the data are all there, and nothing has to be made good."""
_SLOTS = 32
_SECTOR = 512


def good_data(version: tuple[int, int, int], *, generation: int, size: int, peers: int) -> str:
    """Meta-data of a disk whose data are good, and of which no peer has anything.

    ``generation``: a number of 64 bits that no other disk has, even, and not :data:`JUST_CREATED`. ``size``:
    bytes that the device offers until a peer is connected. That is the volume's size and not what the disk
    has room for, since DRBD does not let a disk with good data shrink to what its peer's disk offers.
    """
    if generation % 2 or not JUST_CREATED < generation < 1 << 64:
        raise ValueError(f"{generation:#x} is no generation of data")
    if size <= 0 or size % _SECTOR:
        raise ValueError(f"{size} bytes are no whole number of sectors")
    text = _v09(generation, peers) if version >= (9,) else _v08(generation)
    after = "".join(f"bitmap[{n}] {{ }}\n" for n in range(peers)) if version >= (9,) else "bm { }\n"
    return (
        f"{text}"
        f"la-size-sect {size // _SECTOR};\n"
        "bm-byte-per-bit 4096;\n"
        f"device-uuid {_u64(0)};\n"
        "la-peer-max-bio-size 0;\n"
        "al-stripes 1;\n"
        "al-stripe-size-4k 8;\n"
        f"{after}"
    )


def _v08(generation: int) -> str:
    older = f"{_u64(0)}; " * 3
    return f'version "v08";\nuuid {{ {_u64(generation)}; {older}flags {_u32(_GOOD)}; }}\n'


def _v09(generation: int, peers: int) -> str:
    slot = f"bitmap-index -1; bitmap-uuid {_u64(0)}; bitmap-dagtag {_u64(0)}; flags {_u32(0)};"
    slots = "".join(f"peer[{n}] {{ {slot} }}\n" for n in range(_SLOTS))
    history = f"{_u64(0)}; " * _SLOTS
    return (
        f'version "v09";\nmax-peers {peers};\nnode-id -1;\ncurrent-uuid {_u64(generation)};\n'
        f"flags {_u32(_GOOD)};\n{slots}history-uuids {{ {history}}}\n"
    )


def _u64(value: int) -> str:
    return f"0x{value:016X}"


def _u32(value: int) -> str:
    return f"0x{value:08X}"
