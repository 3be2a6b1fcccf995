"""The registrations of one unit as LIO keeps them, and what it does to them. Pure but for `Table` itself.

Follows drivers/target/target_core_pr.c of Linux 6.12. LIO keeps registrations in a list, oldest first, and
the reservation is a pointer to one of them, for all-registrants types too.
"""

from __future__ import annotations

from dataclasses import dataclass

from hactl.pr_sync.commands import GENERATIONS, Access
from hactl.pr_sync.state import Hidden, Nexus, Registration, Reservation, State, Type


class KernelUndefined(Exception):
    """LIO goes on to use a registration that it has freed: what happens next nobody can tell."""


@dataclass(eq=False)
class Record:
    """One registration in the kernel's list. Compared by identity, as the kernel does."""

    initiator: str
    isid: str
    rtpi: int
    key: int
    all_tg_pt: bool
    scope_left: bool = False
    nexus: Nexus | None = None
    registration: Registration | None = None
    """As it came from a state, to be used again if it is still the same: there may be many, unchanged."""


class Table:
    """A `State` opened up for change."""

    def __init__(self, state: State, access: Access) -> None:
        self.access = access
        self.generation = state.generation
        self.records: list[Record] = []
        self.holder: Record | None = None
        self.type = Type.WRITE_EXCLUSIVE if state.reservation is None else state.reservation.type
        self._ignored = set(state.hidden.ignored)
        by_nexus: dict[Nexus, Record] = {}
        for nexus, registration in state.registrations.items():
            record = Record(
                nexus.initiator,
                nexus.isid,
                nexus.rtpi,
                registration.key,
                registration.all_tg_pt,
                nexus in state.hidden.scope_left,
                nexus,
                registration,
            )
            by_nexus[nexus] = record
            self.records.append(record)
        if state.reservation is not None:
            holder = state.reservation.holder or state.hidden.anchor
            if holder is not None:
                self.holder = by_nexus[holder]
            elif self.records:
                self.holder = self.records[0]
            else:
                raise ValueError(f"{state.reservation} without registrations")

    def state(self) -> State:
        """What has become of it."""
        registrations: dict[Nexus, Registration] = {}
        scope_left: set[Nexus] = set()
        at: Nexus | None = None
        seen: dict[tuple[str, str, int], int] = {}
        for record in self.records:
            port = (record.initiator, record.isid, record.rtpi)
            copy = seen[port] = seen.get(port, -1) + 1
            nexus = record.nexus
            if nexus is None or nexus.copy != copy:
                nexus = Nexus(*port, copy)
            registration = record.registration
            if registration is None or registration.key != record.key:
                registration = Registration(record.key, record.all_tg_pt)
            registrations[nexus] = registration
            if record.scope_left:
                scope_left.add(nexus)
            if record is self.holder:
                at = nexus
        if self.holder is None:
            reservation = None
        else:
            if at is None:
                raise KernelUndefined("the reservation hangs on a registration that is no more")
            reservation = Reservation(self.type, None if self.type.all_registrants else at)
        anchor = at if self.holder is not None and self.type.all_registrants else None
        hidden = Hidden(anchor, frozenset(self._ignored), frozenset(scope_left))
        return State(self.generation, registrations, reservation, hidden)

    def locate(self, initiator: str, isid: str, rtpi: int) -> Record | None:
        """The registration that LIO takes for that of a nexus; ``isid`` empty for a TransportID without.

        LIO: the first of the ACL that has no ISID or the same ISID. So one made without ISID, on the other
        ports of an ALL_TG_PT registration, is that of every session of the initiator there.
        """
        for record in self.records:
            if (
                record.initiator == initiator
                and record.rtpi == rtpi
                and (not record.isid or record.isid == isid)
            ):
                return record
        return None

    def of(self, nexus: Nexus) -> Record | None:
        """The registration of a session."""
        return self.locate(nexus.initiator, nexus.isid, nexus.rtpi)

    def mapped(self, initiator: str, rtpi: int) -> bool:
        """Whether the initiator has the unit on that port."""
        return initiator in self.access.get(rtpi, ())

    def count(self) -> None:
        """PRgeneration (SPC-4 6.15.2)."""
        self.generation = (self.generation + 1) % GENERATIONS

    def add(self, record: Record) -> None:
        """Append a registration; counts PRgeneration.

        LIO: counts every registration it adds, not every command as SPC-4 6.15.2 has it.
        """
        self.count()
        self.records.append(record)
        self._ignored.discard((record.initiator, record.rtpi))

    def remove(self, record: Record) -> None:
        """Take a registration off the list.

        LIO: with it goes the flag that says the initiator is registered on that port, also if it is still
        registered there with another ISID. The flag comes back with the next registration there.
        """
        self.records.remove(record)
        acl = (record.initiator, record.rtpi)
        if any((other.initiator, other.rtpi) == acl for other in self.records):
            self._ignored.add(acl)
        else:
            self._ignored.discard(acl)

    def reserve(self, record: Record, type_: Type) -> None:
        """Establish a reservation; whatever was there is released."""
        self.release()
        self.holder, self.type = record, type_
        record.scope_left = False

    def release(self) -> None:
        """Drop the reservation, if any, and keep the registrations."""
        if self.holder is not None:
            self.holder.scope_left = False
        self.holder = None

    def holds(self, record: Record) -> bool:
        """Whether a registration holds the reservation (SPC-4 5.13.10)."""
        return self.holder is not None and (self.holder is record or self.type.all_registrants)

    def counts_as_holder(self, nexus: Nexus) -> bool:
        """Whether LIO lets all commands of a session pass the reservation without a second look.

        LIO: for all-registrants types too that is only the one registration that the reservation hangs on.
        """
        holder = self.holder
        return (
            holder is not None
            and (holder.initiator, holder.rtpi) == (nexus.initiator, nexus.rtpi)
            and (not holder.isid or holder.isid == nexus.isid)
        )

    def counts_as_registered(self, nexus: Nexus) -> bool:
        """Whether LIO takes a session that does not hold the reservation for registered.

        LIO: asks a flag of the ACL, so a session whose initiator is registered on that port with another ISID
        counts as registered; but if the holder is that initiator on that port with another ISID, no other
        session of it does, registered or not.
        """
        acl = (nexus.initiator, nexus.rtpi)
        if self.holder is not None and (self.holder.initiator, self.holder.rtpi) == acl:
            return self.counts_as_holder(nexus)
        return acl not in self._ignored and any(
            (record.initiator, record.rtpi) == acl for record in self.records
        )

    def elsewhere(self, record: Record) -> list[Record]:
        """The registrations that ALL_TG_PT adds to one, on the initiator's other ports (SPC-4 6.16.3).

        LIO: they have no ISID, and are made whether or not the initiator is registered there.
        """
        return [
            Record(record.initiator, "", rtpi, record.key, all_tg_pt=True)
            for rtpi, initiators in self.access.items()
            if rtpi != record.rtpi and record.initiator in initiators
        ]

    def unregister(self, record: Record, *, key: int) -> bool:
        """Remove a registration on its own demand (SPC-4 5.13.11.2.3). False: refused with a conflict.

        ``key``: as LIO compares it for ALL_TG_PT, so zero with REGISTER AND IGNORE EXISTING KEY.
        """
        if self.holder is record:
            # SPC-4 5.13.11.2.1, table 71: the reservation is released with its holder's registration; one of
            # an all-registrants type stays while anybody is registered. LIO: hands it to the oldest.
            self.release()
            self.remove(record)
            if self.type.all_registrants and self.records:
                self.reserve(self.records[0], self.type)
        elif (
            record.all_tg_pt
            and self.holder is not None
            and self.holder.initiator == record.initiator
            and self.holder.key == record.key
        ):
            # LIO: does not look whether it is the same initiator's ALL_TG_PT registration. SPC-4 knows no
            # such conflict.
            return False
        else:
            self.remove(record)
        if record.all_tg_pt:
            # LIO: takes along every ALL_TG_PT registration of the same name and key, other ISIDs included.
            for other in [*self.records]:
                if other.all_tg_pt and other.key == key and other.initiator == record.initiator:
                    if other is self.holder:
                        raise KernelUndefined("ALL_TG_PT unregistration frees the next anchor")
                    self.remove(other)
        return True
