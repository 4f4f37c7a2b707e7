# Sourced by demo.sh: hosts and pods as network namespaces, and the way back. Nothing is made outside of namespaces but
# their resolv.conf files in /etc/netns and one temporary folder.
#
#   sw: bridge br0 10.0.0.1 ── node1..3: eth0 10.0.0.11-13, routes to each other's pods, default route to the bridge
#   pod: one cable to its node, 10.244.<node>.<n>/32, routed (no bridge: replies between two pods of a node must pass
#   the node's connection tracking)

id=fl-demo-$$
work="" # temporary folder
pids=() # processes started, in order
netns=() # namespaces made
etc_netns_is_ours=""

ns() { local name=$1; shift; ip netns exec "$id-$name" "$@"; }

net_namespace() {
  ip netns add "$id-$1"
  netns+=("$id-$1")
  ip -n "$id-$1" link set lo up
  # Of this namespace only.
  ns "$1" sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
}

# A name server for what runs in a namespace: `ip netns exec` shows it as /etc/resolv.conf.
net_resolver() {
  local name=$1; shift
  [ -d /etc/netns ] || etc_netns_is_ours=yes
  mkdir -p "/etc/netns/$id-$name"
  { printf 'nameserver %s\n' "$@"; echo 'search default.svc.cluster.local svc.cluster.local cluster.local'; echo 'options ndots:5 timeout:1 attempts:3'; } > "/etc/netns/$id-$name/resolv.conf"
}

net_up() {
  local node other
  work=$(mktemp -d "${TMPDIR:-/var/tmp}/$id.XXXXXX")
  net_namespace sw
  ip -n "$id-sw" link add br0 type bridge
  ip -n "$id-sw" addr add 10.0.0.1/24 dev br0
  ip -n "$id-sw" link set br0 up
  for node in 1 2 3; do
    net_namespace "node$node"
    ip link add "node$node" netns "$id-sw" type veth peer name eth0 netns "$id-node$node"
    ip -n "$id-sw" link set "node$node" master br0 up
    ip -n "$id-node$node" addr add "10.0.0.1$node/24" dev eth0
    ip -n "$id-node$node" link set eth0 up
    ip -n "$id-node$node" route add default via 10.0.0.1
    ns "node$node" sysctl -qw net.ipv4.ip_forward=1
    net_resolver "node$node" 10.0.0.11 10.0.0.12 10.0.0.13
  done
  for node in 1 2 3; do
    for other in 1 2 3; do
      [ "$node" = "$other" ] || ip -n "$id-node$node" route add "10.244.$other.0/24" via "10.0.0.1$other"
    done
  done
}

# net_pod NAME NODE ADDRESS
net_pod() {
  local name=$1 node=$2 address=$3
  net_namespace "$name"
  ip link add "$name" netns "$id-node$node" type veth peer name eth0 netns "$id-$name"
  ip -n "$id-node$node" addr add "10.244.$node.1/32" dev "$name"
  ip -n "$id-node$node" link set "$name" up
  ip -n "$id-node$node" route add "$address/32" dev "$name"
  ip -n "$id-$name" addr add "$address/32" dev eth0
  ip -n "$id-$name" link set eth0 up
  ip -n "$id-$name" route add "10.244.$node.1/32" dev eth0
  ip -n "$id-$name" route add default via "10.244.$node.1"
  net_resolver "$name" 10.0.0.11 10.0.0.12 10.0.0.13
}

# start NAME NAMESPACE COMMAND…: in the background, its output in $work/NAME.log
start() {
  local name=$1 namespace=$2; shift 2
  ip netns exec "$id-$namespace" "$@" > "$work/$name.log" 2>&1 &
  pids+=($!)
  disown $! # the shell should not announce its end
}

# Debian's nginx, answering with its pod's name; its folder is its own, /etc/nginx is not read.
pod_nginx() {
  local name=$1 dir="$work/$1"
  mkdir -p "$dir"
  cat > "$dir/nginx.conf" <<CONF
daemon off;
master_process off;
pid $dir/nginx.pid;
error_log $dir/error.log warn;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path $dir/body;
  proxy_temp_path $dir/proxy;
  fastcgi_temp_path $dir/fastcgi;
  uwsgi_temp_path $dir/uwsgi;
  scgi_temp_path $dir/scgi;
  server {
    listen 80;
    default_type text/plain;
    location / { return 200 "$name\n"; }
  }
}
CONF
  start "nginx-$name" "$name" nginx -p "$dir" -e "$dir/error.log" -c "$dir/nginx.conf"
}

# Everything in a namespace dies at once.
kill_all_in() { ip netns pids "$id-$1" 2> /dev/null | xargs -r kill -9 2> /dev/null || true; }

# The way back, from whatever was reached. Says nothing unless something is left.
net_down() {
  local pid one left=""
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
  for _ in $(seq 30); do
    left=""
    for pid in "${pids[@]}"; do ! kill -0 "$pid" 2> /dev/null || left=yes; done
    [ -n "$left" ] || break
    sleep 0.1
  done
  for pid in "${pids[@]}"; do kill -9 "$pid" 2> /dev/null || true; done
  for one in "${netns[@]}"; do ip netns pids "$one" 2> /dev/null | xargs -r kill -9 2> /dev/null || true; done
  for one in "${netns[@]}"; do
    ip netns del "$one" 2> /dev/null || true
    rm -rf "/etc/netns/$one"
  done
  [ -z "$etc_netns_is_ours" ] || rmdir /etc/netns 2> /dev/null || true
  [ -z "$work" ] || rm -rf "$work"
  sleep 0.1
  left=$(ip netns list | grep -F "$id-" || true)
  for pid in "${pids[@]}"; do ! kill -0 "$pid" 2> /dev/null || left="$left process $pid"; done
  [ -z "$left" ] || { echo "left behind: $left" >&2; return 1; }
}
