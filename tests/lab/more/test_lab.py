"""The lab itself, on real machines: what it promises to the tests that stand on it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import story
from lab.api import HOME, Lab, LabError
from lab.layout import NETWORKS, machines

TREE = Path(__file__).parents[2]
ADDRESSES = {
    m.name: {n: [a.partition("/")[0] for a in m.addresses(n)] for n in m.networks} for m in machines(3)
}
OUTSIDE = (
    "192.0.2.1",
    "2001:db8::1",
)  # RFC 5737 and RFC 3849: nobody has these, a default route would take them


def command(lab: Lab, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The command line, as a script uses it."""
    return subprocess.run(
        [sys.executable, "-m", "lab.cli", *arguments],
        input=stdin, capture_output=True, cwd=TREE, env={**os.environ, "LAB_NAME": lab.name}, check=False,
        timeout=60,
    )  # fmt: skip


def reached(lab: Lab, source: str, destination: str) -> dict[str, tuple[bool, ...]]:
    """Network → whether the destination answers a ping, over IPv4 and over IPv6."""
    addresses = [a for network in NETWORKS for a in ADDRESSES[destination][network]]
    # At the same time; a second of waiting is spent once.
    line = "; ".join(f"{{ ping -nqc 1 -W 1 {a} >&2 && echo {a}; }} &" for a in addresses).replace("&;", "&")
    answered = lab[source].succeed(f"{line} wait").split()
    return {n: tuple(a in answered for a in ADDRESSES[destination][n]) for n in NETWORKS}


@contextmanager
def small_lab(name: str) -> Iterator[Lab]:
    """A lab of one node, removed afterwards."""
    try:
        with Lab.up(f"{name}-{os.getpid()}", nodes=1, client=False, fresh=True) as small:
            yield small
    finally:
        shutil.rmtree(HOME / f"{name}-{os.getpid()}")


def namespaces(pid: int | str) -> set[str]:
    """The PID and network namespaces of a process."""
    return {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("pid", "net")}


def wait_until_ended(process: int) -> bool:
    """Whether the process of a pidfd ends within 20 s; closes it."""
    ended, _, _ = select.select([process], [], [], 20)
    os.close(process)
    return bool(ended)


