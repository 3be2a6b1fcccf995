"""The twin's iSCSI fabric: what target_core_fabric_configfs.c, target_core_tpg.c and iscsi_target_configfs.c
do."""

from __future__ import annotations

import errno
import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from hactl.target.memory_core import STATES, Device, PortGroup, group_named, lun_number
from hactl.target.memory_items import Item, boolean, need, refuse, unsigned


class Fabric(Item):
    """``iscsi``: targets by name. ``ports`` holds the port identifiers of all enabled portal groups in the
    kernel."""

    def __init__(self, root: Item) -> None:
        super().__init__(root, "iscsi", default=False)
        self.ports: dict[int, Tpg] = {}
        self.add(Item(self, "discovery_auth")).texts(userid="", password="")
        self.fixed(lio_version="RisingTide Systems Linux-iSCSI Target v4.1.0")
        # As on a machine with one processor; what is written is kept as it is.
        self.texts(cpus_allowed_list="0")

    def make(self, name: str) -> Item:
        need(len(name) < 224)
        return Target(self, name)


class Target(Item):
    """A target."""

    def __init__(self, fabric: Fabric, name: str) -> None:
        super().__init__(fabric, name, default=False)
        self.fabric = fabric
        self.add(Item(self, "fabric_statistics"))

    def make(self, name: str) -> Item:
        found = re.fullmatch(r"tpgt_(\d+)", name)
        if found is None or int(found[1]) > 0xFFFF:
            refuse(errno.EINVAL)
        return Tpg(self, name, int(found[1]))

    def portals(self) -> set[str]:
        """Portals of all its portal groups."""
        tpgs = [t for t in self.children.values() if isinstance(t, Tpg)]
        return {portal for tpg in tpgs for portal in tpg.portals.children}


class Tpg(Item):
    """A target portal group."""

    def __init__(self, target: Target, name: str, tag: int) -> None:
        super().__init__(target, name, default=False)
        self.target = target
        self.tag = tag
        self.enabled = False
        self.rtpi = 0
        self.rtpi_chosen = False
        self.luns = Luns(self)
        self.acls = Acls(self)
        self.portals = Portals(self)
        for item in (self.luns, self.acls, self.portals):
            self.add(item)
        self.add(Item(self, "auth")).texts(userid="", password="", userid_mutual="", password_mutual="")
        self.param = self.add(Item(self, "param"))
        self.param.texts(AuthMethod="CHAP")
        self.param.stores["AuthMethod"] = self._set_methods
        self.attrib = self.add(Item(self, "attrib"))
        self.attrib.flags(generate_node_acls="0", cache_dynamic_acls="0", demo_mode_write_protect="1")
        self.attrib.flags(prod_mode_write_protect="0", demo_mode_discovery="1", tpg_enabled_sendtargets="1")
        self.attrib.flags(t10_pi="0", authentication="1", login_keys_workaround="1")
        self.attrib.plain(default_erl="0", login_timeout="15", default_cmdsn_depth="64")
        self.attrib.stores["authentication"] = self._set_authentication
        self.shows["enable"] = lambda: f"{int(self.enabled)}\n"
        self.stores["enable"] = self._set_enabled
        self.shows["rtpi"] = lambda: f"{self.rtpi:#x}\n" if self.rtpi else "0\n"
        self.stores["rtpi"] = self._set_rtpi

    def _set_methods(self, text: str) -> None:
        words = text.strip("\n").split(",")
        need(bool(words) and set(words) <= {"CHAP", "None"})
        self.param.values["AuthMethod"] = ",".join(words)

    def _set_authentication(self, text: str) -> None:
        flag = boolean(text)
        self.attrib.values["authentication"] = flag
        self._edit_methods(flag == "1")

    def _edit_methods(self, required: bool) -> None:
        words = self.param.values["AuthMethod"].split(",")
        if required:
            words = [w for w in words if w != "None"] or ["CHAP"]
        elif "None" not in words:
            words.append("None")
        self.param.values["AuthMethod"] = ",".join(words)

    def _set_rtpi(self, text: str) -> None:
        number = unsigned(text, 0xFFFF)
        need(number != 0 and not self.enabled)
        self.rtpi, self.rtpi_chosen = number, True

    def _set_enabled(self, text: str) -> None:
        flag = boolean(text) == "1"
        if flag == self.enabled:
            return
        ports = self.target.fabric.ports
        if not flag:
            del ports[self.rtpi]
        else:
            if not self.rtpi_chosen:
                self.rtpi = next(n for n in range(1, 0x10000) if n not in ports)
            need(self.rtpi not in ports)
            ports[self.rtpi] = self
            if self.attrib.values["authentication"] == "1":
                self._edit_methods(required=True)
        self.enabled = flag

    def removed(self) -> None:
        if self.enabled:
            del self.target.fabric.ports[self.rtpi]


