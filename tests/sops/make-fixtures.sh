#!/bin/sh
# Makes fixtures/ from plain/ with the real sops, whose path is the one argument. See README.md.
set -eu
sops=${1:?path of the sops binary}
case $sops in */*) sops=$(cd "$(dirname "$sops")" && pwd)/$(basename "$sops") ;; esac
cd "$(dirname "$0")"
unset SOPS_AGE_KEY SOPS_AGE_KEY_FILE SOPS_AGE_RECIPIENTS SOPS_AGE_SSH_PRIVATE_KEY_FILE
public() { sed -n 's/^# public key: //p' "keys/$1.txt"; }
first=$(public first) second=$(public second) third=$(public third)
rm -rf fixtures
mkdir fixtures

encrypt() { # output, input, options
    out=$1 in=$2
    shift 2
    "$sops" --config /dev/null encrypt "$@" "plain/$in" >"fixtures/$out"
}
encrypt everything.yaml everything.yaml --age "$first"
encrypt everything.json everything.json --age "$first"
encrypt anchors.yaml anchors.yaml --age "$first"
encrypt two-recipients.yaml suffix.yaml --age "$second,$first"
encrypt stranger.yaml suffix.yaml --age "$third"
encrypt encrypted-suffix.yaml suffix.yaml --age "$first" --encrypted-suffix _enc
encrypt unencrypted-suffix.yaml suffix.yaml --age "$first" --unencrypted-suffix me
encrypt encrypted-regex.yaml secret.yaml --age "$first" --encrypted-regex '^(data|stringData)$'
encrypt unencrypted-regex.yaml secret.yaml --age "$first" --unencrypted-regex '^(apiVersion|kind|metadata|type)$'
encrypt documents.yaml documents.yaml --age "$first"
encrypt binary.json blob.bin --age "$first"
encrypt app.env app.env --age "$first"
encrypt app.ini app.ini --age "$first"

# What only a file of rules can ask for.
rules=$(mktemp --suffix=.yaml)
trap 'rm -f "$rules"' EXIT
cat >"$rules" <<RULES
creation_rules:
  - path_regex: secret
    mac_only_encrypted: true
    encrypted_regex: ^(data|stringData)$
    age: "$first"
  - path_regex: comments
    encrypted_comment_regex: encrypt this
    age: "$first"
  - shamir_threshold: 2
    key_groups:
      - age: ["$first"]
      - age: ["$second"]
      - age: ["$third"]
RULES
"$sops" --config "$rules" encrypt plain/secret.yaml >fixtures/mac-only-encrypted.yaml
"$sops" --config "$rules" encrypt plain/comments.yaml >fixtures/comment-regex.yaml
"$sops" --config "$rules" encrypt plain/suffix.yaml >fixtures/shamir.yaml

# What sops itself makes of them, as JSON.
for name in everything.yaml everything.json; do
    SOPS_AGE_KEY_FILE=keys/first.txt "$sops" decrypt --output-type json "fixtures/$name" >"fixtures/$name.plain"
done
