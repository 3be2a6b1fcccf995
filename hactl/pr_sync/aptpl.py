"""APTPL metadata of LIO: the form in which the kernel writes and takes back the PR state of a unit. Pure.

*File*: the kernel rewrites ``<dbroot>/pr/aptpl_<unit serial>`` whole: a block of lines per registration, or
one sentence if there is none, and a null byte. *Import*: one registration per write to the unit's
``pr/res_aptpl_metadata`` in configfs, as ``name=value`` separated by commas, while nothing exports the unit.

The two differ: the file has the type in hexadecimal with two digits, and the import reads numbers in C
notation, so that ``08`` is a bad octal number, which it skips in silence. An imported registration waits
until the LUN and the mapped LUN it names appear, and until then is in no file and no PR IN answer; so the
order of the kernel's list becomes that in which the mapped LUNs are made.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from hactl.errors import Failed, Refused
from hactl.pr_sync.state import Hidden, Nexus, Registration, Reservation, State, Type
from hactl.pr_sync.transport_id import usable_isid, usable_name

FABRIC = "iSCSI"

T = TypeVar("T")

WRITE_LIMIT = 4095
"""Bytes of one write to a configfs attribute: a page less the null byte that the kernel adds."""

NOTHING = "No Registrations or Reservations"

_BIGGEST_KEY = 2**64 - 1
_DECIMAL = re.compile(r"[0-9]{1,20}\Z")
_HEX = re.compile(r"[0-9a-f]{2}\Z")
_TYPES = {type_.value: type_ for type_ in Type}


@dataclass(frozen=True)
class Record:
    """One registration. ``type`` is that of the reservation on the one that holds it, None on all others.

    Of an all-registrants reservation, too, exactly one record has it: the registration on which the kernel
    hangs the reservation.
    ``mapped_lun``: the LUN as the initiator sees it. ``lun``: as portal group ``tpgt`` of ``target`` has it.
    The nexus is without `Nexus.copy`. ``scope``: of the record that has a type; LIO writes a left-over there
    for a reservation that REGISTER AND MOVE has moved back (see ``Hidden.scope_left``).
    """

    nexus: Nexus
    key: int
    all_tg_pt: bool
    type: Type | None
    mapped_lun: int
    target: str
    tpgt: int
    lun: int
    fabric: str = FABRIC
    scope: int = 0

    @property
    def registration(self) -> Registration:
        """Key and ALL_TG_PT."""
        return Registration(self.key, self.all_tg_pt)


@dataclass(frozen=True)
class TargetPort:
    """Where an RTPI is found in configfs: target name, target portal group tag, LUN of the unit in it."""

    target: str
    tpgt: int
    lun: int


@dataclass(frozen=True)
class Places:
    """``ports`` by RTPI; ``mapped_luns`` by initiator name and RTPI: one for each ACL that maps the unit."""

    ports: Mapping[int, TargetPort]
    mapped_luns: Mapping[tuple[str, int], int]


def parse_file(content: bytes) -> tuple[Record, ...]:
    """What the kernel wrote, in the order of registration; `Failed` ``pr-metadata`` if it is anything else.

    Strict: fields in the kernel's order, blocks counted from 0, at most one holder.
    """
    text = _text(content)
    if text in (NOTHING, NOTHING + "\n"):
        return ()
    if not text.endswith("\n"):
        raise _unreadable("its last line has no end")
    lines = _Lines(text)
    records = tuple(_block(lines, number) for number in lines.blocks())
    if sum(record.type is not None for record in records) > 1:
        raise _unreadable("two registrations hold the reservation")
    return records


def file_content(records: Iterable[Record]) -> bytes:
    """The file as the kernel would write it, with the null byte at its end."""
    blocks = "".join(_block_text(number, record) for number, record in enumerate(records))
    return (blocks or NOTHING).encode() + b"\0"


def state_of(records: Iterable[Record], generation: int) -> State:
    """The state that the file describes, in its order; the file has no PRgeneration.

    Unlike READ FULL STATUS it names the port of every registration, those with ALL_TG_PT included, and the
    registration on which an all-registrants reservation hangs. The rest of `Hidden` is in no file.
    """
    registrations: dict[Nexus, Registration] = {}
    reservation = None
    hidden = Hidden()
    for nexus, record in numbered((record.nexus, record) for record in records):
        registrations[nexus] = record.registration
        if record.type is not None and record.type.all_registrants:
            reservation, hidden = Reservation(record.type, None), Hidden(anchor=nexus)
        elif record.type is not None:
            reservation = Reservation(record.type, nexus)
    return State(generation, registrations, reservation, hidden)


def numbered(pairs: Iterable[tuple[Nexus, T]]) -> Iterator[tuple[Nexus, T]]:
    """Give each registration in the kernel's list its number among those of the same nexus (`Nexus.copy`)."""
    seen: dict[Nexus, int] = defaultdict(int)
    for nexus, value in pairs:
        yield replace(nexus, copy=seen[nexus]), value
        seen[nexus] += 1


