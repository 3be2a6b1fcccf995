"""The device and port attributes that hactl sets on every unit, and why.

LIO takes several of these from the queue limits of the backing device when a backstore is enabled. A gate
that is closed has none of the limits of the disk below it, and nodes may have different disks, so everything
an initiator can see is set explicitly: the same unit has to look the same on every path.
"""

from __future__ import annotations

from typing import Final

VENDOR: Final = "HACTL"
"""T10 vendor identification: its own, so that multipath-tools' built-in LIO entry, whose checker takes a
standby path for a faulty one, does not match; the defaults (tur, ALUA detected) are right."""

PRODUCT: Final = "VIRTUAL-DISK"
"""Product identification. LIO's own default differs between backstore kinds and so would between nodes."""

DEVICE: Final[dict[str, str]] = {
    # Every PR OUT is written to the APTPL file before it is answered, whatever the initiator's APTPL bit
    # says: this is how hactl gets to see it.
    "force_pr_aptpl": "1",
    "emulate_pr": "1",
    # Registrations are told apart by ISID (SPC-4 5.12.4), which several sessions of one host rely on.
    "enforce_pr_isids": "1",
    # EXTENDED COPY reads and writes other local units without an ALUA check, so it could reach a closed gate.
    "emulate_3pc": "0",
    # COMPARE AND WRITE is carried out by the one active node, so its lock is enough.
    "emulate_caw": "1",
    # UNMAP off: replicas differ in what they can discard, and resync after a discard is not something the
    # gate can promise. The limits are zeroed too, since VPD page 0xB0 shows them.
    "emulate_tpu": "0",
    "emulate_tpws": "0",
    "max_unmap_lba_count": "0",
    "max_unmap_block_desc_count": "0",
    "unmap_granularity": "0",
    "unmap_granularity_alignment": "0",
    "unmap_zeroes_data": "0",
    # 2 MiB a command: a switchover waits for commands in flight, so none may be large.
    "max_write_same_len": "4096",
    # A gate and DRBD on it are addressed in 512-byte sectors; a disk with native 4096 cannot be used.
    "block_size": "512",
    # VPD page 0xB0, optimal transfer length, in blocks; it would be the gate's (unlimited) one.
    "optimal_sectors": "1024",
    # VPD page 0xB1, medium rotation rate: the same on every path.
    "is_nonrot": "1",
    "emulate_fua_write": "1",
    # Control mode page: TAS set (commands of others end with TASK ABORTED), no unit attention interlock, no
    # relaxed reordering.
    "emulate_tas": "1",
    "emulate_ua_intlck_ctrl": "0",
    "emulate_rest_reord": "0",
    # The product name is written explicitly, not taken from the backstore's name.
    "emulate_model_alias": "0",
}
"""Attributes in ``core/<hba>/<backstore>/attrib``.

Left alone: ``emulate_write_cache``, which iblock reads from the device itself and refuses to set;
``hw_max_sectors``, which is read-only and therefore is the same everywhere only if gates are closed when
their backstore is enabled; ``queue_depth``, which nothing shows to initiators.
"""

LOCKED: Final = frozenset(
    {
        "block_size",
        "emulate_model_alias",
        "emulate_tas",
        "emulate_ua_intlck_ctrl",
        "force_pr_aptpl",
        "optimal_sectors",
        "queue_depth",
        "unmap_zeroes_data",
    }
)
"""Device attributes that the kernel refuses to change while a LUN links to the backstore."""

PORTAL_GROUP: Final[dict[str, str]] = {
    # Nobody gets in without an ACL, nobody gets one by logging in, and SendTargets names a target only to
    # those that have one.
    "generate_node_acls": "0",
    "cache_dynamic_acls": "0",
    "demo_mode_discovery": "0",
    "demo_mode_write_protect": "1",
    # Those with an ACL may write.
    "prod_mode_write_protect": "0",
    # Disabled portal groups stay out of SendTargets; the peers' ("shadow") groups rely on it.
    "tpg_enabled_sendtargets": "1",
    "default_erl": "0",
    "t10_pi": "0",
}
"""Attributes in ``iscsi/<iqn>/tpgt_<n>/attrib``, beside ``authentication``, which depends on the hosts."""
