# Every target sets up its own virtual environment; only python3 (>= 3.11), pip and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DOCS   := $(VENV)/.installed-docs
OLDEST := .venv-oldest
# What pyproject.toml promises: 2.6 of "torch>=2.6".
OLDEST_TORCH := $(shell sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
# Tests of the bench and of other packages, which want a torch of their own.
NOT_OLDEST := thor_bench integrations contracts/test_older_torch.py

# Two small models in parallel beat one that splits its tiny products over threads.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup test coverage test-oldest test-robust fuzz demo lint format bench docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv and install the project with all extras and the dev group

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[bench,vision]' --group dev --group integrations
	touch $@

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

test: $(STAMP) ## Run the tests (ARGS="-k name" narrows them down)
	$(BIN)/python -m pytest -n auto $(ARGS)

coverage: $(STAMP) ## The same tests under coverage; fails below the floor in pyproject.toml
	$(BIN)/python -m pytest -n auto --cov --cov-report=term $(ARGS)

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(OLDEST)/bin/python -m pip install --quiet --editable '.[bench]' --group dev 'torch==$(OLDEST_TORCH).*'
	touch $@

test-oldest: $(OLDEST)/.installed ## The optimizer's tests with the oldest torch that is promised
	$(OLDEST)/bin/python -m pytest -n auto $(addprefix --ignore tests/,$(NOT_OLDEST)) $(ARGS)

test-robust: $(STAMP) ## The tests in random order: other threads, other processors, a busy machine
	scripts/test_robust.sh $(BIN)/python $(ARGS)

fuzz: $(STAMP) ## 2,000 random training loops against an oracle by hand
	FUZZ_EXAMPLES=2000 HYPOTHESIS_PROFILE=search $(BIN)/python -m pytest -n 0 tests/contracts/test_fuzzed_loops.py $(ARGS)

demo: ## Train digits with THOR, SGD and AdamW; needs no setup, print the table, write the report
	scripts/demo.sh $(PYTHON)

lint: $(STAMP) ## Ruff (rules and format), mypy --strict, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: export OMP_NUM_THREADS = 2
bench: $(STAMP) ## Measure the cost of a training step against SGD, AdamW and Muon
	$(BIN)/python benchmarks/step_cost.py small-resnet $(ARGS)
	$(BIN)/python benchmarks/step_cost.py resnet18 $(ARGS)

docs: $(DOCS) ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

clean: ## Remove caches, builds and the virtual environment (runs/ stays)
	rm -rf $(VENV) $(OLDEST) .venv-demo build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