def import_lines(state: State, where: Places) -> tuple[str, ...]:
    """The writes to ``res_aptpl_metadata`` that give a unit this state; one for each registration, in order.

    They carry no PRgeneration: it counts one up for each. Of an all-registrants reservation the kernel wants
    exactly one holder: the anchor, or the first registration if none is known.
    Raises `Refused` ``pr-no-place`` if a nexus has no port or no ACL here, ``pr-unwritable`` if a name cannot
    be put into such a line, ``pr-state`` if the holder is not registered.
    """
    reservation = state.reservation
    chosen = None
    if reservation is not None:
        chosen = reservation.holder
        if reservation.type.all_registrants:
            chosen = state.hidden.anchor or next(iter(state.registrations), None)
        if chosen not in state.registrations:
            raise Refused(
                "pr-state",
                f"the reservation is held by {chosen}, which is not registered",
                "the PR log of this unit is damaged; clear its persistent reservations",
            )
    lines: list[str] = []
    for nexus, registration in state.registrations.items():
        port = where.ports.get(nexus.rtpi)
        mapped = where.mapped_luns.get((nexus.initiator, nexus.rtpi))
        if port is None or mapped is None:
            missing = "no such port" if port is None else "no ACL with the unit"
            raise Refused(
                "pr-no-place",
                f"the registration of {nexus.initiator} at port {nexus.rtpi} has no place here: {missing}",
                "give the host access to the resource again, or clear its registration",
            )
        held = reservation.type if reservation is not None and nexus == chosen else None
        lines.append(
            import_line(
                Record(
                    nexus=nexus,
                    key=registration.key,
                    all_tg_pt=registration.all_tg_pt,
                    type=held,
                    mapped_lun=mapped,
                    target=port.target,
                    tpgt=port.tpgt,
                    lun=port.lun,
                )
            )
        )
    return tuple(lines)


def import_line(record: Record) -> str:
    """One registration as the kernel takes it; `Refused` ``pr-unwritable`` if it cannot be written so."""
    nexus = record.nexus
    fits = usable_name(nexus.initiator) and usable_name(record.target) and usable_name(record.fabric)
    if not fits or (nexus.isid and not usable_isid(nexus.isid)) or not 0 < record.key <= _BIGGEST_KEY:
        raise Refused(
            "pr-unwritable",
            f"the registration of {nexus.initiator!r} at {record.target!r} cannot be given to the kernel",
            "its names must be at most 223 bytes without commas and spaces, its ISID at most 15",
        )
    fields = [f"initiator_fabric={record.fabric}", f"initiator_node={nexus.initiator}"]
    if nexus.isid:
        fields.append(f"initiator_sid={nexus.isid}")
    fields.append(f"sa_res_key={record.key:d}")
    if record.type is None:
        fields.append("res_holder=0")
    else:
        # Decimal without leading zeros: "08", the file's own form, would be skipped as a bad octal number.
        fields += ["res_holder=1", f"res_type={record.type.value:d}", "res_scope=0"]
    fields += [
        f"res_all_tg_pt={record.all_tg_pt:d}",
        f"mapped_lun={record.mapped_lun:d}",
        f"target_fabric={record.fabric}",
        f"target_node={record.target}",
        f"tpgt={record.tpgt:d}",
        f"port_rtpi={nexus.rtpi:d}",
        f"target_lun={record.lun:d}",
    ]
    line = ",".join(fields)
    # Never so with the lengths checked above; said here because the kernel would cut it in silence.
    if len(line.encode()) > WRITE_LIMIT:
        raise AssertionError(f"{len(line)} characters in one write")
    return line


def _text(content: bytes) -> str:
    if content.endswith(b"\0"):
        content = content[:-1]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise _unreadable("it is not UTF-8") from None
    if "\0" in text:
        raise _unreadable("it has a null byte within")
    if not text:
        raise _unreadable("it is empty")
    return text


