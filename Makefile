# What people and CI call: CI calls nothing else. Each target has one line that `make help` shows.
.DEFAULT_GOAL := help
.PHONY: help demo test vault-test spire-test spire-charts vault-bench spire-bench soak lint bench conformance interop fuzz deny chart admission image cluster-test mixed-test cluster-bench cluster e2e kind-up kind-demo kind-down

TARGET := $(or $(CARGO_TARGET_DIR),target)
# Which Kubernetes a cluster is made of: the newest, or an older one of tests/tools, such as KUBERNETES=1.31.
export COUNTERSIGN_KUBERNETES := $(or $(KUBERNETES),$(COUNTERSIGN_KUBERNETES))
# And which helm: the newest, or HELM=3.
export COUNTERSIGN_HELM := $(or $(HELM),$(COUNTERSIGN_HELM))
# What is measured is what ships: each part with its own features, not with those that the other or a test asks for.
define SHIPPED
cargo build --release --quiet --package countersign-driver
cargo build --release --quiet --package countersign-agent
endef
# What starts a cluster looks first whether CASES and SET name anything in its suites: that takes seconds, and the rest minutes.
named = $(if $(CASES)$(SET),@$(if $(SET),COUNTERSIGN_CASES=$(SET) )cargo test --quiet --workspace $(1) -- --list $(CASES) | grep ': test$$' >/dev/null \
	|| { echo "no case has that name: CASES=$(CASES)$(if $(SET), SET=$(SET))" >&2; exit 1; })
CLUSTER_SUITES = --test e2e$(if $(SET),, --test elsewhere)
DEMO := $(if $(filter vault,$(STORE)),countersign-vault-demo,countersign-demo)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## build, and show a secret reach a pod on this machine (under 15 s when built; STORE=vault: from the vault or bao on PATH)
	cargo build --profile demo --quiet --bin countersign-driver --bin countersign-agent --bin $(DEMO)
	@$(TARGET)/demo/$(DEMO)

test: ## all tests that need no cluster
	@tests/suite

vault-test: ## the store `vault` against a real Vault, OpenBao and PostgreSQL (needs root, Go for both, Debian's postgresql and libfaketime)
	cargo build --workspace --bins
	VAULT_BIN="$$(tests/tools/build.sh vault)" BAO_BIN="$$(tests/tools/build.sh openbao)" \
		cargo test --workspace --test vault

vault-bench: ## measure the store `vault`, with what Vault itself takes beside it
	$(SHIPPED)
	cargo build --release --quiet --package countersign-vault-tests --bin countersign-vault-bench --bin countersign-counted-agent
	@VAULT_BIN="$$(tests/tools/build.sh vault)" $(TARGET)/release/countersign-vault-bench

soak: ## SIGKILL driver and agent at 1,000 random moments (COUNTERSIGN_KILLS=n, COUNTERSIGN_SEED=n)
	cargo build --workspace --bins
	COUNTERSIGN_KILLS=$(or $(COUNTERSIGN_KILLS),1000) cargo test --workspace --test soak

lint: ## formatting, clippy and rustdoc, warnings refused
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --test '*' -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

bench: ## measure, and print the figures beside their targets (BENCH=--quick for a short run)
	$(SHIPPED)
	cargo build --release --quiet --package countersign-tests --bin countersign-bench
	@$(TARGET)/release/countersign-bench $(BENCH)

conformance: ## run csi-sanity against the real driver (needs Go, for csi-sanity)
	cargo build --workspace --bins
	@$(TARGET)/debug/countersign-conformance --csi-sanity "$$(tests/tools/build.sh csi-sanity)"

interop: ## let the real sops and ours read each other's files (needs Go, for sops)
	cargo build --quiet --bin countersign-agent
	@SOPS_BIN="$$(tests/tools/build.sh sops)" COUNTERSIGN_AGENT=$(TARGET)/debug/countersign-agent tests/sops/interop.sh

