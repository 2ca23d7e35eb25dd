# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-nightly browser lint format bench default-bundle proto clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.cpu  ## A toy town, indexed, served and asked where a photo was taken
	@$(BIN)/sightfix demo

# A worker takes whole modules (loadscope), so that what a module's tests share is made once. Bytecode is written whatever
# the environment says: tests start many processes, and compiling everything in each takes longer than most of them.
test: $(VENV)/.dev  ## The tests of every commit, and the 25 slowest of them
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadscope --durations=25 -m "not nightly"

test-nightly: $(VENV)/.dev  ## All tests, also the long ones
	PYTHONDONTWRITEBYTECODE= HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n auto --dist loadscope --durations=25

browser:  ## Chromium for the tests of the web page, if there is none
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable; do \
	  if [ -n "$$name" ] && command -v "$$name" >/dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium; \
	else \
	  echo "There is no Chromium. Install one (as root: apt-get install chromium), or name one: CHROMIUM=/path/to/it" >&2; \
	  exit 1; \
	fi

lint: $(VENV)/.dev  ## ruff, mypy strict, import floors and circles, protos, Dockerfile, shell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples/python examples/ros2/sightfix_ros/sightfix_ros
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(BIN)/python -m service.grpc.make_generated --descriptor-set | \
	  $(BIN)/buf lint -#format=binpb --config service/grpc/proto/buf.yaml --path sightfix
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck examples/shell/localize.sh

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## The measurements of benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

default-bundle: $(VENV)/.dev  ## Make the shipped model again
	$(BIN)/python -m export.default_bundle

proto: $(VENV)/.dev  ## Make the code of service/grpc/generated again
	$(BIN)/python -m service.grpc.make_generated

clean:  ## Remove the environment and the demo
	rm -rf $(VENV) demo-town

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sightfix needs Python 3.11 or later, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.cpu: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[cpu]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[cpu,export,training,dev]'
	@touch $@ $(VENV)/.cpu
