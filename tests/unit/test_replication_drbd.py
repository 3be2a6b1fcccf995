"""Drbd on a fake drbd-utils that answers as the recordings do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from hactl.errors import Failed, Refused, Unknown
from hactl.replication.drbd import Drbd
from hactl.replication.state import ResourceState, Role
from hactl.replication.stream import Lines, stream_lines
from hactl.runner import CommandFailed, CommandTimeout, Completed
from tests.unit.replication_spec import cluster, resource

DATA = Path(__file__).parent / "data" / "drbd-9.2.16"
V84 = (8, 4, 11)
V9 = (9, 2, 16)


class FakeUtils:
    """drbd-utils of one node with one disk. Keeps roles by minor (8.4) or resource (9); ``proc`` is the file
    that tells them on 8.4."""

    def __init__(self, version: tuple[int, int, int], proc: Path | None = None) -> None:
        self.version = version
        self.proc = proc
        self.version_text = ""
        self.argvs: list[tuple[str, ...]] = []
        self.primary: set[str] = set()
        self.refusals: dict[tuple[str, ...], tuple[int, str]] = {}
        self.hanging: set[str] = set()
        self.metadata = False
        self.stubborn = False
        self.signature = ""
        self.restored = ""
        self.too_large = False
        self.disk_size = 64 << 20
        self.dump = "2026-11-23T05:53:36.787908+00:00 exists -\n"

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        words = tuple(argv)
        self.argvs.append(words)
        if words[1] in self.hanging:
            raise CommandTimeout(words, timeout)
        status, out, err = self._answer(words)
        self.tell()
        completed = Completed(words, status, out, err)
        if check and status:
            raise CommandFailed(completed)
        return completed

    def tell(self) -> None:
        if self.proc is not None:
            roles = {
                minor: "Primary" if minor in self.primary else "Secondary" for minor in ("16", "17", "18")
            }
            lines = [
                f"{m:>2}: cs:Connected ro:{r}/Secondary ds:UpToDate/UpToDate C r-----"
                for m, r in roles.items()
            ]
            self.proc.write_text("version: 8.4.11\n" + "\n".join([" 3: cs:Unconfigured", *lines]) + "\n")

    def _answer(self, words: tuple[str, ...]) -> tuple[int, str, str]:
        if words[1:] in self.refusals:
            status, text = self.refusals[words[1:]]
            return status, "", text
        match words:
            case ("drbdadm", "--version"):
                code = "{:02x}{:02x}{:02x}".format(*self.version)
                if self.version_text:
                    return 0, self.version_text, ""
                return 0, f"DRBD_KERNEL_VERSION_CODE=0x{code}\nDRBDADM_VERSION_CODE=0x091600\n", ""
            case ("drbdsetup", "events2", *_):
                return 0, self.dump, ""
            case ("drbdsetup", "primary", which):
                self.primary.add(which)
            case ("drbdsetup", "secondary", which):
                self.primary.discard(which)
            case ("drbdmeta", *_, "dstate" | "dump-md"):
                return (0, "Inconsistent\n", "") if self.metadata else (1, "", "No valid meta data found\n")
            case ("drbdmeta", "--force", *rest) if "create-md" in rest:
                self.metadata = True
            case ("drbdmeta", "--force", *rest) if "restore-md" in rest:
                self.restored = Path(rest[-1]).read_text()
                if self.too_large:
                    return 40, "Found ext3 filesystem\n\nOperation refused.\n\n", "reinitializing\n"
                self.metadata = True
            case ("blkdiscard", "--zeroout", *_):
                pass
            case ("drbdmeta", "--force", *rest) if "wipe-md" in rest:
                self.metadata = self.stubborn
            case ("wipefs", "--no-act", *_):
                return 0, f"{self.signature}\n" if self.signature else "", ""
            case ("blockdev", "--getsize64", _):
                return 0, f"{self.disk_size}\n", ""
            case ("drbdadm", "adjust" | "resize", _) | ("drbdsetup", "down", _):
                pass
            case ("drbdsetup", "new-current-uuid", "--clear-bitmap", _):
                pass
            case ("drbdsetup", "outdate" | "resume-io", _):
                pass
            case _:
                return 20, "", f"unknown command {words}"
        return 0, "", ""


def make(version: tuple[int, int, int], folder: Path) -> tuple[Drbd, FakeUtils]:
    folder.mkdir(exist_ok=True)
    proc = folder / "proc-drbd"
    utils = FakeUtils(version, proc)
    utils.tell()
    return Drbd(utils, folder / "drbd.d", node="n1", proc_drbd=proc), utils


async def test_version_is_asked_once(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    assert await drbd.version() == V84
    assert await drbd.version() == V84
    assert len(utils.argvs) == 1


async def test_the_recorded_version(tmp_path: Path) -> None:
    drbd, utils = make(V9, tmp_path)
    utils.version_text = (DATA / "version.txt").read_text()
    assert await drbd.version() == (9, 2, 16)


async def test_no_module(tmp_path: Path) -> None:
    drbd, _ = make((0, 0, 0), tmp_path)
    with pytest.raises(Failed) as caught:
        await drbd.version()
    assert caught.value.code == "drbd-no-module"


async def test_the_file_is_written_read_and_removed(tmp_path: Path) -> None:
    drbd, _ = make(V84, tmp_path)
    spec = resource()
    assert not await drbd.configured(cluster(spec), spec)
    await drbd.write_config(cluster(spec), spec)
    assert await drbd.configured(cluster(spec), spec)
    assert [p.name for p in (tmp_path / "drbd.d").iterdir()] == ["hactl-r0.res"]
    changed = resource(volumes=2)
    assert not await drbd.configured(cluster(changed), changed)
    await drbd.remove_config("r0")
    await drbd.remove_config("r0")
    assert not list((tmp_path / "drbd.d").iterdir())


async def test_roles_on_drbd_9_are_the_resources(tmp_path: Path) -> None:
    drbd, utils = make(V9, tmp_path)
    await drbd.primary("r0")
    assert utils.primary == {"r0"}
    await drbd.secondary("r0")
    assert utils.primary == set()


async def test_roles_on_drbd_8_4_are_the_volumes(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource(volumes=2)
    await drbd.write_config(cluster(spec), spec)
    await drbd.primary("r0")
    assert utils.primary == {"16", "17"}
    utils.primary.clear()
    utils.tell()
    utils.refusals["primary", "17"] = 17, "17: State change failed: (-2) Need access to UpToDate data\n"
    with pytest.raises(Refused):
        await drbd.primary("r0")
    assert utils.primary == set(), "no resource stays half primary"


async def test_a_promotion_that_fails_demotes_only_what_it_promoted(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource(volumes=3)
    await drbd.write_config(cluster(spec), spec)
    utils.primary.add("16")
    utils.tell()
    utils.refusals["primary", "18"] = 17, "18: State change failed: (-2) Need access to UpToDate data\n"
    with pytest.raises(Refused):
        await drbd.primary("r0")
    assert utils.primary == {"16"}
    assert ("drbdsetup", "secondary", "16") not in utils.argvs


async def test_a_volume_that_was_removed_is_demoted_before_it_is_taken_down_on_8_4(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource(volumes=1)
    await drbd.write_config(cluster(spec), spec)
    device = "exists device name:r0 volume:{0} minor:1{1} disk:UpToDate"
    utils.dump = "\n".join(
        [
            "exists resource name:r0 role:Primary suspended:no write-ordering:flush",
            device.format(0, 6),
            device.format(1, 7),
            "exists -\n",
        ]
    )
    utils.primary = {"16", "17"}
    utils.tell()
    await drbd.up("r0")
    assert utils.primary == {"16"}
    words = [argv for argv in utils.argvs if "secondary" in argv or "adjust" in argv]
    assert words == [("drbdsetup", "secondary", "17"), ("drbdadm", "adjust", "r0")]
    utils.argvs.clear()
    utils.dump = utils.dump.replace("Primary", "Secondary")
    await drbd.up("r0")
    assert not [argv for argv in utils.argvs if "secondary" in argv]


async def test_bringing_one_up_asks_of_no_other_on_8_4(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource(volumes=1)
    await drbd.write_config(cluster(spec), spec)
    await drbd.version()
    utils.argvs.clear()
    utils.primary = {"16"}
    utils.tell()
    await drbd.up("r0")
    assert utils.argvs == [("drbdadm", "adjust", "r0")]
    # Another minor is Primary: whose it is only DRBD can tell, and it says that it is not r0's.
    utils.argvs.clear()
    utils.primary = {"18"}
    utils.tell()
    await drbd.up("r0")
    events = ("drbdsetup", "events2", "--timestamps", "--statistics", "--now", "r0")
    assert utils.argvs == [events, ("drbdadm", "adjust", "r0")]
    assert utils.primary == {"18"}
    # Not known to be done without having looked.
    utils.argvs.clear()
    utils.refusals[events[1:]] = 20, "could not connect to 'drbd' generic netlink family\n"
    with pytest.raises(Failed, match="netlink"):
        await drbd.up("r0")
    assert utils.argvs == [events]
    utils.refusals[events[1:]] = 10, "r0: Failure: (158) Unknown resource\n"
    await drbd.up("r0")
    assert utils.argvs[-1] == ("drbdadm", "adjust", "r0")


async def test_a_promotion_is_not_tried_when_the_roles_before_it_are_unknown(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource(volumes=2)
    await drbd.write_config(cluster(spec), spec)
    utils.proc = None
    (tmp_path / "proc-drbd").write_text(
        "16: cs:Connected ro:Tertiary/Secondary ds:UpToDate/UpToDate C r----\n"
    )
    with pytest.raises(Failed, match="Tertiary"):
        await drbd.primary("r0")
    (tmp_path / "proc-drbd").unlink()
    with pytest.raises(Failed, match="cannot read"):
        await drbd.primary("r0")
    assert utils.primary == set()


async def test_a_resource_without_a_file_is_refused_on_8_4(tmp_path: Path) -> None:
    drbd, _ = make(V84, tmp_path)
    with pytest.raises(Refused) as caught:
        await drbd.primary("r0")
    assert caught.value.code == "drbd-not-configured"


@pytest.mark.parametrize(
    ("recording", "command", "code", "part"),
    [
        ("n2/12-outdated-standalone/primary-refused.txt", "primary", "drbd-not-uptodate", "Need access"),
        ("n2/08-second-primary-refused/second-primary.txt", "primary", "drbd-primary-elsewhere", "Multiple"),
        ("n1/07-primary-open/secondary-refused.txt", "secondary", "drbd-in-use", "bash (pid 566)"),
    ],
)
async def test_the_kernels_reason_is_told(
    tmp_path: Path, recording: str, command: str, code: str, part: str
) -> None:
    drbd, utils = make(V9, tmp_path)
    utils.refusals[command, "r0"] = 11, (DATA / recording).read_text()
    with pytest.raises(Refused) as caught:
        await (drbd.primary if command == "primary" else drbd.secondary)("r0")
    assert caught.value.code == code
    assert part in caught.value.message
    assert "terminated" not in caught.value.message


async def test_a_reason_without_a_number_is_a_failure(tmp_path: Path) -> None:
    drbd, utils = make(V9, tmp_path)
    utils.refusals["primary", "r0"] = 20, "could not connect to 'drbd' generic netlink family\n"
    with pytest.raises(Failed, match="netlink"):
        await drbd.primary("r0")


async def test_a_time_out_is_unknown(tmp_path: Path) -> None:
    drbd, utils = make(V9, tmp_path)
    utils.hanging.add("secondary")
    with pytest.raises(Unknown):
        await drbd.secondary("r0")


async def test_down_of_what_is_not_up(tmp_path: Path) -> None:
    drbd, utils = make(V9, tmp_path)
    utils.refusals["down", "r0"] = 10, "r0: Failure: (158) Unknown resource\n"
    await drbd.down("r0")
    utils.refusals["down", "r0"] = 11, "r0: State change failed: (-12) Device is held open by someone\n"
    with pytest.raises(Refused) as caught:
        await drbd.down("r0")
    assert caught.value.code == "drbd-in-use"


@pytest.mark.parametrize(("version", "last"), [(V84, "create-md"), (V9, "7")])
async def test_meta_data_is_made_once(tmp_path: Path, version: tuple[int, int, int], last: str) -> None:
    drbd, utils = make(version, tmp_path)
    spec = resource()
    assert not await drbd.has_metadata(spec, 0)
    await drbd.create_metadata(spec, 0)
    assert utils.argvs[-1][-1] == last
    assert await drbd.has_metadata(spec, 0)
    with pytest.raises(Refused) as caught:
        await drbd.create_metadata(spec, 0)
    assert caught.value.code == "drbd-metadata-exists"


async def test_meta_data_is_wiped_without_a_resource_file(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    await drbd.wipe_metadata("r0", 16, "/dev/vdb")
    assert all("wipe-md" not in argv for argv in utils.argvs), "there was none"
    utils.metadata = True
    await drbd.wipe_metadata("r0", 16, "/dev/vdb")
    assert ("drbdmeta", "--force", "16", "v08", "/dev/vdb", "internal", "wipe-md") in utils.argvs
    assert not utils.metadata


async def test_meta_data_in_use_is_not_wiped(tmp_path: Path) -> None:
    drbd, utils = make(V9, tmp_path)
    utils.metadata = True
    utils.dump = (DATA / "n1/07-primary-open/events2-now.txt").read_text()
    with pytest.raises(Refused) as caught:
        await drbd.wipe_metadata("r0", 1000, "/dev/vdb")
    assert caught.value.code == "drbd-in-use"
    # By another minor, or by something else: drbdmeta would go on if it was forced.
    busy = "open(/dev/vdb) failed: Device or resource busy\n"
    utils.refusals["16", "v09", "/dev/vdb", "flex-internal", "dstate"] = 20, busy
    with pytest.raises(Refused) as caught:
        await drbd.wipe_metadata("r0", 16, "/dev/vdb")
    assert caught.value.code == "drbd-disk-busy"
    assert all("wipe-md" not in argv for argv in utils.argvs)


async def test_meta_data_that_stays_is_told(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    utils.metadata = utils.stubborn = True
    with pytest.raises(Failed) as caught:
        await drbd.wipe_metadata("r0", 16, "/dev/vdb")
    assert caught.value.code == "drbd-metadata"


async def test_a_disk_with_something_on_it_is_not_touched(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    utils.signature = "ext4"
    with pytest.raises(Refused, match="ext4"):
        await drbd.create_metadata(resource(), 0)
    assert not utils.metadata


async def test_a_disk_that_is_too_small_is_not_touched(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    utils.disk_size = 8 << 20
    with pytest.raises(Refused) as caught:
        await drbd.create_metadata(resource(), 0)
    assert caught.value.code == "drbd-disk-too-small"
    assert not utils.metadata


async def test_meta_data_of_a_disk_enlarged_meanwhile_is_found(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    utils.refusals["16", "v08", "/dev/vdb", "internal", "dump-md"] = 1, 'Found meta data is "unclean"\n'
    assert await drbd.has_metadata(resource(), 0)


async def test_a_disk_in_use_by_others_is_refused(tmp_path: Path) -> None:
    drbd, utils = make(V9, tmp_path)
    text = "open(/dev/vdb) failed: Device or resource busy\n"
    utils.refusals["1000", "v09", "/dev/vdb", "flex-internal", "dstate"] = 20, text
    spec = resource()
    volume = spec.volumes[0].model_copy(update={"minor": 1000})
    spec = spec.model_copy(update={"volumes": (volume,)})
    with pytest.raises(Refused) as caught:
        await drbd.has_metadata(spec, 0)
    assert caught.value.code == "drbd-disk-busy"
    utils.dump = (DATA / "n1/07-primary-open/events2-now.txt").read_text()
    assert await drbd.has_metadata(spec, 0), "attached to DRBD itself"


async def test_the_first_copy_is_skipped_only_when_all_is_new(tmp_path: Path) -> None:
    drbd, utils = make(V9, tmp_path)
    utils.dump = (DATA / "n1/02-connected-both-inconsistent/events2-now.txt").read_text()
    await drbd.skip_initial_sync("r0", (0,))
    assert utils.argvs[-1] == ("drbdsetup", "new-current-uuid", "--clear-bitmap", "1000")
    for state in ("01-n1-up-alone-inconsistent", "03-primary-syncsource", "06-primary-uptodate"):
        utils.dump = (DATA / f"n1/{state}/events2-now.txt").read_text()
        utils.argvs.clear()
        with pytest.raises(Refused) as caught:
            await drbd.skip_initial_sync("r0", (0,))
        assert caught.value.code == "drbd-not-new"
        assert all("new-current-uuid" not in argv for argv in utils.argvs)


async def test_observe_names_the_peer_on_8_4(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource()
    await drbd.write_config(cluster(spec), spec)
    (tmp_path / "drbd.d" / "hactl-other.res").write_text("resource other {}\n")
    utils.dump = (
        "exists resource name:r0 role:Secondary suspended:no\n"
        "exists connection name:r0 peer-node-id:0 conn-name:peer connection:Connecting role:Unknown\n"
        "exists -\n"
    )
    assert set((await drbd.observe())["r0"].connections) == {"n2"}


async def test_a_running_watch_names_the_peer_of_a_new_resource_on_8_4(tmp_path: Path) -> None:
    create = ["create resource name:r0 role:Secondary suspended:no"]
    create += ["create connection name:r0 peer-node-id:0 conn-name:peer connection:StandAlone role:Unknown"]
    streams = Streams(["exists -", *create])
    drbd = Drbd(FakeUtils(V84), tmp_path, node="n1", stream=streams.start, sleep=streams.sleep)
    async with contextlib.aclosing(drbd.watch()) as watch:
        assert await anext(watch) == {}
        spec = resource()
        await drbd.write_config(cluster(spec), spec)
        await anext(watch)
        (state,) = (await anext(watch) or {}).values()
        assert set(state.connections) == {"n2"}


class Streams:
    """Event streams, one after the other, and the pauses between them."""

    def __init__(self, *streams: list[str]) -> None:
        self.streams = list(streams)
        self.slept: list[float] = []
        self.open = 0

    @contextlib.asynccontextmanager
    async def start(self, argv: Sequence[str]) -> AsyncGenerator[Lines]:
        if not self.streams:
            raise OSError("no more streams")
        self.open += 1
        try:
            yield self._lines(self.streams.pop(0))
        finally:
            self.open -= 1

    async def _lines(self, lines: list[str]) -> AsyncGenerator[str]:
        for line in lines:
            yield line

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def roles(states: dict[str, ResourceState] | None) -> list[Role]:
    assert states is not None
    return [state.role for state in states.values()]


async def test_watch_begins_anew_and_forgets(tmp_path: Path) -> None:
    first = [
        "exists resource name:r0 role:Secondary suspended:no",
        "exists -",
        "change resource name:r0 role:Primary",
    ]
    streams = Streams([*first, "- skipped 1", "change resource name:r0 role:Secondary"], ["exists -"], [])
    drbd = Drbd(FakeUtils(V9), tmp_path, node="n1", stream=streams.start, sleep=streams.sleep)
    async with contextlib.aclosing(drbd.watch()) as watch:
        assert roles(await anext(watch)) == [Role.SECONDARY]
        assert roles(await anext(watch)) == [Role.PRIMARY]
        # What was known does not hold any more from here on, and not only from the next stream on.
        assert await anext(watch) is None
        assert streams.slept == []
        assert await anext(watch) == {}
        assert streams.slept == [0.1]
        assert streams.open == 1
    assert streams.open == 0


async def test_watch_waits_longer_when_no_dump_comes(tmp_path: Path) -> None:
    streams = Streams([], [], [], ["exists -"])
    drbd = Drbd(FakeUtils(V9), tmp_path, node="n1", stream=streams.start, sleep=streams.sleep)
    async with contextlib.aclosing(drbd.watch()) as watch:
        told = [await anext(watch) for _ in range(4)]
    assert told == [None, None, None, {}]
    assert streams.slept == [0.1, 0.2, 0.5]


async def test_watch_raises_unknown_words(tmp_path: Path) -> None:
    streams = Streams(["exists resource name:r0 role:Tertiary"])
    drbd = Drbd(FakeUtils(V9), tmp_path, node="n1", stream=streams.start, sleep=streams.sleep)
    with pytest.raises(Failed):
        await anext(drbd.watch())


async def test_a_real_stream_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {mark}; echo one; cat > /dev/null; echo two; wait"
    async with stream_lines(["sh", "-c", script]) as lines:
        assert (await anext(lines)).strip() == "one"
        child = os.pidfd_open(int(mark.read_text()))
        assert not await asyncio.to_thread(ended, child, 0)
    # Killed it is; that it has ended shows a moment later, since it may have been running on another CPU.
    assert await asyncio.to_thread(ended, child, 30)
    os.close(child)


def ended(pidfd: int, seconds: float) -> bool:
    """Whether the process has ended, or does so in that time (pidfd_open(2): readable then)."""
    return bool(select.select([pidfd], [], [], seconds)[0])


async def test_a_real_stream_ends_with_its_program() -> None:
    async with stream_lines(["echo", "one"]) as lines:
        assert [line async for line in lines] == ["one\n"]


def dump(*disks: str) -> str:
    """What events2 says of r0 with these disks, alone and Secondary."""
    lines = ["exists resource name:r0 role:Secondary suspended:no"]
    lines += [f"exists device name:r0 volume:{n} minor:{16 + n} disk:{d}" for n, d in enumerate(disks)]
    return "\n".join([*lines, "exists -", ""])


async def test_only_what_may_be_taken_for_good_is_outdated(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource(volumes=3)
    await drbd.write_config(cluster(spec), spec)
    utils.dump = dump("UpToDate", "Inconsistent", "Consistent")
    await drbd.outdate("r0")
    assert [a[1:] for a in utils.argvs if a[1] == "outdate"] == [("outdate", "16"), ("outdate", "18")]


async def test_a_refusal_to_outdate_is_told_while_the_disk_is_good(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource()
    await drbd.write_config(cluster(spec), spec)
    utils.dump = dump("UpToDate")
    utils.refusals["outdate", "16"] = 17, "16: State change failed: (-2) Need access to UpToDate data\n"
    with pytest.raises(Refused):
        await drbd.outdate("r0")


async def test_outdating_what_is_not_up(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    utils.refusals["events2", "--timestamps", "--statistics", "--now", "r0"] = 10, "r0: Failure: (158)\n"
    with pytest.raises(Refused) as caught:
        await drbd.outdate("r0")
    assert caught.value.code == "drbd-not-configured"


async def test_io_goes_on_with_a_new_generation_for_every_volume(tmp_path: Path) -> None:
    drbd, utils = make(V84, tmp_path)
    spec = resource(volumes=2)
    await drbd.write_config(cluster(spec), spec)
    await drbd.resume("r0")
    assert [a[1:] for a in utils.argvs if a[1] == "resume-io"] == [("resume-io", "16"), ("resume-io", "17")]
