"""What the machines' images are made of. The hash of a recipe names its image in the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

GUEST = Path(__file__).parent / "guest"
GUEST_FILES = {
    GUEST / "control.py": "usr/local/lib/lab/control.py",
    GUEST / "lab-control.service": "etc/systemd/system/lab-control.service",
}
"""The lab's own files → where they are in an image."""
REQUIREMENTS = Path(__file__).parent.parent / "requirements" / "node.txt"
VERSION = 3
"""Raised when the building itself changes what comes out."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_BASE = _words(
    """
    systemd systemd-sysv udev dbus kmod iproute2 iputils-ping nftables procps psmisc python3 e2fsprogs less
    dmsetup sg3-utils linux-image-amd64
    """
)
_NODE = _words(
    """
    pacemaker pacemaker-cli-utils corosync crmsh etcd-server etcd-client drbd-utils resource-agents
    fence-agents-ipmilan fence-agents-sbd sbd targetcli-fb lvm2 thin-provisioning-tools ca-certificates
    openssl python3-venv curl iptables
    """
)
_CLIENT = _words(
    """
    open-iscsi multipath-tools fio libiscsi-bin fence-agents-scsi fence-agents-mpath
    """
)

# Measured with systemd-analyze: each of these costs 0.1 to 1.5 s of a boot in user-mode Linux and does
# nothing for a machine without a screen, logins or hardware that comes and goes.
_MASK = _words(
    """
    apt-daily.timer apt-daily-upgrade.timer dev-hugepages.mount dpkg-db-backup.timer e2scrub_all.timer
    e2scrub_reap.service fstrim.timer getty.target getty@tty1.service ldconfig.service serial-getty@.service
    console-getty.service logd.service modprobe@drm.service modprobe@efi_pstore.service
    proc-sys-fs-binfmt_misc.automount remote-fs.target run-lock.mount systemd-ask-password-console.path
    systemd-ask-password-wall.path systemd-binfmt.service systemd-bootctl.socket systemd-creds.socket
    systemd-firstboot.service systemd-hibernate-clear.service systemd-hostnamed.socket
    systemd-hwdb-update.service systemd-journal-catalog-update.service systemd-journal-flush.service
    systemd-logind.service systemd-machine-id-commit.service systemd-mountfsd.socket
    systemd-network-generator.service systemd-nsresourced.socket systemd-pcrextend.socket
    systemd-pcrlock.socket systemd-pstore.service systemd-random-seed.service systemd-resolved.service
    systemd-sysext.socket systemd-sysusers.service systemd-timesyncd.service systemd-tpm2-setup.service
    systemd-tpm2-setup-early.service systemd-update-done.service systemd-user-sessions.service
    sys-kernel-debug.mount sys-kernel-tracing.mount systemd-tmpfiles-clean.timer systemd-update-utmp.service
    tmp.mount
    """
)
# A node's devices are all there before udevd is; it only has to see those that come later. Services that a
# test or an administrator starts are disabled, not masked.
_MASK_NODE = _words(
    """
    blk-availability.service dev-mqueue.mount dm-event.socket kmod-static-nodes.service lvm2-lvmpolld.socket
    lvm2-monitor.service modprobe@dm_mod.service modprobe@fuse.service modprobe@loop.service
    sys-fs-fuse-connections.mount systemd-initctl.socket systemd-modules-load.service
    systemd-remount-fs.service systemd-sysctl.service systemd-tmpfiles-setup-dev-early.service
    systemd-tmpfiles-setup-dev.service systemd-udev-load-credentials.service systemd-udev-trigger.service
    """
)
_DISABLE_NODE = _words(
    """
    corosync.service etcd.service pacemaker.service rtslib-fb-targetctl.service sbd.service
    """
)
_DISABLE_CLIENT = _words(
    """
    iscsid.service iscsid.socket multipathd.service multipathd.socket open-iscsi.service
    """
)

_GENERATORS = _words(
    """
    systemd-cryptsetup-generator systemd-getty-generator systemd-gpt-auto-generator
    systemd-hibernate-resume-generator systemd-integritysetup-generator systemd-rc-local-generator
    systemd-ssh-generator systemd-system-update-generator systemd-tpm2-generator
    systemd-veritysetup-generator
    """
)

# Hardware a lab machine never has; a third of the kernel's modules by size.
_NO_MODULES = _words(
    """
    sound drivers/gpu drivers/media drivers/infiniband drivers/iio drivers/staging net/wireless net/mac80211
    net/bluetooth drivers/bluetooth drivers/usb drivers/hid drivers/input/touchscreen drivers/net/wireless
    drivers/net/ethernet drivers/hwmon
    """
)


@dataclass(frozen=True)
class Recipe:
    """One image: a Debian release, packages, what of systemd is switched off, and files of the lab's own."""

    name: str
    packages: tuple[str, ...]
    masked: tuple[str, ...]
    disabled: tuple[str, ...]
    suite: str = "trixie"
    size: int = 3 << 30
    """Bytes of the file system; the file is sparse."""
    user_mode: bool = False
    """Whether it carries the modules of Debian's user-mode-linux."""
    python: bool = False
    """Whether it has hactl's virtual environment (without hactl: that is copied in when the lab starts)."""

    generators: tuple[str, ...] = _GENERATORS
    no_modules: tuple[str, ...] = _NO_MODULES

    def base_digest(self, runtime: str = "") -> str:
        """Sixteen hex digits over all that takes long to make; ``runtime`` names the user-mode Linux."""
        parts = [json.dumps([VERSION, asdict(self), runtime], sort_keys=True).encode()]
        if self.python:
            parts.append(REQUIREMENTS.read_bytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def digest(self, runtime: str = "") -> str:
        """Sixteen hex digits over everything that goes into the image."""
        parts = [self.base_digest(runtime).encode(), *(file.read_bytes() for file in sorted(GUEST_FILES))]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


NODE = Recipe("node", _BASE + _NODE, _MASK + _MASK_NODE, _DISABLE_NODE, user_mode=True, python=True)
CLIENT = Recipe("client", _BASE + _CLIENT, _MASK, _DISABLE_CLIENT)
RECIPES = {recipe.name: recipe for recipe in (NODE, CLIENT)}
