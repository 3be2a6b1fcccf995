"""What is to be changed in Pacemaker's configuration, so that it holds what it shall. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from hactl.errors import Failed
from hactl.pacemaker.elements import KEPT, configuration, ids, own, parse, same, text
from hactl.pacemaker.protocol import Change
from hactl.pacemaker.wanted import Wanted

_MOVED = ("cli-prefer-", "cli-ban-")
"""What the ids of crm_resource(8)'s own constraints begin with, which ``--clear`` takes away."""


@dataclass(frozen=True)
class Difference:
    """``change``: what is to be committed. ``words``: the same in words, one line each. ``clear``: clones
    that go, and whose leftovers of ``crm resource move`` are to be cleared first. ``awake``: clones whose
    maintenance ends, which Pacemaker has to look at anew before. ``problems``: what hinders, in words; an
    object that is in use by somebody else's stays."""

    change: Change
    words: tuple[str, ...] = ()
    clear: tuple[str, ...] = ()
    awake: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def difference(present: str, wanted: Wanted) -> Difference:
    """What makes the configuration ``present`` (XML) hold the ``wanted`` objects of hactl's and no other.

    Objects that are not hactl's are left alone. :class:`hactl.errors.Failed` ``pacemaker-output`` if
    ``present`` is no configuration.
    """
    config = configuration(parse(present, "Pacemaker's configuration"))
    here = {node.attrib["id"]: node for _, node in own(config)}
    # What is removed first, in the order in which nothing is left that refers to what is gone.
    surplus = [name for name in reversed(here) if name not in wanted]
    users = {name: tuple(_users(config, here[name], set(here))) for name in surplus}
    stay = {name for name in surplus if any(not _from_move(user) for user in users[name])}
    # What one that stays refers to stays as well.
    for name in surplus:
        if name not in stay and any(_refers(here[user], ids(here[name])) for user in stay):
            stay.add(name)
    put = []
    words = []
    awake = []
    for name, (section, node) in wanted.items():
        old = here.get(name)
        new = node if old is None else _with_kept(old, node)
        if old is not None and same(old, new):
            continue
        put.append((section, text(new)))
        words.append(f"{'add' if old is None else 'change'} {name}")
        if old is not None and _maintained(old) and not _maintained(new):
            awake.append(name)
    gone = [name for name in surplus if name not in stay]
    return Difference(
        Change(tuple(put), tuple(gone)),
        (*words, *(f"remove {name}" for name in gone)),
        tuple(name for name in gone if users[name]),
        tuple(awake),
        (*_held(users, stay), *_overruled(config, wanted)),
    )


def edit(cib: str, change: Change) -> str:
    """A CIB, or its ``configuration`` alone, with the change made. :class:`hactl.errors.Failed`
    ``pacemaker-refused`` if an object is in another section, or in another object."""
    root = parse(cib, "the CIB")
    config = configuration(root)
    for name in change.remove:
        for part in config:
            for node in [n for n in part if n.get("id") == name]:
                part.remove(node)
    for section_name, xml in change.put:
        new = parse(xml, "an object of hactl's")
        found = config.find(section_name)
        section = SubElement(config, section_name) if found is None else found
        old = next((n for n in section if n.get("id") == new.attrib["id"]), None)
        if old is None:
            section.append(new)
        else:
            section.insert(list(section).index(old), new)
            section.remove(old)
    twice = _first_twice(config)
    if twice is not None:
        raise Failed(
            "pacemaker-refused",
            f"the id {twice} is taken in Pacemaker's configuration by an object that is not hactl's",
            f"see: crm configure show; rename or remove {twice}",
        )
    return text(root)


def _users(config: Element, node: Element, ours: set[str]) -> Iterator[str]:
    """Ids of foreign objects, in every section, that refer to ``node`` or something in it."""
    targets = ids(node)
    for section in config:
        for other in section:
            name = other.get("id", other.tag)
            if name not in ours and _refers(other, targets):
                yield name


def _refers(node: Element, targets: frozenset[str]) -> bool:
    # What refers does so by an attribute: rsc, first, with-rsc, id-ref, devices (a list), or the id of a
    # resource_ref or obj_ref.
    return any(
        word in targets
        for inner in node.iter()
        for value in inner.attrib.values()
        for word in value.split(",")
    )


def _from_move(name: str) -> bool:
    return name.startswith(_MOVED)


def _with_kept(old: Element, new: Element) -> Element:
    """``new`` with the meta attributes of ``old`` that are the operator's."""
    made = copy.deepcopy(new)
    inner = {node.attrib["id"]: node for node in made.iter() if node.tag in ("clone", "primitive")}
    for owner in old.iter():
        if owner.get("id") not in inner:
            continue
        target = inner[owner.attrib["id"]]
        for values in owner.findall("meta_attributes"):
            for pair in values.findall("nvpair"):
                if pair.get("name") in KEPT:
                    _meta(target, values.get("id", f"{target.attrib['id']}-meta_attributes")).append(
                        copy.deepcopy(pair)
                    )
    return made


def _meta(owner: Element, name: str) -> Element:
    found = next((n for n in owner.findall("meta_attributes") if n.get("id") == name), None)
    return SubElement(owner, "meta_attributes", {"id": name}) if found is None else found


def _maintained(clone: Element) -> bool:
    pairs = clone.findall("meta_attributes/nvpair")
    return any(p.get("name") == "maintenance" and p.get("value") == "true" for p in pairs)


def _held(users: dict[str, tuple[str, ...]], stay: set[str]) -> Iterator[str]:
    for name in sorted(stay):
        if others := [user for user in users[name] if not _from_move(user)]:
            yield f"{name} is not wanted any more, but {', '.join(others)} refers to it: remove that first"


def _overruled(config: Element, wanted: Wanted) -> Iterator[str]:
    """Cluster properties that the operator has set otherwise, in the set that comes first."""
    first = config.find("crm_config/cluster_property_set[@id='cib-bootstrap-options']")
    if first is None:
        return
    set_there = {p.get("name"): p.get("value") for p in first.findall("nvpair")}
    for section, node in wanted.values():
        for pair in node.findall("nvpair") if section == "crm_config" else ():
            name, value = pair.attrib["name"], pair.attrib["value"]
            if set_there.get(name, value) != value:
                yield (
                    f"{name} is {set_there[name]} by cib-bootstrap-options, where hactl wants {value}: "
                    f"crm_attribute --name {name} --set-name cib-bootstrap-options --delete"
                )


def _first_twice(config: Element) -> str | None:
    seen: set[str] = set()
    for node in config.iter():
        name = node.get("id")
        # Of these, the id is that of what they refer to.
        if name is None or node.tag in ("resource_ref", "obj_ref", "role"):
            continue
        if name in seen:
            return name
        seen.add(name)
    return None
