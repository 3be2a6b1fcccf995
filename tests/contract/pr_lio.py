"""One unit of the real LIO behind three target ports, with a session on every nexus that a test speaks on.

The ports' RTPIs do not ascend in the order in which the unit is linked, and the unit has another number in
the portal groups than in the initiators' view, so that nothing fits by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hactl.errors import HactlError
from hactl.pr_sync.aptpl import Places, Record, TargetPort, import_lines
from hactl.pr_sync.commands import Access, Command, Outcome, Status
from hactl.pr_sync.initiator import scsi
from hactl.pr_sync.initiator.connect import open_session
from hactl.pr_sync.initiator.scsi import PrIn
from hactl.pr_sync.initiator.session import Result, Session
from hactl.pr_sync.parameters import encode_command
from hactl.pr_sync.state import Nexus, State
from hactl.target.configfs import RealConfigFs
from tests.contract.conftest import IQN

A, B, C, D, E, WATCHER = (f"iqn.2026-11.org.example:{name}" for name in ("a", "b", "c", "d", "e", "watcher"))
ISIDS = ("00023d000001", "80aabbccddee")
RTPIS = {1: 4303, 2: 4301, 3: 4302}
"""By portal group tag, in the order in which the unit is linked."""

ACLS: Mapping[int, tuple[str, ...]] = {1: (A, B, C, D, WATCHER), 2: (A, B, C, D, E), 3: (A, B, C, D, E)}
ACCESS: Access = {
    RTPIS[1]: frozenset((A, B, C, D, WATCHER)),
    RTPIS[2]: frozenset((A, B, C, D, E)),
    # D may log in here, but has no unit.
    RTPIS[3]: frozenset((A, B, C, E)),
}
WATCHING = Nexus(WATCHER, ISIDS[0], RTPIS[1])
NEXUSES = tuple(
    Nexus(initiator, isid, RTPIS[tag])
    for tag, initiators in ACLS.items()
    for initiator in initiators
    if initiator != WATCHER
    for isid in (ISIDS if initiator in (A, B) else ISIDS[:1])
)
_HBA = "core/rd_mcp_4300"
_LASTING_HBA = "core/rd_mcp_4301"
_PATIENCE = 30.0


class Target:
    """Three portal groups without units."""

    def __init__(self, fs: RealConfigFs, target: str, base: int) -> None:
        self.fs = fs
        self.target = target
        self.path = f"iscsi/{target}"
        self.rtpis = RTPIS
        self._portals = {tag: f"127.0.0.1:{base + tag}" for tag in RTPIS}
        self.sessions: dict[Nexus, Session] = {}

    def make(self) -> None:
        self.fs.mkdir(self.path)
        for tag, rtpi in RTPIS.items():
            tpg = f"{self.path}/tpgt_{tag}"
            self.fs.mkdir(tpg)
            self.fs.mkdir(f"{tpg}/np/{self._portals[tag]}")
            self.fs.write(f"{tpg}/attrib/authentication", "0")
            for initiator in ACLS[tag]:
                self.fs.mkdir(f"{tpg}/acls/{initiator}")
            self.fs.write(f"{tpg}/rtpi", str(rtpi))
            self.fs.write(f"{tpg}/enable", "1")

    def deafen(self) -> None:
        """End sessions, and free the TCP ports and the RTPIs."""
        for tag in RTPIS:
            tpg = f"{self.path}/tpgt_{tag}"
            # One that is disabled already may refuse; whether it was shows in what follows.
            with contextlib.suppress(HactlError):
                self.fs.write(f"{tpg}/enable", "0")
            for portal in self.fs.listdir(f"{tpg}/np"):
                self.fs.rmdir(f"{tpg}/np/{portal}")

    def remove(self) -> None:
        """Deaf, and without units by now."""
        for tag in RTPIS:
            tpg = f"{self.path}/tpgt_{tag}"
            for initiator in self.fs.listdir(f"{tpg}/acls"):
                self.fs.rmdir(f"{tpg}/acls/{initiator}")
            self.fs.rmdir(tpg)
        self.fs.rmdir(self.path)

    @asynccontextmanager
    async def logged_in(self) -> AsyncIterator[None]:
        """A session on every nexus."""
        tags = {rtpi: tag for tag, rtpi in RTPIS.items()}
        async with AsyncExitStack() as stack:
            for nexus in (*NEXUSES, WATCHING):
                self.sessions[nexus] = await stack.enter_async_context(
                    open_session(
                        self._portals[tags[nexus.rtpi]],
                        self.target,
                        nexus.initiator,
                        nexus.isid,
                        timeout=_PATIENCE,
                    )
                )
            yield
        self.sessions.clear()


@dataclass
class LioUnit:
    """A RAM disk in the target. ``lun``: in the portal groups; ``mapped``: as initiators have it."""

    target: Target
    hba: str
    name: str
    lun: int
    mapped: int

    @property
    def places(self) -> Places:
        """Where configfs has the ports and the mapped LUNs."""
        return Places(
            {rtpi: TargetPort(self.target.target, tag, self.lun) for tag, rtpi in RTPIS.items()},
            {(initiator, rtpi): self.mapped for rtpi, names in ACCESS.items() for initiator in names},
        )

    @property
    def mappings(self) -> list[tuple[str, int]]:
        """Initiator and RTPI of the mapped LUNs, in the order in which they are made."""
        return [(i, rtpi) for tag, rtpi in RTPIS.items() for i in ACLS[tag] if i in ACCESS[rtpi]]

    def make(self, state: State | None = None) -> None:
        """``state``: imported before anything exports the unit."""
        fs, store = self.target.fs, f"{self.hba}/{self.name}"
        fs.mkdir(store)
        fs.write(f"{store}/control", "rd_pages=8")
        fs.write(f"{store}/enable", "1")
        fs.write(f"{store}/wwn/vpd_unit_serial", self.name)
        for attribute in ("force_pr_aptpl", "emulate_pr", "enforce_pr_isids"):
            fs.write(f"{store}/attrib/{attribute}", "1")
        for line in () if state is None else import_lines(state, self.places):
            fs.write(f"{store}/pr/res_aptpl_metadata", line)
        for tag in RTPIS:
            lun = f"{self.target.path}/tpgt_{tag}/lun/lun_{self.lun}"
            fs.mkdir(lun)
            fs.symlink(store, f"{lun}/unit")
        tags = {rtpi: tag for tag, rtpi in RTPIS.items()}
        for initiator, rtpi in self.mappings:
            tpg = f"{self.target.path}/tpgt_{tags[rtpi]}"
            mapped = f"{tpg}/acls/{initiator}/lun_{self.mapped}"
            fs.mkdir(mapped)
            fs.symlink(f"{tpg}/lun/lun_{self.lun}", f"{mapped}/unit")

    def remove(self) -> None:
        """In whatever state its making was left."""
        fs = self.target.fs
        for tag in RTPIS:
            tpg = f"{self.target.path}/tpgt_{tag}"
            if not fs.exists(tpg):
                continue
            mapped = [f"{tpg}/acls/{initiator}/lun_{self.mapped}" for initiator in fs.listdir(f"{tpg}/acls")]
            for lun in (*mapped, f"{tpg}/lun/lun_{self.lun}"):
                if fs.exists(lun):
                    if fs.exists(f"{lun}/unit"):
                        fs.unlink(f"{lun}/unit")
                    fs.rmdir(lun)
        if fs.exists(f"{self.hba}/{self.name}"):
            fs.rmdir(f"{self.hba}/{self.name}")
        self._metadata.unlink(missing_ok=True)

    async def send(self, command: Command) -> Outcome:
        """One PERSISTENT RESERVE OUT on its nexus."""
        cdb, data = encode_command(command)
        session = self.target.sessions[command.nexus]
        return outcome(await scsi.execute(session, cdb, lun=self.mapped, data_out=data))

    async def read(self, action: PrIn) -> bytes:
        """One PERSISTENT RESERVE IN, on a nexus of its own."""
        return await scsi.persistent_reserve_in(self.target.sessions[WATCHING], action, lun=self.mapped)

    async def conflicts(self, nexus: Nexus, *, write: bool) -> bool:
        """Whether reading or writing the first block does."""
        cdb = bytes([0x2A if write else 0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0])
        session = self.target.sessions[nexus]
        data_out, data_in = (bytes(512), 0) if write else (b"", 512)
        result = await scsi.execute(session, cdb, lun=self.mapped, data_out=data_out, data_in=data_in)
        answered = outcome(result)
        assert answered.status in (Status.GOOD, Status.RESERVATION_CONFLICT), str(result)
        return not answered.good

    def metadata(self) -> bytes:
        """What LIO wrote to the APTPL file."""
        return self._metadata.read_bytes()

    def records(self, state: State, scope: int) -> tuple[Record, ...]:
        """What the APTPL file ought to have in it. ``scope``: of the reservation."""
        held = state.reservation
        holder = None
        if held is not None:
            holder = held.holder or state.hidden.anchor or next(iter(state.registrations))
        ports = self.places.ports
        return tuple(
            Record(
                nexus=Nexus(nexus.initiator, nexus.isid, nexus.rtpi),
                key=registration.key,
                all_tg_pt=registration.all_tg_pt,
                type=held.type if held is not None and nexus == holder else None,
                mapped_lun=self.mapped,
                target=ports[nexus.rtpi].target,
                tpgt=ports[nexus.rtpi].tpgt,
                lun=self.lun,
                scope=scope if held is not None and nexus == holder else 0,
            )
            for nexus, registration in state.registrations.items()
        )

    @property
    def _metadata(self) -> Path:
        root = Path("/sys/kernel/config/target/dbroot").read_text().strip()
        folder = Path(root) / "pr"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"aptpl_{self.name}"


def outcome(result: Result) -> Outcome:
    """As the model says it. ValueError for a status that it never says."""
    sense = result.sense
    if sense is None:
        return Outcome(Status(int(result.status)))
    return Outcome(Status(int(result.status)), int(sense.key), sense.asc, sense.ascq)


@asynccontextmanager
async def lio(folder: Path, name: str, *, lasting: bool = False) -> AsyncIterator[tuple[LioUnit, LioUnit]]:
    """A unit, and a second one that is not made yet.

    ``lasting``: nothing of it is taken away in the end but its sessions, TCP ports and RTPIs; then the name
    has to be new each time. It is not among those that other tests wipe away.
    """
    fs = RealConfigFs(ledger=folder / "ledger")
    target = Target(fs, f"iqn.2026-11.org.example.lasting:{name}" if lasting else f"{IQN}{name}", 3280)
    hba = _LASTING_HBA if lasting else _HBA
    unit, copy = LioUnit(target, hba, name, 3, 5), LioUnit(target, hba, f"{name}-copy", 4, 6)

    def clean() -> None:
        if fs.exists(target.path):
            target.deafen()
        if lasting:
            return
        unit.remove()
        copy.remove()
        if fs.exists(target.path):
            target.remove()
        if fs.exists(hba):
            fs.rmdir(hba)

    if not fs.exists("iscsi"):
        fs.mkdir("iscsi")
    clean()
    try:
        if not fs.exists(hba):
            fs.mkdir(hba)
        target.make()
        unit.make()
        async with target.logged_in():
            yield unit, copy
    finally:
        # In a thread: it waits for sessions to end, and this side of them is served by this loop.
        await asyncio.to_thread(clean)
