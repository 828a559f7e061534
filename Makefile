# `make demo` and `make test` do all their own set-up: a virtual environment in
# .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo gpu docs test check format clean
help:
	@echo "make demo    train J0, J1, J2 and J2-Lip & tanh on digits, attack them, print the table"
	@echo "make gpu     check and time the accelerator of this machine (docs/accelerators.md)"
	@echo "make docs    build the documentation site, build/docs/index.html"
	@echo "make test    lint, check formats and types, run the tests"
	@echo "make format  rewrite the sources as ruff would have them"
	@echo "make clean   remove the virtual environment and the demo's runs"

$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python experiments/demo.py --workdir runs/demo

gpu: $(VENV)/installed
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

clean:
	rm -rf $(VENV) runs/demo
