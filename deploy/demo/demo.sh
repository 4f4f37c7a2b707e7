#!/usr/bin/env bash
# Shows the whole path, from a Service manifest to a packet in the right pod, on three nodes and three servers that are
# network namespaces and real processes of this machine; nginx is Debian's. Every step is checked with a real answer and
# timed; the exit status is 0 only if all held. It leaves nothing behind, also after Ctrl-C.
# Usage: demo.sh FAIRLEAD    (the binary). MODE=iptables|nftables|ipvs chooses the data plane; for IPVS, on a host whose kernel
# has none, all of it happens in a user-mode kernel, which is slow.
set -euo pipefail
fairlead=$(realpath -m "${1:?usage: demo.sh FAIRLEAD}")
cd "$(dirname "$0")"
[ -x "$fairlead" ] || { echo "demo.sh: $fairlead is not there: make build" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "demo.sh: network namespaces need root: sudo make demo" >&2; exit 1; }
mode=${MODE:-iptables}
case $mode in iptables | nftables | ipvs) ;; *) echo "demo.sh: MODE=$mode: choose iptables, nftables or ipvs" >&2; exit 2 ;; esac
if [ "$mode" = ipvs ] && [ -z "${IN_GUEST:-}" ] && [ ! -e /proc/net/ip_vs ] && ! modprobe ip_vs 2> /dev/null; then
  echo "demo.sh: this kernel has no IPVS: in a user-mode kernel, on one slow processor"
  exec ../vm/run.sh -m 3G -t 1500 -e MODE=ipvs -e IN_GUEST=yes -- "$PWD/demo.sh" "$fairlead"
fi
# How many times slower than a host.
slow=${IN_GUEST:+8}
slow=${slow:-1}
unset "${!FAIRLEAD_@}"
. ./net.sh

manifest=../examples/nginx-service.yaml
servers=10.0.0.11:7400,10.0.0.12:7400,10.0.0.13:7400
name=nginx-service.default.svc.cluster.local
rows=() title="" begun=0 result=FAILED
server_pid=()

now() { local us=${EPOCHREALTIME/[.,]/}; echo $((us / 1000)); }
fl() { ns sw "$fairlead" --insecure --server "$servers" "$@"; }
say() { printf '   $ %s\n' "$*"; }
show() { sed 's/^/   /'; }

step() { title=$1; begun=$(now); printf '\n== %s\n' "$title"; }
held() {
  local ms=$(($(now) - begun))
  rows+=("$(printf 'ok      %6d ms  %s: %s' "$ms" "$title" "$1")")
  printf '   ok after %d ms: %s\n' "$ms" "$1"
}
fail() {
  rows+=("$(printf 'FAILED  %6d ms  %s: %s' $(($(now) - begun)) "$title" "$1")")
  printf '   FAILED: %s\n' "$1"
  find "$work" -maxdepth 1 -name '*.log' -size +0 -exec tail -v -n 12 {} + | show
  exit 1
}
# within SECONDS WHAT COMMAND…: until it succeeds
within() {
  local end=$(($(now) + $1 * 1000 * slow)) what=$2
  shift 2
  until "$@"; do
    [ "$(now)" -lt "$end" ] || fail "$what"
    sleep 0.05
  done
}

