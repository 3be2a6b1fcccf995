"""The twin's backstores and port groups: what drivers/target/target_core_{configfs,device,alua}.c do."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Protocol

from hactl.target.memory_items import Item, boolean, need, refuse, unsigned

STATES = {
    0: "Active/Optimized",
    1: "Active/NonOptimized",
    2: "Standby",
    3: "Unavailable",
    14: "Offline",
    15: "Transitioning",
}
_LOCKED = (
    "force_pr_aptpl",
    "emulate_tas",
    "emulate_model_alias",
    "unmap_zeroes_data",
    "emulate_ua_intlck_ctrl",
    "queue_depth",
    "optimal_sectors",
    "block_size",
)
PRODUCTS = {"iblock": "IBLOCK", "fileio": "FILEIO"}
ACCESS_TYPES = ("None", "Implicit", "Explicit", "Implicit and Explicit")


class Port(Protocol):
    """What a port group knows of a LUN."""

    group: PortGroup | None

    def alias(self) -> str:
        """Name of the LUN in ``members``."""
        ...


class Core(Item):
    """``core``: HBAs, named plugin and number. ``opens`` says whether a device or file can be opened."""

    def __init__(self, root: Item, opens: Callable[[str], bool]) -> None:
        super().__init__(root, "core")
        self.opens = opens
        self.used: dict[str, Device] = {}
        self.add(Item(self, "alua"))

    def make(self, name: str) -> Item:
        need(len(name) < 64, errno.ENAMETOOLONG)
        plugin, _, number = name.partition("_")
        need(number.isdigit() and plugin in ("iblock", "fileio"))
        return Hba(self, name, plugin)


class Hba(Item):
    """An HBA: a folder of backstores of one plugin."""

    def __init__(self, core: Core, name: str, plugin: str) -> None:
        super().__init__(core, name, default=False)
        self.core = core
        self.plugin = plugin
        self.fixed(hba_info=f"HBA Index: 1 plugin: {plugin} version: v5.0", hba_mode="0")

    def make(self, name: str) -> Item:
        return Device(self, name)


class Device(Item):
    """A backstore."""

    def __init__(self, hba: Hba, name: str) -> None:
        super().__init__(hba, name, default=False)
        self.hba = hba
        self.backing = ""
        self.size = 0
        self.enabled = False
        self.luns: list[Port] = []
        self.group_count = 1
        self.stores["control"] = self._control
        self.stores["enable"] = self._enable
        self.shows["enable"] = lambda: f"{int(self.enabled)}\n"
        self.shows["info"] = self._info
        self.texts(udev_path="", alias="")
        self.attrib = self.add(_attributes(self))
        self.wwn = self.add(_identity(self))
        pr = self.add(Item(self, "pr"))
        pr.fixed(res_type="SPC3_PERSISTENT_RESERVATIONS", res_holder="No SPC-3 Reservation holder")
        self.add(Item(self, "statistics"))
        self.alua = Groups(self)
        self.add(self.alua)

    def exported(self) -> bool:
        """Whether a LUN links to it (export_count)."""
        return bool(self.luns)

    def unexported(self, store: Callable[[str], None]) -> Callable[[str], None]:
        """A store that is refused while a LUN links here."""

        def guarded(text: str) -> None:
            need(not self.exported())
            store(text)

        return guarded

    def _control(self, text: str) -> None:
        options = dict(part.partition("=")[::2] for part in text.strip("\n").split(","))
        if self.hba.plugin == "iblock":
            need(not self.enabled, errno.EEXIST)
            need(set(options) <= {"udev_path", "readonly", "force"})
            self.backing = options.get("udev_path", self.backing)
        else:
            need(set(options) <= {"fd_dev_name", "fd_dev_size", "fd_buffered_io", "fd_async_io"})
            self.backing = options.get("fd_dev_name", self.backing)
            self.size = int(options.get("fd_dev_size", self.size))

    def _enable(self, text: str) -> None:
        need(boolean(text) == "1")
        need(not self.enabled, errno.EEXIST)
        need(self.backing != "" and (self.hba.plugin == "iblock" or self.size > 0))
        core = self.hba.core
        need(core.opens(self.backing), errno.ENOENT)
        if self.hba.plugin == "iblock":
            need(core.used.setdefault(self.backing, self) is self, errno.EBUSY)
        self.enabled = True
        blocks = 16384 if self.hba.plugin == "fileio" else 8388608
        self.attrib.values.update(hw_block_size="512", block_size="512")
        self.attrib.values.update(hw_max_sectors=str(blocks), optimal_sectors=str(blocks))
        self.attrib.values.update(hw_queue_depth="128", queue_depth="128")

    def _info(self) -> str:
        status = "ACTIVATED" if self.enabled else "DEACTIVATED"
        head = f"Status: {status}  Max Queue Depth: 0  SectorSize: 512  HwMaxSectors: 128\n        "
        if self.hba.plugin == "fileio":
            file = self.backing or ""
            return f"{head}TCM FILEIO ID: 0        File: {file}  Size: {self.size}  Mode: O_DSYNC Async: 0\n"
        path = f"  UDEV PATH: {self.backing}" if self.backing else ""
        device = "iBlock device: dm-0" if self.enabled else ""
        return f"{head}{device}{path}  readonly: 0\n        Major: 0 Minor: 0\n"

    def removed(self) -> None:
        if self.hba.core.used.get(self.backing) is self:
            del self.hba.core.used[self.backing]


def _attributes(device: Device) -> Item:
    attrib = Item(device, "attrib")
    attrib.flags(emulate_fua_write="1", emulate_caw="1", emulate_3pc="1", enforce_pr_isids="1", is_nonrot="0")
    attrib.flags(emulate_rsoc="1")
    attrib.flags(
        force_pr_aptpl="0", emulate_tas="1", emulate_model_alias="0", unmap_zeroes_data="0", emulate_pr="1"
    )
    attrib.plain(emulate_ua_intlck_ctrl="0", queue_depth="0", optimal_sectors="0", block_size="0")
    attrib.plain(max_unmap_lba_count="0", max_unmap_block_desc_count="0", max_write_same_len="0")
    attrib.plain(unmap_granularity="0", unmap_granularity_alignment="0")
    attrib.fixed(hw_block_size="0", hw_max_sectors="0", hw_queue_depth="0", hw_pi_prot_type="0")

    def sectors(text: str) -> None:
        need(unsigned(text) <= int(attrib.values["hw_max_sectors"]))
        attrib.values["optimal_sectors"] = str(unsigned(text))

    def block_size(text: str) -> None:
        need(unsigned(text) in (512, 1024, 2048, 4096))
        attrib.values["block_size"] = str(unsigned(text))

    def provisioning(name: str) -> Callable[[str], None]:
        def put(text: str) -> None:
            flag = boolean(text)
            need(flag == "0" or attrib.values["max_unmap_block_desc_count"] != "0", errno.ENOSYS)
            attrib.values[name] = flag

        return put

    def write_cache(text: str) -> None:
        need(boolean(text) == "0" or device.hba.plugin != "iblock")
        attrib.values["emulate_write_cache"] = boolean(text)

    def model_alias(text: str) -> None:
        attrib.values["emulate_model_alias"] = boolean(text)
        default = PRODUCTS[device.hba.plugin]
        device.wwn.values["product_id"] = device.name[:15] if boolean(text) == "1" else default

    def reordering(text: str) -> None:
        need(boolean(text) == "0", errno.ENOSYS)

    attrib.values.update(emulate_tpu="0", emulate_tpws="0", emulate_write_cache="0", emulate_rest_reord="0")
    attrib.stores.update(
        optimal_sectors=sectors,
        block_size=block_size,
        emulate_model_alias=model_alias,
        emulate_tpu=provisioning("emulate_tpu"),
        emulate_tpws=provisioning("emulate_tpws"),
        emulate_write_cache=write_cache,
        emulate_rest_reord=reordering,
    )
    for name in _LOCKED:
        attrib.stores[name] = device.unexported(attrib.stores[name])
    return attrib


def _identity(device: Device) -> Item:
    wwn = Item(device, "wwn")
    wwn.fixed(vpd_protocol_identifier="", vpd_assoc_logical_unit="")

    def inquiry(name: str, length: int, value: str) -> None:
        wwn.values[name] = value

        def put(text: str) -> None:
            stripped = text.strip()
            need(len(stripped) <= length, errno.EOVERFLOW)
            need(all(" " <= c <= "~" for c in stripped))
            need(not device.exported())
            wwn.values[name] = stripped

        wwn.stores[name] = put

    inquiry("vendor_id", 8, "LIO-ORG")
    inquiry("product_id", 16, PRODUCTS[device.hba.plugin])
    inquiry("revision", 4, "4.0")
    serial = [""]

    def put_serial(text: str) -> None:
        need(len(text) < 254, errno.EOVERFLOW)
        need(not device.exported())
        serial[0] = text.strip()

    wwn.shows["vpd_unit_serial"] = lambda: f"T10 VPD Unit Serial Number: {serial[0]}\n"
    wwn.stores["vpd_unit_serial"] = put_serial
    return wwn


class Groups(Item):
    """``alua`` of a backstore."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, "alua")
        self.device = device
        self.default_group = PortGroup(self, "default_tg_pt_gp", 0, default=True)
        self.add(self.default_group)

    def make(self, name: str) -> Item:
        return PortGroup(self, name, None, default=False)

    def all(self) -> list[PortGroup]:
        """Every port group of the backstore."""
        return [g for g in self.children.values() if isinstance(g, PortGroup)]


