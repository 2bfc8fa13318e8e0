# insource: `make help` lists the targets. RECIPE is a name in recipes/ or a path; SET="key=value ..." replaces recipe keys.
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
TESTS     = OMP_NUM_THREADS=1 $(VENV) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 25 --durations-min 5
export DURATIONS HARDWARE RUNS FRESH RUN FORCE REGISTRY TEST MODEL MODELS VARIANTS COMPARE BASE_URL TO DAYS INPUT OUTPUT ENGINE PROBABILITIES N SUGGEST
# Without bytecode, as container images often set it, every process would compile torch and vLLM anew: 10 to 15 s each.
unexport PYTHONDONTWRITEBYTECODE
# Modules come from the lock and from here, whatever the shell that calls make has before them.
unexport PYTHONPATH
.DEFAULT_GOAL := help
.PHONY: help setup doctor run import data train export head serve parity record compare sweep curve predict label dashboard deploy rollback gateway drift models lint types generated test-check test test-all nightly check bench lock schema

help: ## This list
	@echo 'make TARGET [RECIPE=classifier] [SET="train.learning_rate=1e-4 ..."] [HARDWARE=cpu|gpu|multi-gpu|multi-node] [FRESH=1]'
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

run: setup ## Train, export, and compare on the held-out set with vLLM serving; report and verdict
	@$(VENV) -m train $(RECIPE) $(SET)
	@$(VENV) -m train.export $(RECIPE) $(SET)
	@$(VENV) -m compare $(RECIPE) $(SET)

train: setup ## Set up if needed, prepare data, train the adapter, score it on validation
	@$(VENV) -m train $(RECIPE) $(SET)

import: setup ## Write a recipe from FROM=train.jsonl of an OpenAI or Azure fine-tune, or from a log of API calls (TEST= MODEL=ft:... TO=)
	@$(VENV) -m data_prep.importer "$(FROM)" $(if $(SYSTEM),--system $(SYSTEM))

data: setup ## Prepare the data: read, clean, deduplicate, split
	@$(VENV) -m data_prep $(RECIPE) $(SET)

export: setup ## Merge the trained adapter into its base, and quantize it (RUN=<id>: of that run)
	@$(VENV) -m train.export $(RECIPE) $(SET)

head: setup ## Train a classification head on the base and rows of the trained run, and compare it on validation
	@$(VENV) -m train.head $(RECIPE) $(SET)

serve: setup ## Start vLLM, check its answers against those of training, and serve (RECIPE="a b": both on one server)
	@$(VENV) -m serve $(RECIPE) $(SET)

parity: setup ## Serve every exported variant in turn, and compare its answers with those of training
	@$(VENV) -m serve.parity $(RECIPE) $(SET)

record: setup ## Keep the answers of the planned API model to the test rows (SYSTEM=<name>: of another)
	@$(VENV) -m compare.record $(RECIPE) $(SET) $(if $(SYSTEM),--system $(SYSTEM))

compare: setup ## Compare with the baselines on the held-out set, decide, write the report (FRESH=1: ignore the last comparison)
	@$(VENV) -m compare $(RECIPE) $(SET)

sweep: setup ## Train several bases or settings, and compare the best: MODELS="a b" or VARIANTS="lora.r=8; lora.r=32" (COMPARE=0: only rank them)
	@$(VENV) -m compare.sweep $(RECIPE) $(SET)

curve: setup ## Would more labels help? Train on nested subsets of train (MODEL=linear: only the linear model, in seconds)
	@$(VENV) -m compare.curve $(RECIPE) $(SET)

predict: setup ## Answer every row of INPUT=<file, folder or glob> into OUTPUT=answers.parquet (or .jsonl, .csv); resumes after a kill (PROBABILITIES=1 ENGINE=gateway BASE_URL= ENGINE=ray WORKERS= RAY_ADDRESS=)
	@$(if $(filter command,$(origin BASE_URL)),,BASE_URL= )$(VENV) -m predict $(RECIPE) $(SET)

label: setup ## Choose the N=200 rows of INPUT to label next, as a CSV file for a spreadsheet (OUTPUT=, SUGGEST=0: no suggestions, ENGINE=linear)
	@$(if $(filter command,$(origin BASE_URL)),,BASE_URL= )$(VENV) -m predict.labelling $(RECIPE) $(SET)

dashboard: setup ## Write a W&B workspace for the recipe's runs, or its specification if W&B is not logged in
	@$(VENV) -m insource.tracking.dashboard $(RECIPE) $(SET)

deploy: setup ## Make the adapter the deployed version if it passes its checks (FORCE=1: even if not)
	@$(VENV) -m deploy $(RECIPE) $(SET)

rollback: setup ## Deploy the previous version again (TO=<version>: that one)
	@$(VENV) -m deploy $(RECIPE) --rollback $(if $(TO),--to $(TO)) $(SET)

gateway: setup ## Serve the deployed versions at one address, without interruption when they change
	@$(VENV) -m deploy.gateway $(RECIPE) $(SET)

drift: setup ## Check whether the routing threshold still holds on the traffic of the last DAYS=7 days; exit 3 if not
	@$(VENV) -m deploy.drift $(RECIPE) $(SET)

doctor: setup ## Show what this machine has; with RECIPE=..., also send one train row to each API baseline
	@$(VENV) -m insource.tracking.doctor
	@$(if $(filter file default undefined,$(firstword $(origin RECIPE))),,$(VENV) -m compare.first_request $(RECIPE) $(SET))

models: setup ## List API models that the SDKs and genai-prices know: prices, batches, shutdown days (ARGS="luna haiku")
	@$(VENV) -m compare.models $(ARGS)

setup: ## Install the lock into .venv, unless it is installed
	@$(PYTHON) requirements/install.py

test: setup ## Run the tests that take seconds
	@$(TESTS) -m "not slow and not nightly"

test-all: setup ## Run all tests; some train, some serve with vLLM
	@$(TESTS)

nightly: setup ## Run what make check leaves out: the nightly tests, and property tests with all their examples
	@NIGHTLY=1 $(TESTS) --timeout 14400 -m "nightly or hypothesis"

lint: setup ## Check style with ruff, and imports between packages with import-linter
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(dir $(VENV))lint-imports

types: setup ## Check types with mypy
	@$(VENV) -m mypy

generated: setup ## Compare recipes/.schema.json and docs/errors.md with the code
	@$(VENV) -m insource.config.recipe --check
	@$(VENV) -m insource.config.error_codes --check

test-check: setup ## Run all tests but the nightly ones (DURATIONS=tests/seconds_by_file.json records the seconds by file)
	@$(TESTS) -m "not nightly"

check: lint types generated test-check ## Run lint, types, all tests but the nightly ones, and compare generated files with the code

bench: setup ## Measure: BENCH=training (against TRL and LLaMA-Factory) | decoding | constraint | serving (of RECIPE) | arithmetic | precision | recurrent | end_to_end | data_prep | coverage | parity_check | routing | scoring | kills | budget | soak | decisions | gateway_load | gpu_memory | chat_templates | labelling | curve | tuned_curve | prediction | gpu (the GPU path in 8 minutes; in small on a CPU), ARGS="--only banking77"
	@$(VENV) -m bench.$(BENCH) $(if $(filter serving,$(BENCH)),$(RECIPE)) $(ARGS)

schema: setup ## Write recipes/.schema.json, which editors read, and docs/errors.md
	@$(VENV) -m insource.config.recipe
	@$(VENV) -m insource.config.error_codes

lock: setup ## Write requirements/*.txt from pyproject.toml by uv
	@$(VENV) requirements/lock.py
