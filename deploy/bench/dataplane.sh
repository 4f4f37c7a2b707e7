#!/usr/bin/env bash
# What programming a kernel costs, by data plane and number of services, beside kube-proxy's shape of rules in one run on
# one machine: read the ratios, not the absolute figures. Everything is in a network namespace that ends with the program.
# Usage: dataplane.sh DATAPLANE FAIRLEAD   (the load program, the binary). SERVICES and PEER_SERVICES (the most that peers are given) override.
set -euo pipefail
echo "== data planes: $(nft --version), $(iptables --version), Linux $(uname -r), $(nproc) cores"
exec "$1" "${SERVICES:-1000,5000,10000,45000}" "${PEER_SERVICES:-5000}" "$2"
