#!/usr/bin/env bash
# Measures Fairlead beside its peers, in one run on one machine: read the ratios, not the absolute figures.
# 1. Writes and linearizable reads on three servers on loopback, beside three of Debian's etcd on the same disk.
# 2. Endpoint change → programmed rule → first answered connection, with 1,000 and 5,000 services, in a network namespace
#    of its own, with iptables and with nftables, beside a full iptables-restore of the same rules (a full sync's cost).
# Usage: bench.sh FAIRLEAD LOAD   (the binary and the load program). SECONDS_EACH, CLIENTS and SERVICES override.
set -euo pipefail
fairlead=$1 load=$2
each=${SECONDS_EACH:-4} clients=${CLIENTS:-1,16,128,512} sizes=${SERVICES:-1000 5000}
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/fairlead-bench.XXXXXX")
pids=() netns=""
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  [ -z "$netns" ] || ip netns del "$netns" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
start() { "$@" > "$work/$((${#pids[@]})).log" 2>&1 & pids+=($!); }
stop_all() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done; pids=(); }
wait_for() { for _ in $(seq 100); do "$@" > /dev/null 2>&1 && return 0; sleep 0.1; done; echo "bench: not up: $*" >&2; tail -n 5 "$work"/*.log >&2; return 1; }

echo "== writes and linearizable reads, three servers on loopback, $(nproc) cores, data on $(df --output=source "$work" | tail -n 1)"
cluster=n1=127.0.0.1:17401,n2=127.0.0.1:17411,n3=127.0.0.1:17421
for i in 0 1 2; do
  start "$fairlead" --insecure server --name "n$((i + 1))" --data-dir "$work/f$i" --initial-cluster "$cluster" \
    --listen-grpc "127.0.0.1:174${i}0" --listen-peer "127.0.0.1:174${i}1" --listen-https "127.0.0.1:174${i}2" \
    --listen-dns "127.0.0.1:174${i}3" --listen-metrics "127.0.0.1:174${i}4"
done
wait_for "$fairlead" --insecure --server 127.0.0.1:17400 get ns default
for op in write read; do "$load" load --on fairlead --op $op --servers 127.0.0.1:17400,127.0.0.1:17410,127.0.0.1:17420 --clients "$clients" --seconds "$each"; done
stop_all
etcds=e0=http://127.0.0.1:18401,e1=http://127.0.0.1:18411,e2=http://127.0.0.1:18421
for i in 0 1 2; do
  start etcd --name "e$i" --data-dir "$work/e$i" --listen-client-urls "http://127.0.0.1:184${i}0" --advertise-client-urls "http://127.0.0.1:184${i}0" \
    --listen-peer-urls "http://127.0.0.1:184${i}1" --initial-advertise-peer-urls "http://127.0.0.1:184${i}1" --initial-cluster "$etcds" --initial-cluster-state new
done
wait_for curl -sf http://127.0.0.1:18400/health
for op in write read; do "$load" load --on etcd --op $op --servers 127.0.0.1:18400,127.0.0.1:18410,127.0.0.1:18420 --clients "$clients" --seconds "$each"; done
stop_all

echo "== endpoint change, one server and one agent in a network namespace, $(iptables --version), $(nft --version)"
for size in $sizes; do
  for mode in iptables nftables; do
    netns="fl-bench-$$"
    ip netns add "$netns"
    ip -n "$netns" link set lo up
    for a in 10.244.0.1 10.244.0.2; do ip -n "$netns" addr add "$a/32" dev lo; done
    ip -n "$netns" route add 10.96.0.0/12 dev lo src 10.244.0.1
    ip -n "$netns" route add 10.245.0.0/16 dev lo src 10.244.0.1
    start ip netns exec "$netns" "$fairlead" --insecure server --name b1 --data-dir "$work/s$size$mode" --listen-dns 127.0.0.1:7453
    wait_for ip netns exec "$netns" "$fairlead" --insecure --server 127.0.0.1:7400 get ns default
    start ip netns exec "$netns" "$fairlead" --insecure --server 127.0.0.1:7400 agent --node-name bench --mode "$mode" \
      --state-dir "$work/a$size$mode" --node-ip 10.244.0.1 --renew-seconds 1 --grace-seconds 30
    agent_pid=${pids[-1]}
    ip netns exec "$netns" "$load" endpoint --server 127.0.0.1:7400 --services "$size" --rounds 20 | sed "s/^/$mode /"
    echo "$mode $(printf %6d "$size") services: the agent holds $(awk '/^VmRSS/ {printf "%.1f MiB", $2 / 1024}' "/proc/$agent_pid/status")"
    if [ "$mode" = iptables ]; then
      ip netns exec "$netns" iptables-save > "$work/rules"
      from=$(date +%s%N)
      ip netns exec "$netns" iptables-restore < "$work/rules"
      echo "iptables $(printf %6d "$size") services: a full iptables-restore of the same $(grep -c '^-A' "$work/rules") rules takes $((($(date +%s%N) - from) / 1000000)) ms"
    fi
    stop_all
    ip netns del "$netns"
    netns=""
  done
done