finish() {
  local status=$?
  trap '' INT TERM
  touch "${work:-/nonexistent}/stop" 2> /dev/null || true
  if ! net_down; then status=1; result="FAILED: not all could be removed"; fi
  if [ ${#rows[@]} -gt 0 ]; then
    printf '\nresult      time  step\n'
    printf '%s\n' "${rows[@]}"
  fi
  printf '\n%s; namespaces, processes and rules are gone\n' "$result"
  exit "$status"
}
trap finish EXIT
trap 'result=stopped; exit 130' INT
trap 'result=stopped; exit 143' TERM HUP
trap 'fail "a command failed, as said above"' ERR

start_server() {
  local n=$1 at=10.0.0.1$1
  start "server$n" "node$n" "$fairlead" --insecure server --name "n$n" --data-dir "$work/server$n" \
    --listen-grpc "$at:7400" --listen-peer "$at:7401" --listen-https "$at:7443" --listen-dns "$at:53" --listen-metrics "$at:7490" \
    --initial-cluster n1=10.0.0.11:7401,n2=10.0.0.12:7401,n3=10.0.0.13:7401
  server_pid[n]=${pids[-1]}
}
start_agent() {
  local n=$1
  start "agent$n" "node$n" "$fairlead" --insecure --server "$servers" agent --node-name "node$n" --mode "$mode" \
    --state-dir "$work/agent$n" --node-ip "10.0.0.1$n" --renew-seconds 1 --grace-seconds $((5 * slow)) \
    --cluster-cidr 10.244.0.0/16 --pod-cidr "10.244.$n.0/24"
}
# pod NAME NODE ADDRESS APP: a namespace with nginx, and its manifest
pod() {
  net_pod "$1" "$2" "$3"
  pod_nginx "$1"
  cat > "$work/$1.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata:
  name: $1
  labels:
    app: $4
spec:
  nodeName: node$2
  containers:
    - name: nginx
      image: nginx
      ports:
        - containerPort: 80
      readinessProbe:
        httpGet:
          path: /
          port: 80
        periodSeconds: 1
        failureThreshold: 1
status:
  podIP: $3
YAML
}

server_answers() { fl get namespaces > /dev/null 2>&1; }
nodes_ready() { [ "$(fl get nodes --no-headers 2> /dev/null | grep -cw Ready)" = 3 ]; }
endpoints() { fl get endpoints nginx-service -o 'jsonpath={range .subsets[*].addresses[*]}{.ip}{" "}{.nodeName}{"\n"}{end}' | sort; }
endpoints_are() { [ "$(endpoints)" = "$(printf '%s\n' "$@")" ]; }
# Rules as the kernels have them.
# What the kernel of a node holds, and how a rule or an element there names an endpoint and the ClusterIP.
case $mode in
  iptables)
    kernel_rules() { ns "node$1" iptables-save -t nat; }
    to_endpoint() { echo "--to-destination $1:80"; }
    to_vip() { echo "-d $vip/32"; } ;;
  nftables)
    kernel_rules() { ns "node$1" nft list table ip fairlead; }
    to_endpoint() { echo "$1 . 80"; }
    to_vip() { echo "$vip . tcp . 80"; } ;;
  ipvs)
    # An endpoint that only keeps its connections has the weight 0.
    kernel_rules() { ns "node$1" ipvsadm -Sn | sed '/ -w 0$/d'; }
    to_endpoint() { echo "-r $1:80 "; }
    to_vip() { echo "-A -t $vip:80 "; } ;;
