# Each target sets up what it needs. On a fresh machine: Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Parts of benchmarks, and those that need Flower (.venv-network/bin/python -m acme_research.benchmarks.round_latency)
# or data sets and checkpoints (versus_probe, features_kept, artifact_vs_quantized, lm_*)
BENCHMARKS := $(filter-out __init__ search_setup lm_% round_latency network_scale superlink_load \
	versus_probe features_kept artifact_vs_quantized scale_devices scale_cluster hostile_peers,$(basename $(notdir $(wildcard research/src/acme_research/benchmarks/*.py))))

.PHONY: help demo test check test-slow test-network test-soak test-faults fuzz supply-chain bench docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.user ## customise a small fleet on handwritten digits, two to three minutes
	$(BIN)/acme demo

test: $(VENV)/.developer ## the tests that CI runs
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: $(VENV)/.developer ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH=$(BIN):$$PATH lint-imports --no-cache

test-slow: $(VENV)/.developer ## minutes-long examples, more draws; ACME_DATA=folder with the data sets
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile thorough

test-network: .venv-network/.done ## many hosts over Flower on this machine; needs nginx
	.venv-network/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'network and not slow' tests/network

test-soak: .venv-network/.done ## run after run over Flower while lines and processes fail; SECONDS=1800
	ACME_SOAK_S=$(or $(SECONDS),1800) .venv-network/bin/python -m pytest -m slow tests/network/test_soak.py

test-faults: $(VENV)/.developer ## runs that are killed, moved, out of disk, damaged: a night's number of them
	$(BIN)/python -m pytest -m 'slow or not slow' tests/faults

fuzz: $(VENV)/.developer ## coverage-guided inputs for every reader; one of them with NAME=wire, SECONDS=600
	$(PIP) -e '.[fuzz]'
	@for name in $(or $(NAME),wire manifest fleet site description tokenizer); do \
		$(BIN)/python tests/fuzz/fuzz.py $$name $(or $(SECONDS),60) || exit 1; done

supply-chain: ## hashed lock, SBOM (CycloneDX) and known vulnerabilities, into supply-chain/
	$(PYTHON) -m venv .venv-supply
	.venv-supply/bin/python -m pip install --quiet --upgrade 'pip>=25.1' 'cyclonedx-bom>=7,<8' 'pip-audit>=2.9,<3'
	mkdir -p supply-chain
	.venv-supply/bin/python -m pip lock --quiet -c constraints.txt -e runtime -e '.[data,export,privacy,delivery,registry]' \
		-o pylock.toml # where the clone's own packages are below it
	mv pylock.toml supply-chain/
	.venv-supply/bin/cyclonedx-py requirements constraints.txt --pyproject pyproject.toml -o supply-chain/sbom.cdx.json
	.venv-supply/bin/pip-audit -r constraints.txt --no-deps --disable-pip

bench: $(VENV)/.bench ## benchmarks; one of them with NAME=selection_scale
	@for name in $(or $(NAME),$(BENCHMARKS)); do $(BIN)/python -m acme_research.benchmarks.$$name || exit 1; done

docs: $(VENV)/.docs ## the documentation as a site, build/site/index.html
	$(BIN)/mkdocs build

clean: ## remove the environment and caches
	rm -rf $(VENV) .venv-network .venv-supply supply-chain .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.user: pyproject.toml runtime/pyproject.toml research/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e runtime -e '.[export,delivery,ui]' -e research
	@touch $@

$(VENV)/.developer: $(VENV)/.user
	$(PIP) -e runtime -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.developer
	$(PIP) -e runtime -e . -e 'research[bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.user
	$(PIP) -e runtime -e '.[docs]'
	@touch $@

# Flower wants older versions of some packages: an environment of its own.
.venv-network/.done: pyproject.toml runtime/pyproject.toml research/pyproject.toml constraints-flower.txt
	$(PYTHON) -m venv .venv-network
	.venv-network/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-flower.txt \
		-e runtime -e '.[dev]' -e 'research[simulation]'
	@touch $@
