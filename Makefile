# `make demo` and `make test` do everything on a fresh machine: Python 3.11 or newer, make, and PyPI.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-training tiny lint format fuzz corpus bench benchmark clean

help:
	@echo "make demo    compress a trained model (MODEL=residual_cnn, or any other of models/)"
	@echo "make test    all tests            make tiny   the 60 second ring"
	@echo "make test-training   the tests that need PyTorch, which it installs (TORCH=torch==2.13.0)"
	@echo "make lint    ruff and mypy        make format ruff format"
	@echo "make fuzz    damaged files for SECONDS=600 seconds"
	@echo "make corpus  every model of the ONNX backend suite through load, simplify and optimize"
	@echo "make bench   side by side with other tools, which it installs, on models/ (ARGS=--help says more)"

# The stamp is younger than pyproject.toml when the environment is up to date.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onnxc needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: $(STAMP)

# TORCH is what the tools that need PyTorch get; a wheel for the CPU alone is a tenth of the size.
bench benchmark: $(STAMP)
	$(BIN)/python benchmarks/run.py --torch '$(TORCH)' $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

# PyTorch is the extra `distill`: everything but these tests works without it.
TORCH ?= torch==2.13.0
test-training: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pytest tests/training $(ARGS)

# The measured times are kept in demo/ too, so that nothing is left outside of it.
MODEL ?= residual_cnn
demo: $(STAMP)
	@mkdir -p demo
	$(BIN)/onnxc optimize models/$(MODEL).onnx demo/$(MODEL).onnx --calib models/data/$(MODEL)_calib.npz \
		--eval models/evaluate.py:quality_$(MODEL) --prices demo/prices.json --report demo/$(MODEL).json
	@echo; echo "On items that the optimizer has not seen, the original and the result:"
	@$(BIN)/python models/evaluate.py score $(MODEL)
	@$(BIN)/python models/evaluate.py score $(MODEL) demo/$(MODEL).onnx

tiny: $(STAMP)
	$(BIN)/python -m pytest tests/test_tiny.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

SECONDS ?= 600
fuzz: $(STAMP)
	ONNXC_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest -m fuzz $(ARGS)

# Every model of the ONNX backend suite: load and save, simplify, optimize.
corpus: $(STAMP)
	$(BIN)/python -m tests.corpus
	$(BIN)/python -m tests.corpus_simplify
	$(BIN)/python -m tests.corpus_optimize

clean:
	rm -rf $(VENV) build dist demo benchmarks/.bench *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
