"""XML of a CIB's configuration: reading it, comparing it, and putting it together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree as ET

from hactl.errors import Failed

PREFIX = "hactl-"
"""What the ids of hactl's objects begin with; nothing else is ever written."""

SECTIONS = ("crm_config", "resources", "constraints")
"""The parts of a configuration that hactl has objects in, in the order of the schema."""

KEPT = frozenset({"target-role", "is-managed"})
"""Meta attributes that are the operator's (``crm resource stop``, ``unmanage``), and stay as they are."""


def parse(text: str, what: str) -> ET.Element:
    """The root of an XML document. :class:`Failed` ``pacemaker-output`` if it is none; ``what`` it should
    be."""
    try:
        return ET.fromstring(text)  # noqa: S314 - Pacemaker's own output, which only root can have a say in
    except ET.ParseError as error:
        raise Failed(
            "pacemaker-output", f"{what} cannot be read: {error}", "see journalctl --unit=pacemaker"
        ) from None


def element(tag: str, *children: ET.Element, **attributes: str) -> ET.Element:
    """One element. Names that Python has no way to write have ``_`` in the place of ``-``, as in
    ``with_rsc``; ``class_`` is ``class``."""
    made = ET.Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    made.extend(children)
    return made


def nvset(tag: str, owner: str, values: Mapping[str, str]) -> ET.Element:
    """A set of names and values that belongs to the object ``owner``, with the ids that Pacemaker's tools
    would give it: what they add later goes into the same set."""
    base = f"{owner}-{tag}"
    pairs = (element("nvpair", id=f"{base}-{name}", name=name, value=value) for name, value in values.items())
    return element(tag, *pairs, id=base)


def text(node: ET.Element) -> str:
    """The element as XML on one line."""
    return ET.tostring(node, encoding="unicode").strip()


def same(one: ET.Element, other: ET.Element) -> bool:
    """Whether both mean the same: the order of attributes and of children, and white space, say nothing."""
    return _shape(one) == _shape(other)


def configuration(root: ET.Element) -> ET.Element:
    """The ``configuration`` element of a CIB, or of itself."""
    found = root if root.tag == "configuration" else root.find("configuration")
    if found is None:
        raise Failed(
            "pacemaker-output", "a CIB without a configuration", "see cibadmin --query; crm configure show"
        )
    return found


def own(config: ET.Element) -> Iterator[tuple[str, ET.Element]]:
    """hactl's objects in a configuration, each with the section that it is in."""
    for section in SECTIONS:
        for node in config.findall(f"{section}/*"):
            if node.get("id", "").startswith(PREFIX):
                yield section, node


def ids(node: ET.Element) -> frozenset[str]:
    """The element's id and those of everything in it."""
    return frozenset(inner.attrib["id"] for inner in node.iter() if "id" in inner.attrib)


def _shape(node: ET.Element) -> tuple[object, ...]:
    children = sorted((_shape(child) for child in node), key=repr)
    return node.tag, tuple(sorted(node.attrib.items())), (node.text or "").strip(), tuple(children)
