#!/bin/sh
# Makes the host c1 of README.md: an initiator with multipath.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes open-iscsi multipath-tools fio sg3-utils
echo 'InitiatorName=iqn.2026-11.io.hactl.lab:c1' >/etc/iscsi/initiatorname.iscsi
systemctl restart iscsid
