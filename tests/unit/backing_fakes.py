"""LVM's programs, losetup and fallocate as a stateful fake: what they are asked for, with their refusals.

Files are real ones below a folder; volume groups and loop devices are in memory. Messages and reports are
those of lvm2 2.03.31 and util-linux 2.41.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hactl.runner import CommandFailed, CommandTimeout, Completed

EXTENT = 4 << 20


class KilledError(Exception):
    """The agent dies here."""


@dataclass
class FakeLv:
    size: int
    tags: set[str] = field(default_factory=set)
    active: bool = True
    layout: str = "linear"
    pool: str = ""
    signed: bool = False


@dataclass
class FakeLoop:
    file: Path
    size: int
    going: bool = False
    offset: int = 0


class FakePrograms:
    """Keeps :class:`hactl.runner.Runner`. ``opened``: devices that something has open."""

    def __init__(self, folder: Path) -> None:
        self.sys_block = folder / "sys"
        self.links = folder / "dev"
        self.groups: dict[str, int] = {}
        self.lvs: dict[tuple[str, str], FakeLv] = {}
        self.loops: dict[str, FakeLoop] = {}
        self.opened: set[str] = set()
        self.lets_go_after = 0
        self.blanked: list[tuple[str, int, int]] = []
        self.argvs: list[tuple[str, ...]] = []
        self.absent: set[str] = set()
        self.hanging: set[str] = set()
        self.room: int | None = None
        self.lvmconfig = ""
        self.die_after: int | None = None
        self.before: dict[str, Callable[[], None]] = {}
        self._modprobe(["loop"])

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        words = tuple(argv)
        self.argvs.append(words)
        if words[0] in self.absent:
            raise FileNotFoundError(words[0])
        if words[0] in self.hanging:
            raise CommandTimeout(words, timeout)
        self.before.pop(words[0], lambda: None)()
        name = words[0]
        if name in ("vgs", "lvs", "lvcreate", "lvextend", "lvremove", "lvchange"):
            assert words[1] == "--config", "LVM must not look at gates"
            assert "r|^/dev/mapper/hactl[.]|" in words[2]
            words = (name, *words[3:])
        status, text = getattr(self, f"_{name}")(list(words[1:]))
        reads = name in ("vgs", "lvs", "lvmconfig") or words[:2] == ("losetup", "--json")
        if self.die_after is not None and not reads:
            if self.die_after == 0:
                raise KilledError
            self.die_after -= 1
        done = Completed(tuple(argv), status, "" if status else text, text if status else "")
        if check and status:
            raise CommandFailed(done)
        return done

    # LVM

    def _lvmconfig(self, words: list[str]) -> tuple[int, str]:
        return (0, self.lvmconfig) if self.lvmconfig else (5, "  Configuration node not found\n")

    def _free(self, vg: str) -> int:
        return self.groups[vg] - sum(lv.size for (g, _), lv in self.lvs.items() if g == vg and not lv.pool)

    def _vgs(self, words: list[str]) -> tuple[int, str]:
        rows = [
            {
                "vg_name": vg,
                "vg_size": str(size),
                "vg_free": str(self._free(vg)),
                "vg_extent_size": str(EXTENT),
            }
            for vg, size in self.groups.items()
            if self._selected(words, vg)
        ]
        return 0, json.dumps({"report": [{"vg": rows}], "log": []})

    def _lvs(self, words: list[str]) -> tuple[int, str]:
        rows = [
            {
                "vg_name": vg,
                "lv_name": name,
                "lv_size": str(lv.size),
                "lv_tags": ",".join(sorted(lv.tags)),
                "lv_active": "active" if lv.active else "",
                "lv_device_open": "open" if f"/dev/{vg}/{name}" in self.opened else "",
                "lv_layout": lv.layout,
                "pool_lv": lv.pool,
                "data_percent": "25.00" if lv.layout == "thin,pool" else "",
            }
            for (vg, name), lv in self.lvs.items()
            if self._selected(words, vg)
        ]
        return 0, json.dumps({"report": [{"lv": rows}], "log": []})

    @staticmethod
    def _selected(words: list[str], vg: str) -> bool:
        return "--select" not in words or words[words.index("--select") + 1] == f'vg_name="{vg}"'

    def _lvcreate(self, words: list[str]) -> tuple[int, str]:
        options = dict(zip(words[1:-1:2], words[2::2], strict=False))
        thin = "--thinpool" in options
        vg, _, pool = (options["--thinpool"] if thin else words[-1]).partition("/")
        name = options["--name"]
        if vg not in self.groups:
            return 5, f'  Volume group "{vg}" not found\n  Cannot process volume group {vg}\n'
        if (vg, name) in self.lvs:
            return 5, f'  Logical Volume "{name}" already exists in volume group "{vg}"\n'
        size = self._rounded(options["--virtualsize" if thin else "--size"])
        if not thin and size > self._free(vg):
            return 5, f'  Volume group "{vg}" has insufficient free space (1 extents): 2 required.\n'
        layout = "thin,sparse" if thin else "linear"
        # What was there before, as if wiping had been interrupted.
        self.lvs[vg, name] = FakeLv(size, {options["--addtag"]}, layout=layout, pool=pool, signed=not thin)
        return 0, f'  Logical volume "{name}" created.\n'

    @staticmethod
    def _rounded(size: str) -> int:
        assert size.endswith("b")
        assert int(size[:-1]) % 512 == 0, "Size is not a multiple of 512"
        return -(-int(size[:-1]) // EXTENT) * EXTENT

    def _lvextend(self, words: list[str]) -> tuple[int, str]:
        vg, _, name = words[-1].removeprefix("/dev/").partition("/")
        lv = self.lvs[vg, name]
        size = self._rounded(words[words.index("--size") + 1])
        if size <= lv.size:
            return 5, "  No size change.\n"
        if not lv.pool and size - lv.size > self._free(vg):
            return 5, "  Insufficient free space: 217 extents needed, but only 69 available\n"
        lv.size = size
        return 0, "  Logical volume successfully resized.\n"

    def _lvremove(self, words: list[str]) -> tuple[int, str]:
        vg, _, name = words[-1].partition("/")
        if (vg, name) not in self.lvs:
            return 5, f'  Failed to find logical volume "{vg}/{name}"\n'
        if f"/dev/{vg}/{name}" in self.opened:
            return 5, f"  Logical volume {vg}/{name} in use.\n"
        del self.lvs[vg, name]
        return 0, f'  Logical volume "{name}" successfully removed.\n'

    def _lvchange(self, words: list[str]) -> tuple[int, str]:
        vg, _, name = words[-1].partition("/")
        lv = self.lvs[vg, name]
        if "--activate" in words:
            lv.active = True
        else:
            lv.tags.add(words[words.index("--addtag") + 1])
            lv.tags.discard(words[words.index("--deltag") + 1])
        return 0, ""

    def _wipefs(self, words: list[str]) -> tuple[int, str]:
        _, _, vg, name = words[-1].split("/")
        assert self.lvs[vg, name].active
        self.lvs[vg, name].signed = False
        return 0, ""

    def _blockdev(self, words: list[str]) -> tuple[int, str]:
        assert words[0] == "--getsize64"
        vg, _, name = words[1].removeprefix("/dev/").partition("/")
        if (vg, name) not in self.lvs:
            return 1, f"blockdev: cannot open {words[1]}: No such file or directory\n"
        return 0, f"{self.lvs[vg, name].size}\n"

    def _blkdiscard(self, words: list[str]) -> tuple[int, str]:
        assert {"--force", "--zeroout"} < set(words)
        start, length = (int(words[words.index(option) + 1]) for option in ("--offset", "--length"))
        self.blanked.append((words[-1], start, length))
        return 0, ""

    # Files

    def _fallocate(self, words: list[str]) -> tuple[int, str]:
        path, size = Path(words[-1]), int(words[words.index("--length") + 1])
        if self.room is not None and size > self.room:
            return 1, "fallocate: fallocate failed: No space left on device\n"
        if path.stat().st_size < size:
            os.truncate(path, size)
        return 0, ""

    @property
    def control(self) -> Path:
        """The node of loop(4) by which devices are had; there once the module is loaded."""
        return self.links / "loop-control"

    def _modprobe(self, words: list[str]) -> tuple[int, str]:
        assert words == ["loop"]
        self.links.mkdir(parents=True, exist_ok=True)
        self.control.touch()
        return 0, ""

    def _losetup(self, words: list[str]) -> tuple[int, str]:
        if "--json" in words:
            if not self.loops:
                return 0, ""
            self.lets_go_after -= 1
            if self.lets_go_after <= 0:
                self.loops = {d: loop for d, loop in self.loops.items() if not loop.going or d in self.opened}
            return 0, json.dumps({"loopdevices": [self._listed(d, loop) for d, loop in self.loops.items()]})
        if "--detach" in words:
            # The kernel never refuses: what is in use goes later.
            self.loops[words[-1]].going = True
            return 0, ""
        if "--set-capacity" in words:
            loop = self.loops[words[-1]]
            loop.size = loop.file.stat().st_size
            self._tell(words[-1], loop)
            return 0, ""
        assert {"--find", "--show", "--nooverlap", "--direct-io=on"} < set(words)
        if not self.control.exists():
            return 1, f"losetup: {words[-1]}: failed to set up loop device: No such file or directory\n"
        number = next(n for n in range(100) if f"/dev/loop{n}" not in self.loops)
        file = Path(words[-1])
        self.loops[f"/dev/loop{number}"] = FakeLoop(file, file.stat().st_size)
        self._tell(f"/dev/loop{number}", self.loops[f"/dev/loop{number}"])
        return 0, f"/dev/loop{number}\n"

    def _tell(self, device: str, loop: FakeLoop) -> None:
        folder = self.sys_block / Path(device).name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "size").write_text(f"{loop.size // 512}\n")

    @staticmethod
    def _listed(device: str, loop: FakeLoop) -> dict[str, object]:
        found = loop.file.stat() if loop.file.exists() else os.stat_result([0] * 10)
        return {
            "name": device,
            "back-ino": found.st_ino,
            "back-maj:min": f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}",
            "autoclear": loop.going,
            "offset": loop.offset,
            "sizelimit": 0,
            "ro": False,
        }

    def reboot(self) -> None:
        self.opened.clear()
        self.loops.clear()
        for lv in self.lvs.values():
            lv.active = False
        for link in (self.links / "hactl").glob("*"):
            link.unlink()
