"""What Pacemaker says of the cluster: ``crm_mon --output-as=xml`` as a :class:`State`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from xml.etree.ElementTree import Element

from hactl.errors import Failed
from hactl.pacemaker.elements import parse
from hactl.pacemaker.protocol import Fencing, Instance, Member, State

ARGUMENTS = ("--one-shot", "--output-as=xml", "--inactive", "--fence-history=2")
"""What crm_mon(8) has to be called with. Fencing history 2: what succeeded is in it, too."""

_ROLES = {"Master": "Promoted", "Slave": "Unpromoted"}
"""Names of roles in Pacemaker 2.0, which 2.1 can be built to go on using."""


def read(xml: str) -> State:
    """The state; :class:`hactl.errors.Failed` ``pacemaker-output`` if it is not crm_mon's XML."""
    root = parse(xml, "what crm_mon says")
    summary, nodes = root.find("summary"), root.find("nodes")
    if summary is None or nodes is None:
        raise _strange("no summary and no nodes in it")
    dc = summary.find("current_dc")
    options = summary.find("cluster_options")
    return State(
        dc=None if dc is None or not _true(dc, "present") else dc.get("name"),
        quorum=dc is not None and _true(dc, "with_quorum"),
        members=tuple(_member(node) for node in nodes.findall("node")),
        instances=tuple(_instances(root)),
        fencing=tuple(_fencing(node) for node in root.findall("fence_history/fence_event")),
        failures=tuple(_failure(node) for node in root.findall("failures/failure")),
        maintenance=options is not None and _true(options, "maintenance-mode"),
        stonith_enabled=options is None or _true(options, "stonith-enabled", "true"),
    )


def _member(node: Element) -> Member:
    return Member(
        _text(node, "name"),
        online=_true(node, "online"),
        clean=not _true(node, "unclean"),
        standby=_true(node, "standby"),
        maintenance=_true(node, "maintenance"),
        pending=_true(node, "pending"),
    )


def _instances(root: Element) -> Iterator[Instance]:
    resources = root.find("resources")
    for node in () if resources is None else resources.iter("resource"):
        role = _text(node, "role")
        at: list[str | None] = [n.get("name") for n in node.findall("node")]
        for name in at or [None]:
            yield Instance(
                # Instances of clones whose instances differ have a number.
                _text(node, "id").partition(":")[0],
                name,
                _ROLES.get(role, role),
                failed=_true(node, "failed"),
                blocked=_true(node, "blocked"),
                managed=_true(node, "managed"),
            )


def _fencing(node: Element) -> Fencing:
    completed = node.get("completed")
    return Fencing(
        _text(node, "target"),
        _text(node, "action"),
        _text(node, "status"),
        node.get("delegate"),
        None if completed is None else _seconds(completed),
    )


def _failure(node: Element) -> str:
    what = node.get("op_key", "an action")
    reason = node.get("exitreason") or node.get("exitstatus", "no reason given")
    return f"{what} on {node.get('node', 'a node')}: {reason}"


def _seconds(written: str) -> float:
    # "2026-11-23 16:02:08.123456Z", in older releases without a fraction; the zone may stand apart.
    date, _, time = written.replace("Z", "+00:00").partition(" ")
    for form in ("%Y-%m-%d %H:%M:%S.%f%z", "%Y-%m-%d %H:%M:%S%z"):
        try:
            return datetime.strptime(f"{date} {time.replace(' ', '')}", form).timestamp()
        except ValueError:
            continue
    raise _strange(f"a time is {written!r}")


def _text(node: Element, name: str) -> str:
    value = node.get(name)
    if value is None:
        raise _strange(f"a {node.tag} without {name}")
    return value


def _true(node: Element, name: str, default: str = "false") -> bool:
    value = node.get(name, default)
    if value not in ("true", "false"):
        raise _strange(f"{name} is {value!r}")
    return value == "true"


def _strange(what: str) -> Failed:
    return Failed(
        "pacemaker-output",
        f"what crm_mon says is not understood: {what}",
        "see crm_mon --one-shot --output-as=xml",
    )
