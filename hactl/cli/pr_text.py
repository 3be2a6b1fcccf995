"""Persistent reservations as documents for ``--json``, and in the standard's words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hactl.model.spec import ClusterSpec
from hactl.pr_sync.clear import is_clearing
from hactl.pr_sync.commands import Command
from hactl.pr_sync.records import Entry, Head
from hactl.pr_sync.state import Action, Nexus, State, Type
from hactl.pr_sync.units import Unit

TYPES = {
    Type.WRITE_EXCLUSIVE: "Write Exclusive",
    Type.EXCLUSIVE_ACCESS: "Exclusive Access",
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: "Write Exclusive - Registrants Only",
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: "Exclusive Access - Registrants Only",
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS: "Write Exclusive - All Registrants",
    Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: "Exclusive Access - All Registrants",
}
"""SPC-4's names of the types (6.15.3.4)."""

_TYPED = (Action.RESERVE, Action.RELEASE, Action.PREEMPT, Action.PREEMPT_AND_ABORT)
_REGISTERS = (Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY)


@dataclass(frozen=True)
class Names:
    """Who is who."""

    hosts: Mapping[str, str]
    nodes: Mapping[int, str]

    @classmethod
    def of(cls, cluster: ClusterSpec, unit: Unit) -> Names:
        """By the configuration."""
        hosts = {initiator: host.name for host in cluster.hosts for initiator in host.initiators}
        return cls(hosts, {port.rtpi: port.node for port in unit.ports})

    def nexus(self, nexus: Nexus) -> dict[str, Any]:
        """An I_T nexus; ``host`` and ``node`` are null if the configuration has none."""
        return {
            "initiator": nexus.initiator,
            "host": self.hosts.get(nexus.initiator),
            "isid": nexus.isid or None,
            "node": self.nodes.get(nexus.rtpi),
            "rtpi": nexus.rtpi,
        }


