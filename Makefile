# make demo: set up, build, and explain an answer of a small model into demo-out/
# make test: set up if needed, and run every test

PYTHON ?= python3
# Any torch from 2.6 on; where wheels for CPU and GPU differ, name yours, or install it into .venv first.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo-out
# Two cores take two thirds of the time; each worker holds torch. Whoever debugs a test wants PYTEST_ARGS="-n 0 ...".
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist worksteal
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
NATIVE := pyproject.toml CMakeLists.txt $(wildcard csrc/* csrc/*/* kernels/cuda/* kernels/triton/*)

PEERS := build/bench-peers
TRACER := build/bench-circuit-tracer
# What `make bench` is given besides, e.g. BENCH_ARGS="--suite full --rounds 15".
BENCH_ARGS ?=

.PHONY: demo test build lint format aot bench bench-peers bench-whole bench-graphs interop bench-report report wheel clean help

help:
	@grep -E '^# make|^## ' Makefile

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.22" ninja
	touch $@

# Installed in place: Python files are used as they stand; a new file or a change in C++ or CUDA needs `make build`.
$(BUILT): $(INSTALLED) $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]" \
		--config-settings=build-dir=build/editable
	touch $@

## make build: compile and install in place, after adding a file or changing C++ or CUDA
build: $(INSTALLED)
	rm -f $(BUILT)
	$(MAKE) $(BUILT)

demo: $(BUILT)
	$(BIN)/pullback demo --out $(DEMO_OUT)

test: $(BUILT)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

## make lint: formatting, lint, types, and the direction of imports
lint: $(BUILT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.inl' '*.cu')

## make format: apply what lint asks for
format: $(BUILT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.inl' '*.cu')

## make aot: compile every Triton kernel for sm_80, 90 and 100 without a GPU, and refuse spills
aot: $(BUILT)
	$(BIN)/python tools/aot.py

## make bench: time every op and the training step against torch and this machine's floor; about 3 minutes
bench: $(BUILT)
	$(BIN)/python -m bench $(BENCH_ARGS)

# An environment of their own: other libraries pin other versions. torchvision comes along and breaks torch for CPUs.
$(PEERS)/.installed: pyproject.toml
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet "$(TORCH)"
	$(PEERS)/bin/python -m pip install --quiet "$(TORCH)" eai-sparsify sae-lens \
		"scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.22" ninja
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

$(PEERS)/.built: $(PEERS)/.installed $(NATIVE) $(shell find python -name '*.py')
	PULLBACK_CUDA=OFF PATH="$(CURDIR)/$(PEERS)/bin:$$PATH" $(PEERS)/bin/python -m pip install --quiet \
		--no-build-isolation --no-deps --force-reinstall .
	touch $@

## make bench-peers: every op at every shape, beside eai-sparsify and sae-lens; 10 minutes once their environment is made
bench-peers: $(PEERS)/.built
	$(PEERS)/bin/python -m bench --suite peers $(BENCH_ARGS)

## make bench-whole: training runs on whole models, beside eai-sparsify's trainer; 10 minutes once their environment is made
bench-whole: $(BUILT) $(PEERS)/.installed
	$(BIN)/python -m bench.whole --python $(PEERS)/bin/python $(BENCH_ARGS)

# Its own requirements are those of an older stack: these are the last it runs with.
$(TRACER)/.installed:
	test -x $(TRACER)/bin/python || $(PYTHON) -m venv $(TRACER)
	$(TRACER)/bin/python -m pip install --quiet "$(TORCH)" transformer-lens==3.2.1 transformers==4.57.3 \
		"huggingface_hub<1" nnsight==0.6.1
	$(TRACER)/bin/python -m pip install --quiet --no-deps circuit-tracer==0.5.0
	touch $@

## make interop: files to and from SAELens, sparsify and circuit-tracer give the same outputs there and here, and the same graphs
interop: $(BUILT) $(PEERS)/.installed $(TRACER)/.installed
	$(BIN)/python -m bench.interop
	$(BIN)/python -m bench.interop.graphs

## make bench-graphs: attribution graphs beside circuit-tracer's, one thread; half an hour once its environment is made
bench-graphs: $(BUILT) $(TRACER)/.installed
	$(BIN)/python -m bench.graphs --python $(TRACER)/bin/python $(BENCH_ARGS)

## make bench-report: tables and plots from bench/results, into README.md and docs/BENCHMARKS.md
bench-report: $(BUILT)
	$(BIN)/python -c "import matplotlib" 2>/dev/null || $(BIN)/python -m pip install --quiet "matplotlib>=3.8"
	$(BIN)/python -m bench.report

## make report: train and measure transcoders beside autoencoders of tiny-mix, into docs/TINYMIX_REPORT.md; resumable
report: $(BUILT)
	$(BIN)/python -c "import matplotlib" 2>/dev/null || $(BIN)/python -m pip install --quiet "matplotlib>=3.8"
	$(BIN)/python -m bench.tinymix --measure

## make wheel: sdist and wheel in dist/
wheel: $(BUILT)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist wheelhouse $(DEMO_OUT)
