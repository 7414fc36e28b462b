# Each target sets up what it needs. On a fresh machine: Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Parts of benchmarks, and those that need Flower (.venv-network/bin/python -m acme_research.benchmarks.round_latency)
# or data sets and checkpoints (versus_probe, importance_forms, features_kept, artifact_vs_quantized)
BENCHMARKS := $(filter-out __init__ search_setup round_latency network_scale superlink_load batched_vs_flower \
	versus_probe importance_forms features_kept artifact_vs_quantized,$(basename $(notdir $(wildcard research/src/acme_research/benchmarks/*.py))))

.PHONY: help demo test check test-slow test-network bench clean

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
	.venv-network/bin/python -m pytest -m network tests/network

bench: $(VENV)/.bench ## benchmarks; one of them with NAME=selection_scale
	@for name in $(or $(NAME),$(BENCHMARKS)); do $(BIN)/python -m acme_research.benchmarks.$$name || exit 1; done

clean: ## remove the environment and caches
	rm -rf $(VENV) .venv-network .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.user: pyproject.toml runtime/pyproject.toml research/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e runtime -e '.[export,delivery]' -e research
	@touch $@

$(VENV)/.developer: $(VENV)/.user
	$(PIP) -e runtime -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.developer
	$(PIP) -e runtime -e . -e 'research[bench]'
	@touch $@

# Flower wants older versions of some packages: an environment of its own.
.venv-network/.done: pyproject.toml runtime/pyproject.toml research/pyproject.toml constraints-flower.txt
	$(PYTHON) -m venv .venv-network
	.venv-network/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-flower.txt \
		-e runtime -e '.[dev]' -e 'research[simulation]'
	@touch $@
