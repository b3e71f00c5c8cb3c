#!/bin/sh
# The real sops and `countersign-agent sops` read each other's files. Fails without either.
#   SOPS_BIN           the sops binary
#   COUNTERSIGN_AGENT  the agent's binary
set -eu
: "${SOPS_BIN:?is not set: the path of sops 3.13.3 (see README.md beside this script)}"
: "${COUNTERSIGN_AGENT:?is not set: the path of the countersign-agent binary}"
absolute() { echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"; }
sops=$(absolute "$SOPS_BIN") agent=$(absolute "$COUNTERSIGN_AGENT")
"$sops" --version --disable-version-check | grep -q 'sops 3\.' || { echo "$SOPS_BIN is no sops 3" >&2; exit 1; }
cd "$(dirname "$0")"
unset SOPS_AGE_KEY SOPS_AGE_KEY_FILE SOPS_AGE_RECIPIENTS SOPS_AGE_SSH_PRIVATE_KEY_FILE
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
count=0

sops_decrypt() { # key file, file: JSON, whatever the file's form
    SOPS_AGE_KEY_FILE=$1 "$sops" --config /dev/null decrypt --output-type json "$2"
}
# The plain text of one file that sops made, by way of ours: what we decrypt is encrypted again by sops, so that both
# sides are spelled by sops.
ours_spelled_by_sops() { # key file, file, recipient
    form=${2##*.}
    "$agent" sops decrypt --age-key-file "$1" "$2" >"$work/again.$form"
    "$sops" --config /dev/null encrypt --age "$3" "$work/again.$form" >"$work/sealed.$form"
    sops_decrypt "$1" "$work/sealed.$form"
}
same() { # name, file, file
    if ! diff -u "$2" "$3" >&2; then
        echo "FAILED: $1" >&2
        exit 1
    fi
    count=$((count + 1))
    echo "ok: $1"
}

public=$("$agent" sops keygen --output "$work/key.txt")
[ "$(stat -c %a "$work/key.txt")" = 600 ] || { echo "FAILED: mode of the key file" >&2; exit 1; }
other=$(sed -n 's/^# public key: //p' keys/second.txt)

for name in everything.yaml everything.json secret.yaml suffix.yaml; do
    form=${name##*.}
    # Made by us, read by sops.
    "$agent" sops encrypt --age "$other,$public" --output "$work/ours.$form" "plain/$name"
    if grep -q hunter2 "$work/ours.$form"; then
        echo "FAILED: $name is not encrypted" >&2
        exit 1
    fi
    "$sops" --config /dev/null encrypt --age "$public" "plain/$name" >"$work/theirs.$form"
    sops_decrypt "$work/key.txt" "$work/theirs.$form" >"$work/expected"
    for key in "$work/key.txt" keys/second.txt; do
        sops_decrypt "$key" "$work/ours.$form" >"$work/got"
        same "sops reads $name of ours with $(basename "$key")" "$work/expected" "$work/got"
    done
    # Made by sops, read by us.
    ours_spelled_by_sops "$work/key.txt" "$work/theirs.$form" "$public" >"$work/got"
    same "we read $name of sops" "$work/expected" "$work/got"
    # Edited by sops after us: the MAC and everything else anew.
    SOPS_AGE_KEY_FILE=$work/key.txt "$sops" --config /dev/null set "$work/ours.$form" '["added"]' '"hunter2 by sops"'
    "$agent" sops decrypt --age-key-file "$work/key.txt" "$work/ours.$form" | grep -q 'hunter2 by sops'
    echo "ok: we read $name of ours after sops set a value"
done

first=$(sed -n 's/^# public key: //p' keys/first.txt)
for file in everything.yaml everything.json binary.json encrypted-regex.yaml unencrypted-regex.yaml \
    encrypted-suffix.yaml unencrypted-suffix.yaml mac-only-encrypted.yaml two-recipients.yaml; do
    sops_decrypt keys/first.txt "fixtures/$file" >"$work/expected"
    ours_spelled_by_sops keys/first.txt "fixtures/$file" "$first" >"$work/got"
    same "we read fixtures/$file" "$work/expected" "$work/got"
done

# What sops refuses, we refuse.
sed 's/hosts\{0,1\}_unencrypted: db.example/host_unencrypted: evil.example/' fixtures/everything.yaml >"$work/tampered.yaml"
for reader in sops_decrypt ours; do
    if [ "$reader" = ours ]; then
        "$agent" sops decrypt --age-key-file keys/first.txt "$work/tampered.yaml" >/dev/null 2>"$work/said" && status=0 || status=$?
    else
        sops_decrypt keys/first.txt "$work/tampered.yaml" >/dev/null 2>"$work/said" && status=0 || status=$?
    fi
    if [ "$status" = 0 ] || ! grep -q MAC "$work/said"; then
        echo "FAILED: $reader took a tampered file" >&2
        exit 1
    fi
    echo "ok: $reader refuses a tampered file"
done
echo "$count comparisons, all equal"
