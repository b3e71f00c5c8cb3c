#!/usr/bin/env bash
# Builds the foreign tools that our checks run, and prints the path of each, one a line, in the order asked for.
#
#   conformance/tools.sh csi-sanity sops cargo-deny cargo-fuzz
#
# They are kept outside the clone, under a name made of everything that went into them: the module's files and the
# compiler's version. What is built already is not built again; a change of either makes a new one.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${COUNTERSIGN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/countersign}

say() { echo "tools: $*" >&2; }

need() {
  command -v "$1" >/dev/null || { say "$1 is not installed: $2"; exit 1; }
}

key() { sha256sum | cut -c1-16; }

# Finished tools are moved into place in one step: a build that was cut short leaves nothing that looks whole.
place() {
  local built=$1 kept=$2
  mkdir -p "$(dirname "$kept")"
  mv -T "$built" "$kept" 2>/dev/null || [[ -d $kept/bin ]] || { say "cannot write $kept"; exit 1; }
}

# go_tool NAME MODULE: builds the tool that the module's go.mod names.
go_tool() {
  local name=$1 module=$2 kept work
  need go "Debian has golang-go; 1.26 or later is wanted"
  [[ -f $module/go.mod && -f $module/go.sum ]] || { say "$name: $module has no go.mod and go.sum"; exit 1; }
  kept=$cache/$name-$({ cat "$module/go.mod" "$module/go.sum"; go version; } | key)
  if [[ ! -x $kept/bin/$name ]]; then
    say "building $name, once: a few minutes where the Go build cache is cold"
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/.$name.XXXXXX")
    (cd "$module" && CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$work/bin/" tool) >&2
    place "$work" "$kept"
    rm -rf "$work"
  fi
  echo "$kept/bin/$name"
}

# cargo_tool NAME VERSION: builds a released version with the dependencies it was released with.
cargo_tool() {
  local name=$1 version=$2 kept work
  need cargo "rustup or Debian's rustup package has it"
  kept=$cache/$name-$version-$(rustc -vV | key)
  if [[ ! -x $kept/bin/$name ]]; then
    say "building $name $version, once: a few minutes"
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/.$name.XXXXXX")
    # Away from the clone: its settings are not meant for this build.
    (cd "$work" && env -u RUSTFLAGS CARGO_TARGET_DIR="$work/target" \
      cargo install --quiet --locked --root "$work/root" --version "$version" "$name") >&2
    place "$work/root" "$kept"
    rm -rf "$work"
  fi
  echo "$kept/bin/$name"
}

if (($# == 0)); then
  say "names wanted: csi-sanity, sops, cargo-deny, cargo-fuzz"
  exit 2
fi
for tool; do
  case $tool in
    csi-sanity) go_tool csi-sanity "$here/csi-sanity" ;;
    sops) go_tool sops "$here/../tests/sops" ;;
    cargo-deny) cargo_tool cargo-deny 0.20.2 ;;
    cargo-fuzz) cargo_tool cargo-fuzz 0.13.2 ;;
    *) say "unknown tool $tool"; exit 2 ;;
  esac
done
