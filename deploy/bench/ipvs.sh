#!/usr/bin/env bash
# What mode ipvs costs by number of services, beside ipvsadm --restore of the same virtual servers, in one run in a
# user-mode kernel: the absolute figures are that kernel's, which is slow; read the ratios and whether a change is flat.
# Usage: ipvs.sh IPVS   (the load program). IPVS_SERVICES and IPVS_PEER_SERVICES (the most that ipvsadm is given) override.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
echo "== ipvs: $(linux.uml --version 2> /dev/null | head -n 1), a user-mode kernel on one of $(nproc) cores"
exec "$here/../vm/run.sh" -m 3G -t 1200 -- "$(realpath "$1")" "${IPVS_SERVICES:-1000,10000,45000}" \
  "${IPVS_PEER_SERVICES:-10000}"
