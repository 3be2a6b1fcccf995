"""Who gets in, and by which way: CHAP in one and both directions, hosts without it beside them, IPv6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import story
from lab.api import Lab, Machine

SECURE = "iqn.2026-11.io.hactl.lab:secure"
PASSWORD, MUTUAL = "initiator-pw-1", "target-secret-2"
HOSTS = f"""\
  - name: secure
    initiators: [{SECURE}]
    chap: {{user: alice, password: {PASSWORD}, mutual_user: tom, mutual_password: {MUTUAL}}}
"""


@pytest.fixture(scope="module")
def portal(cluster: Lab) -> Iterator[str]:
    """n1's IPv4 portal, with a second host that has to prove itself and wants proof."""
    plain = story.specification(cluster)
    text = plain.replace("resources:\n", f"{HOSTS}resources:\n").replace("hosts: [c1]", "hosts: [c1, secure]")
    story.apply(cluster, text)
    story.wait_until_settled(cluster)
    client = cluster["c1"]
    client.write("/etc/iscsi/initiatorname.iscsi", f"InitiatorName={story.INITIATOR}\n", 0o600)
    client.succeed("systemctl start iscsid.service")
    # Whoever was attached before: here sessions are made and ended one by one.
    client.execute("multipath -F; iscsiadm -m node --logoutall=all")
    client.succeed("iscsiadm -m iface -I secure -o new")
    client.succeed(f"iscsiadm -m iface -I secure -o update -n iface.initiatorname -v {SECURE}")
    address = story.portals(cluster, "n1")[0]
    yield address
    client.execute(f"iscsiadm -m node -I secure -p {address} --logout; iscsiadm -m node -I secure -o delete")
    client.execute("iscsiadm -m iface -I secure -o delete")
    story.apply(cluster, plain)
    story.wait_until_settled(cluster)


def log_in(client: Machine, portal: str, interface: str, **auth: str) -> str:
    """Try to log in; iscsiadm's words, empty if it worked (the session is ended again)."""
    node = f"iscsiadm -m node -T {story.TARGET} -p {portal} -I {interface}"
    client.succeed(f"{node} -o new")
    for name, value in {"authmethod": "CHAP" if auth else "None", **auth}.items():
        client.succeed(f"{node} -o update -n node.session.auth.{name} -v '{value}'")
    client.succeed(f"{node} -o update -n node.session.initial_login_retry_max -v 1")
    tried = client.execute(f"{node} --login", timeout=60)
    client.execute(f"{node} --logout")
    client.succeed(f"{node} -o delete")
    return "" if tried.status == 0 else tried.out + tried.err


def test_the_right_secrets_open_the_door_and_wrong_ones_do_not(cluster: Lab, portal: str) -> None:
    client = cluster["c1"]
    good = {"username": "alice", "password": PASSWORD, "username_in": "tom", "password_in": MUTUAL}
    assert log_in(client, portal, "secure", **good) == ""
    one_way = {"username": "alice", "password": PASSWORD}
    assert log_in(client, portal, "secure", **one_way) == ""
    assert "uthorization" in log_in(client, portal, "secure", **{**good, "password": "not-the-secret"})
    assert log_in(client, portal, "secure", **{**good, "password_in": "not-the-secret"}) != ""
    assert log_in(client, portal, "secure") != ""


def test_a_host_without_chap_gets_in_beside_one_with_it(cluster: Lab, portal: str) -> None:
    assert log_in(cluster["c1"], portal, "default") == ""


def test_a_stranger_gets_nothing(cluster: Lab, portal: str) -> None:
    client = cluster["c1"]
    stranger = "iqn.2026-11.io.hactl.lab:stranger"
    client.succeed(f"iscsiadm -m iface -I stranger -o new; iscsiadm -m iface -I stranger -o update"
                   f" -n iface.initiatorname -v {stranger}")  # fmt: skip
    shown = client.execute(f"iscsiadm -m discovery -t sendtargets -p {portal} -I stranger")
    assert story.TARGET not in shown.out
    assert "uthorization" in log_in(client, portal, "stranger")
    client.succeed("iscsiadm -m iface -I stranger -o delete")


def test_ipv6(cluster: Lab, portal: str) -> None:
    for node in ("n1", "n2"):
        assert log_in(cluster["c1"], f"[{story.portals(cluster, node)[1]}]:3260", "default") == ""


def test_secrets_are_nowhere_to_be_read(cluster: Lab, portal: str) -> None:
    readable = "find /etc/hactl /run/hactl /var/lib/hactl -perm /o=r -type f -exec cat {} +"
    for node in cluster.nodes:
        shown = node.succeed(
            f"journalctl --no-pager; hactl status --json; hactl plan; ps axww; {readable}; true"
        )
        assert "hactl agent" in shown
        for secret in (PASSWORD, MUTUAL):
            assert secret not in shown
