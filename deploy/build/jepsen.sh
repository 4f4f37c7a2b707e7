#!/usr/bin/env bash
# Builds the program, a build of it with broken behaviours, and the harness; runs every scenario, and looks for mutants.
# Usage: jepsen.sh PROFILE short|full    PROFILE: release, or dev (what the tests use: sooner built, slower). SEED overrides
# the seed, STORE the folder of the runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=$1 form=$2
target=${CARGO_TARGET_DIR:-target} store=${STORE:-store} seed=${SEED:-$(date +%s)}
folder=$profile
[ "$profile" != dev ] || folder=debug
# The broken build first: its file is replaced by the sound one's.
cargo build --locked --package fairlead --features mutants
mkdir -p "$target/mutants"
cp "$target/debug/fairlead" "$target/mutants/fairlead"
cargo build --locked --profile "$profile" --package fairlead --package fairlead-jepsen --bins
program=$target/$folder/fairlead harness=$target/$folder/fairlead-jepsen
if [ "$form" = full ]; then
  "$harness" run --fairlead "$program" --seconds 300 --seed "$seed" --store "$store"
  "$harness" run all --fairlead "$program" --seconds 1200 --seed "$seed" --store "$store"
  "$harness" mutants --fairlead "$target/mutants/fairlead" --seconds 60 --seed "$seed" --store "$store/mutants"
else
  # Not "disk": it damages members' files, and what it finds needs hours to be rare.
  "$harness" run kill pause partition one-way loss clock power replace members clients agents five \
    --fairlead "$program" --seconds 20 --seed "$seed" --store "$store"
  "$harness" mutants --count 3 --fairlead "$target/mutants/fairlead" --seconds 20 --seed "$seed" --store "$store/mutants"
fi