def left_in(spaces: set[str]) -> list[str]:
    """Command lines of processes that stay in any of these namespaces."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if namespaces(entry.name) & spaces:
                words = (entry / "cmdline").read_text().replace("\0", " ")
                # unshare(1), for one, ends right after what it has started.
                if not wait_until_ended(os.pidfd_open(int(entry.name))):
                    found.append(words)
        except OSError:
            continue  # it ended meanwhile
    return found


def test_status_tells_every_machine_its_addresses_and_cuts(lab: Lab) -> None:
    told = json.loads(command(lab, "status", "--json").stdout)
    assert [m["name"] for m in told["machines"]] == ["n1", "n2", "n3", "c1"]
    assert {m["state"] for m in told["machines"]} == {"up"}
    assert told["machines"][1]["addresses"]["replication"] == ["10.77.2.2/24", "fd77:2::2/64"]
    assert told["machines"][1]["bmc"] == {"address": "10.77.1.102", "user": "fence"}
    assert told["cut"] == {}


def test_exec_passes_input_output_and_status_through(lab: Lab) -> None:
    data = os.urandom(200_000)
    done = command(lab, "exec", "n3", "--", "sh", "-c", "cat; echo told >&2; exit 42", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (42, data, b"told\n")


def test_exec_of_a_large_output_loses_nothing(lab: Lab) -> None:
    script = "import sys\nfor _ in range(2560): sys.stdout.buffer.write(bytes(range(256)) * 16)"
    done = command(lab, "exec", "n3", "--", "python3", "-c", script)
    assert done.stdout == bytes(range(256)) * 16 * 2560
    assert done.returncode == 0


def test_exec_of_what_is_not_there_says_so_in_one_line(lab: Lab) -> None:
    done = command(lab, "exec", "n3", "--", "no-such-program", "x")
    assert (done.returncode, done.stdout) == (127, b"")
    assert done.stderr == b"lab: no-such-program: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exec", "n7", "--", "true"], "n1, n2, n3, c1"),
        (["cut", "backup", "n1"], "cluster, replication, storage"),
        (["cut", "cluster", "c1"], "not on the cluster network"),
        (["copy", "/no/such/file", "n1:/tmp/x"], "/no/such/file"),
        (["up", "--nodes", "2"], "runs already, with 3 node(s), not 2"),
    ],
)
def test_a_mistake_gets_one_line(lab: Lab, arguments: list[str], words: str) -> None:
    done = command(lab, *arguments)
    assert done.returncode == 1
    assert words in done.stderr.decode()
    assert len(done.stderr.decode().strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["n3", "c1"])
def test_copy_there_and_back(lab: Lab, name: str, tmp_path: Path) -> None:
    file, back = tmp_path / "file", tmp_path / "back"
    file.write_bytes(os.urandom(300_000))
    file.chmod(0o640)
    assert command(lab, "copy", str(file), f"{name}:/root/new/file").returncode == 0
    assert lab[name].succeed("stat -c %a /root/new/file").strip() == "640"
    assert command(lab, "copy", f"{name}:/root/new/file", str(back)).returncode == 0
    assert back.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_cut_parts_one_network_for_one_machine_and_heals(lab: Lab, network: str) -> None:
    whole = dict.fromkeys(NETWORKS, (True, True))
    assert reached(lab, "n1", "n3") == whole
    lab.cut(network, "n3")
    try:
        assert reached(lab, "n1", "n3") == {**whole, network: (False, False)}
        assert reached(lab, "n1", "n2") == whole
        assert set(lab.status()["cut"]) == {f"n3-{network[0]}"}
        assert lab["n3"].succeed("echo still controlled") == "still controlled\n"
    finally:
        lab.heal()
    assert reached(lab, "n1", "n3") == whole
    assert lab.status()["cut"] == {}


def test_machines_cut_together_still_reach_each_other(lab: Lab) -> None:
    lab.cut("cluster", "n2", "n3")
    try:
        assert reached(lab, "n2", "n3")["cluster"] == (True, True)
        assert reached(lab, "n2", "n1")["cluster"] == (False, False)
    finally:
        lab.heal()


def test_nothing_outside_is_reachable(lab: Lab) -> None:
    shown = subprocess.run(["ip", "-json", "address", "show"], capture_output=True, check=True).stdout
    host = [a["local"] for link in json.loads(shown) for a in link["addr_info"] if a["scope"] == "global"]
    for address in (*OUTSIDE, *host):
        for name in ("n1", "c1"):
            assert "unreachable" in lab[name].fail(f"ping -nc 1 -W 1 {address}")


def test_the_namespace_has_no_way_out(lab: Lab) -> None:
    inside = ["nsenter", "--target", str(lab.supervisor), "--net", "ip"]
    for family in ("-4", "-6"):
        routes = subprocess.run([*inside, family, "route", "show"], capture_output=True, check=True).stdout
        assert routes == b""
    links = json.loads(subprocess.run([*inside, "-json", "link"], capture_output=True, check=True).stdout)
    ports = {port for m in machines(3) for port, _ in m.ports.values()}
    assert {link["ifname"] for link in links} == {"lo", *NETWORKS, *ports}


def test_a_crash_keeps_the_disks_and_the_console(lab: Lab) -> None:
    node = lab["n3"]
    disk = story.DISK
    before = node.succeed("cat /proc/sys/kernel/random/boot_id")
    node.succeed(f"echo kept | dd of={disk} seek=1M oflag=seek_bytes conv=fsync status=none")
    node.succeed("echo kept > /root/kept; sync /root/kept; logger -t witness last words")
    node.wait_until_succeeds("journalctl -t witness | grep -q 'last words'")
    node.crash()
    assert node.state == "off"
    with pytest.raises(LabError, match="n3: it is off: `lab start n3`"):
        node.succeed("true")
    node.start()
    assert node.succeed("cat /proc/sys/kernel/random/boot_id") != before
    assert node.succeed(f"dd if={disk} skip=1M iflag=skip_bytes bs=5 count=1 status=none") == "kept\n"
    assert node.succeed("cat /root/kept") == "kept\n"
    assert "witness" in node.console
    node.succeed(f"dd if=/dev/zero of={disk} seek=1M bs=512 count=1 oflag=seek_bytes status=none")
    lab["n1"].wait_until_succeeds(f"ping -nqc 1 -W 1 {ADDRESSES['n3']['cluster'][0]}")


def test_a_frozen_machine_does_nothing_until_it_is_thawed(lab: Lab) -> None:
    node = lab["n3"]
    node.freeze()
    try:
        assert node.state == "frozen"
        lab["n1"].fail(f"ping -nqc 1 -W 1 {ADDRESSES['n3']['cluster'][0]}")
        with pytest.raises(LabError, match="thaw"):
            node.start()
    finally:
        node.thaw()
    assert node.succeed("echo on again") == "on again\n"
    lab["n1"].wait_until_succeeds(f"ping -nqc 1 -W 1 {ADDRESSES['n3']['cluster'][0]}")


def test_a_second_lab_collides_with_nothing(lab: Lab) -> None:
    lab["n1"].succeed("echo first > /root/which")
    with small_lab("second") as second:
        assert list(second.machines) == ["n1"]
        assert second["n1"].succeed("hostname -I") != ""
        second["n1"].fail("cat /root/which")
        second["n1"].fail(f"ping -nqc 1 -W 1 {ADDRESSES['n2']['cluster'][0]}")
        assert not namespaces(second.supervisor) & namespaces(lab.supervisor)
        # Starting what is off is all that `up` does to a lab that runs.
        second["n1"].crash()
        again = Lab.up(second.name)
        assert (again.supervisor, again["n1"].state) == (second.supervisor, "up")
        spaces = namespaces(second.supervisor)
    assert left_in(spaces) == []
    assert {m["state"] for m in lab.status()["machines"]} == {"up"}
    assert reached(lab, "n1", "n2") == dict.fromkeys(NETWORKS, (True, True))


OWNER = """
import sys
from lab.api import Lab

