# Everything a newcomer needs: `make demo` shows it, `make test` proves it. Both set up .venv first.
PYTHON ?= python3
# A CPU build of torch is enough for everything here; set TORCH= to the build your machine needs.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench format setup clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    a page on which a network learns before your eyes"
	@echo "make test    run the tests"
	@echo "make check   format, lint, types, import layers"
	@echo "make bench   measure and rewrite the tables of README.md"

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	$(BIN)/python -m pip install --quiet --no-deps --group data
	touch $(READY)

demo: $(READY)
	$(BIN)/partime-async demo

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
