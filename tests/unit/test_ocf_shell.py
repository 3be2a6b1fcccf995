"""The resource agents as programs: a small agent behind a real socket, and stubs for what else they start."""

from __future__ import annotations

import os
import shutil
import socketserver
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from hactl.agents.journal import Handover, Record, encode
from hactl.agents.states import OrderedRole

OCF = Path(__file__).parents[2] / "ocf/hactl"
SECONDARY = "exists resource name:r0 role:Secondary suspended:no\nexists -\n"
PRIMARY = "exists resource name:r0 role:Primary suspended:no\nexists -\n"
CLOSED = "hactl.r0.0: 0 131072 error \nhactl.r0.0.hold: 0 131072 error \n"
HELD = "hactl.r0.0: 0 131072 linear 253:1 0\nhactl.r0.0.hold: 0 131072 error \n"
OPEN = "hactl.r0.0: 0 131072 linear 147:16 0\nhactl.r0.0.hold: 0 131072 error \n"

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None or not Path("/bin/sh").exists(), reason="curl and sh are needed"
)


@dataclass
class Asked:
    path: str
    form: dict[str, str]


@dataclass
class FakeAgent:
    """Answers what it is told to; ``break_off`` is how many connections it closes without an answer,
    ``silent`` whether it never answers."""

    path: Path
    answer: str = "0\n=\n\n"
    break_off: int = 0
    silent: threading.Event | None = None
    asked: list[Asked] = field(default_factory=list)
    server: socketserver.ThreadingUnixStreamServer | None = None

    def start(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                """Nobody reads it."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                fields = parse_qs(body, keep_blank_values=True)
                fake.asked.append(Asked(self.path, {k: v[0] for k, v in fields.items()}))
                if fake.silent is not None:
                    fake.silent.wait()
                if fake.break_off:
                    fake.break_off -= 1
                    self.close_connection = True
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(fake.answer.encode())

        self.server = socketserver.ThreadingUnixStreamServer(str(self.path), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self.silent is not None:
            self.silent.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()


@dataclass
class Node:
    """A machine of files: ``bin`` are the programs that are not there here, ``run`` and ``proc`` its
    folders."""

    root: Path
    agent: FakeAgent

    @property
    def run(self) -> Path:
        return self.root / "run"

    def stub(self, program: str, script: str) -> None:
        path = self.root / "bin" / program
        path.write_text(f"#!/bin/sh\necho \"$@\" >>'{self.root}/{program}.log'\n{script}\n")
        path.chmod(0o755)

    def kernel(self, drbd: str, gates: str) -> None:
        (self.root / "proc/drbd").touch()
        self.stub("drbdsetup", f"printf '%s' '{drbd}'")
        self.stub("dmsetup", f"printf '%s' '{gates}'")

    def started(self, program: str) -> list[str]:
        log = self.root / f"{program}.log"
        return log.read_text().splitlines() if log.exists() else []

    def call(
        self, action: str, script: str = "resource", *, ms: str = "20000", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.root}/bin:/usr/bin:/bin",
            "HACTL_RUN": str(self.run),
            "HACTL_PROC": str(self.root / "proc"),
            "OCF_RESOURCE_INSTANCE": "hactl-r0",
            "OCF_RESKEY_name": "r0",
            "OCF_RESKEY_CRM_meta_timeout": ms,
        }
        return subprocess.run(
            ["/bin/sh", str(OCF / script), action],
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    for folder in ("bin", "run", "proc"):
        (tmp_path / folder).mkdir()
    (tmp_path / "proc/uptime").symlink_to("/proc/uptime")
    fake = FakeAgent(tmp_path / "run/agent.sock")
    machine = Node(tmp_path, fake)
    machine.stub("crm_attribute", "")
    machine.stub("systemctl", "")
    yield machine
    fake.stop()


@pytest.mark.parametrize("script", ["resource", "agent"])
def test_script_is_a_program_in_plain_sh(script: str) -> None:
    assert os.access(OCF / script, os.X_OK)
    assert (OCF / script).read_text().startswith("#!/bin/sh\n")
    subprocess.run(["/bin/sh", "-n", str(OCF / script)], check=True)
    dash = shutil.which("dash")
    if dash is not None:
        subprocess.run([dash, "-n", str(OCF / script)], check=True)


def test_meta_data_says_what_there_is(node: Node) -> None:
    found = ET.fromstring(node.call("meta-data", OCF_RESKEY_name="").stdout)
    actions = {(a.get("name"), a.get("role")) for a in found.findall("actions/action")}
    plain = {(a, None) for a in ("start", "stop", "promote", "demote", "notify", "validate-all", "meta-data")}
    assert actions == plain | {("monitor", "Promoted"), ("monitor", "Unpromoted")}
    intervals = [a.get("interval") for a in found.findall("actions/action[@interval]")]
    assert len(set(intervals)) == len(intervals) == 2
    (parameter,) = found.findall("parameters/parameter")
    assert parameter.attrib == {"name": "name", "required": "1", "unique-group": "name"}
    agent = ET.fromstring(node.call("meta-data", "agent").stdout)
    assert [a.get("name") for a in agent.findall("actions/action")] == [
        "start", "stop", "monitor", "validate-all", "meta-data",
    ]  # fmt: skip
    for document in (found, agent):
        assert all((text.text or "").strip() for text in document.iter() if text.tag.endswith("desc"))


def test_what_pacemaker_says_reaches_the_agent(node: Node) -> None:
    node.agent.answer = "8\n20000\nall is well\n"
    node.agent.start()
    done = node.call(
        "monitor",
        OCF_RESKEY_CRM_meta_interval="10000",
        OCF_RESKEY_CRM_meta_role="Promoted",
        OCF_RESKEY_CRM_meta_notify_promote_uname="n2 n3",
    )
    assert (done.returncode, done.stderr) == (8, "")
    (asked,) = node.agent.asked
    assert asked.path == "/v1/ocf/r0/monitor"
    assert {k: v for k, v in asked.form.items() if k != "seconds"} == {
        "interval": "10000", "role": "Promoted", "type": "", "operation": "", "promote": "n2 n3",
    }  # fmt: skip
    # Less than the action may take: what is done with the answer takes time, too.
    assert 10 <= int(asked.form["seconds"]) < 20


def test_score_is_passed_on_when_it_changes(node: Node) -> None:
    node.agent.start()
    recurring = {"OCF_RESKEY_CRM_meta_interval": "10000"}
    for score in ("20000", "20000", "=", "10000", "-", "-"):
        node.agent.answer = f"0\n{score}\n\n"
        assert node.call("monitor", **recurring).returncode == 0
    assert node.started("crm_attribute") == [
        f"--promotion --quiet --update={score}" for score in ("20000", "10000", "-INFINITY")
    ]
    # Whoever starts or probes an instance may have forgotten the score.
    for action in ("start", "monitor"):
        assert node.call(action).returncode == 0
    assert len(node.started("crm_attribute")) == 5


def test_score_that_was_not_taken_is_passed_on_again(node: Node) -> None:
    node.agent.answer = "0\n10000\n\n"
    node.agent.start()
    node.stub("crm_attribute", "exit 1")
    for _ in range(2):
        node.call("monitor", OCF_RESKEY_CRM_meta_interval="10000")
    assert len(node.started("crm_attribute")) == 2


def test_failure_has_its_reason(node: Node) -> None:
    node.agent.answer = "1\n=\nr0 may still be active [still-active]\n"
    node.agent.start()
    done = node.call("stop")
    assert done.returncode == 1
    assert done.stderr == "ocf-exit-reason:r0 may still be active [still-active]\n"
    assert node.started("crm_attribute") == []


def test_answer_that_is_none_fails(node: Node) -> None:
    node.agent.answer = '{"error": {"code": "internal-error"}}\n'
    node.agent.start()
    node.kernel(SECONDARY, CLOSED)
    done = node.call("demote")
    assert done.returncode == 1
    assert "is not understood" in done.stderr


def test_agent_that_is_restarted_is_waited_for(node: Node) -> None:
    timer = threading.Timer(0.5, node.agent.start)
    timer.start()
    try:
        assert node.call("start").returncode == 0
    finally:
        timer.join()
    assert [asked.path for asked in node.agent.asked] == ["/v1/ocf/r0/start"]


def test_action_that_was_broken_off_is_asked_for_again(node: Node) -> None:
    node.agent.break_off = 2
    node.agent.start()
    assert node.call("demote").returncode == 0
    assert len(node.agent.asked) == 3


@pytest.mark.parametrize("action", ["stop", "demote"])
@pytest.mark.parametrize(
    ("drbd", "gates", "code"),
    [
        (SECONDARY, CLOSED, 0),
        (SECONDARY, HELD, 0),
        (SECONDARY.replace("r0", "r1"), "other: 0 8 linear 147:1 0\n", 0),
        (PRIMARY.replace("r0", "r1") + SECONDARY, CLOSED + OPEN.replace("r0", "r1"), 0),
        (PRIMARY, CLOSED, 1),
        (SECONDARY, OPEN, 1),
        (SECONDARY.replace("Secondary", "Unknown"), CLOSED, 1),
        ("", CLOSED, 1),
    ],
)
def test_kernel_is_asked_when_there_is_no_agent(
    node: Node, action: str, drbd: str, gates: str, code: int
) -> None:
    node.kernel(drbd, gates)
    assert node.call(action, ms="2000").returncode == code
    assert len(node.started("crm_attribute")) == (code == 0)


def test_kernel_that_cannot_be_asked_confirms_nothing(node: Node) -> None:
    node.kernel(SECONDARY, CLOSED)
    node.stub("dmsetup", "exit 1")
    assert node.call("stop", ms="2000").returncode == 1
    node.kernel(SECONDARY, CLOSED)
    node.stub("drbdsetup", "exit 20")
    assert node.call("stop", ms="2000").returncode == 1


def test_without_drbd_nothing_can_be_active(node: Node) -> None:
    assert node.call("stop", ms="2000").returncode == 0


def test_agent_that_died_in_a_switchover_may_take_the_role_back(node: Node) -> None:
    node.kernel(SECONDARY, HELD)
    journal = node.run / "journal/r0.json"
    journal.parent.mkdir()
    record = Record(OrderedRole.DEMOTED, "boot", 1.0)
    journal.write_text(encode(record))
    assert node.call("demote", ms="2000").returncode == 0
    journal.write_text(encode(Record(OrderedRole.DEMOTED, "boot", 1.0, handover=Handover("id", "n2"))))
    assert node.call("demote", ms="2000").returncode == 1


def test_agent_that_hangs_confirms_nothing(node: Node) -> None:
    """What it is in the middle of may end any time, and be a promotion."""
    node.agent.silent = threading.Event()
    node.agent.start()
    node.kernel(SECONDARY, CLOSED)
    began = time.monotonic()
    assert node.call("stop", ms="3000").returncode == 1
    assert time.monotonic() - began < 3


def test_monitor_without_an_agent(node: Node) -> None:
    recurring = {"OCF_RESKEY_CRM_meta_interval": "10000"}
    node.kernel(SECONDARY, CLOSED)
    done = node.call("monitor", ms="2000", **recurring)
    assert done.returncode == 1
    assert "systemctl status hactl-agent" in done.stderr
    node.kernel("exists -\n", "")
    assert node.call("monitor", ms="2000", **recurring).returncode == 7


def test_promotion_without_an_agent_fails(node: Node) -> None:
    node.kernel(SECONDARY, CLOSED)
    assert node.call("promote", ms="2000").returncode == 1
    assert node.call("start", ms="2000").returncode == 1
    assert node.started("crm_attribute") == []


def test_notifications_that_nobody_needs_ask_nobody(node: Node) -> None:
    node.agent.start()
    for kind, operation in (("pre", "start"), ("post", "stop"), ("pre", "demote"), ("post", "promote")):
        done = node.call(
            "notify",
            OCF_RESKEY_CRM_meta_notify_type=kind,
            OCF_RESKEY_CRM_meta_notify_operation=operation,
            OCF_RESKEY_CRM_meta_notify_promote_uname="n2",
        )
        assert done.returncode == 0
    asked = [(a.form["type"], a.form["operation"]) for a in node.agent.asked]
    assert asked == [("pre", "demote"), ("post", "promote")]


def test_bad_calls(node: Node) -> None:
    assert node.call("monitor", OCF_RESKEY_name="").returncode == 6
    assert node.call("monitor", OCF_RESKEY_name="r0/../x").returncode == 6
    assert node.call("migrate_to").returncode == 3
    assert node.call("migrate_to", "agent").returncode == 3
    assert node.agent.asked == []


def test_the_agents_own_agent(node: Node) -> None:
    assert node.call("monitor", "agent").returncode == 7
    assert node.call("stop", "agent").returncode == 0
    node.agent.start()
    assert node.call("start", "agent").returncode == 0
    assert node.started("systemctl") == ["start --no-block hactl-agent.service"]
    assert node.call("monitor", "agent").returncode == 0
    node.agent.answer = "190\n=\nthe store cannot be reached\n"
    assert node.call("monitor", "agent").returncode == 190
    node.agent.answer = "1\n=\nr0 is still active here\n"
    assert node.call("stop", "agent").returncode == 1
    assert node.call("monitor", "agent").returncode == 1
    node.agent.answer = "0\n=\n\n"
    assert node.call("stop", "agent").returncode == 0
    assert node.call("monitor", "agent").returncode == 7
    paths = [asked.path.rpartition("/")[2] for asked in node.agent.asked]
    assert paths == ["start", "monitor", "monitor", "stop", "monitor", "stop"]


@pytest.mark.parametrize(("gates", "code"), [(CLOSED, 0), (OPEN, 1)])
def test_the_agents_own_agent_without_an_agent(node: Node, gates: str, code: int) -> None:
    (node.run / "ocf").mkdir()
    (node.run / "ocf/agent").touch()
    node.kernel(SECONDARY, gates)
    assert node.call("monitor", "agent", ms="2000").returncode == 1
    assert node.call("stop", "agent", ms="2000").returncode == code
    assert (node.run / "ocf/agent").exists() == bool(code)
