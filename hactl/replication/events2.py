"""Folds the lines of ``drbdsetup events2 --timestamps --statistics`` into states; pure.

The same syntax comes from DRBD 9 and, through drbd-utils' compatible tool, from DRBD 8.4 (drbdsetup(8)), with
these differences on 8.4: every connection is called ``peer`` and has ``peer-node-id:0``, there are no
``path`` lines, no ``quorum`` and no ``done``, and ``role`` of a resource is the highest of its volumes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

from hactl.errors import Failed
from hactl.replication.state import (
    Connection,
    ConnectionState,
    DiskState,
    PeerVolume,
    ReplicationState,
    ResourceState,
    Role,
    Volume,
)

LEGACY_CONNECTION = "peer"
"""What drbd-utils calls the one connection of a DRBD 8.4 resource."""

_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+[+-]\d\d:\d\d$")
_SUSPENDED = frozenset({"user", "no-data", "fencing", "quorum"})
_RESYNC_SUSPENDED = frozenset({"user", "peer", "dependency"})
_COPYING = frozenset(
    {
        ReplicationState.SYNC_SOURCE,
        ReplicationState.SYNC_TARGET,
        ReplicationState.PAUSED_SYNC_S,
        ReplicationState.PAUSED_SYNC_T,
    }
)
_PROGRESSING = _COPYING | {ReplicationState.VERIFY_S, ReplicationState.VERIFY_T}
_UNSET_SIZE = (1 << 64) // 2 - 1
"""``size:`` when DRBD 8.4 sends no statistics: all ones, halved from sectors to KiB."""

_Word = TypeVar("_Word", bound=StrEnum)


class StreamBrokenError(Exception):
    """Events were lost or contradict each other: forget everything and start a new stream."""


def _unknown(what: str, value: str, line: str) -> Failed:
    return Failed(
        "drbd-unknown-word",
        f"drbdsetup events2 says {what} {value!r}, which this version of hactl does not know, in: {line}",
        "this DRBD is newer than hactl; update hactl",
    )


class _Line:
    """One line, taken apart: action, kind of object, and ``key:value`` words (values may hold colons)."""

    def __init__(self, text: str) -> None:
        self.text = text
        words = text.split()
        if words and _TIMESTAMP.match(words[0]):
            del words[0]
        if len(words) < 2:
            raise _unknown("a line", text, text)
        self.action, self.kind = words[0], words[1]
        self.values = dict(w.split(":", 1) for w in words[2:] if ":" in w)

    def need(self, key: str) -> str:
        value = self.values.get(key)
        if value is None:
            raise Failed("drbd-bad-event", f"drbdsetup events2 gives no {key} in: {self.text}")
        return value

    def number(self, key: str) -> int:
        value = self.need(key)
        if not value.isdigit():
            raise _unknown(key, value, self.text)
        return int(value)

    def word(self, key: str, words: type[_Word], old: _Word) -> _Word:
        value = self.values.get(key)
        if value is None:
            return old
        try:
            return words(value)
        except ValueError:
            raise _unknown(key, value, self.text) from None

    def flags(self, key: str, known: frozenset[str], old: str) -> str:
        value = self.values.get(key)
        if value is None or value == "no":
            return old if value is None else value
        for flag in value.split(","):
            if flag not in known:
                raise _unknown(key, value, self.text)
        return value

    def yes(self, key: str, old: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return old
        if value not in ("yes", "no"):
            raise _unknown(key, value, self.text)
        return value == "yes"


class Events2:
    """The state that a stream of lines describes, so far.

    ``peers`` maps a resource to its peer's node name and is what names the nameless connections of DRBD 8.4;
    a resource it does not hold keeps ``peer``. A new stream needs a new folder.
    """

    def __init__(self, peers: Mapping[str, str] | None = None) -> None:
        self._peers = {} if peers is None else peers
        self._states: dict[str, ResourceState] = {}
        self._complete = False
        self._early: set[tuple[str, ...]] = set()

    @property
    def snapshot(self) -> dict[str, ResourceState] | None:
        """Every resource by name, or None as long as the initial dump is not over."""
        return dict(self._states) if self._complete else None

    def feed(self, line: str) -> dict[str, ResourceState] | None:
        """Take one line; the new snapshot if the state is known and this line changed it, else None.

        Raises :class:`StreamBrokenError` if events were lost, and :class:`hactl.errors.Failed` for a state,
        an action or a kind of object hactl does not know. Unknown keys are skipped, since newer versions add
        some.
        """
        text = line.strip()
        if not text:
            return None
        event = _Line(text)
        if event.action == "-":
            raise StreamBrokenError(f"drbdsetup events2 lost events: {text}")
        if event.kind == "-":
            if event.action != "exists":
                raise _unknown("action", event.action, text)
            self._complete = True
            return self.snapshot
        before = self._states
        self._states = dict(before)
        self._apply(event)
        return self.snapshot if self._states != before else None

    def _apply(self, event: _Line) -> None:
        match event.kind:
            case "resource" | "device" | "connection" | "peer-device":
                pass
            case "path" | "helper":
                # Paths repeat what the connection says, and helpers (call, response) tell of handlers' runs.
                return
            case _:
                raise _unknown("object", event.kind, event.text)
        name = event.need("name")
        match event.action:
            case "destroy":
                self._destroy(event, name)
            case "rename" if event.kind == "resource":
                if name in self._states:
                    new = event.need("new_name")
                    self._states[new] = replace(self._states.pop(name), name=new)
            case "exists" | "create" | "change":
                self._order(event, name)
                self._update(event, name)
            case _:
                raise _unknown("action", event.action, event.text)

    def _order(self, event: _Line, name: str) -> None:
        """A change that overtakes the dump would be undone by the older state that the dump then shows."""
        if self._complete:
            return
        key = (event.kind, name, event.values.get("conn-name", ""), event.values.get("volume", ""))
        if event.action != "exists":
            self._early.add(key)
        elif key in self._early:
            raise StreamBrokenError(f"a change came before the dump of the same object: {event.text}")

    def _peer(self, event: _Line, name: str) -> str:
        # DRBD 8.4 leaves the name out while the connection has no network settings (StandAlone).
        peer = event.values.get("conn-name", LEGACY_CONNECTION)
        return self._peers.get(name, peer) if peer == LEGACY_CONNECTION else peer

    def _legacy(self, event: _Line, name: str) -> bool:
        """DRBD 8.4: a resource has one connection, which is called destroyed when it loses its network
        settings (by drbdadm disconnect, or a split brain), and is StandAlone from then on."""
        return name in self._peers and event.values.get("conn-name", LEGACY_CONNECTION) == LEGACY_CONNECTION

    def _parent(self, event: _Line, name: str) -> ResourceState:
        try:
            return self._states[name]
        except KeyError:
            raise StreamBrokenError(f"an event of a resource that is not known: {event.text}") from None

    def _update(self, event: _Line, name: str) -> None:
        if event.kind == "resource":
            self._states[name] = _resource(event, self._states.get(name) or ResourceState(name, Role.UNKNOWN))
            return
        state = self._parent(event, name)
        if event.kind == "device":
            number = event.number("volume")
            volumes = state.volumes | {number: _volume(event, state.volumes.get(number))}
            self._states[name] = replace(state, volumes=volumes)
            return
        peer = self._peer(event, name)
        old = state.connections.get(peer)
        if event.kind == "connection":
            old = old or Connection(peer, ConnectionState.STANDALONE, Role.UNKNOWN)
            new = replace(
                old,
                state=event.word("connection", ConnectionState, old.state),
                role=event.word("role", Role, old.role),
            )
        else:
            if old is None:
                raise StreamBrokenError(f"an event of a connection that is not known: {event.text}")
            number = event.number("volume")
            device = state.volumes.get(number)
            size = device.size if device else None
            new = replace(
                old, volumes=old.volumes | {number: _peer_volume(event, old.volumes.get(number), size)}
            )
        self._states[name] = replace(state, connections=state.connections | {peer: new})

    def _destroy(self, event: _Line, name: str) -> None:
        state = self._states.get(name)
        if state is None:
            return
        match event.kind:
            case "resource":
                del self._states[name]
            case "device":
                number = event.number("volume")
                connections = {
                    peer: replace(connection, volumes=_without(connection.volumes, number))
                    for peer, connection in state.connections.items()
                }
                self._states[name] = replace(
                    state, volumes=_without(state.volumes, number), connections=connections
                )
            case "connection":
                peer = self._peer(event, name)
                connections = _without(state.connections, peer)
                if self._legacy(event, name) and peer in state.connections:
                    connections[peer] = replace(
                        state.connections[peer], state=ConnectionState.STANDALONE, role=Role.UNKNOWN
                    )
                self._states[name] = replace(state, connections=connections)
            case _:
                peer, number = self._peer(event, name), event.number("volume")
                if peer in state.connections:
                    connection = state.connections[peer]
                    volumes = _without(connection.volumes, number)
                    if self._legacy(event, name) and number in state.volumes:
                        volumes[number] = PeerVolume(ReplicationState.OFF, DiskState.UNKNOWN)
                    connection = replace(connection, volumes=volumes)
                    self._states[name] = replace(state, connections=state.connections | {peer: connection})


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _without(values: dict[_Key, _Value], key: _Key) -> dict[_Key, _Value]:
    return {k: v for k, v in values.items() if k != key}


def _resource(event: _Line, old: ResourceState) -> ResourceState:
    return replace(
        old,
        role=event.word("role", Role, old.role),
        suspended=event.flags("suspended", _SUSPENDED, old.suspended),
    )


def _volume(event: _Line, old: Volume | None) -> Volume:
    old = old or Volume(event.number("minor"), DiskState.DISKLESS)
    size = old.size
    if "size" in event.values:
        kibibytes = event.number("size")
        size = None if kibibytes in (0, _UNSET_SIZE) else kibibytes * 1024
    return replace(
        old,
        disk=event.word("disk", DiskState, old.disk),
        size=size,
        quorum=event.yes("quorum", old.quorum),
    )


def _peer_volume(event: _Line, old: PeerVolume | None, size: int | None) -> PeerVolume:
    old = old or PeerVolume(ReplicationState.OFF, DiskState.UNKNOWN)
    replication = event.word("replication", ReplicationState, old.replication)
    done = old.done if replication in _PROGRESSING else None
    if replication in _PROGRESSING and "done" in event.values:
        done = float(event.need("done"))
    elif replication in _COPYING and "out-of-sync" in event.values and size:
        # DRBD 8.4 leaves the division to the reader; this is what its `drbdsetup status` shows.
        done = round(100 * (1 - event.number("out-of-sync") * 1024 / size), 2)
    return PeerVolume(
        replication=replication,
        disk=event.word("peer-disk", DiskState, old.disk),
        done=done,
        resync_suspended=event.flags("resync-suspended", _RESYNC_SUSPENDED, old.resync_suspended),
    )


def fold(lines: Iterable[str], peers: Mapping[str, str] | None = None) -> dict[str, ResourceState]:
    """The state that a whole dump (``events2 --now``) describes; :class:`StreamBrokenError` if the dump has
    no end."""
    folder = Events2(peers)
    for line in lines:
        folder.feed(line)
    if folder.snapshot is None:
        raise StreamBrokenError("the dump ended before its last line, 'exists -'")
    return folder.snapshot
