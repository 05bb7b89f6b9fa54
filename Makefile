# Every target makes the environment it needs, on a machine that has only git, make and Python (3.9 or later).
# A user's first two commands are `make run` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
MODEL ?= smollm2:135m
PROMPT ?= What is the capital of France? Answer in one sentence.
ENGINE ?= auto
# Start-up is measured in milliseconds here, so bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE
export PROMPT

BIN := .venv/bin
RUN_ENVIRONMENT := $(if $(filter mlx,$(ENGINE)),mlx-cpu,run)

.PHONY: help run test check format bench bars requirements docs lock env-% clean

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env-%:
	@$(PYTHON) scripts/bootstrap.py $*

run: env-$(RUN_ENVIRONMENT) ## Start everything, pull the small model, answer PROMPT= (ENGINE=mlx, MODEL=… too)
	@$(BIN)/mlxctl run --temperature 0 --repeat-penalty 1.1 --engine '$(ENGINE)' '$(MODEL)' "$$PROMPT" </dev/null
	@$(BIN)/mlxctl suggest --brief

check: env-dev ## Format, lint, types, import floors, spelling
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	@$(BIN)/codespell
	@$(BIN)/python scripts/requirements.py --check

format: env-dev ## Rewrite the code in the house format
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .

test: check ## Everything CI runs: check, then every test at CI size, on real parts
	@$(BIN)/pytest -q -n 2 --dist loadgroup

bench: env-dev env-bench ## Ratios measured side by side → build/bench.json
	@$(BIN)/python -m bench

bars: env-dev env-bench ## The bars of the product at full size → build/bars.json
	@$(BIN)/python -m bench.bars

requirements: env-dev ## Which promise is shown by which test, both ways
	@$(BIN)/python scripts/requirements.py

docs: env-dev ## Rewrite the reference pages that are generated from code
	@$(BIN)/python scripts/reference.py

lock: ## Resolve the dependencies anew into requirements/*.txt
	@$(PYTHON) scripts/bootstrap.py dev && sh scripts/lock.sh

clean: ## Remove environments and build results; models and settings stay
	rm -rf .venv .venv-bench build .cache/uv
