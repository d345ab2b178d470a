PYTHON ?= python3
BIN := .venv/bin
DATA ?= $(CURDIR)/data

.PHONY: install demo up test check clean

install: .venv/installed

demo: install  ## train, attack and rank two small models; DEMO_ARGS=--exit stops when done
	DKLBENCH_DATA_DIR="$(DATA)" $(BIN)/dklbench demo $(DEMO_ARGS)

up: install  ## serve the web pages and the REST interface from $(DATA)
	DKLBENCH_DATA_DIR="$(DATA)" $(BIN)/dklbench up $(UP_ARGS)

test: install .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: install .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv data build *.egg-info

.venv/installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[engine]'
	touch $@

.venv/installed-dev: pyproject.toml .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[engine,dev]'
	touch $@
