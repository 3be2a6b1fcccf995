"""Which changes lead from the observed tree to the desired one; pure.

Order: what is not wanted goes first (portal groups are disabled, then mapped LUNs, ACLs, LUNs, portals,
portal groups, targets, port groups, backstores), then what is missing is built from the backstore outwards. A
portal group is enabled only when its LUNs and ACLs are complete, and gets portals only after that. Carrying
out any beginning of a plan and planning again leads to the same tree.
"""

from __future__ import annotations

from collections.abc import Iterator

from hactl.errors import Refused
from hactl.target import changes as c
from hactl.target.attributes import LOCKED
from hactl.target.tree import (
    HBA_BASE,
    HBA_END,
    HBA_STEP,
    Acl,
    Backstore,
    Lun,
    Target,
    Tpg,
    Tree,
)

WANTED = "in the specification and not in the kernel"
UNWANTED = "in the kernel and not in the specification"
DIFFERS = "the kernel has another value than the specification asks for"
UNFINISHED = "an earlier change was interrupted"


def plan(desired: Tree, observed: Tree) -> tuple[c.Change, ...]:
    """The changes, in order; ``()`` if the trees are equal.

    Raises :class:`Refused` if that cannot be had without harm: a target of that name belongs to somebody
    else, or the identity of a unit, port or port group that is in use would change.
    """
    for target in desired.targets:
        if target.iqn in observed.foreign:
            raise Refused(
                "target-foreign",
                f"target {target.iqn} exists on this node and hactl has not made it",
                "remove it with the tool that made it, or choose another iqn for the resource",
            )
    return (*_Planner(desired, observed).plan(),)