class _Lines:
    """A cursor over ``name=value`` lines."""

    def __init__(self, text: str) -> None:
        # Not splitlines: that also splits at characters that a name may have.
        self._lines = text.split("\n")[:-1]
        self._at = 0

    def blocks(self) -> Iterator[int]:
        number = 0
        while self._at < len(self._lines):
            yield number
            number += 1

    def sentence(self, wanted: str) -> None:
        if self._at >= len(self._lines) or self._lines[self._at] != wanted:
            raise self._unexpected(wanted)
        self._at += 1

    def value(self, name: str) -> str:
        value = self.optional(name)
        if value is None:
            raise self._unexpected(name + "=")
        return value

    def optional(self, name: str) -> str | None:
        if self._at >= len(self._lines) or not self._lines[self._at].startswith(name + "="):
            return None
        self._at += 1
        return self._lines[self._at - 1].removeprefix(name + "=")

    def number(self, name: str, biggest: int) -> int:
        text = self.value(name)
        if not _DECIMAL.match(text) or int(text) > biggest:
            raise _unreadable(f"{name} is {text[:40]!r}")
        return int(text)

    def hexadecimal(self, name: str) -> int:
        text = self.value(name)
        if not _HEX.match(text):
            raise _unreadable(f"{name} is {text[:40]!r}")
        return int(text, 16)

    def _unexpected(self, wanted: str) -> Failed:
        found = repr(self._lines[self._at][:80]) if self._at < len(self._lines) else "its end"
        return _unreadable(f"line {self._at + 1} should be {wanted!r} and is {found}")


def _block(lines: _Lines, number: int) -> Record:
    lines.sentence(f"PR_REG_START: {number}")
    fabric = lines.value("initiator_fabric")
    initiator = lines.value("initiator_node")
    isid = lines.optional("initiator_sid")
    key = lines.number("sa_res_key", _BIGGEST_KEY)
    held, scope = None, 0
    if lines.number("res_holder", 1):
        word, scope = lines.hexadecimal("res_type"), lines.hexadecimal("res_scope")
        # What is left in the scope is the type of an earlier reservation.
        if word not in _TYPES or (scope and scope not in _TYPES):
            raise _unreadable(f"type {word:#04x} with scope {scope:#04x} is not a reservation")
        held = _TYPES[word]
    all_tg_pt = bool(lines.number("res_all_tg_pt", 1))
    mapped_lun = lines.number("mapped_lun", _BIGGEST_KEY)
    if lines.value("target_fabric") != fabric:
        raise _unreadable("its initiator and its target are of different fabrics")
    target = lines.value("target_node")
    tpgt = lines.number("tpgt", 0xFFFF)
    rtpi = lines.number("port_rtpi", 0xFFFF)
    lun = lines.number("target_lun", _BIGGEST_KEY)
    lines.sentence(f"PR_REG_END: {number}")
    if not (usable_name(initiator) and usable_name(target) and usable_name(fabric)) or key == 0:
        raise _unreadable(f"block {number} lacks a proper name or a key")
    if isid is not None and not usable_isid(isid):
        raise _unreadable(f"block {number} has the ISID {isid[:40]!r}")
    return Record(
        Nexus(initiator, isid or "", rtpi),
        key,
        all_tg_pt,
        held,
        mapped_lun,
        target,
        tpgt,
        lun,
        fabric,
        scope,
    )


def _block_text(number: int, record: Record) -> str:
    nexus = record.nexus
    isid = f"initiator_sid={nexus.isid}\n" if nexus.isid else ""
    held = "res_holder=0\n"
    if record.type is not None:
        held = f"res_holder=1\nres_type={record.type.value:02x}\nres_scope={record.scope:02x}\n"
    return (
        f"PR_REG_START: {number}\n"
        f"initiator_fabric={record.fabric}\ninitiator_node={nexus.initiator}\n{isid}"
        f"sa_res_key={record.key}\n{held}"
        f"res_all_tg_pt={record.all_tg_pt:d}\nmapped_lun={record.mapped_lun}\n"
        f"target_fabric={record.fabric}\ntarget_node={record.target}\n"
        f"tpgt={record.tpgt}\nport_rtpi={nexus.rtpi}\ntarget_lun={record.lun}\n"
        f"PR_REG_END: {number}\n"
    )


def _unreadable(reason: str) -> Failed:
    return Failed(
        "pr-metadata",
        f"the PR metadata of the kernel cannot be read: {reason}",
        "this kernel writes it in another form than Linux 6.12, or something else wrote the file",
    )
