# What people and CI call: CI calls nothing else. Each target has one line that `make help` shows.
.DEFAULT_GOAL := help
.PHONY: help demo test vault-test vault-bench soak lint bench conformance interop fuzz deny

TARGET := $(or $(CARGO_TARGET_DIR),target)
DEMO := $(if $(filter vault,$(STORE)),countersign-vault-demo,countersign-demo)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## build, and show a secret reach a pod on this machine (under 15 s when built; STORE=vault: from the vault or bao on PATH)
	cargo build --profile demo --quiet --bin countersign-driver --bin countersign-agent --bin $(DEMO)
	@$(TARGET)/demo/$(DEMO)

test: ## all tests that need no cluster
	@tests/suite

vault-test: ## the store `vault` against a real Vault and PostgreSQL (needs root, Go for vault, Debian's postgresql)
	cargo build --workspace --bins
	VAULT_BIN="$$(tests/tools/build.sh vault)" cargo test --package countersign-vault-tests

vault-bench: ## measure the store `vault`, with what Vault itself takes beside it
	cargo build --release --quiet --bin countersign-driver --bin countersign-agent --bin countersign-vault-bench
	@VAULT_BIN="$$(tests/tools/build.sh vault)" $(TARGET)/release/countersign-vault-bench

soak: ## SIGKILL driver and agent at 1,000 random moments (COUNTERSIGN_KILLS=n, COUNTERSIGN_SEED=n)
	cargo build --workspace --bins
	COUNTERSIGN_KILLS=$(or $(COUNTERSIGN_KILLS),1000) cargo test --workspace --test soak

lint: ## formatting, clippy and rustdoc, warnings refused
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

bench: ## measure, and print the figures beside their targets
	cargo build --release --quiet --bin countersign-driver --bin countersign-agent --bin countersign-bench
	@$(TARGET)/release/countersign-bench

conformance: ## run csi-sanity against the real driver (needs Go, for csi-sanity)
	cargo build --workspace --bins
	@$(TARGET)/debug/countersign-conformance --csi-sanity "$$(tests/tools/build.sh csi-sanity)"

interop: ## let the real sops and ours read each other's files (needs Go, for sops)
	cargo build --quiet --bin countersign-agent
	@SOPS_BIN="$$(tests/tools/build.sh sops)" COUNTERSIGN_AGENT=$(TARGET)/debug/countersign-agent tests/sops/interop.sh

fuzz: ## fuzz every parser of foreign text for a while (COUNTERSIGN_FUZZ_SECONDS=n, 20 each)
	@fuzz/run.sh $(or $(COUNTERSIGN_FUZZ_SECONDS),20)

deny: ## look at licences, bans and sources of all dependencies
	@"$$(tests/tools/build.sh cargo-deny)" check bans licenses sources
