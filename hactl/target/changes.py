"""The changes a plan is made of: frozen values that say what is done and why; ``apply`` does them."""

from __future__ import annotations

from dataclasses import dataclass

from hactl.target.tree import Acl, Backstore, Chap, PortGroup


@dataclass(frozen=True, kw_only=True)
class Change:
    """One step. ``reason`` says why the plan has it; secrets are in neither text."""

    reason: str

    def describe(self) -> str:
        """What is done, in words."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OfBackstore(Change):
    """A step on the backstore at a path such as ``core/iblock_1048592/hactl.r1.0``."""

    backstore: str


@dataclass(frozen=True, kw_only=True)
class CreateBackstore(OfBackstore):
    """Make the backstore, and its HBA if needed; it leads nowhere yet."""

    def describe(self) -> str:
        return f"create backstore {self.backstore}"


@dataclass(frozen=True, kw_only=True)
class EnableBackstore(OfBackstore):
    """Open the device or file."""

    wanted: Backstore

    def describe(self) -> str:
        return f"enable backstore {self.backstore} on {self.wanted.path}"


@dataclass(frozen=True, kw_only=True)
class SetIdentity(OfBackstore):
    """Set a field of the unit's identity, such as ``vpd_unit_serial``; only while nothing links to the
    backstore."""

    field: str
    value: str

    def describe(self) -> str:
        return f"set {self.field} of {self.backstore} to {self.value}"


@dataclass(frozen=True, kw_only=True)
class SetDeviceAttribute(OfBackstore):
    """Set an attribute of a backstore."""

    name: str
    value: str

    def describe(self) -> str:
        return f"set attribute {self.name} of {self.backstore} to {self.value}"


@dataclass(frozen=True, kw_only=True)
class ImportReservations(OfBackstore):
    """Give a new backstore its registrations; they come to life when their initiators' LUNs are mapped."""

    lines: tuple[str, ...]

    def describe(self) -> str:
        return f"give {self.backstore} its {len(self.lines)} persistent reservation registrations"


@dataclass(frozen=True, kw_only=True)
class QuietDefaultGroup(OfBackstore):
    """Put the default port group to standby, so that a LUN that is new in it cannot be used."""

    def describe(self) -> str:
        return f"put the default port group of {self.backstore} to standby"


@dataclass(frozen=True, kw_only=True)
class SetUpPortGroup(OfBackstore):
    """Make a port group, or finish one: id, standby (only while it has no LUNs), implicit ALUA only."""

    group: PortGroup

    def describe(self) -> str:
        return f"set up port group {self.group.name} with id {self.group.id} in {self.backstore}"


@dataclass(frozen=True, kw_only=True)
class RemovePortGroup(OfBackstore):
    """Remove a port group that has no LUNs."""

    name: str

    def describe(self) -> str:
        return f"remove port group {self.name} of {self.backstore}"


@dataclass(frozen=True, kw_only=True)
class RemoveBackstore(OfBackstore):
    """Close and remove a backstore that nothing links to."""

    def describe(self) -> str:
        return f"remove backstore {self.backstore}"


@dataclass(frozen=True, kw_only=True)
class RemoveHba(Change):
    """Remove an empty HBA of hactl's."""

    hba: str

    def describe(self) -> str:
        return f"remove empty HBA {self.hba}"


@dataclass(frozen=True, kw_only=True)
class OfTarget(Change):
    """A step on a target."""

    iqn: str


@dataclass(frozen=True, kw_only=True)
class ClaimTarget(OfTarget):
    """Note in the ledger that the target is hactl's: before it is made, or ``adopt`` one that has hactl's
    LUNs."""

    adopt: bool = False

    def describe(self) -> str:
        return f"note that target {self.iqn} is hactl's"


@dataclass(frozen=True, kw_only=True)
class CreateTarget(OfTarget):
    """Make the target, without portal groups."""

    def describe(self) -> str:
        return f"create target {self.iqn}"


@dataclass(frozen=True, kw_only=True)
class RemoveTarget(OfTarget):
    """Remove a target that has no portal groups any more."""

    def describe(self) -> str:
        return f"remove target {self.iqn}"


@dataclass(frozen=True, kw_only=True)
class ReleaseTarget(OfTarget):
    """Forget in the ledger a target that does not exist any more."""

    def describe(self) -> str:
        return f"forget target {self.iqn}"


@dataclass(frozen=True, kw_only=True)
class OfTpg(OfTarget):
    """A step on a target portal group."""

    tag: int

    @property
    def path(self) -> str:
        """Where the portal group lies."""
        return f"iscsi/{self.iqn}/tpgt_{self.tag}"

    @property
    def name(self) -> str:
        """The portal group in words."""
        return f"portal group {self.tag} of {self.iqn}"


