# One command sets everything up: each target first brings .venv to the pins in constraints.txt.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Two cores are enough: one thread a process, and as many test processes as WORKERS says.
export OMP_NUM_THREADS ?= 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-network test test-slow browser postgres check docs bench fuzz clean

help:  ## say what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

demo: $(READY)  ## run a complete private, encrypted study on synthetic notes; the report lands in runs/demo
	$(BIN)/consilium-sim run simulations/scenarios/demo.toml --out runs/demo

demo-network: $(READY)  ## the same between processes: an operator and four hospitals over TLS on loopback, in runs/network
	$(BIN)/python -m simulations.network.demo --out runs/network $(ARGS)

test: $(READY)  ## every test that is not slow
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(READY) browser postgres  ## the slow tests: statistics, whole studies, browser, PostgreSQL
	@$(BIN)/python -m pytest -m slow || { code=$$?; test $$code -eq 5 && echo "no slow test was collected"; }

# Browser tests drive Debian's Chromium. Where it is absent and cannot be installed they are skipped, and say so.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "no chromium here: browser tests will be skipped"

# The journal's tests start a server of their own from Debian's binaries. Where there are none, they say so likewise.
postgres:
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 \
		|| { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq postgresql >/dev/null; } \
		|| echo "no PostgreSQL here: its tests will be skipped"

check: $(READY)  ## format, lint, types, layers, names, licences, error pages, wheel, bill of materials
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.house.names
	$(BIN)/python -m tests.house.licences
	$(BIN)/python -m tests.house.error_pages --check
	$(BIN)/python -m tests.house.wheel
	@mkdir -p runs
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o runs/sbom.json $(BIN)/python

# Strict: a page that is in no menu, or a link that leads nowhere, fails. The pages load nothing from elsewhere.
docs: $(READY)  ## the pages as a site, in runs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "runs/site/index.html"

bench: $(READY)  ## the benchmark tables, or one: make bench NAME=x
	$(BIN)/python -m simulations.benchmarks $(NAME) $(ARGS)

# Coverage-guided fuzzing by atheris, which nothing else needs: it is installed by the first `make fuzz`.
fuzz: SECONDS ?= 20
fuzz: $(READY)  ## fuzz every decoder with atheris, 20 seconds each: make fuzz SECONDS=60
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(SECONDS)

clean:  ## remove caches and build products; .venv and runs stay
	rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find common client server simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev,ray,postgres,data]'
	@touch $@
