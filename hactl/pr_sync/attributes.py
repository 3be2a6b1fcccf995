"""What configfs shows in ``core/<hba>/<device>/pr/`` of the PR state of a unit. Pure.

Every function takes the text of one attribute. A text that Linux 6.12 does not write raises `Failed`
``pr-attribute``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from hactl.errors import Failed
from hactl.pr_sync.state import Type
from hactl.pr_sync.transport_id import IscsiPort

PAGE = 4096
_LONGEST_LINE = 384
_NO_HOLDER = "No SPC-3 Reservation holder\n"
_TYPES = {
    "Write Exclusive Access": Type.WRITE_EXCLUSIVE,
    "Exclusive Access": Type.EXCLUSIVE_ACCESS,
    "Write Exclusive Access, Registrants Only": Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    "Exclusive Access, Registrants Only": Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    "Write Exclusive Access, All Registrants": Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    "Exclusive Access, All Registrants": Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
}
_LISTED = re.compile(r"(\S+) Node: (\S+) Key: 0x([0-9a-f]{16}) PRgen: 0x([0-9a-f]{8})\Z")
_HOLDER = re.compile(r"SPC-[23] Reservation: (\S+) Initiator: (\S+)\n\Z")
_TG_PORT = re.compile(
    r"SPC-3 Reservation: (\S+) Target Node Endpoint: (\S+)\n"
    r"SPC-3 Reservation: Relative Port Identifier Tag: ([0-9]{1,5}) \1 Portal Group Tag: ([0-9]{1,5})"
    r" \1 Logical Unit: ([0-9]{1,20})\n\Z"
)


class Emulation(StrEnum):
    """``res_type``: who keeps the reservations of the unit, and of which kind the present one is."""

    PERSISTENT = "SPC3_PERSISTENT_RESERVATIONS"
    RESERVE_RELEASE = "SPC2_RESERVATIONS"
    PASSTHROUGH = "SPC_PASSTHROUGH"
    DISABLED = "SPC_RESERVATIONS_DISABLED"


@dataclass(frozen=True)
class Listed:
    """A line of ``res_pr_registered_i_pts``. ``generation``: PRgeneration when it was registered."""

    port: IscsiPort
    key: int
    generation: int
    fabric: str


@dataclass(frozen=True)
class Listing:
    """``res_pr_registered_i_pts``. With ``full`` there may be more than fit a page."""

    registrations: tuple[Listed, ...]
    full: bool


@dataclass(frozen=True)
class HolderPort:
    """``res_pr_holder_tg_port``: the target port of the registration that the reservation hangs on."""

    target: str
    rtpi: int
    tpgt: int
    lun: int
    fabric: str


def res_type(text: str) -> Emulation:
    """``res_type``."""
    try:
        return Emulation(text.removesuffix("\n"))
    except ValueError:
        _unreadable("res_type", text)


def res_holder(text: str) -> IscsiPort | None:
    """``res_holder``: of either kind of reservation; one of SPC-2 has no ISID. None if there is none."""
    if text in (_NO_HOLDER, "No SPC-2 Reservation holder\n", "SPC_RESERVATIONS_DISABLED\n", "Passthrough\n"):
        return None
    match = _HOLDER.match(text)
    if match is None:
        _unreadable("res_holder", text)
    return _initiator(match[2])


def res_pr_type(text: str) -> Type | None:
    """``res_pr_type``; None if there is no reservation."""
    if text == _NO_HOLDER:
        return None
    words = text.removeprefix("SPC-3 Reservation Type: ").removesuffix("\n")
    if words not in _TYPES or text == words:
        _unreadable("res_pr_type", text)
    return _TYPES[words]


def res_pr_generation(text: str) -> int:
    """``res_pr_generation``."""
    if not re.match(r"0x[0-9a-f]{8}\n\Z", text):
        _unreadable("res_pr_generation", text)
    return int(text, 16)


def res_pr_all_tgt_pts(text: str) -> bool | None:
    """``res_pr_all_tgt_pts``: whether the holder registered with ALL_TG_PT; None if nobody holds."""
    found = {
        _NO_HOLDER: None,
        "SPC-3 Reservation: All Target Ports registration\n": True,
        "SPC-3 Reservation: Single Target Port registration\n": False,
    }
    if text not in found:
        _unreadable("res_pr_all_tgt_pts", text)
    return found[text]


def res_pr_holder_tg_port(text: str) -> HolderPort | None:
    """``res_pr_holder_tg_port``; None if there is no reservation."""
    if text == _NO_HOLDER:
        return None
    match = _TG_PORT.match(text)
    if match is None:
        _unreadable("res_pr_holder_tg_port", text)
    return HolderPort(match[2], int(match[3]), int(match[4]), int(match[5]), match[1])


def res_pr_registered_i_pts(text: str) -> Listing:
    """``res_pr_registered_i_pts``, in the order of registration. It does not name target ports."""
    head, *lines = text.split("\n")
    if head != "SPC-3 PR Registrations:" or not lines or lines.pop() != "":
        _unreadable("res_pr_registered_i_pts", text)
    if lines == ["None"]:
        return Listing((), full=False)
    found: list[Listed] = []
    for line in lines:
        match = _LISTED.match(line)
        if match is None:
            _unreadable("res_pr_registered_i_pts", line)
        found.append(Listed(_initiator(match[2]), int(match[3], 16), int(match[4], 16), match[1]))
    # The kernel stops before the line that would not fit, without a word.
    return Listing(tuple(found), full=len(text.encode()) + _LONGEST_LINE > PAGE)


def res_aptpl_active(text: str) -> bool:
    """``res_aptpl_active``: whether the next change will be written to the metadata file."""
    found = {"APTPL Bit Status: Activated\n": True, "APTPL Bit Status: Disabled\n": False}
    if text not in found:
        _unreadable("res_aptpl_active", text)
    return found[text]


def _initiator(text: str) -> IscsiPort:
    name, _, isid = text.partition(",i,0x")
    return IscsiPort(name, isid)


def _unreadable(attribute: str, text: str) -> NoReturn:
    raise Failed(
        "pr-attribute",
        f"the attribute {attribute} cannot be read: {text[:80]!r}",
        "this kernel writes it in another form than Linux 6.12",
    ) from None
