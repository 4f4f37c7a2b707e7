# What a newcomer types. Every target does its own set-up, as root on a Debian 12 with Rust, and says what it does.
# `make` alone lists the targets. CARGO_TARGET_DIR and FAIRLEAD_CACHE move what is built.
SHELL := /bin/bash
TARGET := $(or $(CARGO_TARGET_DIR),target)
FAIRLEAD := $(TARGET)/release/fairlead
PREPARE := deploy/build/packages.sh

.DEFAULT_GOAL := help
.PHONY: help demo test build bench bench-dataplane jepsen lint rocksdb clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

demo: ## three nodes, three servers, real nginx, real packets, a killed leader: shown and checked
	@$(PREPARE) build run demo $(if $(filter ipvs,$(MODE)),vm)
	@$(MAKE) --no-print-directory build
	@deploy/demo/demo.sh $(FAIRLEAD)

test: ## all tests; as root, those in network namespaces too
	@$(PREPARE) build run vm test
	@$(MAKE) --no-print-directory rocksdb
	@deploy/build/kubectl.sh > /dev/null
	@deploy/build/test.sh

build: ## target/release/fairlead
	@$(PREPARE) build
	@$(MAKE) --no-print-directory rocksdb
	cargo build --release --locked --package fairlead

bench: ## writes, reads and watches beside etcd; many nodes; endpoint change to first packet
	@$(PREPARE) build run bench
	@$(MAKE) --no-print-directory rocksdb
	cargo build --release --locked --package fairlead --bins --example load --example fan --example kube
	@deploy/bench/bench.sh $(FAIRLEAD) $(TARGET)/release/examples/load $(TARGET)/release/examples/fan $(TARGET)/release/examples/kube

bench-dataplane: ## what a change costs by data plane, at 1,000 to 45,000 services (as root, some minutes)
	@$(PREPARE) build run vm
	@$(MAKE) --no-print-directory rocksdb
	cargo build --release --locked --package fairlead --package fairlead-agent --bins --example load --example dataplane --example ipvs
	@deploy/bench/dataplane.sh $(TARGET)/release/examples/dataplane $(FAIRLEAD)
	@deploy/bench/ipvs.sh $(TARGET)/release/examples/ipvs

jepsen: ## everything broken, every promise checked (as root, some twelve minutes and the builds; FULL=1: hours)
	@$(PREPARE) build run jepsen
	@$(MAKE) --no-print-directory rocksdb
	@deploy/build/jepsen.sh $(or $(PROFILE),release) $(if $(FULL),full,short)

lint: ## format, clippy, licences and bans
	@$(PREPARE) build
	@$(MAKE) --no-print-directory rocksdb
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@deploy/build/deny.sh

rocksdb: ## librocksdb.a, once per machine (about 18 minutes on two cores)
	@deploy/build/rocksdb.sh

clean: ## what was built here; RocksDB's archive and the caches stay
	cargo clean