esac
every_kernel_has() { local n; for n in 1 2 3; do kernel_rules $n | grep -F -- "$1" > /dev/null || return 1; done; }
no_kernel_has() { local n; for n in 1 2 3; do ! kernel_rules $n | grep -F -- "$1" > /dev/null || return 1; done; }
# requests FROM URL: sixty, a connection each; the names of the pods that answered
requests() { ns "$1" curl -s --max-time $((2 * slow)) -H 'Connection: close' "$2?[1-60]" || true; }
counted() { sort | uniq -c | awk '{printf "%s%s %d", n++ ? ", " : "", $2, $1}'; }
# all_from FROM URL POD…: all sixty are answered, by each of these pods and by no other
all_from() {
  local from=$1 url=$2 got pod
  shift 2
  requests "$from" "$url" > "$work/got"
  got=$(counted < "$work/got")
  printf '   %-5s %-56s %s\n' "$from" "$url" "$got"
  [ "$(wc -l < "$work/got")" = 60 ] || fail "$((60 - $(wc -l < "$work/got"))) of 60 requests from $from to $url failed"
  for pod in "$@"; do grep -qx "$pod" "$work/got" || fail "no request from $from to $url reached $pod"; done
  [ "$(sort -u "$work/got" | wc -l)" = $# ] || fail "requests from $from to $url reached another pod than $*"
}
leader() { fl status -o json | tr -d ' \n' | tr '}' '\n' | grep '"leader":true' | sed 's/.*"name":"\([^"]*\)".*/\1/' || true; }
# traffic FROM: one request after the other until told to stop; what failed goes into a file
traffic() {
  local asked=0 failed=0
  while [ ! -e "$work/stop" ]; do
    asked=$((asked + 1))
    ns "$1" curl -sf -o /dev/null --max-time $((2 * slow)) "http://$vip/" || failed=$((failed + 1))
  done
  echo "$asked $failed" > "$work/traffic-$1"
}
dns_code() { dig_from node1 "$@" | sed -n 's/.*status: \([A-Z]*\),.*/\1/p'; }
# A dead server in resolv.conf is passed over, which dig mentions among the answers.
dig_from() { local from=$1; shift; ns "$from" dig +tries=2 +time=$((2 * slow)) "$@" | sed '/^;; communications error/d'; }

step "three nodes, three servers, three agents, three pods"
net_up
for n in 1 2 3; do start_server $n; done
for n in 1 2 3; do pod "pod$n" $n "10.244.$n.2" nginx; done
pod other 3 10.244.3.3 other
within 30 "no server answers" server_answers
for n in 1 2 3; do start_agent $n; done
within 20 "not all nodes are ready" nodes_ready
say "fairlead apply -f pod1.yaml -f pod2.yaml -f pod3.yaml -f other.yaml"
fl apply -f "$work/pod1.yaml" -f "$work/pod2.yaml" -f "$work/pod3.yaml" -f "$work/other.yaml" | show
fl get nodes -o wide | show
held "the leader is $(leader)"

step "apply the manifest"
say "fairlead apply -f deploy/examples/nginx-service.yaml --wait=programmed"
fl apply -f "$manifest" --wait=programmed | show
fl get service nginx-service -o wide | show
vip=$(fl get service nginx-service -o 'jsonpath={.spec.clusterIP}')
[[ $vip =~ ^10\.(9[6-9]|10[0-9]|11[01])\.[0-9]+\.[0-9]+$ ]] || fail "the ClusterIP is '$vip'"
held "ClusterIP $vip"

step "its endpoints"
within 10 "the endpoints are not the three pods, but: $(endpoints | tr '\n' ' ')" endpoints_are "10.244.1.2 node1" "10.244.2.2 node2" "10.244.3.2 node3"
say "fairlead get endpoints nginx-service"
endpoints | show
held "three pods, one on each node"

step "the rules on the nodes"
for n in 1 2 3; do within 10 "a node has no rule for 10.244.$n.2" every_kernel_has "$(to_endpoint "10.244.$n.2")"; done
every_kernel_has "$(to_vip)" || fail "a node has no rule for $vip"
say "fairlead dataplane list --node node2 -o rules | grep …"
fl dataplane list --node node2 -o rules > "$work/rules"
grep -F -e nginx-service -e "$vip" -e "10.244." "$work/rules" | head -n 12 | cut -c 1-150 | show
grep -F -- "$(to_vip)" "$work/rules" > /dev/null || fail "dataplane list does not show them"
held "in all three kernels"

step "dig"
for from in "node1 @10.0.0.11" "node2 @10.0.0.13" "pod1" "pod3 +tcp"; do
  read -r where options <<< "$from"
  say "dig ${options:+$options }$name        (from $where)"
  got=$(dig_from "$where" +short ${options:+$options} "$name" A)
  [ "$got" = "$vip" ] || fail "A from $where is '$got'"
done
say "dig SRV $name"
got=$(dig_from pod2 +short "$name" SRV)
printf '   %s\n' "$got"
[ "$got" = "0 100 80 $name." ] || fail "SRV is '$got'"
got=$(dig_from pod1 +short +search nginx-service A)
[ "$got" = "$vip" ] || fail "A of the bare name is '$got'"
held "A and SRV from nodes and pods, UDP and TCP"

step "requests through name and VIP"
for from in node1 pod2; do
  for url in "http://$vip/" "http://$name/"; do all_from $from "$url" pod1 pod2 pod3; done
done
held "balanced over the three pods"

step "a pod dies"
say "kill -9 (everything in pod2)"
kill_all_in pod2
within 10 "its endpoint stays" endpoints_are "10.244.1.2 node1" "10.244.3.2 node3"
within 10 "its rule stays" no_kernel_has 10.244.2.2
gone=$(($(now) - begun))
for from in node1 node2 pod1 pod3; do all_from $from "http://$vip/" pod1 pod3; done
held "endpoint and rules gone after $gone ms, no failed request after that"

step "a new pod"
pod pod4 1 10.244.1.3 nginx
say "fairlead apply -f pod4.yaml"
fl apply -f "$work/pod4.yaml" | show
takes_traffic() { requests node2 "http://$vip/" | grep -qx pod4; }
within 10 "it gets no request" takes_traffic
taken=$(($(now) - begun))
within 5 "a node has no rule for it" every_kernel_has "$(to_endpoint 10.244.1.3)"
all_from pod2 "http://$vip/" pod1 pod3 pod4
all_from pod1 "http://$vip/" pod1 pod3 pod4
held "takes traffic after $taken ms"

step "the selector changes to another app, and back"
say "fairlead apply -f - --wait=programmed        (app: other)"
sed 's/app: nginx/app: other/' "$manifest" | fl apply -f - --wait=programmed | show
for from in node2 pod1; do all_from $from "http://$vip/" other; done
say "fairlead apply -f deploy/examples/nginx-service.yaml --wait=programmed"
fl apply -f "$manifest" --wait=programmed | show
for from in node2 pod1; do all_from $from "http://$vip/" pod1 pod3 pod4; done
[ "$(fl get service nginx-service -o 'jsonpath={.spec.clusterIP}')" = "$vip" ] || fail "the ClusterIP changed"
held "exact as soon as the command returns; the ClusterIP stayed"

step "the leader is killed"
for from in node2 pod1; do
  traffic $from &
  pids+=($!)
  disown $!
done
first=$(leader)
[ -n "$first" ] || fail "no leader is known"
say "kill -9 (server $first)"
kill -9 "${server_pid[${first#n}]}"
killed=$(now)
say "fairlead label service nginx-service survived=$first"
fl label service nginx-service "survived=$first" | show
written=$(($(now) - killed))
[ "$(fl get service nginx-service -o 'jsonpath={.metadata.labels.survived}')" = "$first" ] || fail "the write is not there"
fl wait service/nginx-service --for=programmed --timeout=$((10 * slow))s | show
got=$(dig_from pod3 +short "$name" A)
[ "$got" = "$vip" ] || fail "DNS says '$got'"
while [ $(($(now) - killed)) -lt 3000 ]; do sleep 0.1; done
touch "$work/stop"
for from in node2 pod1; do within 5 "the traffic from $from hangs" test -s "$work/traffic-$from"; done
rm "$work/stop"
read -r asked failed < <(awk '{a += $1; f += $2} END {print a, f}' "$work/traffic-node2" "$work/traffic-pod1")
[ "$failed" = 0 ] || fail "$failed of $asked requests failed"
second=$(leader)
[ -n "$second" ] && [ "$second" != "$first" ] || fail "the leader is '$second'"
start_server "${first#n}"
back() { [ "$(dig_from sw +short "@10.0.0.1${first#n}" "$name" A 2> /dev/null)" = "$vip" ]; }
within 15 "the killed server does not come back" back
held "$second leads, the next write took $written ms, 0 of $asked requests failed; $first is back"

step "delete"
say "fairlead delete service nginx-service"
fl delete service nginx-service | show
within 10 "rules stay" no_kernel_has "$vip"
no_kernel_has nginx-service || fail "rules that name it stay"
for n in 1 2 3; do
  got=$(dns_code "@10.0.0.1$n" "$name" A)
  [ "$got" = NXDOMAIN ] || fail "server n$n answers $got"
done
! ns pod1 curl -s --max-time 1 "http://$vip/" > /dev/null || fail "$vip still answers"
sed "s/name: nginx-service/name: next-owner/; s/type: ClusterIP/clusterIP: $vip/" "$manifest" | fl apply -f - | show
[ "$(fl get service next-owner -o 'jsonpath={.spec.clusterIP}')" = "$vip" ] || fail "the address is not free"
fl delete service next-owner | show
held "rules and name gone, $vip was taken by another service at once"

result="all held"
