"""Names and addresses: what makes one valid, and the words for what makes one invalid. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

MAX_ISCSI_NAME = 223
"""Bytes in an iSCSI name (RFC 7143 4.2.7.1)."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")


def valid_name(text: str) -> str:
    """A name of a node, host, resource or cluster, unchanged; :class:`ValueError` says what is wrong."""
    if _NAME.match(text):
        return text
    if not text:
        raise ValueError("a name must not be empty")
    if len(text) > 32:
        raise ValueError(f"the name {_short(text)} has {len(text)} characters; 32 are the most")
    if text != text.lower() and _NAME.match(text.lower()):
        raise ValueError(f"the name {text!r} must be in lower case: {text.lower()}")
    raise ValueError(
        f"the name {_short(text)} must consist of a-z, 0-9 and '-', and begin and end with a letter or digit"
    )


def iscsi_name(text: str) -> str:
    """An iSCSI name in its normalised form, unchanged (RFC 7143 4.2.7, RFC 3722).

    :class:`ValueError` names the first thing that is wrong with it.
    """
    fault = iscsi_name_fault(text)
    if fault:
        raise ValueError(f"{_short(text)} is not an iSCSI name: {fault}")
    return text


def iscsi_name_fault(text: str) -> str:
    """What is wrong with an iSCSI name, in words; empty if nothing is."""
    if not text:
        return "it is empty"
    if len(text.encode(errors="surrogatepass")) > MAX_ISCSI_NAME:
        return f"it is longer than {MAX_ISCSI_NAME} bytes"
    if any(c.isspace() for c in text):
        return "it has white space in it"
    if text != text.lower():
        return f"it must be in lower case: {_short(text.lower())}"
    kind, _, rest = text.partition(".")
    if kind == "iqn" and rest:
        return _iqn_fault(rest)
    if kind == "eui":
        return (
            "" if re.fullmatch(r"[0-9a-f]{16}", rest) else "eui. is followed by exactly 16 hexadecimal digits"
        )
    if kind == "naa":
        good = re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{32}", rest)
        return "" if good else "naa. is followed by 16 or 32 hexadecimal digits"
    return "it must begin with iqn., eui. or naa., as in iqn.2026-01.com.example:disk1"


def _iqn_fault(rest: str) -> str:
    date, _, tail = rest.partition(".")
    found = re.fullmatch(r"([0-9]{4})-([0-9]{2})", date)
    if not found:
        return f"iqn. is followed by a year and month, as in iqn.2026-01, not by {_short(date)}"
    if not 1 <= int(found[2]) <= 12:
        return f"there is no month {found[2]}"
    domain, colon, suffix = tail.partition(":")
    if not domain:
        return "the date is followed by a reversed domain name, as in iqn.2026-01.com.example:disk1"
    for label in domain.split("."):
        if not label:
            return f"the domain name {_short(domain)} has an empty part: a dot too many"
        if not _LABEL.match(label):
            return f"{_short(label)} is no part of a domain name: a-z, 0-9 and '-' within"
    if colon and not suffix:
        return "nothing follows the colon"
    if not re.fullmatch(r"[a-z0-9.:-]*", suffix):
        return "after the colon only a-z, 0-9, '.', ':' and '-' are allowed"
    return ""


def address(value: object) -> IPv4Address | IPv6Address:
    """An IP address from its text; :class:`ValueError` for anything else, numbers included."""
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    if not isinstance(value, str):
        raise ValueError("an IP address is written as text, such as 10.0.0.1 or fd00::1")
    try:
        return ip_address(value)
    except ValueError:
        pass
    if "/" in value:
        raise ValueError(f"{_short(value)} has a prefix length; write the address alone")
    raise ValueError(f"{_short(value)} is not an IP address; host names are not looked up")


def volume_number(value: object) -> object:
    """The number of a volume from a key's text, in decimal without leading zeros; numbers pass unchanged."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"0|[1-9][0-9]{0,3}", value, re.ASCII):
        raise ValueError(f"{_short(value)} is not the number of a volume")
    return int(value)


def _short(text: str) -> str:
    """A piece of the input for a message: quoted, control characters escaped, not too long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
