# insource: `make help` says what there is. RECIPE is a name in recipes/ or a path; SET="key=value ..." replaces recipe keys.
RECIPE   ?= classifier
SET      ?=
HARDWARE ?=
RUNS     ?= runs
FRESH    ?=
BENCH    ?= training
ARGS     ?=
PYTHON   ?= python3
VENV     := .venv/bin/python
# A process a core, and one thread each: threads of several processes would wait for each other.
TESTS    := OMP_NUM_THREADS=1 $(VENV) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
export HARDWARE RUNS FRESH
.DEFAULT_GOAL := help
.PHONY: help setup doctor data train lint types test test-all check bench lock schema

help: ## What one can type
	@echo 'make TARGET [RECIPE=classifier] [SET="train.learning_rate=1e-4 ..."] [HARDWARE=cpu|gpu|multi-gpu|multi-node] [FRESH=1]'
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

train: setup ## Set up if needed, prepare data, train the adapter, score it on validation
	@$(VENV) -m train $(RECIPE) $(SET)

data: setup ## Prepare the data only: read, clean, deduplicate, split
	@$(VENV) -m data_prep $(RECIPE) $(SET)

doctor: setup ## What this machine has, and what will therefore run
	@$(VENV) -m tracking.doctor

setup: ## Install the lock into .venv; nothing where it is installed
	@$(PYTHON) requirements/install.py

test: setup ## The tests that take seconds
	@$(TESTS) -m "not slow"

test-all: setup ## All tests: they train, and they serve with vLLM
	@$(TESTS)

lint: setup ## Style, with ruff
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .

types: setup ## Types, with mypy
	@$(VENV) -m mypy

check: lint types ## Lint, types, all tests, and files made from code
	@$(VENV) -m recipes.schema --check
	@$(TESTS)

bench: setup ## Measure: BENCH=training (against TRL and LLaMA-Factory) | data_prep | kills, ARGS="--only banking77"
	@$(VENV) -m bench.$(BENCH) $(ARGS)

schema: setup ## Write recipes/.schema.json, which editors read
	@$(VENV) -m recipes.schema

lock: setup ## Write requirements/*.txt anew from pyproject.toml (needs uv)
	@$(PYTHON) requirements/lock.py
