#!/usr/bin/env bash
# Checks the dependencies' licences and bans (deny.toml). Builds cargo-deny once per machine (about 3 minutes on two
# cores) into the cache folder, unless it is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=${FAIRLEAD_CACHE:-$HOME/.cache/fairlead}
version=0.20.2
deny=$(command -v cargo-deny || echo "$cache/tools/bin/cargo-deny")
if [ ! -x "$deny" ]; then
  echo "deny.sh: building cargo-deny $version once into $cache/tools (about 3 minutes on two cores) ..." >&2
  env -u CARGO_TARGET_DIR -u RUSTFLAGS cargo install -q cargo-deny --locked --version "$version" --root "$cache/tools"
fi
"$deny" --log-level error --locked check licenses bans
