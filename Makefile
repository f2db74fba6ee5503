# The few commands of this house. On a fresh machine: `make demo` or `make test`; each makes what it needs.
# SPDX-License-Identifier: Apache-2.0

# Python 3.11 where there is one (constraints.txt was resolved with it), otherwise the machine's python3.
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
# More settings for the rehearsal of `make demo`, for example DEMO_ARGS="rounds=2 sites=4".
DEMO_ARGS ?=

# What images are made with and from: docker does as well as podman, and any base that has Python 3.11. Where an engine may not make
# namespaces, as inside a container, say BUILDAH_ISOLATION=chroot and BUILD_NETWORK=host.
ENGINE ?= podman
BUILD_NETWORK ?= none
BASE_IMAGE ?= python:3.11-slim-bookworm
# The index that torch comes from, for a wheelhouse with CUDA: TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?=

# More words for pytest, such as CONTAINERS_ARGS="-k bit_for_bit"; all tests of tests/containers, if nothing is said.
CONTAINERS_ARGS ?=
# Which rows of the fault matrix; all that were not made yet, if nothing is said.
FAULTS_ARGS ?=

VENV := .venv
# Installed first and by itself: the largest download, and the one whose build (CPU, CUDA) the machine's index decides.
TORCH := torch==2.13.0
# What builds panfm, installed under constraints.txt like the rest instead of unpinned into pip's hidden build environment.
BUILD := hatchling editables
PROJECT := --no-build-isolation --editable '.[federation,dev]'
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format hooks constraints wheelhouse release images test-containers faults soak clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(STAMP) ## Rehearse a study on this machine with pretend hospitals, and say where the report lies
	$(VENV)/bin/panfm simulate recipe=demo $(DEMO_ARGS)

test: $(STAMP) ## Run the fast tests
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP) ## Run the tests that take minutes or start real Flower daemons
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m slow --ignore tests/containers --override-ini faulthandler_timeout=1800

test-containers: $(STAMP) ## Run a study in containers (as root, after `make wheelhouse images`; nginx: tests/containers/make_nginx.sh)
	$(VENV)/bin/python -m pytest -m slow tests/containers -rs --override-ini faulthandler_timeout=3600 $(CONTAINERS_ARGS)

faults: $(STAMP) ## Do every fault to a study in containers, and write deploy/FAULTS.md; FAULTS_ARGS="--rows kill" does some
	$(VENV)/bin/python -m tests.containers.faults $(FAULTS_ARGS)

soak: $(STAMP) ## Half an hour of small rounds through a deployment on this machine (needs nginx): memory and handles by minute
	PYTHONPATH=. OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python benchmarks/soak.py

lint: $(STAMP) ## Check style (ruff) and types (mypy --strict)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP) ## Rewrite the files in the house's style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

hooks: $(STAMP) ## Make git refuse keys, scans and large files at each commit
	$(VENV)/bin/pre-commit install

constraints: ## Resolve every dependency anew in a throw-away environment and rewrite constraints.txt
	rm -rf build/resolve
	$(PYTHON) -m venv build/resolve
	build/resolve/bin/python -m pip install --quiet $(TORCH)
	build/resolve/bin/python -m pip install --quiet $(BUILD)
	build/resolve/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager $(TORCH) $(PROJECT)
	build/resolve/bin/python -m pip check
	sed -n '/^#/p' constraints.txt > build/constraints.txt
	build/resolve/bin/python -m pip freeze --all --exclude-editable | sed '/^pip==/d; s/+[a-z0-9.]*$$//' >> build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/resolve

wheelhouse: $(STAMP) ## Fetch every wheel that the images are built from, with its digest, into build/
	rm -rf build/wheelhouse
	$(VENV)/bin/python -m pip wheel --quiet --wheel-dir build/wheelhouse --constraint constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH) '.[federation]'
	rm build/wheelhouse/panfm-*.whl
	$(VENV)/bin/python deploy/wheelhouse.py build/wheelhouse
	$(MAKE) release

release: ## Make panfm's own wheel for the images, without a network, into build/release
	rm -rf build/release
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/release .
	$(VENV)/bin/python deploy/wheelhouse.py build/release

images: ## Build the images of coordinator and site from build/wheelhouse, without a network
	@test -f build/wheelhouse/requirements.txt && test -f build/release/requirements.txt || { echo 'the wheels are missing: run `make wheelhouse` first' >&2; exit 1; }
	for side in coordinator site; do \
	  $(ENGINE) build --network $(BUILD_NETWORK) $(if $(findstring podman,$(ENGINE)),--format docker) --build-arg BASE_IMAGE=$(BASE_IMAGE) \
	    --build-arg REVISION=$$(git rev-parse HEAD) --build-arg CREATED=$$(date --utc --iso-8601=seconds) \
	    --file deploy/$$side/Dockerfile --tag localhost/panfm-$$side . || exit 1; \
	done

clean: ## Remove the environment and what builds leave behind; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp is newer than what it was made from, so a second call installs nothing.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'panfm needs Python 3.11 or newer, and $(PYTHON) is not: install one and say PYTHON=/path/to/it' >&2; exit 1; }
	@echo 'Installing into $(VENV): a few minutes and about 3 GB, this once.'
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt $(BUILD)
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt $(PROJECT)
	@touch $@
