# Every target sets up all it needs: a virtual environment in .venv, then the package in it; `demo`
# without the tools for developing. On Windows, install with pip and run the commands themselves.
PYTHON ?= python3
BIN := .venv/bin
PACKAGE := .venv/package
READY := .venv/ready

.PHONY: demo test quick check docs dist clean

demo: $(PACKAGE)
	$(BIN)/cvt train --config recipes/cvt_nano_digits.yaml --output runs/demo --overwrite
	$(BIN)/cvt evaluate runs/demo
	$(BIN)/python examples/held_out_digits.py runs/demo/held_out
	$(BIN)/cvt predict runs/demo runs/demo/held_out
	@echo "The report: $(CURDIR)/runs/demo/report.html"
	@echo "Next, your own images, in one folder for each class: $(BIN)/cvt train FOLDER"

# Two processes of one thread each: the networks are too small to share among threads. Each begins
# with its half of the files, so that what a file's tests share is made once, and ends with the
# other's.
TESTS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test: $(READY)
	$(TESTS)

# What one runs while editing, in less than a minute: all but the tests marked slow.
quick: $(READY)
	$(TESTS) -m 'not slow'

check: $(READY) docs
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python release/audit.py

# The site, in docs/_build/html. A warning, such as a link that leads nowhere, is an error.
docs: $(READY)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html

# What is published, in dist/, and proved: the wheel is built from the sdist, and used from an
# environment of its own away from the sources, which takes 5 GB for some minutes.
dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/python release/contents.py dist
	PYTHON='$(PYTHON)' release/smoke.sh dist/*.whl

clean:
	rm -rf .venv runs dist docs/_build

# uv, where there is one. Neither compiles 20,000 files of Python of which a run imports a part.
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip \
	install --disable-pip-version-check --no-compile) --quiet --constraint constraints.txt --editable

$(PACKAGE): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	touch $@

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	touch $(PACKAGE) $@
