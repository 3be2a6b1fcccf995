#!/bin/sh
# Installs hactl on a node, in the words of README.md.
set -eu

cd /opt/hactl/source
export DEBIAN_FRONTEND=noninteractive
echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/90hactl-vagrant
apt-get update
# The block of commands that follows the word Install.
sed -n '/^\*\*Install\*\*/,/^```$/p' README.md | sed '1,/^```sh$/d; /^```$/d' >/root/install.sh
[ -s /root/install.sh ]
sh -eux /root/install.sh
