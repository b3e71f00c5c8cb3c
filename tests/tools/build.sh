#!/usr/bin/env bash
# Builds the foreign tools that our checks run, and prints the path of each, one a line, in the order asked for.
#
#   tests/tools/build.sh csi-sanity sops cargo-deny cargo-fuzz
#
#   COUNTERSIGN_KUBERNETES=1.31 tests/tools/build.sh kubelet      an older Kubernetes, of the module kubernetes-1.31
#   COUNTERSIGN_HELM=3 tests/tools/build.sh helm                  an older helm, of the module helm-3
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

# go_tools MODULE NAME [VARIABLE=VALUE…] [FLAG…]: builds all tools that the module's go.mod names, and prints NAME's path.
go_tools() {
  local module=$here/$1 name=$2 kept work variables=(CGO_ENABLED=0)
  shift 2
  while [[ ${1:-} == [A-Z]*=* ]]; do variables+=("$1"); shift; done
  need go "Debian has golang-go; 1.26 is wanted"
  [[ -f $module/go.mod && -f $module/go.sum ]] || { say "$name: $module has no go.mod and go.sum"; exit 1; }
  kept=$cache/$(basename "$module")-$({ cat "$module/go.mod" "$module/go.sum"; find "$module" -name '*.go' -exec cat {} +; echo "${variables[@]}" "$@"; go version; } | key)
  if [[ ! -x $kept/bin/$name ]]; then
    say "building $(basename "$module"), once: minutes where the Go build cache is cold"
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/.$name.XXXXXX")
    mkdir "$work/bin"
    (cd "$module" && env "${variables[@]}" go build -mod=readonly -trimpath "$@" -o "$work/bin/" tool) >&2
    place "$work" "$kept"
    rm -rf "$work"
  fi
  echo "$kept/bin/$name"
}

# release MODULE: the release of Kubernetes that the module builds.
release() { sed -n 's#^.*k8s.io/kubernetes \(v[0-9.]*\).*#\1#p' "$here/$1/go.mod" | head -n 1; }

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
  say "names wanted: csi-sanity, sops, cargo-deny, cargo-fuzz, kubelet, kube-apiserver, …, containerd, ctr, runc, helm, vault, openbao, spire-server, …"
  exit 2
fi
for tool; do
  case $tool in
    csi-sanity) go_tools csi-sanity "$tool" ;;
    sops) go_tools sops "$tool" ;;
    kube-apiserver | kube-controller-manager | kube-scheduler | kubelet | kubectl)
      kubernetes=kubernetes${COUNTERSIGN_KUBERNETES:+-$COUNTERSIGN_KUBERNETES}
      # Without its version the apiserver calls itself v0.0.0, and no chart installs.
      go_tools "$kubernetes" "$tool" -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(release "$kubernetes")" ;;
    containerd | containerd-shim-runc-v2 | ctr) go_tools containerd "$tool" -ldflags "-s -w" -tags no_btrfs,no_devmapper,no_zfs ;;
    # Ours: what a program in Go does with the files of a volume.
    reader) go_tools reader "$tool" -ldflags "-s -w" ;;
    runc) go_tools runc "$tool" CGO_ENABLED=1 -ldflags "-s -w" -tags seccomp ;;
    helm) go_tools "helm${COUNTERSIGN_HELM:+-$COUNTERSIGN_HELM}" "$tool" -ldflags "-s -w" ;;
    vault) go_tools vault "$tool" -ldflags "-s -w" ;;
    # The module's name has no version in it, so what stands in go.mod is release 2.4.0 by its commit; told of no version,
    # the binary calls itself 2.0.0, and has no inline logins then by our reading of it.
    openbao) go_tools openbao "$tool" -ldflags "-s -w -X github.com/openbao/openbao/version.fullVersion=2.4.0" ;;
    # Its main package is called cmd, and so is what is made of it.
    spire-controller-manager) go_tools spire-controller-manager cmd -ldflags "-s -w" ;;
    # The server keeps its registrations in SQLite, which is C.
    spire-server | spire-agent) go_tools spire "$tool" CGO_ENABLED=1 -ldflags "-s -w" ;;
    cargo-deny) cargo_tool cargo-deny 0.20.2 ;;
    cargo-fuzz) cargo_tool cargo-fuzz 0.13.2 ;;
    *) say "unknown tool $tool"; exit 2 ;;
  esac
done
