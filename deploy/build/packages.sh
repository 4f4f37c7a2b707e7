#!/usr/bin/env bash
# Installs the Debian packages that a purpose needs, and only those that are missing. Says what it does. No installed
# daemon is started, now or at the next boot: a policy-rc.d refuses starts for the time of the install (an own one of
# the machine is left as it is), and what the packages enabled is disabled again.
# Usage: packages.sh PURPOSE…    build: to compile · run: what an agent calls · vm: a kernel with IPVS · demo · test · jepsen · bench
set -euo pipefail
packages=()
for purpose in "$@"; do
  case $purpose in
    build) packages+=(ca-certificates clang libclang-dev g++ make pkg-config) ;;
    run) packages+=(iproute2 iptables nftables) ;;
    vm) packages+=(user-mode-linux kmod ipset ipvsadm gcc) ;;
    demo) packages+=(nginx curl bind9-dnsutils procps) ;;
    test) packages+=(conntrack curl bind9-dnsutils procps python3-pip) ;;
    jepsen) packages+=(faketime) ;;
    bench) packages+=(etcd-server curl procps) ;;
    *) echo "packages.sh: no purpose is called $purpose: build, run, vm, demo, test, jepsen or bench" >&2; exit 2 ;;
  esac
done
if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  echo "packages.sh: this is no Debian: please see to the equivalents of ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null || true)
  case " ${missing[*]} " in *" $package "*) continue ;; esac
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "packages.sh: needs ${missing[*]}: as root, apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi

policy=/usr/sbin/policy-rc.d ours=""
forget_policy() { [ -z "$ours" ] || rm -f "$policy"; ours=""; }
trap forget_policy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ ! -e "$policy" ]; then
  ours=yes
  printf '#!/bin/sh\n# For the time of an install by Fairlead: no daemon starts.\nexit 101\n' > "$policy"
  chmod 755 "$policy"
fi
install() {
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -qq install -y --no-install-recommends "${missing[@]}" > /dev/null
}
echo "packages.sh: installing ${missing[*]} (no daemon is started)" >&2
if ! install 2> /dev/null; then
  apt-get -o DPkg::Lock::Timeout=300 -qq update
  install
fi
# What a package enabled would start at the next boot.
for daemon in nginx:nginx etcd-server:etcd; do
  case " ${missing[*]} " in
    *" ${daemon%%:*} "*)
      if command -v systemctl > /dev/null; then systemctl -q disable "${daemon##*:}" > /dev/null 2>&1 || true; fi
      if command -v update-rc.d > /dev/null; then update-rc.d "${daemon##*:}" disable > /dev/null 2>&1 || true; fi ;;
  esac
done
