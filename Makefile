# `make demo` and `make test` do all their own set-up: a virtual environment in
# .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo gpu docs test check format dist clean
help:
	@echo "make demo    train J0, J1, J2 and J2-Lip & tanh on digits, attack them, print the table"
	@echo "make gpu     check and time the accelerator of this machine (docs/accelerators.md)"
	@echo "make docs    build the documentation site, build/docs/index.html"
	@echo "make test    lint, check formats and types, run the tests"
	@echo "make format  rewrite the sources as ruff would have them"
	@echo "make dist    build sdist and wheel, and try the wheel in an environment of its own"
	@echo "make clean   remove the virtual environment, builds and the demo's runs"

STARTED := $(shell date +%s)

# The library alone, which is all that the demo needs.
$(VENV)/library: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed: $(VENV)/library
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/library
	$(BIN)/python experiments/demo.py --workdir runs/demo --started=$(STARTED)

gpu: $(VENV)/library
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cuda]'
	$(BIN)/python benchmarks/accelerator.py

docs: $(VENV)/installed
	$(BIN)/python -m sphinx -W --keep-going -q -E -a -c docs . build/docs

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: check
	$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The wheel is built from the sdist, and the sdist's launchers run with the wheel's library.
dist:
	rm -rf build dist
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --disable-pip-version-check build
	build/tools/bin/python -m build > build/log || (cat build/log; exit 1)
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt dist/*.whl
	build/clean/bin/python -I tests/smoke.py
	tar xzf dist/*.tar.gz -C build
	cd build/lipreg-* && ../clean/bin/python experiments/train.py --workdir=runs/smoke --silent \
	    --config=experiments/configs/digits.py:j0 --config.train.epochs=1
	@ls dist/*

clean:
	rm -rf $(VENV) build dist docs/made docs/reference runs/demo
