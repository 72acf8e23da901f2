# make demo: install, train, export, prove.  make test: the test suite.  Both make the environment first, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test test-slow lint results env clean

demo: env
	$(RUN) -m kerakd.train --flagfile=configs/digits_ternary.cfg --workdir=runs/digits --overwrite
	$(RUN) -m export.tflite --run=runs/digits

test: env
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests kerakd

test-slow: env
	$(RUN) -m pytest -m slow tests

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

env: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "kerakd: expected Python 3.11, received " + sys.version.split()[0] + "; give PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

results: env
	$(RUN) -m benchmarks.tables

clean:
	rm -rf $(VENV) build kerakd.egg-info