class _Planner:
    def __init__(self, desired: Tree, observed: Tree) -> None:
        self.desired = desired
        self.observed = observed
        self.wanted_targets = {t.iqn: t for t in desired.targets}
        self.found_targets = {t.iqn: t for t in observed.targets}
        self.wanted_stores = {b.name: b for b in desired.backstores}
        self.found_stores = {b.name: b for b in observed.backstores}
        self.replaced = self._replaced()
        self.paths = self._paths()

    def plan(self) -> Iterator[c.Change]:
        for target in self.observed.targets:
            yield from self._adopt(target)
        for target in self.observed.targets:
            yield from self._take_down(target)
        for iqn in sorted(self.observed.claims - self.found_targets.keys() - self.wanted_targets.keys()):
            yield c.ReleaseTarget(iqn=iqn, reason="the target does not exist any more")
        yield from self._remove_backstores()
        for backstore in self.desired.backstores:
            yield from self._build_backstore(backstore)
        for target in self.desired.targets:
            yield from self._build_target(target)

    # What is used, and where backstores lie.

    def _kept_luns(self) -> Iterator[tuple[Target, Tpg, Lun]]:
        """Observed LUNs that the plan leaves linked as they are."""
        for target in self.observed.targets:
            for tpg in target.tpgs:
                wanted = self._wanted_tpg(target.iqn, tpg.tag)
                for lun in tpg.luns:
                    if wanted and lun.backstore and any(_same_lun(w, lun) for w in wanted.luns):
                        yield target, tpg, lun

    def _wanted_tpg(self, iqn: str, tag: int) -> Tpg | None:
        target = self.wanted_targets.get(iqn)
        return next((t for t in target.tpgs if t.tag == tag), None) if target else None

    def _replaced(self) -> set[str]:
        """Backstores that have to be removed and made anew. Those in use are refused."""
        used = {lun.backstore for _, _, lun in self._kept_luns()}
        replaced = set()
        for name, found in self.found_stores.items():
            wanted = self.wanted_stores.get(name)
            if wanted is None:
                continue
            differs = _fixed_differences(wanted, found)
            locked = _locked_differences(wanted, found)
            groups = _fixed_groups(wanted, found)
            if name in used and (differs or locked or groups):
                raise Refused(
                    "unit-in-use",
                    f"backstore {name} is in use and {', '.join([*differs, *locked, *groups])} would change",
                    "initiators would see another unit on the same path; remove the resource from the"
                    " specification, let initiators forget it, then add it again",
                )
            if differs:
                replaced.add(name)
        return replaced

    def _paths(self) -> dict[str, str]:
        """Path of every wanted backstore: where it is, else in a HBA that nobody else uses."""
        paths = {}
        for name, wanted in self.wanted_stores.items():
            found = self.found_stores.get(name)
            if found is not None and name not in self.replaced:
                paths[name] = f"core/{found.hba}/{name}"
                continue
            others = {b.hba for b in self.observed.backstores if b.name != name} | self.observed.taken_hbas
            plugin, _, number = wanted.hba.rpartition("_")
            free = (n for n in range(int(number), HBA_END, HBA_STEP) if f"{plugin}_{n}" not in others)
            first = next(free, None)
            if first is None or first < HBA_BASE:
                raise Refused("hba-taken", f"there is no HBA number left for backstore {name}")
            paths[name] = f"core/{plugin}_{first}/{name}"
        return paths

    # Removal.

    def _adopt(self, target: Target) -> Iterator[c.Change]:
        """What is recognised by its links alone would be a stranger as soon as the links are gone."""
        if target.iqn not in self.observed.claims:
            yield c.ClaimTarget(iqn=target.iqn, adopt=True, reason="it exports a backstore of hactl's")

    def _take_down(self, target: Target) -> Iterator[c.Change]:
        iqn = target.iqn
        for tpg in target.tpgs:
            wanted = self._wanted_tpg(iqn, tpg.tag)
            if tpg.enabled and (wanted is None or not (wanted.enabled or wanted.door)):
                yield c.DisableTpg(iqn=iqn, tag=tpg.tag, reason=UNWANTED)
            elif wanted is not None and tpg.enabled and wanted.rtpi != tpg.rtpi:
                raise Refused(
                    "rtpi-in-use",
                    f"portal group {tpg.tag} of {iqn} is enabled with relative target port identifier"
                    f" {tpg.rtpi}, not {wanted.rtpi}",
                    "initiators know the port by it; disable the portal group if nobody uses it",
                )
        for tpg in target.tpgs:
            yield from self._take_down_tpg(iqn, tpg, self._wanted_tpg(iqn, tpg.tag))
        if iqn not in self.wanted_targets:
            yield c.RemoveTarget(iqn=iqn, reason=UNWANTED)
            yield c.ReleaseTarget(iqn=iqn, reason="the target does not exist any more")

    def _take_down_tpg(self, iqn: str, tpg: Tpg, wanted: Tpg | None) -> Iterator[c.Change]:
        tag = tpg.tag
        acls = {a.initiator: a for a in wanted.acls} if wanted else {}
        luns = [lun for lun in tpg.luns if not (wanted and any(_same_lun(w, lun) for w in wanted.luns))]
        gone = {lun.number for lun in luns}
        for acl in tpg.acls:
            keep = acls.get(acl.initiator)
            for mapped in acl.luns:
                if (
                    keep is None
                    or mapped.lun in gone
                    or not any(k.number == mapped.number and mapped.lun in (k.lun, None) for k in keep.luns)
                ):
                    yield c.UnmapLun(
                        iqn=iqn, tag=tag, initiator=acl.initiator, mapped=mapped.number, reason=UNWANTED
                    )
        for acl in tpg.acls:
            if acl.initiator not in acls:
                yield c.RemoveAcl(iqn=iqn, tag=tag, initiator=acl.initiator, reason=UNWANTED)
        for lun in luns:
            yield c.RemoveLun(iqn=iqn, tag=tag, lun=lun.number, reason=UNWANTED)
        for portal in tpg.portals:
            if wanted is None or portal not in wanted.portals or _enabled_behind_portals(wanted, tpg):
                yield c.RemovePortal(iqn=iqn, tag=tag, portal=portal, reason=UNWANTED)
        if wanted is None:
            yield c.RemoveTpg(iqn=iqn, tag=tag, reason=UNWANTED)

    def _remove_backstores(self) -> Iterator[c.Change]:
        keep = {path.split("/")[1] for path in self.paths.values()}
        emptied = set()
        for found in self.observed.backstores:
            wanted = self.wanted_stores.get(found.name)
            path = f"core/{found.hba}/{found.name}"
            whole = wanted is None or found.name in self.replaced
            keeps = {g.name for g in wanted.groups} - set(_fixed_groups(wanted, found)) if wanted else set()
            for group in found.groups:
                if whole or group.name not in keeps:
                    yield c.RemovePortGroup(
                        backstore=path, name=group.name, reason=UNWANTED if wanted is None else DIFFERS
                    )
            if whole:
                yield c.RemoveBackstore(backstore=path, reason=UNWANTED if wanted is None else DIFFERS)
                emptied.add(found.hba)
        still = {b.hba for b in self.observed.backstores if b.name in self.wanted_stores} - emptied
        for hba in sorted((emptied | self.observed.empty_hbas) - still - keep - self.observed.taken_hbas):
            if HBA_BASE <= int(hba.rpartition("_")[2]) < HBA_END:
                yield c.RemoveHba(hba=hba, reason="no backstore is left in it")

    # Building.

    def _build_backstore(self, wanted: Backstore) -> Iterator[c.Change]:
        path = self.paths[wanted.name]
        found = None if wanted.name in self.replaced else self.found_stores.get(wanted.name)
        if found is None:
            yield c.CreateBackstore(backstore=path, reason=WANTED)
        if found is None or not found.enabled:
            yield c.EnableBackstore(
                backstore=path, wanted=wanted, reason=WANTED if found is None else UNFINISHED
            )
        # What enabling takes from the device is known only afterwards, so on a new backstore all are written.
        have = dict(found.attributes) if found and found.enabled else {}
        changed = [name for name, value in wanted.attributes if have.get(name) != value]
        for name, value in wanted.attributes:
            if name in changed:
                yield c.SetDeviceAttribute(
                    backstore=path, name=name, value=value, reason=DIFFERS if found else WANTED
                )
        for field, value, now in (
            ("vpd_unit_serial", wanted.serial, found and found.serial),
            ("vendor_id", wanted.vendor, found and found.vendor),
            # Writing emulate_model_alias, whatever to, overwrites the product.
            ("product_id", wanted.product, found and "emulate_model_alias" not in changed and found.product),
        ):
            if value != now:
                yield c.SetIdentity(
                    backstore=path, field=field, value=value, reason=DIFFERS if found else WANTED
                )
        # Whether that was done before and cut short cannot be seen: who asked for it looks what came of it.
        if wanted.imports and self.wanted_targets and not self._linked(wanted.name):
            yield c.ImportReservations(
                backstore=path, lines=wanted.imports, reason="the log of its reservations has them"
            )
        if found is None or not found.quiet:
            yield c.QuietDefaultGroup(
                backstore=path, reason="a LUN is active/optimized in it until it is moved to its own group"
            )
        removed = _fixed_groups(wanted, found) if found else []
        for group in wanted.groups:
            if found is None or group.name in removed or group not in found.groups:
                yield c.SetUpPortGroup(backstore=path, group=group, reason=WANTED)

    def _linked(self, backstore: str) -> bool:
        """Whether the kernel exports it."""
        return any(
            lun.backstore == backstore for t in self.observed.targets for p in t.tpgs for lun in p.luns
        )

    def _build_target(self, wanted: Target) -> Iterator[c.Change]:
        found = self.found_targets.get(wanted.iqn)
        if found is None:
            if wanted.iqn not in self.observed.claims:
                yield c.ClaimTarget(iqn=wanted.iqn, reason="it is about to be created")
            yield c.CreateTarget(iqn=wanted.iqn, reason=WANTED)
        tpgs = {t.tag: t for t in found.tpgs} if found else {}
        for tpg in wanted.tpgs:
            yield from self._build_tpg(wanted.iqn, tpg, tpgs.get(tpg.tag))

    def _build_tpg(self, iqn: str, wanted: Tpg, found: Tpg | None) -> Iterator[c.Change]:
        tag = wanted.tag
        if found is None:
            yield c.CreateTpg(iqn=iqn, tag=tag, reason=WANTED)
            found = Tpg(tag, 0, False, (), (), "", (), ())
        if found.rtpi != wanted.rtpi:
            yield c.SetRtpi(iqn=iqn, tag=tag, rtpi=wanted.rtpi, reason=WANTED)
        have = dict(found.attributes)
        changed = {n: v for n, v in wanted.attributes if have.get(n) != v}
        for name, value in changed.items():
            yield c.SetTpgAttribute(iqn=iqn, tag=tag, attribute=name, value=value, reason=DIFFERS)
        yield from self._build_luns(iqn, wanted, found)
        yield from self._build_acls(iqn, wanted, found)
        enables = wanted.enabled and not found.enabled
        if enables:
            yield c.EnableTpg(iqn=iqn, tag=tag, rtpi=wanted.rtpi, reason="its LUNs and ACLs are complete")
        if _methods(wanted, found, enables, changed) != wanted.auth_methods:
            yield c.SetAuthMethods(iqn=iqn, tag=tag, methods=wanted.auth_methods, reason=DIFFERS)
        # Last, so that no initiator is turned away while the authentication methods are being set.
        for portal in wanted.portals:
            if portal not in found.portals or _enabled_behind_portals(wanted, found):
                yield c.AddPortal(iqn=iqn, tag=tag, portal=portal, reason=WANTED)

    def _build_luns(self, iqn: str, wanted: Tpg, found: Tpg) -> Iterator[c.Change]:
        luns = {lun.number: lun for lun in found.luns}
        for lun in wanted.luns:
            if lun.backstore is None or lun.group is None:
                raise ValueError(f"desired LUN {lun.number} of {iqn} has no backstore or group")
            now = luns.get(lun.number)
            path = self.paths[lun.backstore]
            if now is None or not _same_lun(lun, now) or now.backstore is None:
                yield c.CreateLun(
                    iqn=iqn, tag=wanted.tag, lun=lun.number, backstore=path, group=lun.group, reason=WANTED
                )
            elif now.group != lun.group:
                yield c.SetLunGroup(
                    iqn=iqn, tag=wanted.tag, lun=lun.number, backstore=path, group=lun.group, reason=DIFFERS
                )

    def _build_acls(self, iqn: str, wanted: Tpg, found: Tpg) -> Iterator[c.Change]:
        acls = {acl.initiator: acl for acl in found.acls}
        gone = {lun.number for lun in found.luns if not any(_same_lun(w, lun) for w in wanted.luns)}
        for acl in wanted.acls:
            now = acls.get(acl.initiator)
            if now is None:
                yield c.CreateAcl(iqn=iqn, tag=wanted.tag, initiator=acl.initiator, acl=acl, reason=WANTED)
                now = Acl(acl.initiator, acl.authentication, acl.chap, ())
            if (now.authentication, now.chap) != (acl.authentication, acl.chap):
                yield c.SetChap(
                    iqn=iqn,
                    tag=wanted.tag,
                    initiator=acl.initiator,
                    authentication=bool(acl.authentication),
                    chap=acl.chap,
                    reason="the CHAP settings differ from the specification",
                )
            for mapped in acl.luns:
                if mapped.lun is None:
                    raise ValueError(f"desired mapped LUN {mapped.number} of {acl.initiator} leads nowhere")
                if mapped not in now.luns or mapped.lun in gone:
                    yield c.MapLun(
                        iqn=iqn,
                        tag=wanted.tag,
                        initiator=acl.initiator,
                        mapped=mapped.number,
                        lun=mapped.lun,
                        reason=WANTED,
                    )


