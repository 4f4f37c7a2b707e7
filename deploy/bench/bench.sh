#!/usr/bin/env bash
# Measures Fairlead beside its peers, in one run on one machine: read the ratios, not the absolute figures.
# 1. Writes and linearizable reads on three servers on loopback, beside three of Debian's etcd on the same disk.
# 2. The leader killed: time until the next successful write, beside etcd.
# 3. A write to many watchers of one server, beside etcd, and a pod's change to many simulated nodes; what they cost.
# 4. Endpoint change → programmed rule → first answered connection, with 1,000 and 5,000 services, in a network namespace
#    of its own, with iptables and with nftables, beside a full iptables-restore of the same rules (a full sync's cost).
# 5. Lists and watches of Kubernetes' API, beside the same over gRPC.
# Usage: bench.sh FAIRLEAD LOAD FAN KUBE   (the binary and the load programs). SECONDS_EACH, CLIENTS, WATCHERS, NODES and
# SERVICES override.
set -euo pipefail
fairlead=$1 load=$2 fan=$3 kube=$4
each=${SECONDS_EACH:-4} clients=${CLIENTS:-1,16,128,512} sizes=${SERVICES:-1000 5000}
watchers=${WATCHERS:-1,1000,10000} nodes=${NODES:-1000,5000}
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

# A member of each, by its number.
server_f() { start "$fairlead" --insecure server --name "n$(($1 + 1))" --data-dir "$work/f$1" --initial-cluster "$cluster" \
  --listen-grpc "127.0.0.1:174${1}0" --listen-peer "127.0.0.1:174${1}1" --listen-https "127.0.0.1:174${1}2" \
  --listen-dns "127.0.0.1:174${1}3" --listen-metrics "127.0.0.1:174${1}4"; }
server_e() { start etcd --name "e$1" --data-dir "$work/e$1" --listen-client-urls "http://127.0.0.1:184${1}0" --advertise-client-urls "http://127.0.0.1:184${1}0" \
  --listen-peer-urls "http://127.0.0.1:184${1}1" --initial-advertise-peer-urls "http://127.0.0.1:184${1}1" --initial-cluster "$etcds" --initial-cluster-state new; }

echo "== writes and linearizable reads, three servers on loopback, $(nproc) cores, data on $(df --output=source "$work" | tail -n 1)"
etcds=e0=http://127.0.0.1:18401,e1=http://127.0.0.1:18411,e2=http://127.0.0.1:18421
cluster=n1=127.0.0.1:17401,n2=127.0.0.1:17411,n3=127.0.0.1:17421
for i in 0 1 2; do server_f "$i"; done
wait_for "$fairlead" --insecure --server 127.0.0.1:17400 get ns default
for op in write read; do "$load" load --on fairlead --op $op --servers 127.0.0.1:17400,127.0.0.1:17410,127.0.0.1:17420 --clients "$clients" --seconds "$each"; done
stop_all
for i in 0 1 2; do server_e "$i"; done
wait_for curl -sf http://127.0.0.1:18400/health
for op in write read; do "$load" load --on etcd --op $op --servers 127.0.0.1:18400,127.0.0.1:18410,127.0.0.1:18420 --clients "$clients" --seconds "$each"; done
stop_all

echo "== the leader is killed -9: time until the next successful write, ${FAILOVERS:-10} times, three servers on loopback"
for what in fairlead etcd; do
  members=() times=()
  for i in 0 1 2; do "server_${what:0:1}" "$i"; members[i]=${pids[-1]}; done
  if [ "$what" = fairlead ]; then base=174; wait_for "$fairlead" --insecure --server 127.0.0.1:17400 get ns default; else base=184; wait_for curl -sf http://127.0.0.1:18400/health; fi
  for _ in $(seq "${FAILOVERS:-10}"); do
    sleep 3
    said=$("$load" failover --on "$what" --servers "127.0.0.1:${base}00,127.0.0.1:${base}10,127.0.0.1:${base}20" --pids "$(IFS=,; echo "${members[*]}")")
    times+=("${said% *}")
    wait "${said#* }" 2> /dev/null || true
    for i in 0 1 2; do [ "${members[i]}" != "${said#* }" ] || { "server_${what:0:1}" "$i"; members[i]=${pids[-1]}; }; done
  done
  printf '%s\n' "${times[@]}" | sort -n | awk -v what="$what" '{t[NR] = $1} END {printf "%-9s failover: best %.0f ms, median %.0f ms, worst %.0f ms of %d\n", what, t[1], t[int((NR + 1) / 2)], t[NR], NR}'
  stop_all
done

echo "== many watchers and many nodes of one server, on loopback"
start "$fairlead" --insecure server --name w1 --data-dir "$work/w" --listen-grpc 127.0.0.1:17430 --listen-peer 127.0.0.1:17431 \
  --listen-https 127.0.0.1:17432 --listen-dns 127.0.0.1:17433 --listen-metrics 127.0.0.1:17434
wait_for "$fairlead" --insecure --server 127.0.0.1:17430 get ns default
"$fan" watchers --on fairlead --server 127.0.0.1:17430 --pid "${pids[-1]}" --counts "$watchers"
"$fan" nodes --server 127.0.0.1:17430 --pid "${pids[-1]}" --counts "$nodes"
stop_all
start etcd --name w1 --data-dir "$work/we" --listen-client-urls http://127.0.0.1:18430 --advertise-client-urls http://127.0.0.1:18430 \
  --listen-peer-urls http://127.0.0.1:18431 --initial-advertise-peer-urls http://127.0.0.1:18431 --initial-cluster w1=http://127.0.0.1:18431
wait_for curl -sf http://127.0.0.1:18430/health
"$fan" watchers --on etcd --server 127.0.0.1:18430 --pid "${pids[-1]}" --counts "$watchers"
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

echo "== Kubernetes' API of one server, beside its gRPC API"
"$fairlead" --insecure server --name n1 --data-dir "$work/k0" --initial-cluster n1=127.0.0.1:17401 --listen-grpc 127.0.0.1:17400 \
  --listen-peer 127.0.0.1:17401 --listen-https 127.0.0.1:17402 --listen-dns 127.0.0.1:17403 --listen-metrics 127.0.0.1:17404 > "$work/k0.log" 2>&1 &
pids+=($!)
wait_for "$fairlead" --insecure --server 127.0.0.1:17400 get ns default
"$kube" --grpc 127.0.0.1:17400 --https 127.0.0.1:17402 --pid "${pids[-1]}" --seconds "$each"
