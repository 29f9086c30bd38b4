# make demo: everything, from nothing to a trained and tested model on drawn images.
VENV := .venv
PYTHON := $(VENV)/bin/python
# mmcv-full's build needs an old setuptools: constraints.txt, which both pips' builds read here.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PYTHON
SCRIPTS := train.sh test.sh util/runtime/launch.sh

.PHONY: help env try demo test lint docs clean
help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## /make \1: /p' Makefile

NEW_ENOUGH = $(shell python3 -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)
FOUND = $(or $(shell python3 --version 2>/dev/null),missing)

env: $(VENV)/.stamp  ## make the virtual environment

$(VENV)/.stamp: requirements.txt requirements-app.txt requirements-dev.txt constraints.txt
	$(if $(filter True,$(NEW_ENOUGH)),,$(error python3 is $(FOUND); install Python 3.11 or newer and put it first on PATH))
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.txt
	$(PYTHON) -m compileall -q -j 0 $(VENV)/lib  # as pip would, but on all cores
	touch $@

try: env  ## segment photographs with the weights that come along; writes try.png
	$(PYTHON) -m util.predict.show --out try.png --overwrite

demo: env  ## draw the demo data, train on it and test
	$(PYTHON) -m util.data.demo --out data/demo
	NET=lite0 sh train.sh split0 demo 0
	NET=lite0 sh test.sh split0 demo 0

test: env  ## run the tests
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: env  ## run ruff, the type checker, and a syntax check of the shell scripts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	for script in $(SCRIPTS); do sh -n $$script || exit 1; done

docs: env  ## build the documentation site into site/; every broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:  ## remove caches and what the demo made; the environment stays
	rm -rf .pytest_cache .ruff_cache .mypy_cache site try.png data/demo exp/demo initmodel/demo lists/demo
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
