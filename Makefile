PYTHON ?= python3
BIN := .venv/bin
DATA ?= $(CURDIR)/data

TABLE ?= 2
BUDGET ?= tiny

.PHONY: install demo up reproduce test test-long test-slow check docs torture audit lock clean

install: .venv/installed

demo: install  ## train, attack and rank two small models; DEMO_ARGS=--exit stops when done
	DKLBENCH_DATA_DIR="$(DATA)" $(BIN)/dklbench demo $(DEMO_ARGS)

up: install  ## serve the web pages and the REST interface from $(DATA)
	DKLBENCH_DATA_DIR="$(DATA)" $(BIN)/dklbench up $(UP_ARGS)

reproduce: install  ## a table of the paper at a budget: TABLE=2 or 3, BUDGET=smoke, tiny, small or full; resumable
	DKLBENCH_DATA_DIR="$(DATA)" $(BIN)/dklbench reproduce $(TABLE) --budget $(BUDGET) --up $(REPRODUCE_ARGS)

test: install .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-long: install .venv/installed-dev  ## what takes several processes: workers that die, the demo, the documents
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'long and not slow' $(PYTEST_ARGS)

test-slow: install .venv/installed-dev  ## the slow ones, by hand: installs from the registry, trains, measures
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(PYTEST_ARGS)

check: install .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed-docs  ## the documents as a site that needs no server: site/index.html; a broken link fails
	$(BIN)/python -m service.web.site build/docs
	$(BIN)/zensical build --strict --clean

torture: install .venv/installed-dev  ## random faults while jobs run; QUICK=1: ten minutes; TORTURE_ARGS=--seed=1
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m torture \
		$(if $(QUICK),--quick,--report benchmarks/results) $(TORTURE_ARGS)

# Known vulnerabilities that do not concern us, as `--ignore-vuln ID`, each with its reason above this line; none.
AUDIT_IGNORES :=

audit: install .venv/installed-dev  ## known vulnerabilities of all that is installed; what cannot be looked up fails
	$(BIN)/pip freeze --exclude-editable > .venv/frozen.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement .venv/frozen.txt $(AUDIT_IGNORES)

lock: .venv/installed-dev  ## newest versions of all that goes into the images, with hashes: deploy/*.lock
	UV=$(BIN)/uv deploy/lock.sh

clean:
	rm -rf .venv data build site *.egg-info

.venv/installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[service,worker]'
	touch $@

.venv/installed-dev: pyproject.toml .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[service,worker,dev]'
	# Its requirements pin old versions of packages that the tests of what we exchange with it do not need.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps robustbench==1.1.1
	touch $@

.venv/installed-docs: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[service,docs]'
	touch $@