def volume_document(
    unit: Unit, names: Names, head: Head, entries: Sequence[Entry], nodes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One volume as ``hactl pr show`` has it; ``nodes`` as made by :func:`node_documents`."""
    # The log may have gone on since its head was read.
    origins = made([entry for entry in entries if entry.index <= head.index], unit)
    state = head.state
    return {
        "number": unit.volume,
        "serial": unit.serial,
        "generation": state.generation,
        "index": head.index,
        "registrations": [
            {
                **names.nexus(nexus),
                "key": f"{registration.key:#x}",
                "all_tg_pt": registration.all_tg_pt,
                "made": _origin(origins.get(replace(nexus, copy=0))),
            }
            for nexus, registration in state.registrations.items()
        ],
        "reservation": _reservation(state, names),
        "nodes": list(nodes),
    }


def _origin(entry: Entry | None) -> dict[str, Any] | None:
    return None if entry is None else {"node": entry.node, "at": entry.at, "index": entry.index}


def _reservation(state: State, names: Names) -> dict[str, Any] | None:
    held = state.reservation
    if held is None:
        return None
    holders = [*state.registrations] if held.holder is None else [held.holder]
    return {
        "type": TYPES[held.type],
        "code": int(held.type),
        "holders": [names.nexus(nexus) for nexus in holders],
    }


def node_documents(
    unit: Unit, head: Head, members: Iterable[str], cluster: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """How far each node has applied a unit's log. ``cluster`` is what the agents say, read after ``head``;
    None if this node's agent was not reached.

    ``member``: the store counts on it; ``index`` is null if it does not tell; ``behind``: entries up to
    ``head`` that it has not applied.
    """
    told = {} if cluster is None else {n["node"]: n for n in cluster["nodes"]}
    inside = frozenset(members)
    names = [port.node for port in unit.ports]
    found = []
    for node in [*names, *sorted(inside - {*names})]:
        answer = told.get(node)
        status = answer["status"] if answer is not None and answer["reachable"] else None
        own = None if status is None else _reached(status, unit)
        index = None if own is None else own["index"]
        found.append(
            {
                "node": node,
                "reachable": status is not None,
                "member": node in inside,
                "index": index,
                "generation": None if own is None else own["generation"],
                "behind": None if index is None else max(head.index - index, 0),
                "problem": None if own is None else own["problem"],
            }
        )
    return found


def _reached(status: Mapping[str, Any], unit: Unit) -> Mapping[str, Any] | None:
    for resource in status["resources"]:
        if resource["name"] == unit.resource:
            # An agent of an older version does not tell.
            found: Mapping[str, Any] | None = resource.get("reservations", {}).get(str(unit.volume))
            return found
    return None


def made(entries: Sequence[Entry], unit: Unit) -> dict[Nexus, Entry]:
    """The entry with which each registration came to be, of those that ``entries`` tell of.

    The log keeps its last entries only, and not the state before them: what is older is not in it.
    """
    found: dict[Nexus, Entry] = {}
    keys: dict[Nexus, int] = {}

    def come(nexus: Nexus, key: int, entry: Entry) -> None:
        found.setdefault(nexus, entry)
        keys[nexus] = key

    def go(nexus: Nexus) -> None:
        found.pop(nexus, None)
        keys.pop(nexus, None)

    for entry in entries:
        if entry.commands is None:
            # The state was taken over: nobody knows from which registrations.
            found.clear()
            keys.clear()
        for command in entry.commands or ():
            own, key = command.nexus, command.service_action_key
            match command.action:
                case Action.CLEAR:
                    found.clear()
                    keys.clear()
                case Action.PREEMPT | Action.PREEMPT_AND_ABORT:
                    # With key 0, all others (SPC-4 5.13.11.2.4).
                    for nexus in [n for n, k in keys.items() if n != own and key in (0, k)]:
                        go(nexus)
                case Action.REGISTER_AND_MOVE:
                    assert command.move is not None
                    to = command.move.to
                    come(Nexus(to.initiator, to.isid, command.move.rtpi), key, entry)
                    if command.move.unregister:
                        go(own)
                case _ if command.action in _REGISTERS:
                    ports = [own, *_others(command, unit)]
                    ports += [Nexus(p.initiator, p.isid, _first(unit)) for p in command.spec_i_pt or ()]
                    for nexus in ports:
                        if not key:
                            go(nexus)
                        elif nexus == own or nexus not in found:
                            # A new key is that of this one registration alone (see hactl.pr_sync.model).
                            come(nexus, key, entry)
    return found


def _first(unit: Unit) -> int:
    """The port at which SPEC_I_PT registers; see :mod:`hactl.pr_sync.model`."""
    return next(iter(unit.access))


def _others(command: Command, unit: Unit) -> list[Nexus]:
    """What an ALL_TG_PT registration brings along: on the other ports, and without an ISID."""
    own = command.nexus
    if not command.all_tg_pt:
        return []
    return [Nexus(own.initiator, "", port.rtpi) for port in unit.ports if port.rtpi != own.rtpi]


def entry_document(entry: Entry, names: Names) -> dict[str, Any]:
    """One entry of the log; ``commands`` is null if only the state after it is known."""
    commands = entry.commands
    return {
        "index": entry.index,
        "at": entry.at,
        "node": entry.node,
        "what": entry_words(entry, names),
        "generation": entry.generation,
        "commands": None if commands is None else [command_document(c, names) for c in commands],
    }


def command_document(command: Command, names: Names) -> dict[str, Any]:
    """A PERSISTENT RESERVE OUT; keys in hexadecimal."""
    document: dict[str, Any] = {
        "action": action_words(command.action),
        **names.nexus(command.nexus),
        "key": f"{command.key:#x}",
        "service_action_key": f"{command.service_action_key:#x}",
        "type": type_words(command.type) if command.action in _TYPED else None,
        "all_tg_pt": command.all_tg_pt,
        "spec_i_pt": [{"initiator": p.initiator, "isid": p.isid or None} for p in command.spec_i_pt or ()],
        "to": None,
    }
    if command.move is not None:
        to = Nexus(command.move.to.initiator, command.move.to.isid, command.move.rtpi)
        document["to"] = {**names.nexus(to), "unregister": command.move.unregister}
    return document


def action_words(action: Action) -> str:
    """As SPC-4 writes it."""
    return action.name.replace("_", " ")


def type_words(code: int) -> str:
    """As SPC-4 writes it; the number if it has no such type."""
    return TYPES[Type(code)] if code in [*Type] else f"type {code:#x}"


def entry_words(entry: Entry, names: Names) -> str:
    """What happened, in one line."""
    if entry.commands is None:
        return "state taken over: hosts lost their access, or the commands are not known"
    if is_clearing(entry.commands):
        return f"CLEAR ordered with hactl pr clear on {entry.node}"
    if not entry.commands:
        return "PRgeneration counted up"
    return "; ".join(_command_words(c, names) for c in entry.commands)


def _command_words(command: Command, names: Names) -> str:
    words = [action_words(command.action), "by", who(names.nexus(command.nexus))]
    key, other = f"{command.key:#x}", f"{command.service_action_key:#x}"
    match command.action:
        case Action.REGISTER | Action.REGISTER_AND_IGNORE_EXISTING_KEY:
            words.append(f"key {other}" if command.service_action_key else "(unregisters)")
            words += ["ALL_TG_PT"] if command.all_tg_pt else []
            words += [f"and for {p.initiator}" for p in command.spec_i_pt or ()]
        case Action.PREEMPT | Action.PREEMPT_AND_ABORT:
            words.append(f"key {key}, of key {other}")
        case Action.REGISTER_AND_MOVE:
            assert command.move is not None
            to = Nexus(command.move.to.initiator, command.move.to.isid, command.move.rtpi)
            words.append(f"key {key}, to {who(names.nexus(to))} with key {other}")
            words += ["(unregisters)"] if command.move.unregister else []
        case _:
            words.append(f"key {key}")
    text = " ".join(words)
    return f"{text}, {type_words(command.type)}" if command.action in _TYPED else text


def who(nexus: Mapping[str, Any]) -> str:
    """A nexus for people: ``c1 at n1``, or the initiator's name if it is no host's."""
    name = nexus["host"] or nexus["initiator"]
    return f"{name} at {nexus['node'] or 'port {:#x}'.format(nexus['rtpi'])}"


def when(at: str) -> str:
    """A time of the log (ISO 8601, UTC) to the second."""
    return at[:19].replace("T", " ")
