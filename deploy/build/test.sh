#!/usr/bin/env bash
# Runs every test of the workspace. The last line counts them, whichever runner is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
if cargo nextest --version > /dev/null 2>&1; then
  exec cargo nextest run --workspace --locked "$@"
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --workspace --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?
awk '/^test result:/ {for (i = 1; i < NF; i++) {if ($(i + 1) == "passed;") p += $i; if ($(i + 1) == "failed;") f += $i}}
  END {printf "Summary: %d tests run: %d passed, %d failed\n", p + f, p, f}' "$log"
exit "$status"
