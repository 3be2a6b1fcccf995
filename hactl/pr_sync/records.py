"""PR states and commands as the JSON values of the log; keys in hexadecimal, as tools show them. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hactl.errors import Refused
from hactl.pr_sync.commands import Command, InitiatorPort, Move
from hactl.pr_sync.state import Action, Hidden, Nexus, Registration, Reservation, State, Type

SCHEMA = 1
"""The newest schema this version reads, and the one it writes."""


@dataclass(frozen=True)
class Entry:
    """One step of the log. ``commands`` lead from the state before to the one after; None if nobody could
    tell which did (then the state alone counts). ``id`` is random, made by the writer; ``at`` is ISO 8601;
    ``revision`` is the store's."""

    index: int
    id: str
    node: str
    at: str
    generation: int
    commands: tuple[Command, ...] | None
    revision: int = 0


@dataclass(frozen=True)
class Head:
    """The end of the log: the unit's state after entry ``index``, which was written with ``id``. ``revision``
    of the store, 0 if nothing was ever logged."""

    index: int = 0
    id: str = ""
    state: State = field(default_factory=State)
    revision: int = 0


def encode_head(head: Head) -> bytes:
    """Without the revision, which the store keeps."""
    return _encode({"index": head.index, "id": head.id, "state": state_value(head.state)})


def decode_head(key: str, data: bytes, revision: int) -> Head:
    """:class:`Refused` ``schema-newer`` or ``record-damaged``, naming ``key``."""
    value = _decode(key, data)
    try:
        return Head(value["index"], value["id"], _state(value["state"]), revision)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(key, error) from None


def encode_entry(entry: Entry) -> bytes:
    """As the log keeps it."""
    commands = None if entry.commands is None else [command_value(c) for c in entry.commands]
    return _encode(
        {
            "index": entry.index,
            "id": entry.id,
            "node": entry.node,
            "at": entry.at,
            "generation": entry.generation,
            "commands": commands,
        }
    )


def decode_entry(key: str, data: bytes, revision: int) -> Entry:
    """:class:`Refused` ``schema-newer`` or ``record-damaged``, naming ``key``."""
    value = _decode(key, data)
    try:
        given = value["commands"]
        commands = None if given is None else tuple(_command(c) for c in given)
        return Entry(
            value["index"], value["id"], value["node"], value["at"], value["generation"], commands, revision
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(key, error) from None


def state_value(state: State) -> dict[str, Any]:
    """A state as plain values."""
    value: dict[str, Any] = {
        "generation": state.generation,
        "registrations": [
            {**_nexus_value(n), "key": f"{r.key:#x}", **({"all_tg_pt": True} if r.all_tg_pt else {})}
            for n, r in state.registrations.items()
        ],
    }
    held, hidden = state.reservation, state.hidden
    if held is not None:
        holder = None if held.holder is None else _nexus_value(held.holder)
        value["reservation"] = {"type": int(held.type), "holder": holder}
    if hidden != Hidden():
        value["hidden"] = {
            "anchor": None if hidden.anchor is None else _nexus_value(hidden.anchor),
            "ignored": sorted([name, rtpi] for name, rtpi in hidden.ignored),
            "scope_left": [_nexus_value(n) for n in sorted(hidden.scope_left)],
        }
    return value


def _state(value: dict[str, Any]) -> State:
    held, hidden = value.get("reservation"), value.get("hidden")
    return State(
        value["generation"],
        {
            _nexus(r): Registration(int(r["key"], 16), r.get("all_tg_pt", False))
            for r in value["registrations"]
        },
        None if held is None else Reservation(Type(held["type"]), _maybe_nexus(held["holder"])),
        Hidden()
        if hidden is None
        else Hidden(
            _maybe_nexus(hidden["anchor"]),
            frozenset((str(name), int(rtpi)) for name, rtpi in hidden["ignored"]),
            frozenset(_nexus(n) for n in hidden["scope_left"]),
        ),
    )


def _registration(value: dict[str, Any]) -> Registration:
    return Registration(int(value["key"], 16), value.get("all_tg_pt", False))


def command_value(command: Command) -> dict[str, Any]:
    """A command as plain values; what is as by default is left out."""
    value: dict[str, Any] = {**_nexus_value(command.nexus), "action": command.action.name}
    for name in ("key", "service_action_key"):
        if number := getattr(command, name):
            value[name] = f"{number:#x}"
    for name in ("type", "scope", "all_tg_pt", "aptpl"):
        if given := getattr(command, name):
            value[name] = given
    if command.spec_i_pt is not None:
        value["spec_i_pt"] = [{"initiator": p.initiator, "isid": p.isid} for p in command.spec_i_pt]
    if command.move is not None:
        to = command.move.to
        value["move"] = {
            "initiator": to.initiator,
            "isid": to.isid,
            "rtpi": command.move.rtpi,
            "unregister": command.move.unregister,
        }
    return value


def _command(value: dict[str, Any]) -> Command:
    move = value.get("move")
    return Command(
        nexus=_nexus(value),
        action=Action[value["action"]],
        key=int(value.get("key", "0"), 16),
        service_action_key=int(value.get("service_action_key", "0"), 16),
        type=value.get("type", 0),
        scope=value.get("scope", 0),
        all_tg_pt=value.get("all_tg_pt", False),
        aptpl=value.get("aptpl", False),
        spec_i_pt=None
        if value.get("spec_i_pt") is None
        else tuple(InitiatorPort(p["initiator"], p["isid"]) for p in value["spec_i_pt"]),
        move=None
        if move is None
        else Move(InitiatorPort(move["initiator"], move["isid"]), move["rtpi"], move["unregister"]),
    )


def _nexus_value(nexus: Nexus) -> dict[str, Any]:
    value = {"initiator": nexus.initiator, "isid": nexus.isid, "rtpi": nexus.rtpi}
    return {**value, "copy": nexus.copy} if nexus.copy else value


def _nexus(value: dict[str, Any]) -> Nexus:
    return Nexus(str(value["initiator"]), str(value["isid"]), int(value["rtpi"]), int(value.get("copy", 0)))


def _maybe_nexus(value: dict[str, Any] | None) -> Nexus | None:
    return None if value is None else _nexus(value)


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps({"schema": SCHEMA, **value}, separators=(",", ":")).encode()


def _decode(key: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
        schema = value["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(key, error) from None
    if not isinstance(value, dict) or not isinstance(schema, int):
        raise _damaged(key, TypeError("not an object with a schema"))
    if schema > SCHEMA:
        raise Refused(
            "schema-newer",
            f"{key} is of schema {schema}; this version reads up to {SCHEMA}",
            "a newer hactl wrote it: bring this node to the same version",
        )
    return value


def _damaged(key: str, error: Exception) -> Refused:
    return Refused(
        "record-damaged",
        f"{key} in the store cannot be read: {type(error).__name__}: {str(error)[:100]}",
        "hactl did not write it like this: restore the store from a backup, or clear the reservations",
    )
