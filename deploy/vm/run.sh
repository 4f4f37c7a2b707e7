#!/usr/bin/env bash
# Runs a command as root in a user-mode kernel (Debian's package user-mode-linux): a kernel with IPVS for hosts that have
# none, without hardware virtualisation. The guest sees this machine's files below a layer in memory, so nothing it
# writes lands here, except in the folders named with -w. It has one processor and no network but what it makes itself.
# What the command prints comes out as it is printed, and its status is the script's. 125: the guest broke, 124: too late.
# Usage: run.sh [-m MEMORY] [-t SECONDS] [-w FOLDER]… [-e NAME=VALUE]… -- COMMAND [ARGUMENT…]
set -euo pipefail
memory=1G limit=300 folders=() environment=()
while getopts m:t:w:e: option; do
  case $option in
    m) memory=$OPTARG ;;
    t) limit=$OPTARG ;;
    w) folders+=("$(realpath "$OPTARG")") ;;
    e) environment+=("$OPTARG") ;;
    *) sed -n '2,7s/^# //p' "$0" >&2; exit 125 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 125; }
kernel=$(command -v linux.uml || true)
modules=/usr/lib/uml/modules
if [ -z "$kernel" ] || ! { command -v modprobe && command -v cc; } > /dev/null; then
  echo "run.sh: no user-mode kernel here: apt-get install user-mode-linux kmod ipset ipvsadm gcc" >&2
  exit 125
fi

# The files that guest and host talk through.
desk=$(mktemp -d -t fairlead-vm.XXXXXX)
follower="" guest=""
tidy() {
  [ -z "$follower" ] || kill "$follower" 2> /dev/null || true
  [ -z "$guest" ] || kill -- "-$guest" 2> /dev/null || true
  rm -rf "$desk"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
: > "$desk/printed"
{
  echo "cd $(printf %q "$PWD") 2> /dev/null || cd /"
  for pair in ${environment[@]+"${environment[@]}"}; do printf 'export %q\n' "$pair"; done
  printf 'exec'; printf ' %q' "$@"; echo
} > "$desk/command"
writable="$desk"
for folder in ${folders[@]+"${folders[@]}"}; do writable="$writable $folder"; done

# The guest's first process, in two steps: the layer over the host's files, then life inside it.
cat > "$desk/first" << FIRST
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc none /proc
release=\$(uname -r)
insmod $modules/\$release/kernel/fs/overlayfs/overlay.ko
mount -t tmpfs none /mnt
mkdir /mnt/written /mnt/work /mnt/whole
mount -t overlay none -o lowerdir=/,upperdir=/mnt/written,workdir=/mnt/work /mnt/whole
cd /mnt/whole
mount --move /proc proc
mount -t sysfs none sys
mount -t devtmpfs none dev
mkdir -p dev/pts dev/shm
mount -t devpts none dev/pts
for folder in dev/shm run; do mount -t tmpfs none \$folder; done
mkdir -p run/netns run/lock tmp lib/modules/\$release
mount --bind $modules/\$release lib/modules/\$release
for folder in $writable; do mkdir -p ".\$folder"; mount -t hostfs -o "\$folder" none ".\$folder"; done
exec chroot . /bin/sh $desk/second
FIRST
cat > "$desk/second" << SECOND
hostname fairlead-vm
ln -sf /proc/self/fd /dev/fd
# This kernel's nf_tables knows no address family: its iptables is the older one.
for family in iptables ip6tables; do
  for verb in "" -save -restore; do ln -sf "/usr/sbin/\$family-legacy\$verb" "/etc/alternatives/\$family\$verb"; done
done
modprobe -a ipv6 veth ip_vs nf_conntrack_netlink
ip link set lo up
setsid bash $desk/command > $desk/printed 2>&1 < /dev/null
echo \$? > $desk/status.new
mv $desk/status.new $desk/status
echo o > /proc/sysrq-trigger
sleep 60
SECOND
chmod 755 "$desk/first"

cc -O2 -shared -fPIC -o "$desk/xstate.so" "$(dirname "$0")/xstate.c"
tail -n +1 -s 0.2 -f "$desk/printed" 2> /dev/null &
follower=$!
# Its memory is a file: on a disk every page would be written. The guest's kernel is a tree of processes: it gets a
# group of its own, to be ended by.
set +e
TMPDIR=${FAIRLEAD_VM_MEMORY:-/dev/shm} setsid timeout --kill-after=5 "$limit" \
  env "LD_PRELOAD=$desk/xstate.so" "$kernel" "mem=$memory" rootfstype=hostfs rootflags=/ ro quiet "uml_dir=$desk" \
  umid=guest "init=$desk/first" con=null con0=null,fd:1 ssl=null < /dev/null > "$desk/console" 2>&1 &
guest=$!
wait "$guest"
ended=$?
guest=""
sleep 0.5
if [ -s "$desk/status" ]; then exit "$(cat "$desk/status")"; fi
if [ "$ended" = 124 ]; then echo "run.sh: ended after $limit s" >&2; exit 124; fi
echo "run.sh: the guest broke:" >&2
tail -n 20 "$desk/console" >&2
exit 125
