# SPDX-License-Identifier: Apache-2.0
# make demo   virtual environment, install, compare BiP and SpODE with IMP on embedded data, report
# make test   virtual environment, install, all tests
# make lint   ruff and basedpyright
# make docs   the pages as HTML: docs/_build/html
# make gpu    GPU tests and benchmark rows with the Python that is there, no network; continues where it stopped

PYTHON ?= python3
VENV ?= .venv
BUDGET ?= 480
ARGS ?=
OUT ?= runs/demo
BIN := $(VENV)/bin
# What the compiled module and the list of dependencies are made of: anything newer means a new install.
SOURCES := pyproject.toml setup.py $(wildcard csrc/*)

.PHONY: demo test lint docs gpu clean
.SECONDARY:

demo: $(VENV)/.installed-bench
	$(BIN)/sparsekit compare --out $(OUT) $(ARGS)
	@echo "Report: $(abspath $(OUT))/report.html"

# Two processes with one thread each; more threads on the small tensors of the tests only get in each other's way. A file stays with
# one process, because what its tests share is made once for each.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html
	@echo "Pages: $(abspath docs/_build/html)/index.html"

gpu:
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps -e .
	$(PYTHON) -m sparsekit.benchmarks.gpu --budget $(BUDGET)

clean:
	rm -rf build dist docs/_build *.egg-info sparsekit/_C.*.so $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
