"""What `hactl host script` prints, run on the host that it is for."""

from __future__ import annotations

from lab.api import Lab


def test_the_hosts_script_brings_chap_along_and_shows_no_password(cluster: Lab, device: str) -> None:
    node, client = cluster["n2"], cluster["c1"]
    passwords = {"/root/password": "initiator-pw-3", "/root/mutual": "target-secret-4"}
    for file, password in passwords.items():
        node.write(file, f"{password}\n", 0o600)
    detach = "multipath -F; iscsiadm -m node --logoutall=all"
    client.execute(detach)
    node.succeed(
        "hactl host set c1 --chap-user bob --chap-password-file /root/password"
        " --mutual-user tim --mutual-password-file /root/mutual"
    )
    client.write("/root/attach.sh", node.succeed("hactl host script c1"), 0o600)
    # Arguments are seen by every user of the machine: a program in the place of iscsiadm writes them down.
    program = '#!/bin/sh\necho "$@" >>/root/arguments\nexec /usr/sbin/iscsiadm "$@"\n'
    client.succeed("mkdir -p /root/bin")
    client.write("/root/bin/iscsiadm", program, 0o755)
    client.succeed("PATH=/root/bin:$PATH sh /root/attach.sh")
    arguments = client.succeed("cat /root/arguments")
    assert "--login" in arguments
    sessions = client.succeed("iscsiadm -m session -P 2 -S")
    assert sessions.count("username: bob") == sessions.count("username_in: tim") == 2
    kept = node.succeed("hactl dump; hactl host show c1; journalctl --no-pager")
    for password in passwords.values():
        assert password not in arguments
        assert password not in kept
    client.execute(detach)
    node.succeed(f"hactl host set c1 --no-chap; rm {' '.join(passwords)}")
    # Once more: what was set for CHAP is taken back in the host's records.
    client.write("/root/attach.sh", node.succeed("hactl host script c1"), 0o600)
    client.succeed("sh /root/attach.sh")
