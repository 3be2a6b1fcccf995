"""The script that attaches a host to everything that is exported to it. Pure.

It is POSIX shell, may run again and again, and does nothing before all of it has arrived: everything is in
a function that its last line calls. Passwords are in here-documents only, never in an argument list.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from hactl.model.spec import ISCSI_PORT, ChapSpec, ClusterSpec, HostSpec, IpAddress
from hactl.multipath import render as multipath_conf


@dataclass(frozen=True)
class Path:
    """A way to a target: the portal of a node, and the target port group tag there."""

    node: str
    iqn: str
    portal: str
    tag: int


def paths(cluster: ClusterSpec, host: str) -> tuple[Path, ...]:
    """Every portal of every node that exports something to a host."""
    return tuple(
        Path(node.name, resource.iqn, _portal(address), node.id)
        for resource in cluster.resources
        if host in resource.hosts or host in resource.exports
        for node in map(cluster.node, resource.nodes)
        for address in node.addresses.storage
    )


def _portal(address: IpAddress) -> str:
    return f"[{address}]:{ISCSI_PORT}" if address.version == 6 else f"{address}:{ISCSI_PORT}"


def script(cluster: ClusterSpec, host: HostSpec) -> str:
    """The script; it holds the host's CHAP passwords if it has any."""
    ways = paths(cluster, host.name)
    portals = tuple(dict.fromkeys(way.portal for way in ways))
    lines = [
        *_HEAD.format(cluster=cluster.name, host=host.name).splitlines(),
        *(f"    may_be {shlex.quote(name)}" for name in host.initiators),
        "    is_this_host",
        "    write_multipath_conf <<'HACTL_MULTIPATH'",
        *multipath_conf().splitlines(),
        "HACTL_MULTIPATH",
        *(f"    discover {shlex.quote(portal)}" for portal in portals),
    ]
    for way in ways:
        where = f"{shlex.quote(way.iqn)} {shlex.quote(way.portal)} {way.tag}"
        lines.append(f"    record {where} || failed=1")
        if host.chap is None:
            lines.append(f"    without_password {where}")
        else:
            lines += [f"    with_password {where} <<'HACTL_CHAP'", *_chap(host.chap), "HACTL_CHAP"]
        lines.append(f"    login {where}")
    if not ways:
        lines.append(f"    echo 'nothing is exported to {host.name}' >&2")
    lines += ["    finish", "}", "", "attach", ""]
    return "\n".join(lines)


def _chap(chap: ChapSpec) -> list[str]:
    """open-iscsi's names of a record's values."""
    values = {
        "authmethod": "CHAP",
        "username": chap.user,
        "password": chap.password.get_secret_value(),
    }
    if chap.mutual_user is not None and chap.mutual_password is not None:
        values |= {"username_in": chap.mutual_user, "password_in": chap.mutual_password.get_secret_value()}
    return [f"node.session.auth.{key} = {value}" for key, value in values.items()]


_HEAD = """\
#!/bin/sh
# Attaches host {host} to cluster {cluster}: multipath, and a session to every portal. As root; may run again.

failed=0
initiators=

say() {{ printf '%s\\n' "$*" >&2; }}

may_be() {{ initiators="$initiators $1"; }}

is_this_host() {{
    [ "$(id -u)" = 0 ] || {{ say 'run this as root'; exit 1; }}
    for program in iscsiadm multipath; do
        command -v "$program" >/dev/null || {{
            say "$program is missing; on Debian: apt install open-iscsi multipath-tools"
            exit 1
        }}
    done
    name=$(sed -n 's/^InitiatorName=//p' /etc/iscsi/initiatorname.iscsi)
    for initiator in $initiators; do
        [ "$name" = "$initiator" ] && return
    done
    say "this machine is $name, which is not an initiator of host {host}:$initiators"
    say "correct /etc/iscsi/initiatorname.iscsi, or the host's initiators in the cluster"
    exit 1
}}

write_multipath_conf() {{
    mkdir -p /etc/multipath/conf.d
    cat >/etc/multipath/conf.d/hactl.conf.new
    if cmp -s /etc/multipath/conf.d/hactl.conf.new /etc/multipath/conf.d/hactl.conf; then
        rm -f /etc/multipath/conf.d/hactl.conf.new
    else
        mv /etc/multipath/conf.d/hactl.conf.new /etc/multipath/conf.d/hactl.conf
        changed=1
    fi
    if [ ! -e /etc/multipath.conf ]; then
        printf 'defaults {{\\n    find_multipaths yes\\n}}\\n' >/etc/multipath.conf
        changed=1
    fi
    [ -z "${{changed-}}" ] || systemctl restart multipathd || failed=1
    # Only the next boot has to know: without reloading, and without update-rc.d, which would, more than once.
    SYSTEMCTL_SKIP_SYSV=1 systemctl enable --no-reload --quiet multipathd iscsid open-iscsi 2>/dev/null
    systemctl start iscsid || failed=1
}}

discover() {{
    iscsiadm -m discovery -t sendtargets -p "$1" -o new >/dev/null </dev/null || {{
        say "portal $1 does not answer; its paths are set up, and taken when this is run again"
        failed=1
    }}
}}

# What a node that does not answer now could not tell is known here: its target port group.
record() {{
    iscsiadm -m node -T "$1" -p "$2" </dev/null >/dev/null 2>&1 ||
        iscsiadm -m node -o new -T "$1" -p "$2,$3" </dev/null >/dev/null || return
    set_value "$1" "$2" node.startup automatic &&
        set_value "$1" "$2" node.session.timeo.replacement_timeout 5 &&
        set_value "$1" "$2" 'node.conn[0].timeo.noop_out_interval' 5 &&
        set_value "$1" "$2" 'node.conn[0].timeo.noop_out_timeout' 5
}}

set_value() {{ iscsiadm -m node -T "$1" -p "$2" -o update -n "$3" -v "$4" </dev/null; }}

# Passwords from before have to go: open-iscsi uses those it has, whatever authmethod says.
without_password() {{ echo 'node.session.auth.authmethod = None' | with_password "$1" "$2" || failed=1; }}

# Values on standard input, straight into open-iscsi's record: iscsiadm takes passwords as arguments only,
# where every user of this machine could see them.
with_password() {{
    address=${{2%:*}}
    address=${{address#[}}
    address=${{address%]}}
    values=$(cat)
    for file in /etc/iscsi/nodes/"$1"/"$address",*/* /var/lib/iscsi/nodes/"$1"/"$address",*/*; do
        [ -f "$file" ] || continue
        (
            umask 077
            {{
                grep -Ev '^node\\.session\\.auth\\.(authmethod|username|password)(_in)? *=' "$file"
                printf '%s\\n' "$values"
            }} >"$file.hactl" && mv "$file.hactl" "$file"
        ) && return
    done
    say "open-iscsi's record of $1 at $2 was not found; its password is not set"
    exit 1
}}

login() {{
    iscsiadm -m node -T "$1" -p "$2" --login </dev/null >/dev/null
    case $? in
        0) say "$1 at $2: attached" ;;
        # There is such a session; units may have come or grown.
        15) iscsiadm -m node -T "$1" -p "$2" --rescan </dev/null >/dev/null && say "$1 at $2: was attached" ;;
        *) say "$1 at $2: not attached"; failed=1 ;;
    esac
}}

finish() {{
    multipath -v1 </dev/null
    [ "$failed" = 0 ] || say 'not everything is attached; run this again when what is told above is mended'
    exit "$failed"
}}

attach() {{
"""
