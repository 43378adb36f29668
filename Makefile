# Everything is made inside the clone, in .venv and .cache; only Debian's packages, which need root, go elsewhere.

SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The clone is the package, whatever its directory's name: tools that go by directories see it through this link.
LINK := .cache/lint/fleetmeter

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_CACHE_DIR ?= 1

.DEFAULT_GOAL := help
.PHONY: help install up test bench lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.installed ## put fleetmeter and what it needs into .venv

up: install ## start a cluster on this machine, with ARGS="…" if any; Ctrl-C stops it
	@$(run-up)

test: $(VENV)/.installed-test ## run the tests, or what ARGS="tests/proto -k sketch" selects
	@$(debian-for-tests)
	@$(BIN)/python -m pytest -n 2 $(ARGS)

bench: $(VENV)/.installed-bench ## run the benchmarks; ARGS=--json prints JSON
	@$(BIN)/python tests/bench/run.py all $(ARGS)

lint: $(VENV)/.installed-lint $(LINK) ## check style, formatting, types and who imports whom
	@failed=; export MYPYPATH=.cache/lint; \
	$(BIN)/ruff check --output-format concise || failed=yes; \
	$(BIN)/ruff format --check --quiet --output-format concise || failed=yes; \
	$(BIN)/mypy -p fleetmeter || failed=yes; \
	MYPYPATH=$$MYPYPATH:tests $(BIN)/mypy $(for-tests) tests || failed=yes; \
	$(BIN)/lint-imports --no-logo --cache-dir .cache/import-linter || failed=yes; \
	[ -z "$$failed" ]

# Tests are checked as the scripts they are, without the errors of what they import; they may leave a fixture untyped, give
# wrong arguments on purpose, and put several steps on a line.
for-tests := --explicit-package-bases --follow-imports silent \
	--allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls \
	--disable-error-code arg-type --disable-error-code func-returns-value --disable-error-code comparison-overlap \
	--no-warn-unused-ignores

clean: ## remove what make made; a cluster's data in .fleetmeter stays
	rm -rf $(VENV) .cache build dist *.egg-info .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip comes last into a virtual environment, so one without it was not finished. On Debian ensurepip is a package apart.
$(BIN)/pip:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { missing=python3-venv; $(apt-install); }
	@$(PYTHON) -m venv --clear $(VENV)

# The stamps say what pyproject.toml was when they were made: nothing is installed again until it changes.
$(VENV)/.installed: pyproject.toml $(BIN)/pip
	@$(BIN)/python -m pip install -qq --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml $(BIN)/pip
	@$(BIN)/python -m pip install -qq --editable '.[$*]'
	@touch $@ $(VENV)/.installed

$(LINK):
	@mkdir -p $(@D) && ln -sfn ../.. $@

# Shell: installs the Debian packages in $missing, or says how to and fails.
define apt-install
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	echo "Installing with apt-get: $$missing" >&2; \
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $$missing >/dev/null; \
else \
	echo "Not installed: $$missing. On Debian: sudo apt-get install $$missing" >&2; false; \
fi
endef

# Tests skip what they can't run; only where they could have had it, that is an error.
define debian-for-tests
missing=; \
command -v promtool >/dev/null && command -v prometheus >/dev/null || missing="prometheus"; \
command -v wrk >/dev/null || missing="$${missing:+$$missing }wrk"; \
[ -z "$$missing" ] || { $(apt-install); } || { [ "$$(id -u)" != 0 ] && echo "Tests that need them are skipped." >&2; }
endef

# Not plain `exec`: Ctrl-C goes to make as well, which would end with "Error 130" for a clean stop. So the shell stays,
# passes a SIGTERM on, and is content with 130 if the interrupt was ours; make itself still ends as interrupted.
define run-up
(trap - INT; exec $(BIN)/fleetmeter up $(ARGS)) <&0 & pid=$$!; \
trap 'interrupted=yes' INT; trap 'kill -TERM $$pid' TERM; \
while wait $$pid; kill -0 $$pid 2>/dev/null; do :; done; \
wait $$pid; status=$$?; \
[ "$$interrupted $$status" = "yes 130" ] || exit $$status
endef
