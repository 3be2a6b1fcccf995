"""READ FULL STATUS as the state of a unit, and back. Pure.

One answer holds PRgeneration, every registration with its nexus, and the reservation. What it does not say:

- the port of a registration with ALL_TG_PT (SPC-4 6.15.5 leaves the field undefined; LIO sends 0). LIO keeps
  one such registration for each port where the initiator has an ACL: that of the sender's own port has the
  ISID, the others have none. Where the ACLs and what was known before leave more than one way to read it,
  `state_of` raises; the APTPL metadata (`aptpl.state_of`) has all ports.
- whether APTPL was set, which has no meaning with ``force_pr_aptpl``.
- on which registration LIO hangs an all-registrants reservation: all are reported as holders. The APTPL
  metadata says it.
- the rest of `Hidden`; the states made here have none of it.
- a moment: LIO reads PRgeneration, then the kind of reservation, then the registrations one by one, each
  under another lock, so an answer given while a PERSISTENT RESERVE OUT runs may mix two states. What is
  impossible in one state raises `Unknown` ``pr-answer-torn``; a mix that is possible cannot be told from the
  truth.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from hactl.errors import Failed, Unknown
from hactl.pr_sync import aptpl
from hactl.pr_sync.answers import Descriptor, FullStatus, bad_data
from hactl.pr_sync.aptpl import numbered, parse_file
from hactl.pr_sync.commands import Access
from hactl.pr_sync.parameters import MOST_ALLOCATION
from hactl.pr_sync.state import Nexus, Registration, Reservation, State
from hactl.pr_sync.transport_id import IscsiPort

Known = Mapping[Nexus, Registration]

NOTHING_KNOWN: Known = MappingProxyType({})


def state_from_full_status(
    data: bytes,
    access: Access,
    known: Known = NOTHING_KNOWN,
    *,
    allocation: int = MOST_ALLOCATION,
) -> State:
    """The state of a unit from the bytes of one answer. Raises as `FullStatus.decode` and `state_of` do."""
    return state_of(FullStatus.decode(data, allocation), access, known)


def state_of(status: FullStatus, access: Access, known: Known = NOTHING_KNOWN) -> State:
    """The state that these descriptors describe, in their order.

    ``access``: in the kernel's order of ports. ``known``: registrations of which the ports are known, e.g.
    those of the state before or those of the APTPL metadata; only those with ALL_TG_PT count.

    Raises `Unknown`: ``pr-port-unknown`` if the port of a registration cannot be told, ``pr-answer-torn`` if
    the answer mixes two states; `Failed`: ``pr-data`` for what LIO never sends, ``pr-transport-id`` for an
    initiator port that is not of iSCSI.
    """
    initiators = [_port(descriptor) for descriptor in status.descriptors]
    rtpis: dict[int, int] = {}
    spread: dict[str, list[int]] = defaultdict(list)
    for at, descriptor in enumerate(status.descriptors):
        if descriptor.all_tg_pt:
            spread[initiators[at].initiator].append(at)
        elif descriptor.rtpi == 0:
            raise bad_data("a registration is at port 0", descriptor.encode())
        else:
            rtpis[at] = descriptor.rtpi
    for initiator, places in spread.items():
        seen = [(at, initiators[at].isid, status.descriptors[at].key) for at in places]
        allowed = tuple(rtpi for rtpi, names in access.items() if initiator in names)
        rtpis.update(_Spread(initiator, allowed, known).place(seen))
    registrations: dict[Nexus, Registration] = {}
    holders: list[Nexus] = []
    nexuses = (Nexus(port.initiator, port.isid, rtpis[at]) for at, port in enumerate(initiators))
    for nexus, descriptor in numbered(zip(nexuses, status.descriptors, strict=True)):
        registrations[nexus] = Registration(descriptor.key, descriptor.all_tg_pt)
        if descriptor.type is not None:
            holders.append(nexus)
    return State(status.generation, registrations, _reservation(status.descriptors, holders))


def known_ports(state: State, contents: Iterable[str]) -> Known:
    """For `state_of`: what the state before and texts of the APTPL metadata, oldest first, know of ports.

    A text overrides what was known of an initiator's sessions before it. A REGISTER with ALL_TG_PT that is
    new can be placed by the text that the kernel wrote for it, and by nothing else if its initiator has
    several ports. Raises as `parse_file` does.
    """
    known = dict(state.registrations)
    for content in contents:
        newer = aptpl.state_of(parse_file(content.encode()), 0).registrations
        told = {(nexus.initiator, nexus.isid) for nexus, one in newer.items() if one.all_tg_pt}
        known = {
            nexus: one
            for nexus, one in known.items()
            if not one.all_tg_pt or (nexus.initiator, nexus.isid) not in told
        } | dict(newer)
    return known


def full_status_of(state: State) -> FullStatus:
    """What LIO answers in this state."""
    held = state.reservation
    return FullStatus(
        state.generation,
        tuple(
            Descriptor(
                key=registration.key,
                transport_id=IscsiPort(nexus.initiator, nexus.isid),
                rtpi=0 if registration.all_tg_pt else nexus.rtpi,
                all_tg_pt=registration.all_tg_pt,
                type=held.type if held and (held.type.all_registrants or held.holder == nexus) else None,
            )
            for nexus, registration in state.registrations.items()
        ),
    )


def _port(descriptor: Descriptor) -> IscsiPort:
    if isinstance(descriptor.transport_id, IscsiPort):
        return descriptor.transport_id
    raise Failed(
        "pr-transport-id",
        f"an initiator port that is not of iSCSI is registered: {descriptor.transport_id.data[:32].hex()}",
        "take the unit out of the targets of other fabrics",
    )


def _reservation(descriptors: Sequence[Descriptor], holders: Sequence[Nexus]) -> Reservation | None:
    types = {descriptor.type for descriptor in descriptors if descriptor.type is not None}
    if not types:
        return None
    if len(types) > 1:
        raise _torn(f"it shows reservations of the types {', '.join(sorted(one.name for one in types))}")
    (type_,) = types
    if type_.all_registrants:
        if any(descriptor.type is None for descriptor in descriptors):
            raise _torn("not every registration holds an all-registrants reservation")
        return Reservation(type_, None)
    if len(holders) > 1:
        raise _torn(f"{len(holders)} registrations hold a reservation for one")
    return Reservation(type_, holders[0])


class _Spread:
    """Which ALL_TG_PT registration of one initiator is at which port.

    One REGISTER adds one registration at the sender's port, then one without an ISID at each other port where
    the initiator has an ACL, in the kernel's order of ports, and all of them stand together in the list.
    """

    def __init__(self, initiator: str, ports: tuple[int, ...], known: Known) -> None:
        self._initiator = initiator
        self._ports = ports
        self._of_session: dict[str, list[int]] = defaultdict(list)
        self._anonymous: dict[int, list[int]] = defaultdict(list)
        for nexus, registration in known.items():
            if nexus.initiator == initiator and registration.all_tg_pt:
                if nexus.isid:
                    # Whatever its key is by now: a session does not change its port.
                    self._of_session[nexus.isid].append(nexus.rtpi)
                else:
                    self._anonymous[registration.key].append(nexus.rtpi)

    def place(self, seen: Sequence[tuple[int, str, int]]) -> Iterator[tuple[int, int]]:
        """The port of each. ``seen``: place in the list, ISID and key, in the order of the list."""
        count = Counter(key for _, isid, key in seen if not isid)
        # As many as are known with this key: they are the same, in the same order.
        known = {key: iter(rtpis) for key, rtpis in self._anonymous.items() if len(rtpis) == count[key]}
        sessions = Counter(isid for _, isid, _ in seen if isid)
        places = {isid: iter(self._session(isid, number)) for isid, number in sessions.items()}
        group: list[int] = []
        origin: int | None = None
        for at, isid, key in seen:
            if isid:
                yield from self._others(group, origin)
                group, origin = [], next(places[isid])
                yield at, origin
            elif key in known:
                yield at, next(known[key])
            else:
                group.append(at)
        yield from self._others(group, origin)

    def _session(self, isid: str, number: int) -> Sequence[int]:
        """The ports of all that have this ISID. An initiator may use one ISID at several ports."""
        candidates = self._ports if len(self._ports) == 1 else self._of_session[isid]
        if len(set(candidates)) == 1:
            return [candidates[0]] * number
        if len(candidates) != number:
            raise self._unknown(f"with the ISID {isid}")
        return candidates

    def _others(self, group: Sequence[int], origin: int | None) -> Iterator[tuple[int, int]]:
        """Those without an ISID that follow the one at ``origin``, or come first."""
        rtpis = [rtpi for rtpi in self._ports if rtpi != origin]
        if group and len(group) != len(rtpis):
            raise self._unknown("without an ISID")
        yield from zip(group, rtpis, strict=False)

    def _unknown(self, which: str) -> Unknown:
        return Unknown(
            "pr-port-unknown",
            f"the port of a registration of {self._initiator} {which} cannot be told"
            f" ({len(self._ports)} ports have an ACL for it)",
            "read the APTPL metadata of the unit, which names it",
        )


def _torn(reason: str) -> Unknown:
    return Unknown(
        "pr-answer-torn",
        f"READ FULL STATUS mixes two states: {reason}",
        "read it again; a PERSISTENT RESERVE OUT ran meanwhile",
    )
