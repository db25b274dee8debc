# `make quickstart` and `make test` do all the set-up there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PLUGINS := $(patsubst %/pyproject.toml,./%,$(wildcard plugins/*/pyproject.toml))

.PHONY: quickstart compare quickstart-segmentation quickstart-video test test-all plugins lint docs bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'lightning-petl needs Python 3.11 or newer: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[demo,video,transformers,tensorboard,dev,docs]"
	touch $@

quickstart: $(VENV)/installed  ## adapt, fold and test on real data; prints one table
	$(BIN)/python -m lightning_petl.demo.quickstart

compare: $(VENV)/installed  ## the same table with every built-in method; takes some minutes
	$(BIN)/python -m lightning_petl.demo.quickstart --all --out runs/compare

quickstart-segmentation: $(VENV)/installed  ## the same for segmentation, on scenes that it makes
	$(BIN)/python -m lightning_petl.demo.quickstart_segmentation

quickstart-video: $(VENV)/installed  ## the same for video, on clips that it makes
	$(BIN)/python -m lightning_petl.demo.quickstart_video

test: $(VENV)/installed  ## the default tests, on two processes
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/installed  ## the slow tests too
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

plugins: $(VENV)/installed  ## the plugins of this repository, installed by pip in a folder that only their tests see
	rm -rf $(VENV)/plugins $(PLUGINS:%=%/build)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(VENV)/plugins $(PLUGINS)
	PYTHONPATH=$(abspath $(VENV))/plugins OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 plugins/*/tests

lint: $(VENV)/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed  ## the documentation as a site
	$(BIN)/mkdocs build --strict

bench: $(VENV)/installed  ## speed, as ratios measured in one run
	for each in benchmarks/*_step.py benchmarks/startup.py; do echo "$$each"; $(BIN)/python $$each || exit 1; done

clean:
	rm -rf $(VENV) build dist site *.egg-info
