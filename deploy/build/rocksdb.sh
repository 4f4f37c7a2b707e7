#!/usr/bin/env bash
# Builds librocksdb.a once per machine (-O2, about 18 minutes on two cores) and points this clone's cargo at it.
#
# RocksDB's C++ would otherwise be compiled again for every cargo profile and every clone. The archive is built by the
# very crate that links it (librocksdb-sys, the version in Cargo.lock), so the two can't drift apart. The result goes to
# a cache folder outside the clone; .cargo/config.toml (not committed) then tells every profile to link it.
# Usage: rocksdb.sh [print-dir]
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
cache=${FAIRLEAD_CACHE:-$HOME/.cache/fairlead}
version=$(awk '/^name = "librocksdb-sys"/ {getline; gsub(/"/, "", $3); print $3}' "$top/Cargo.lock")
[ -n "$version" ] || { echo "rocksdb.sh: librocksdb-sys is not in Cargo.lock" >&2; exit 1; }
# The flags are part of the name: another flag set is another archive. x86-64-v2 gives the CRC32 instruction.
flags=""
[ "$(uname -m)" = x86_64 ] && flags="-Ctarget-cpu=x86-64-v2"
dir="$cache/rocksdb-$version-O2${flags:+-v2}"
if [ "${1:-}" = print-dir ]; then echo "$dir"; exit 0; fi

if [ ! -f "$dir/librocksdb.a" ]; then
  echo "rocksdb.sh: building librocksdb.a $version once into $dir (about 18 minutes on 2 cores) ..." >&2
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$work/src"
  : > "$work/src/lib.rs"
  cat > "$work/Cargo.toml" <<TOML
[package]
name = "rocksdb-archive"
version = "0.0.0"
edition = "2024"
[workspace]
[dependencies]
librocksdb-sys = { version = "=${version%%+*}", default-features = false, features = ["lz4", "bindgen-runtime", "static"] }
[profile.release]
opt-level = 2
debug = false
[profile.release.package."*"]
opt-level = 2
[profile.release.build-override]
opt-level = 0
TOML
  cp "$top/Cargo.lock" "$work/Cargo.lock" 2>/dev/null || true
  ( cd "$work" && env -u ROCKSDB_LIB_DIR -u CARGO_TARGET_DIR RUSTFLAGS="$flags" cargo build --release --target-dir "$work/target" >&2 )
  built=$(find "$work/target/release/build" -name librocksdb.a | head -n 1)
  [ -n "$built" ] || { echo "rocksdb.sh: cargo built no librocksdb.a" >&2; exit 1; }
  mkdir -p "$dir"
  cp "$built" "$dir/librocksdb.a.partial"
  mv "$dir/librocksdb.a.partial" "$dir/librocksdb.a"
fi

mkdir -p "$top/.cargo"
config="[env]
ROCKSDB_LIB_DIR = \"$dir\"
ROCKSDB_STATIC = \"1\""
if [ "$(cat "$top/.cargo/config.toml" 2>/dev/null)" != "$config" ]; then printf '%s\n' "$config" > "$top/.cargo/config.toml"; fi
