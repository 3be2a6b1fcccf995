"""LIO's own reading of a write to ``res_aptpl_metadata``, after its parser and lib/parser.c of Linux 6.12.

It knows nothing of ``hactl.pr_sync.aptpl`` and takes the liberties that the kernel takes: what matches no
pattern is skipped, numbers are those of C (so that ``08`` matches none), fields may be left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STRINGS = (
    "initiator_fabric",
    "initiator_node",
    "initiator_sid",
    "sa_res_key",
    "target_fabric",
    "target_node",
)
NUMBERS = (
    "res_holder",
    "res_type",
    "res_scope",
    "res_all_tg_pt",
    "tpgt",
    "port_rtpi",
    "mapped_lun",
    "target_lun",
)
_C_NUMBER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\Z")
_PAGE = 4096


class InvalidError(Exception):
    """EINVAL."""


@dataclass(frozen=True)
class Waiting:
    """What the kernel keeps until the mapped LUN appears. ``rtpi`` and ``scope`` are read and forgotten."""

    initiator: str
    isid: str | None
    key: int
    holder: bool
    type: int
    all_tg_pt: bool
    mapped_lun: int
    target: str
    tpgt: int
    lun: int


def written(data: bytes) -> Waiting:
    """The registration that a write of ``data`` adds."""
    text = data[: _PAGE - 1].split(b"\0")[0].decode()
    found: dict[str, str | int] = {}
    for field in re.split("[,\n]", text):
        name, equals, value = field.partition("=")
        if not equals or not value:
            continue
        if name in STRINGS:
            found[name] = value
        elif name in NUMBERS and _C_NUMBER.match(value):
            found[name] = c_number(value)
    key = c_number(str(found.get("sa_res_key", "0")))
    if "initiator_node" not in found or "target_node" not in found or not key:
        raise InvalidError(text)
    if found.get("res_holder", 0) and not found.get("res_type", 0):
        raise InvalidError(text)
    return Waiting(
        initiator=str(found["initiator_node"]),
        isid=str(found["initiator_sid"]) if "initiator_sid" in found else None,
        key=key,
        holder=bool(found.get("res_holder", 0)),
        type=int(found.get("res_type", 0)),
        all_tg_pt=bool(found.get("res_all_tg_pt", 0)),
        mapped_lun=int(found.get("mapped_lun", 0)),
        target=str(found["target_node"]),
        tpgt=int(found.get("tpgt", 0)),
        lun=int(found.get("target_lun", 0)),
    )


def c_number(text: str) -> int:
    """A number in the notation of C: hexadecimal, octal or decimal."""
    if text.lower().startswith(("0x", "-0x")):
        return int(text, 16)
    return int(text, 8 if text.lstrip("-").startswith("0") else 10)
