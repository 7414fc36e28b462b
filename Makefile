# Each target sets up what it needs. On a fresh machine: Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check test-slow bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.user ## customise a small fleet on handwritten digits, about two minutes
	$(BIN)/acme demo

test: $(VENV)/.developer ## the tests that CI runs
	$(BIN)/python -m pytest

check: $(VENV)/.developer ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH=$(BIN):$$PATH lint-imports --no-cache

test-slow: $(VENV)/.developer ## minutes-long examples; ACME_DATA=folder with the data sets
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.bench ## benchmarks; one of them with NAME=selection_scale
	@for file in $(if $(NAME),benchmarks/$(NAME).py,$(filter-out benchmarks/record.py benchmarks/search_setup.py,$(wildcard benchmarks/*.py))); do \
		$(BIN)/python $$file || exit 1; done

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.user: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.developer: $(VENV)/.user
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.developer
	$(PIP) -e '.[bench]'
	@touch $@
