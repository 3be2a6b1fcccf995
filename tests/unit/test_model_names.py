"""Names, sizes and addresses: what is valid passes unchanged, what is not is told why."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.model.names import address, iscsi_name, iscsi_name_fault, valid_name
from hactl.model.size import format_size, parse_size


@pytest.mark.parametrize(
    "name",
    [
        "iqn.2026-01.com.example",
        "iqn.2026-12.com.example:disk1",
        "iqn.1993-08.org.debian:01:abcdef.0-9",
        "eui.0123456789abcdef",
        "naa.0123456789abcdef",
        "naa.0123456789abcdef0123456789abcdef",
    ],
)
def test_iscsi_names_that_are_valid(name: str) -> None:
    assert iscsi_name(name) == name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "empty"),
        ("disk1", "must begin with iqn."),
        ("iqn.2026-13.com.example", "no month 13"),
        ("iqn.26-01.com.example", "year and month"),
        ("iqn.com.example:disk", "year and month"),
        ("iqn.2026-01", "reversed domain name"),
        ("iqn.2026-01.com..example", "a dot too many"),
        ("iqn.2026-01.com.exa_mple", "no part of a domain name"),
        ("iqn.2026-01.com.example:", "nothing follows the colon"),
        ("iqn.2026-01.com.example:a_b", "after the colon"),
        ("iqn.2026-01.com.example:a b", "white space"),
        ("iqn.2026-01.com.example:x\n", "white space"),
        ("IQN.2026-01.com.example:A", "lower case: 'iqn.2026-01.com.example:a'"),
        ("iqn.2026-01.com.example:" + "x" * 200, "longer than 223 bytes"),
        ("eui.0123", "16 hexadecimal digits"),
        ("naa.0123", "16 or 32"),
    ],
)
def test_iscsi_names_that_are_not_say_why(name: str, fault: str) -> None:
    assert fault in iscsi_name_fault(name)
    with pytest.raises(ValueError, match="is not an iSCSI name"):
        iscsi_name(name)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "empty"),
        ("A", "lower case: a"),
        ("-a", "begin and end"),
        ("a" * 33, "32 are"),
        ("a\n", "consist of"),
    ],
)
def test_names_that_are_not_valid_say_why(name: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        valid_name(name)


@given(st.text(max_size=40))
def test_names_are_accepted_unchanged_or_refused(text: str) -> None:
    for accept in (valid_name, iscsi_name):
        outcome = ""
        try:
            outcome = accept(text)
        except ValueError as error:
            outcome = f"refused: {error}"
        assert outcome == text or outcome.startswith("refused: ")


def test_addresses() -> None:
    assert address("10.0.0.1") == IPv4Address("10.0.0.1")
    assert address("fd00::1") == IPv6Address("fd00::1")
    for value, fault in [("10.0.0.1/24", "prefix"), ("node1", "not an IP address"), (167772161, "as text")]:
        with pytest.raises(ValueError, match=fault):
            address(value)


@given(st.integers(min_value=0, max_value=1 << 60))
def test_sizes_come_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "G", "1.5G", "-1", "10 GG", "١٠G", "1" * 30])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
