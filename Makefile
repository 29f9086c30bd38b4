# make demo: everything, from nothing to a trained and tested model on procedural data.
VENV := .venv
PYTHON := $(VENV)/bin/python
# mmcv-full's build needs an old setuptools: constraints.txt, which both pips' builds read here.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PYTHON

.PHONY: help env demo test lint clean
help:  ## say what there is
	@sed -n 's/^\([a-z]*\):.*  ## /make \1: /p' Makefile

env: $(VENV)/.stamp  ## the virtual environment

$(VENV)/.stamp: requirements.txt constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	$(PYTHON) -m compileall -q -j 0 $(VENV)/lib  # as pip would, but on all cores
	touch $@

demo: env  ## make the demo data, train on it and test
	$(PYTHON) -m util.data.demo --out data/demo
	NET=lite0 sh train.sh split0 demo 0
	NET=lite0 sh test.sh split0 demo 0

test: env  ## the tests
	$(PYTHON) -m pytest

lint: env  ## ruff, and the syntax of the shell scripts
	$(VENV)/bin/ruff check .
	for script in train.sh test.sh util/runtime/launch.sh; do sh -n $$script || exit 1; done

clean:  ## remove caches and what the demo made; the environment stays
	rm -rf .pytest_cache .ruff_cache data/demo exp/demo initmodel/demo lists/demo
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