class PortGroup(Item):
    """A target port group. New ones are active/optimized and take both kinds of ALUA."""

    def __init__(self, groups: Groups, name: str, number: int | None, *, default: bool) -> None:
        super().__init__(groups, name, default=default)
        self.groups = groups
        self.device = groups.device
        self.number = number
        self.state = 0
        self.access_type = 3
        self.shows.update(
            tg_pt_gp_id=lambda: "" if self.number is None else f"{self.number}\n",
            alua_access_state=lambda: f"{self.state}\n",
            alua_access_type=lambda: f"{ACCESS_TYPES[self.access_type]}\n",
            members=self._members,
        )
        self.stores.update(
            tg_pt_gp_id=self._set_number, alua_access_state=self._set_state, alua_access_type=self._set_type
        )
        self.flags(alua_write_metadata="0", preferred="0", alua_support_transitioning="1")

    def _ports(self) -> list[Port]:
        return [lun for lun in self.device.luns if lun.group is self]

    def _members(self) -> str:
        return "".join(f"{lun.alias()}\n\0" for lun in self._ports())

    def _set_number(self, text: str) -> None:
        number = unsigned(text)
        need(number <= 0xFFFF and self.number is None)
        taken = {g.number for g in self.groups.all()}
        if number == 0:
            number = next(n for n in range(self.device.group_count, 0x10000) if n not in taken)
            self.device.group_count = number + 1
        need(number not in taken)
        self.number = number

    def _set_type(self, text: str) -> None:
        number = unsigned(text)
        need(number < len(ACCESS_TYPES))
        self.access_type = number

    def _set_state(self, text: str) -> None:
        need(self.number is not None)
        need(self.device.enabled, errno.ENODEV)
        number = unsigned(text)
        need(bool(self.access_type & 1))
        need(number in STATES)
        self.state = number

    def removed(self) -> None:
        for lun in self._ports():
            lun.group = self.groups.default_group


def group_named(device: Device, text: str) -> PortGroup:
    """The port group that a LUN is put into; ``NULL`` is the default one."""
    name = text.strip()
    if name == "NULL":
        return device.alua.default_group
    found = device.alua.children.get(name)
    if not isinstance(found, PortGroup) or found.number is None:
        refuse(errno.ENODEV)
    return found


def lun_number(name: str) -> int:
    """``7`` of ``lun_7``."""
    found = re.fullmatch(r"lun_(\d+)", name)
    if found is None:
        refuse(errno.EINVAL)
    return int(found[1])
