# insource: `make help` says what there is. RECIPE is a name in recipes/ or a path; SET="key=value ..." replaces recipe keys.
RECIPE   ?= classifier
SET      ?=
HARDWARE ?=
RUNS     ?= runs
FRESH    ?=
RUN      ?=
FORCE    ?=
REGISTRY ?= registry
TO       ?=
DAYS     ?=
BENCH    ?= training
ARGS     ?=
PYTHON   ?= python3
# The environment that .venv names now, which another set-up may have it name later.
VENV      = $(realpath .venv)/bin/python
# One thread each, since threads of several processes would wait for each other; a process more than cores, since many
# tests wait for servers.
WORKERS  := $(shell echo $$(($$(nproc) + 1)))
TESTS     = OMP_NUM_THREADS=1 $(VENV) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
export HARDWARE RUNS FRESH RUN FORCE REGISTRY TEST MODEL MODELS VARIANTS COMPARE BASE_URL TO DAYS INPUT OUTPUT ENGINE PROBABILITIES N SUGGEST
# Without bytecode, as container images often set it, every process would compile torch and vLLM anew: 10 to 15 s each.
unexport PYTHONDONTWRITEBYTECODE
# Modules come from the lock and from here, whatever the shell that calls make has before them.
unexport PYTHONPATH
.DEFAULT_GOAL := help
.PHONY: help setup doctor run import data train export head serve parity record compare sweep curve predict label dashboard deploy rollback gateway drift models lint types test test-all check bench lock schema

help: ## What one can type
	@echo 'make TARGET [RECIPE=classifier] [SET="train.learning_rate=1e-4 ..."] [HARDWARE=cpu|gpu|multi-gpu|multi-node] [FRESH=1]'
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

run: setup ## All of it: train, export, compare on the held-out set with vLLM serving, report and verdict
	@$(VENV) -m train $(RECIPE) $(SET)
	@$(VENV) -m train.export $(RECIPE) $(SET)
	@$(VENV) -m compare $(RECIPE) $(SET)

train: setup ## Set up if needed, prepare data, train the adapter, score it on validation
	@$(VENV) -m train $(RECIPE) $(SET)

import: setup ## A recipe out of FROM=train.jsonl of an OpenAI or Azure fine-tune, or of a log (TEST= MODEL=ft:... TO=)
	@$(VENV) -m data_prep.importer "$(FROM)" $(if $(SYSTEM),--system $(SYSTEM))

data: setup ## Prepare the data only: read, clean, deduplicate, split
	@$(VENV) -m data_prep $(RECIPE) $(SET)

export: setup ## Merge the trained adapter into its base, and quantize it (RUN=<id>: of that run)
	@$(VENV) -m train.export $(RECIPE) $(SET)

head: setup ## Train a classification head on the base and rows of the trained run, and compare it on validation (compare.head)
	@$(VENV) -m train.head $(RECIPE) $(SET)

serve: setup ## Serve it with vLLM, once its answers are those of the training; RECIPE="a b" share a server
	@$(VENV) -m serve $(RECIPE) $(SET)

parity: setup ## Serve every exported form in turn, and compare what it answers with what was trained
	@$(VENV) -m serve.parity $(RECIPE) $(SET)

record: setup ## Keep the answers of the planned API model to the test rows while it lives (SYSTEM=<name>: of another)
	@$(VENV) -m compare.record $(RECIPE) $(SET) $(if $(SYSTEM),--system $(SYSTEM))

compare: setup ## Compare it with its baselines on the sealed test set, decide, write the report (FRESH=1: anew)
	@$(VENV) -m compare $(RECIPE) $(SET)

sweep: setup ## Train several bases or settings and compare the best: MODELS="a b" or VARIANTS="lora.r=8; lora.r=32" (COMPARE=0: rank alone)
	@$(VENV) -m compare.sweep $(RECIPE) $(SET)

curve: setup ## Would more labels help? Trains on nested subsets of train, scores validation, fits a power law (MODEL=linear: the linear model only, in seconds)
	@$(VENV) -m compare.curve $(RECIPE) $(SET)

predict: setup ## Answer every row of INPUT=<file, folder or glob> into OUTPUT=answers.parquet (or .jsonl, .csv); goes on where it was killed (PROBABILITIES=1 ENGINE=gateway BASE_URL=)
	@$(if $(filter command,$(origin BASE_URL)),,BASE_URL= )$(VENV) -m predict $(RECIPE) $(SET)

label: setup ## Which N=200 rows of INPUT to label next, as a CSV file for a spreadsheet (OUTPUT=, SUGGEST=0 without suggestions, ENGINE=linear)
	@$(if $(filter command,$(origin BASE_URL)),,BASE_URL= )$(VENV) -m predict.labelling $(RECIPE) $(SET)

dashboard: setup ## A W&B workspace for the recipe's runs, or its specification where W&B is not logged in
	@$(VENV) -m insource.tracking.dashboard $(RECIPE) $(SET)

deploy: setup ## Make the adapter the deployed version, if its gates say yes (FORCE=1: all the same)
	@$(VENV) -m deploy $(RECIPE) $(SET)

rollback: setup ## Make the version before the deployed one the deployed one (TO=<version>: that one)
	@$(VENV) -m deploy $(RECIPE) --rollback $(if $(TO),--to $(TO)) $(SET)

gateway: setup ## Serve what is deployed, behind one door, without a gap when that changes
	@$(VENV) -m deploy.gateway $(RECIPE) $(SET)

drift: setup ## Does the deployed threshold's guarantee still hold on the traffic of the last DAYS=7 days? Fails where not
	@$(VENV) -m deploy.drift $(RECIPE) $(SET)

doctor: setup ## What this machine has; with RECIPE=... each of its closed baselines is asked one train row
	@$(VENV) -m insource.tracking.doctor
	@$(if $(filter file default undefined,$(firstword $(origin RECIPE))),,$(VENV) -m compare.first_request $(RECIPE) $(SET))

models: setup ## Closed models that the SDKs and genai-prices know: prices, batches, long prompts, shutdown days (ARGS="luna haiku")
	@$(VENV) -m compare.models $(ARGS)

setup: ## Install the lock into .venv; nothing where it is installed
	@$(PYTHON) requirements/install.py

test: setup ## The tests that take seconds
	@$(TESTS) -m "not slow"

test-all: setup ## All tests: they train, and they serve with vLLM
	@$(TESTS)

lint: setup ## Style, with ruff, and the layers of imports, with import-linter
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(dir $(VENV))lint-imports

types: setup ## Types, with mypy
	@$(VENV) -m mypy

check: lint types ## Lint, types, all tests, and files made from code
	@$(VENV) -m insource.config.recipe --check
	@$(VENV) -m insource.config.error_codes --check
	@$(TESTS)

bench: setup ## Measure: BENCH=training (against TRL and LLaMA-Factory) | decoding | serving (of RECIPE) | arithmetic | precision | end_to_end | data_prep | coverage | parity_check | routing | scoring | kills | budget | soak | gpu_memory | chat_templates | labelling | curve | gpu (the GPU path in 8 minutes; in small on a CPU) | decisions, ARGS="--only banking77"
	@$(VENV) -m bench.$(BENCH) $(if $(filter serving,$(BENCH)),$(RECIPE)) $(ARGS)

schema: setup ## Write recipes/.schema.json, which editors read, and docs/errors.md
	@$(VENV) -m insource.config.recipe
	@$(VENV) -m insource.config.error_codes

lock: setup ## Write requirements/*.txt anew from pyproject.toml (needs uv)
	@$(PYTHON) requirements/lock.py