def told(text, done):
    print(text, flush=True)

with Lab.up(sys.argv[1], nodes=1, client=False, fresh=True, progress=told):
    print("owned", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("moment", ["starting machines", "owned"])
def test_a_lab_ends_with_its_owner_and_leaves_nothing(lab: Lab, moment: str) -> None:
    name = f"killed-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TREE,
    ) as owner:
        assert owner.stdout is not None
        assert any(line.strip() == moment for line in owner.stdout)
        small = Lab(name)
        spaces = namespaces(small.supervisor)
        supervisor = os.pidfd_open(small.supervisor)
        owner.kill()
    assert wait_until_ended(supervisor), "the supervisor outlived its owner"
    assert left_in(spaces) == []
    with pytest.raises(LabError, match="not running"):
        Lab(name)
    if moment == "starting machines":
        # What was begun is no obstacle.
        with Lab.up(name, nodes=1, client=False) as again:
            assert again["n1"].succeed("hostname") == "n1\n"
            again.down(remove=True)
    else:
        subprocess.run(
            [sys.executable, "-m", "lab.cli", "down", "--remove", "--lab", name], cwd=TREE, check=True
        )
        assert not (HOME / name).exists()


def test_a_killed_supervisor_takes_its_machines_along(lab: Lab) -> None:
    with small_lab("beheaded") as small:
        spaces = namespaces(small.supervisor)
        supervisor = os.pidfd_open(small.supervisor)
        subprocess.run(["kill", "-KILL", str(small.supervisor)], check=True)
        assert wait_until_ended(supervisor)
        assert left_in(spaces) == []
        with Lab.up(small.name) as again:
            assert again["n1"].succeed("hostname") == "n1\n"
