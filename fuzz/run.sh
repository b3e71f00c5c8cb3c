#!/usr/bin/env bash
# Fuzzes every target for a while and says how often each was run.
#
#   fuzz/run.sh SECONDS [TARGET…]
#
# Where rustup has a nightly compiler, the address sanitizer is on: our code forbids `unsafe`, but not all of what it calls
# does. The sanitizer's flag is one that the stable compiler refuses; there it is left out, and coverage comes from flags
# that it takes: what is looked for then are panics and broken promises. COUNTERSIGN_FUZZ_SANITIZER=address or =none decides
# otherwise. What is found lies in fuzz/artifacts/<target>; what was learnt is put away after the run
# (COUNTERSIGN_FUZZ_KEEP=1 adds it to the corpus).
set -euo pipefail

seconds=${1:?"seconds a target are wanted: fuzz/run.sh 20"}
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Tools lie beside each other: cargo finds the subcommand in PATH.
PATH=$(dirname "$(tests/tools/build.sh cargo-fuzz)"):$PATH
host=$(rustc -vV | sed -n 's/^host: //p')
directory=${COUNTERSIGN_FUZZ_TARGET:-fuzz/target}
built=$directory/$host/release

mapfile -t targets < <(if (($#)); then printf '%s\n' "$@"; else cargo fuzz list --fuzz-dir fuzz; fi)
# The flags of a person's own setting would make a second build of everything.
unset CARGO_TARGET_DIR CARGO_ENCODED_RUSTFLAGS RUSTFLAGS
sanitizer=${COUNTERSIGN_FUZZ_SANITIZER:-$(if rustup run nightly rustc -V >/dev/null 2>&1; then echo address; else echo none; fi)}
toolchain=()
[[ $sanitizer == none ]] || toolchain=(+nightly)
echo "sanitizer: $sanitizer (cargo ${toolchain[*]:-of the default toolchain})"
cargo "${toolchain[@]}" fuzz build --fuzz-dir fuzz --sanitizer "$sanitizer" --target "$host" --target-dir "$directory"
# Looking for leaks takes ptrace, which containers refuse; what a target leaks, the limit of its memory shows.
export ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

fuzz() {
  local target=$1
  mkdir -p "fuzz/corpus/$target" "$logs/$target"
  local found=$logs/$target
  [[ -n ${COUNTERSIGN_FUZZ_KEEP:-} ]] && found=fuzz/corpus/$target
  mkdir -p "fuzz/artifacts/$target"
  "$built/$target" "$found" "fuzz/corpus/$target" -artifact_prefix="fuzz/artifacts/$target/" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1 \
    >"$logs/$target.log" 2>&1 </dev/null
}

passed=0 failed=0
# As many at once as there are cores.
running=()
judge() {
  local target=$1 pid=$2 runs seeds
  seeds=$(find "fuzz/corpus/$target" -type f | wc -l)
  if wait "$pid" && runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$target.log") && ((runs > seeds)); then
    printf '%-12s %10d executions, %7d a second, %4d seeds\n' \
      "$target" "$runs" "$((runs / (seconds > 0 ? seconds : 1)))" "$seeds"
    passed=$((passed + 1))
  else
    printf '%-12s FAILED\n' "$target"
    tail -n 60 "$logs/$target.log"
    failed=$((failed + 1))
  fi
}
for target in "${targets[@]}"; do
  if ((${#running[@]} >= $(nproc))); then
    judge "${running[0]%:*}" "${running[0]#*:}"
    running=("${running[@]:1}")
  fi
  fuzz "$target" &
  running+=("$target:$!")
done
for one in "${running[@]}"; do judge "${one%:*}" "${one#*:}"; done
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0 && passed > 0))