chart: ## lint the chart, render it for many values and versions, compare manifests/ (needs Go, for helm; HELM=3)
	@charts/test

admission: ## try the chart's admission policies and webhook on a real API server (root; needs Go; KUBERNETES=1.31)
	cargo build --workspace --bins
	cargo test --workspace --test admission

image: ## build both images (docker, podman or buildah) and their archives in target/images
	@tests/cluster/image $(or $(PROFILE),release)

cluster-test: ## the end-to-end suite on a real one-node Kubernetes with the chart (root; CASES=text, KEEP=1; KUBERNETES=1.31, SET=older)
	$(call named,$(CLUSTER_SUITES))
	@tests/cluster/image demo
	$(if $(KEEP),COUNTERSIGN_KEEP=1 )$(if $(SET),COUNTERSIGN_CASES=$(SET) )cargo test --workspace --no-fail-fast $(CLUSTER_SUITES) -- $(CASES)

mixed-test: ## driver, agent and issuer of another commit beside these, on such a cluster (root; FROM=commit, CASES=text)
	$(call named,--test mixed)
	@tests/cluster/other $(FROM)
	@tests/cluster/image demo
	$(if $(KEEP),COUNTERSIGN_KEEP=1 )cargo test --workspace --test mixed -- $(CASES)

spire-test: ## a real SPIRE on such a cluster, set up by docs/spire.md: identities, rotation, faults (root; CASES=text, KEEP=1)
	$(call named,--test spire)
	@tests/cluster/image demo
	$(if $(KEEP),COUNTERSIGN_KEEP=1 )cargo test --workspace --test spire -- $(CASES)

spire-charts: ## docs/spire.md beside the hardened SPIRE charts, from an empty cluster to a pod with its secret (root; CHARTS=charts of a clone of spiffe/helm-charts-hardened)
	@test -d "$(CHARTS)/spire-lib" || { echo "CHARTS: the directory charts of a clone of github.com/spiffe/helm-charts-hardened is wanted" >&2; exit 1; }
	@tests/cluster/image demo
	SPIRE_CHARTS="$(abspath $(CHARTS))" cargo test --workspace --test charts -- $(CASES)

spire-bench: ## measure identities from a real SPIRE, beside its own client (root; BENCH=--quick for a short run)
	@tests/cluster/image release
	cargo build --release --quiet --package countersign-spire-tests --bin countersign-spire-bench
	@$(TARGET)/release/countersign-spire-bench $(BENCH)

cluster-bench: ## measure on such a cluster, beside the same pods with an emptyDir (root)
	@tests/cluster/image release
	cargo run --quiet --bin countersign-cluster -- bench

cluster: ## start such a cluster with the chart installed, and a shell in it (root)
	@tests/cluster/image demo
	cargo run --quiet --bin countersign-cluster -- shell

e2e: ## run the end-to-end suite on the cluster of KUBECONFIG (COUNTERSIGN_REGISTRY, COUNTERSIGN_TAG, COUNTERSIGN_TEST_IMAGE)
	@test -n "$(KUBECONFIG)" || { echo "set KUBECONFIG, or use make cluster-test" >&2; exit 1; }
	$(call named,--test e2e)
	@test -x $(TARGET)/images/context/countersign-agent || tests/cluster/image demo
	cargo test --workspace --test e2e -- $(CASES)

kind-up: ## start a kind cluster with the chart and an example store
	@tests/cluster/kind up

kind-demo: ## run an example pod in it, and show its files
	@tests/cluster/kind demo

kind-down: ## remove it
	@tests/cluster/kind down

fuzz: ## fuzz every parser of foreign text for a while (COUNTERSIGN_FUZZ_SECONDS=n, 20 each)
	@fuzz/run.sh $(or $(COUNTERSIGN_FUZZ_SECONDS),20)

deny: ## look at licences, bans and sources of all dependencies
	@"$$(tests/tools/build.sh cargo-deny)" check bans licenses sources
