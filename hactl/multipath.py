"""A drop-in for multipath-tools on hosts that use hactl's units: /etc/multipath/conf.d/hactl.conf. Pure.

Sources: multipath.conf(5) and the built-in hardware table of multipath-tools (``multipath -t``), whose entry
for LIO has ``path_checker directio`` and ``detect_checker no``: reads on a standby path fail, so that with it
every standby path is called faulty instead of ghost.
"""

from __future__ import annotations

import math

_TEMPLATE = """\
# /etc/multipath/conf.d/hactl.conf: settings for hosts that use units of a hactl cluster.
# Written by: hactl multipath-conf
# After a change: multipathd reconfigure, then look at: multipath -ll
# An active path is then "active ready", a standby path "active ghost" or "enabled ghost".
#
# Keep every bracket on a line of its own, as it is here: multipath reads only one item a line,
# and takes a section that is opened and closed on one line for something else without an error.

# These apply to all multipath devices of the host.
defaults {{
    # Seconds between two checks of a path that is not well, and the unit of no_path_retry.
    # A standby path that becomes active is noticed after this time at most, without waiting for I/O.
    polling_interval {polling}

    # Seconds between two checks of a path that is well. The default, four times the above, would
    # be how late a changed access state can be noticed while there is no I/O.
    max_polling_interval {max_polling}

    # Seconds until a path check counts as failed. The default is the SCSI device's own time-out, 30 s.
    checker_timeout {checker}
}}

devices {{
    device {{
        # What hactl's units report in INQUIRY; both are regular expressions. The vendor is not LIO's own
        # "LIO-ORG", for which multipath-tools has a built-in entry that does not fit.
        vendor "HACTL"
        product "{product}"

        # TEST UNIT READY tells a standby path (ghost) from a dead one (faulty). The built-in entry for
        # LIO reads a block instead, which no standby path answers: it would be called faulty.
        path_checker tur

        # Use the checker above in any case. Detection depends on an INQUIRY at the moment when the path
        # appears, and the path keeps what was detected then.
        detect_checker no

        # Priority from the path's own REPORT TARGET PORT GROUPS: active/optimized 50, standby 1.
        prio alua

        # Ask the target at each check. Detection would choose the kernel's cached state, which is
        # renewed only when I/O meets a unit attention.
        detect_prio no

        # Paths of one priority form a group, so that I/O goes to the active node's paths only.
        path_grouping_policy group_by_prio

        # Follow the active node at once. There is one active node, so paths cannot play ping-pong.
        failback immediate

        # Let the kernel interpret ALUA sense data, retry while the state is in transition, and
        # keep I/O off standby paths.
        hardware_handler "1 alua"

        # Keep a handler that the kernel attached when the path appeared (always so since Linux 4.3).
        retain_attached_hw_handler yes

        # When no path can take I/O, queue it for {queue_seconds} s, here {retries} checks, then fail it.
        # This must be longer than the cluster takes to fence a node and promote another.
        # "queue" would never give up; then processes hang for good once a unit is gone for good.
        no_path_retry {retries}

        # Fail I/O on a lost path after this many seconds, so that it goes to another one.
        # On iSCSI, multipathd writes it to the session's recovery_tmo, where it overrides
        # node.session.timeo.replacement_timeout.
        fast_io_fail_tmo {fast_fail}

        # Forget a lost remote port after this many seconds. Fibre Channel and SAS only; it must be
        # longer than I/O is queued. A port that is kept comes back much faster than one found anew.
        dev_loss_tmo {dev_loss}

        # Spread I/O over the paths of the active node by expected completion time. Used with
        # several storage addresses a node.
        path_selector "service-time 0"

        # Requests that are sent to a path before another one is considered.
        rr_min_io_rq 1

        # For mpathpersist and cluster software that uses persistent reservations through
        # multipath: a key of this host's own, in hexadecimal; or "file", which keeps the keys
        # in /etc/multipath/prkeys. Without it, paths that come back are not registered again.
        # reservation_key 0x<16 hexadecimal digits>
    }}
}}

# For /etc/iscsi/iscsid.conf on the same host. Existing node records keep their values until
# they are changed too (iscsiadm -m node -o update -n NAME -v VALUE) and logged in again.
#
# Hand I/O of a lost session to multipath after 5 s; the default of 120 s is for hosts without it.
# node.session.timeo.replacement_timeout = 5
#
# Notice a node that fell silent within 10 s: a ping after 5 s, and 5 s for its answer.
# A shorter time-out would also end sessions that merely wait for a reservation to be committed.
# node.conn[0].timeo.noop_out_interval = 5
# node.conn[0].timeo.noop_out_timeout = 5
#
# Log in to all portals of all nodes at boot.
# node.startup = automatic
"""


def render(
    *,
    product: str = ".*",
    queue_seconds: int = 180,
    polling_interval: int = 2,
) -> str:
    """The text of the drop-in.

    ``product`` is a regular expression for the product in INQUIRY. ``queue_seconds`` is how long I/O waits
    when no path is left: longer than a fenced failover. ``polling_interval`` in seconds.

    Raises :class:`ValueError` for values that multipath would misread or that make no sense.
    """
    if not product or any(c in product for c in '"\n\r') or not product.isprintable():
        raise ValueError(f"product {product!r} must be a non-empty regular expression without quotes")
    if not 1 <= polling_interval <= 60:
        raise ValueError(f"polling_interval must be 1 to 60 seconds, not {polling_interval}")
    if not 10 <= queue_seconds <= 86400:
        raise ValueError(f"queue_seconds must be 10 to 86400 seconds, not {queue_seconds}")
    retries = math.ceil(queue_seconds / polling_interval)
    return _TEMPLATE.format(
        product=product,
        polling=polling_interval,
        max_polling=max(polling_interval, 4),
        checker=max(5, polling_interval),
        queue_seconds=retries * polling_interval,
        retries=retries,
        fast_fail=5,
        dev_loss=max(600, 2 * queue_seconds),
    )