def _same_lun(wanted: Lun, found: Lun) -> bool:
    """Whether an observed LUN is the wanted one or can become it: same backstore, or not linked yet."""
    return wanted.number == found.number and found.backstore in (wanted.backstore, None)


def _fixed_differences(wanted: Backstore, found: Backstore) -> list[str]:
    """What of a backstore cannot be changed in place; what was not set yet is no difference."""
    differs = []
    if found.plugin != wanted.plugin:
        differs.append("plugin")
    if found.path not in ("", wanted.path):
        differs.append(f"device ({found.path}, not {wanted.path})")
    elif found.size not in (None, 0, wanted.size):
        differs.append("size")
    return differs


def _locked_differences(wanted: Backstore, found: Backstore) -> list[str]:
    """What can be changed only while nothing links to the backstore."""
    have = dict(found.attributes)
    differs = [name for name, value in wanted.attributes if name in LOCKED and have.get(name) != value]
    return [f for f in ("serial", "vendor", "product") if getattr(wanted, f) != getattr(found, f)] + differs


def _fixed_groups(wanted: Backstore, found: Backstore) -> list[str]:
    """Port groups with another id, which the kernel sets only once."""
    ids = {g.name: g.id for g in wanted.groups}
    return [g.name for g in found.groups if g.id is not None and ids.get(g.name, g.id) != g.id]


def _enabled_behind_portals(wanted: Tpg, found: Tpg) -> bool:
    """Whether a portal group has to be enabled without its portals: enabling one that requires CHAP takes
    ``None`` from what it offers, and until that is put back, hosts without CHAP would be turned away for
    good."""
    return wanted.enabled and not found.enabled and wanted.auth_methods != "CHAP" and _requires_chap(wanted)


def _requires_chap(tpg: Tpg) -> bool:
    return ("authentication", "1") in tpg.attributes


def _methods(wanted: Tpg, found: Tpg, enables: bool, changed: dict[str, str]) -> str:
    """What the kernel offers after the attributes were set and the portal group enabled.

    Writing ``authentication`` and enabling both edit the list (``iscsit_ta_authentication``): 1 takes
    ``None`` out, 0 puts it at the end. A new portal group offers CHAP.
    """
    methods = found.auth_methods or "CHAP"
    if "authentication" in changed or (enables and _requires_chap(wanted)):
        if _requires_chap(wanted):
            methods = ",".join(m for m in methods.split(",") if m != "None")
        elif "None" not in methods:
            methods += ",None"
    return methods
