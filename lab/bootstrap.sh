#!/bin/bash
# Makes a fresh Debian 12 or 13 ready for `make demo` and `make test`: Debian packages and the virtual environment.
# Does nothing where everything is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

declare -A provides=(
  [mmdebstrap]=mmdebstrap [qemu-system-x86_64]=qemu-system-x86 [qemu-img]=qemu-utils [mkfs.ext4]=e2fsprogs [debugfs]=e2fsprogs
  [ip]=iproute2 [openssl]=openssl [unshare]=util-linux [setpriv]=util-linux [mount]=mount [zstd]=zstd
  [ipmi_sim]=openipmi
)
packages=()
for command in "${!provides[@]}"; do
  command -v "$command" >/dev/null || packages+=("${provides[$command]}")
done
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)
python=python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || packages+=(python3)
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
if [ ${#packages[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { echo "bootstrap: needs root to install ${packages[*]}" >&2; exit 1; }
  echo "installing ${packages[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
  # The lab's BMCs need the simulator only, not the service that loads this host's own IPMI drivers.
  if [[ " ${packages[*]} " = *" openipmi "* ]] && [ -d /run/systemd/system ]; then
    systemctl disable --now openipmi >&2 || true
  fi
fi

mark=.venv/.made-from
wanted=$(cat requirements/dev.txt pyproject.toml | sha256sum)
if [ ! -x .venv/bin/python ] || [ "$(cat $mark 2>/dev/null)" != "$wanted" ]; then
  echo "making the virtual environment" >&2
  rm -rf .venv
  "$python" -m venv .venv
  .venv/bin/pip install --quiet --require-hashes --requirement requirements/dev.txt
  .venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
  echo "$wanted" > $mark
fi
