#!/bin/sh
# Copies the workspace at $1 to $2, with every manifest as it is and every target empty.
#
# Building that builds the dependencies and nothing else. The Dockerfile does it in a layer of its own, which stays
# valid until a manifest or the lock file changes. Nothing here names a crate: a new member needs no change.
set -eu
from=$1
to=$2

stub() {
  mkdir -p "$to/$(dirname "$1")"
  case $1 in
  *lib.rs) echo '//! Empty.' >"$to/$1" ;;
  *) printf '//! Empty.\nfn main() {}\n' >"$to/$1" ;;
  esac
}

cd "$from"
for file in Cargo.toml Cargo.lock rust-toolchain.toml .cargo/config.toml; do
  [ -f "$file" ] || continue
  mkdir -p "$to/$(dirname "$file")"
  cp "$file" "$to/$file"
done
find . -path ./target -prune -o -name Cargo.toml ! -path ./Cargo.toml -print | while read -r manifest; do
  crate=$(dirname "$manifest")
  mkdir -p "$to/$crate"
  cp "$manifest" "$to/$manifest"
  # What Cargo looks for by itself.
  for target in "$crate"/build.rs "$crate"/src/lib.rs "$crate"/src/main.rs "$crate"/src/bin/*.rs; do
    if [ -f "$target" ]; then stub "$target"; fi
  done
  # What the manifest gives a path, and what it names without one: not all of it is built, but it has to be there.
  sed -n 's/^path *= *"\(.*\.rs\)".*/\1/p' "$manifest" | while read -r path; do stub "$crate/$path"; done
  for kind in bench:benches example:examples test:tests; do
    grep -q "^\[\[${kind%:*}]]" "$manifest" || continue
    for target in "$crate/${kind#*:}"/*.rs; do
      if [ -f "$target" ]; then stub "$target"; fi
    done
  done
done