class Portals(Item):
    """``np``."""

    def __init__(self, tpg: Tpg) -> None:
        super().__init__(tpg, "np")
        self.tpg = tpg

    def make(self, name: str) -> Item:
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(\d+)", name)
        if found is None or not 0 < int(found[3]) <= 0xFFFF:
            refuse(errno.EINVAL)
        try:
            _ = IPv6Address(found[1]) if found[1] else IPv4Address(found[2])
        except AddressValueError:
            refuse(errno.EINVAL)
        need(name not in self.tpg.target.portals())
        item = Item(self, name, default=False)
        item.fixed(iser="0")
        return item


class Luns(Item):
    """``lun``."""

    def __init__(self, tpg: Tpg) -> None:
        super().__init__(tpg, "lun")
        self.tpg = tpg

    def make(self, name: str) -> Item:
        return Lun(self.tpg, self, name, lun_number(name))


class Lun(Item):
    """A LUN. Once linked it is in the default port group until it is put into another."""

    def __init__(self, tpg: Tpg, parent: Item, name: str, number: int) -> None:
        super().__init__(parent, name, default=False)
        self.tpg = tpg
        self.number = number
        self.device: Device | None = None
        self.group: PortGroup | None = None
        self.shows["alua_tg_pt_gp"] = self._show_group
        self.stores["alua_tg_pt_gp"] = self._set_group
        self.add(Item(self, "statistics"))

    def alias(self) -> str:
        """Name of the LUN in ``members``."""
        return f"iSCSI/{self.tpg.target.name}/{self.tpg.name}/{self.name}"

    def link(self, target: Item) -> None:
        if not isinstance(target, Device):
            refuse(errno.EFAULT)
        need(self.device is None, errno.EEXIST)
        need(target.enabled, errno.ENODEV)
        self.device, self.group = target, target.alua.default_group
        target.luns.append(self)

    def unlinked(self) -> None:
        if self.device is not None:
            self.device.luns.remove(self)
        self.device = self.group = None

    def _show_group(self) -> str:
        if self.group is None:
            refuse(errno.ENODEV)
        return (
            f"TG Port Alias: {self.group.name}\nTG Port Group ID: {self.group.number}\n"
            f"TG Port Primary Access State: {STATES[self.group.state]}\nTG Port Primary Access Status: None\n"
            "TG Port Secondary Access State: None\nTG Port Secondary Access Status: None\n"
        )

    def _set_group(self, text: str) -> None:
        if self.device is None:
            refuse(errno.ENODEV)
        self.group = group_named(self.device, text)


class Acls(Item):
    """``acls``."""

    def __init__(self, tpg: Tpg) -> None:
        super().__init__(tpg, "acls")
        self.tpg = tpg

    def make(self, name: str) -> Item:
        return Acl(self.tpg, self, name)


class Acl(Item):
    """What one initiator may do."""

    def __init__(self, tpg: Tpg, parent: Item, name: str) -> None:
        super().__init__(parent, name, default=False)
        self.tpg = tpg
        self.add(Item(self, "auth")).texts(userid="", password="", userid_mutual="", password_mutual="")
        self.attrib = self.add(Item(self, "attrib"))
        self.attrib.values["authentication"] = "-1"
        self.attrib.stores["authentication"] = self._set_authentication
        self.add(Item(self, "param"))
        self.add(Item(self, "fabric_statistics"))
        self.fixed(info="No active iSCSI Session for Initiator Endpoint: " + name)
        self.plain(cmdsn_depth="64")

    def _set_authentication(self, text: str) -> None:
        need(text.strip("\n") in ("-1", "0", "1"))
        self.attrib.values["authentication"] = text.strip("\n")

    def make(self, name: str) -> Item:
        return Mapped(self, name, lun_number(name))


class Mapped(Item):
    """A LUN as one initiator sees it."""

    def __init__(self, acl: Acl, name: str, number: int) -> None:
        super().__init__(acl, name, default=False)
        self.acl = acl
        self.number = number
        self.lun: Lun | None = None
        self.add(Item(self, "statistics"))
        self.flags(write_protect="0")
        self.shows["write_protect"] = lambda: f"{self.values['write_protect']}\n" if self.lun else ""

    def link(self, target: Item) -> None:
        if not isinstance(target, Lun):
            refuse(errno.EFAULT)
        need(target.device is not None and target.tpg is self.acl.tpg and self.lun is None)
        self.lun = target
        self.values["write_protect"] = self.acl.tpg.attrib.values["prod_mode_write_protect"]

    def unlinked(self) -> None:
        self.lun = None
