# Every target sets up all it needs: a virtual environment in .venv, then the package in it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-runtimes check clean

# Tests that load OpenVINO and ONNX Runtime. Their thread pools have brought test processes down, so
# they run by themselves, one process a file.
RUNTIMES := $(wildcard tests/runtime/test_*.py tests/export/test_*.py) tests/cli/test_export.py \
	tests/test_backends.py tests/test_predict.py tests/test_bench.py \
	tests/contracts/test_gpu_script.py
SPEED := tests/contracts/test_docs.py::test_the_page_on_speed_runs_from_top_to_bottom

demo: $(READY)
	$(BIN)/cvt train --config recipes/cvt_nano_digits.yaml --output runs/demo --overwrite
	$(BIN)/cvt evaluate --model runs/demo
	$(BIN)/python examples/held_out_digits.py runs/demo/held_out
	$(BIN)/cvt predict runs/demo/held_out --model runs/demo
	@echo "Look at $(CURDIR)/runs/demo/report.html"

# Two processes of one thread each: the networks are too small to share among threads.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(RUNTIMES:%=--ignore=%) --deselect $(SPEED)

test-runtimes: $(READY)
	for file in $(RUNTIMES) $(SPEED); do OMP_NUM_THREADS=1 $(BIN)/pytest $$file || exit 1; done

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv runs

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