@dataclass(frozen=True, kw_only=True)
class CreateTpg(OfTpg):
    """Make the portal group, disabled and empty."""

    def describe(self) -> str:
        return f"create {self.name}"


@dataclass(frozen=True, kw_only=True)
class SetRtpi(OfTpg):
    """Set the relative target port identifier of a disabled portal group."""

    rtpi: int

    def describe(self) -> str:
        return f"set relative target port identifier {self.rtpi} on {self.name}"


@dataclass(frozen=True, kw_only=True)
class SetTpgAttribute(OfTpg):
    """Set an attribute of a portal group."""

    attribute: str
    value: str

    def describe(self) -> str:
        return f"set attribute {self.attribute} of {self.name} to {self.value}"


@dataclass(frozen=True, kw_only=True)
class SetAuthMethods(OfTpg):
    """Set what the portal group offers to initiators."""

    methods: str

    def describe(self) -> str:
        return f"offer authentication {self.methods} on {self.name}"


@dataclass(frozen=True, kw_only=True)
class EnableTpg(OfTpg):
    """Take logins. All LUNs and ACLs are complete by then."""

    rtpi: int

    def describe(self) -> str:
        return f"enable {self.name}"


@dataclass(frozen=True, kw_only=True)
class DisableTpg(OfTpg):
    """End all sessions and take no more logins."""

    def describe(self) -> str:
        return f"disable {self.name}"


@dataclass(frozen=True, kw_only=True)
class RemoveTpg(OfTpg):
    """Remove a disabled, empty portal group."""

    def describe(self) -> str:
        return f"remove {self.name}"


@dataclass(frozen=True, kw_only=True)
class AddPortal(OfTpg):
    """Listen on an address."""

    portal: str

    def describe(self) -> str:
        return f"listen on {self.portal} for {self.name}"


@dataclass(frozen=True, kw_only=True)
class RemovePortal(OfTpg):
    """Stop listening on an address."""

    portal: str

    def describe(self) -> str:
        return f"stop listening on {self.portal} for {self.name}"


@dataclass(frozen=True, kw_only=True)
class CreateLun(OfTpg):
    """Make a LUN, or finish one, and put it into its port group; no initiator sees it yet."""

    lun: int
    backstore: str
    group: str

    def describe(self) -> str:
        return f"export {self.backstore} as LUN {self.lun} of {self.name}, group {self.group}"


@dataclass(frozen=True, kw_only=True)
class SetLunGroup(OfTpg):
    """Move a LUN to another port group of its backstore."""

    lun: int
    backstore: str
    group: str

    def describe(self) -> str:
        return f"move LUN {self.lun} of {self.name} to port group {self.group}"


@dataclass(frozen=True, kw_only=True)
class RemoveLun(OfTpg):
    """Unlink and remove a LUN that no initiator sees any more."""

    lun: int

    def describe(self) -> str:
        return f"remove LUN {self.lun} of {self.name}"


@dataclass(frozen=True, kw_only=True)
class OfAcl(OfTpg):
    """A step on what one initiator may do."""

    initiator: str

    @property
    def acl_path(self) -> str:
        """Where the ACL lies."""
        return f"{self.path}/acls/{self.initiator}"


@dataclass(frozen=True, kw_only=True)
class CreateAcl(OfAcl):
    """Let an initiator log in, with its CHAP; it sees no LUN yet."""

    acl: Acl

    def describe(self) -> str:
        return f"let {self.initiator} log in to {self.name}{' with CHAP' if self.acl.chap else ''}"


@dataclass(frozen=True, kw_only=True)
class SetChap(OfAcl):
    """Change what an initiator has to prove; sessions that exist go on."""

    authentication: bool
    chap: Chap | None

    def describe(self) -> str:
        return f"change the CHAP settings of {self.initiator} on {self.name}"


@dataclass(frozen=True, kw_only=True)
class RemoveAcl(OfAcl):
    """End the initiator's sessions and let it in no more."""

    def describe(self) -> str:
        return f"lock {self.initiator} out of {self.name}"


@dataclass(frozen=True, kw_only=True)
class MapLun(OfAcl):
    """Show a LUN to an initiator."""

    mapped: int
    lun: int

    def describe(self) -> str:
        return f"show LUN {self.lun} of {self.name} to {self.initiator} as LUN {self.mapped}"


@dataclass(frozen=True, kw_only=True)
class UnmapLun(OfAcl):
    """Hide a LUN from an initiator."""

    mapped: int

    def describe(self) -> str:
        return f"hide LUN {self.mapped} of {self.name} from {self.initiator}"
