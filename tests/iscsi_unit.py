"""A small logical unit for :mod:`tests.iscsi_target`: data in memory, and the PR that tests here need.

It knows REGISTER, RESERVE of type 1 and RELEASE, and enforces nothing; the real rules are the model's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from hactl.pr_sync.initiator.sense import Status
from hactl.pr_sync.state import Action, Nexus
from tests.iscsi_target import Reply, fixed_sense

BLOCK = 512
BAD_CDB = Reply(Status.CHECK_CONDITION, sense=fixed_sense(5, 0x24, 0))
BAD_OPCODE = Reply(Status.CHECK_CONDITION, sense=fixed_sense(5, 0x20, 0))
BAD_LENGTH = Reply(Status.CHECK_CONDITION, sense=fixed_sense(5, 0x1A, 0))


@dataclass
class SmallUnit:
    """Shared by all portal groups of a target. ``groups``: id, access state and RTPI of each port group."""

    serial: str = "0123456789"
    groups: tuple[tuple[int, int, int], ...] = ((0, 0, 1),)
    luns: tuple[int, ...] = (0,)
    keys: dict[Nexus, int] = field(default_factory=dict)
    holder: Nexus | None = None
    generation: int = 0
    blocks: dict[int, bytes] = field(default_factory=dict)

    async def __call__(self, nexus: Nexus, cdb: bytes, data: bytes) -> Reply:
        """Carry out a command."""
        match cdb[0], cdb[1] & 0x1F:
            case 0x00, _:
                return Reply()
            case 0x12, _:
                return self._inquiry(cdb)
            case 0x28, _:
                block, count = struct.unpack(">I", cdb[2:6])[0], struct.unpack(">H", cdb[7:9])[0]
                return Reply(data=b"".join(self.blocks.get(block + i, bytes(BLOCK)) for i in range(count)))
            case 0x2A, _:
                block = struct.unpack(">I", cdb[2:6])[0]
                for i in range(0, len(data), BLOCK):
                    self.blocks[block + i // BLOCK] = data[i : i + BLOCK]
                return Reply()
            case 0xA0, _:
                luns = b"".join(lun.to_bytes(2, "big") + bytes(6) for lun in self.luns)
                return Reply(data=struct.pack(">II", len(luns), 0) + luns)
            case 0xA3, 0x0A:
                groups = b"".join(
                    struct.pack(">BBHBBBBHH", s, 0x0F, g, 0, 0, 0, 1, 0, r) for g, s, r in self.groups
                )
                return Reply(data=struct.pack(">I", len(groups)) + groups)
            case 0x5E, action:
                return self._reserve_in(action)
            case 0x5F, action:
                return self._reserve_out(nexus, action, data)
        return BAD_OPCODE

    def _inquiry(self, cdb: bytes) -> Reply:
        if not cdb[1] & 1:
            text = f"{'LIO-ORG':8}{'SMALL':16}{'4.0':4}".encode()
            return Reply(data=bytes([0, 0, 6, 2, 31, 0, 0, 2]) + text)
        if cdb[2] == 0x80:
            serial = self.serial.encode()
            return Reply(data=struct.pack(">BBH", 0, 0x80, len(serial)) + serial)
        return BAD_CDB

    def _reserve_in(self, action: int) -> Reply:
        match action:
            case 0:
                body = b"".join(key.to_bytes(8, "big") for key in self.keys.values())
            case 1:
                key = self.keys[self.holder] if self.holder else 0
                body = struct.pack(">QIBBH", key, 0, 0, 1, 0) if self.holder else b""
            case 2:
                return Reply(data=bytes([0, 8, 0, 0x80, 0, 0, 0, 0]))
            case 3:
                body = b"".join(self._full(nexus, key) for nexus, key in self.keys.items())
            case _:
                return BAD_CDB
        return Reply(data=struct.pack(">II", self.generation, len(body)) + body)

    def _full(self, nexus: Nexus, key: int) -> bytes:
        name = f"{nexus.initiator},i,0x{nexus.isid}".encode() + b"\0"
        name += bytes(-len(name) % 4)
        transport = struct.pack(">BBH", 0x45, 0, len(name)) + name
        held = nexus == self.holder
        return struct.pack(">QIBBIHI", key, 0, held, held, 0, nexus.rtpi, len(transport)) + transport

    def _reserve_out(self, nexus: Nexus, action: int, data: bytes) -> Reply:
        if len(data) != 24:
            return BAD_LENGTH
        key, new = struct.unpack(">QQ", data[:16])
        if action != Action.REGISTER_AND_IGNORE_EXISTING_KEY and key != self.keys.get(nexus, 0):
            return Reply(Status.RESERVATION_CONFLICT)
        match action:
            case Action.REGISTER | Action.REGISTER_AND_IGNORE_EXISTING_KEY:
                if new:
                    self.keys[nexus] = new
                    self.generation += 1
                elif nexus in self.keys:
                    del self.keys[nexus]
                    self.holder = None if self.holder == nexus else self.holder
            case Action.RESERVE:
                if self.holder not in (None, nexus):
                    return Reply(Status.RESERVATION_CONFLICT)
                self.holder = nexus
            case Action.RELEASE:
                self.holder = None if self.holder == nexus else self.holder
            case _:
                return BAD_CDB
        return Reply()
