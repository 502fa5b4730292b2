# Each target calls one command. `make help` lists them.
VARIANT ?= dinov2_vits14_reg
WEIGHTS ?= official
OUT     ?= artifacts/$(VARIANT)
TARGET  ?= sm80
PYTHON  ?= python3

PYTEST_OPTIONS ?=
BENCH_OPTIONS ?=
comma   := ,

VENV := .venv
BIN  := $(VENV)/bin
RUN  := $(BIN)/dinov2rt

.DEFAULT_GOAL := help
# Folders of these names exist, so make must be told that they are not what the targets build.
.PHONY: help setup demo export engines verify bench bench-gpu report benchmarks test test-slow test-gpu test-lowest check docs format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## Make .venv with all that development needs

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[ort,export,image,parquet,search,eval,ray,bench,peers,tensorrt-rtx,completion]' --group dev
	touch $@

demo: $(VENV)/.demo ## The whole path on this machine: export, verify, run a photo, draw it
	$(BIN)/python -m dinov2rt.demo

# What the demo needs, without Ray, transformers and the tools of development.
$(VENV)/.demo: pyproject.toml constraints.txt
	@test -f $(VENV)/.ready || echo "The first run installs packages, torch and TensorRT for RTX among them (2.8 GB with" \
		"all that make test needs and the CPU build of torch): about two minutes, of which pip takes most. Later runs need no network."
	@test -f $(VENV)/.ready || ($(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip && \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt torch && \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt \
			--editable '.[openvino,ort,export,image,tensorrt-rtx]')
	touch $@

export: setup ## Bundle of VARIANT from WEIGHTS (official, a file, a folder, synthetic:SEED) into OUT
	$(RUN) export $(VARIANT) --weights $(WEIGHTS) --out $(OUT)

engines: setup ## TensorRT plan for TARGET into the bundle in OUT, exported first where there is none
	test -f $(OUT)/manifest.json || $(RUN) export $(VARIANT) --weights $(WEIGHTS) --out $(OUT)
	$(RUN) build $(OUT) --target $(TARGET)

verify: setup ## Compare the bundle in OUT with its golden outputs
	$(RUN) verify $(OUT)

# Speed does not depend on the weights, and these need no network; a folder of its own keeps them apart.
bench: WEIGHTS = synthetic:0
bench: OUT = artifacts/bench/$(VARIANT)
bench: setup ## Latency of VARIANT beside all peers, from synthetic weights unless WEIGHTS is given
	test -f $(OUT)/manifest.json || $(RUN) export $(VARIANT) --weights $(WEIGHTS) --out $(OUT)
	$(RUN) bench $(OUT) --out artifacts/bench/$(VARIANT).json $(BENCH_OPTIONS)
	$(RUN) report artifacts/bench/$(VARIANT).json

bench-gpu: ## On a GPU machine, with the torch of its PYTHON: accuracy and latency of every variant
	PYTHONPATH=src$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) -m dinov2rt.benchmarks.gpu.run artifacts/gpu

report: setup ## Pages of the committed results, and the tables of docs/performance.md
	$(RUN) report

# The tests of a file stay together, since they share bundles. A process takes up to 3 GB.
TEST_PROCESSES ?= 2
IN_PARALLEL := -n $(TEST_PROCESSES) --dist loadfile
test: setup ## Every test that this machine can run in minutes
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_OPTIONS)

# Packages there are whatever that machine has, and what they deprecate is not our failure.
test-gpu: ## On a GPU machine, with the torch and pytest of its PYTHON: fails if no GPU test can run
	PYTHONPATH=src$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) -m pytest tests/gpu -m gpu \
		-W default::DeprecationWarning -W default::FutureWarning

test-slow: setup ## The tests that take minutes or gigabytes: B, L and g
	$(BIN)/python -m pytest -m slow

docs: setup ## The API reference, from the docstrings, into docs/api
	$(BIN)/python -W error docs/api.py

# Resolved by uv, since pip cannot; the tests' own tools are the newest that fit. What an old package
# uses of a newer one may be deprecated, and torch 2.9 warns of the switches of TF32 that it reads itself.
LOWEST := .venv-lowest
LOWEST_EXTRAS := ort,openvino,export,image,parquet,search,eval,ray,bench,peers,tensorrt-rtx
test-lowest: ## The quick tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct pyproject.toml \
		$(foreach extra,$(subst $(comma), ,$(LOWEST_EXTRAS)),--extra $(extra)) --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --compile-bytecode --python $(LOWEST)/bin/python \
		--requirement $(LOWEST)/lowest.txt --group test 'setuptools>=77'
	$(LOWEST)/bin/uv pip install --quiet --no-deps --no-build-isolation --python $(LOWEST)/bin/python --editable .
	PYTHONPATH=$(CURDIR)/src $(LOWEST)/bin/python -m pytest $(IN_PARALLEL) $(PYTEST_OPTIONS) \
		-W default::DeprecationWarning -W default::FutureWarning \
		-W "default:Please use the new API settings:UserWarning"

check: setup ## Formatting, lint, types, layers, containers, workflows, pages that are out of date
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_types.py
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(RUN) report --check

format: setup ## Rewrite the sources in the project's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## Remove what was built, .venv included
	rm -rf $(VENV) $(LOWEST) artifacts build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
