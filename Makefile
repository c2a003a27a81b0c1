# Everything that a person or CI types. `make help` lists it; nothing here needs more than GNU make, sh and Python.
#
# One environment, .venv, is made on first use and brought up to date when pyproject.toml or the lock changes:
# `make demo` puts the workstation's packages into it, `make test` and `make check` add the tools of the developer.
# Only relative paths are used, so that the folder may have any name, also one with a space.

.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
LOCK := tests/constraints.txt
LOCKED := tests/locked
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint $(LOCK)
# Exact files: a package whose digest does not stand in the lock is refused.
INSTALL_LOCKED := $(PIP) install --quiet --require-hashes --no-deps --requirement
SOURCES := edge_runtime converter tests benchmarks examples .ci
# How many test processes: two for each of the two cores of a small machine, since the tests that start programs wait
# most of the time. pytest-xdist shares the files among them, in their order: by itself it puts those with few tests
# last, which are the long ones, so that one process ends minutes after the other. `make test JOBS=0` has one.
JOBS ?= 4
# What the devices are, for wheelhouse and deb: one or both of arm64 and amd64.
MACHINE ?= arm64 amd64
MACHINES = $(foreach machine,$(MACHINE),--machine $(machine))
# Passed to pytest: make test PYTEST="-k serial -x"
PYTEST ?=

##@ Try it
.PHONY: demo
demo: $(VENV)/.demo ## train, convert, and run a model on live sensor data; needs no broker and no hardware
	@$(BIN)/python -m edge_runtime.cli demo

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

##@ Develop
.PHONY: setup
setup: $(VENV)/.setup ## make .venv with everything that test and check need
	@echo "$(VENV) is ready: $$($(BIN)/python --version)"

.PHONY: frameworks
frameworks: $(VENV)/.frameworks ## add XGBoost, LightGBM, CatBoost, the TFLite interpreter, pandas and pymodbus (520 MB), else their tests are skipped
	@echo "XGBoost, LightGBM, CatBoost, the TFLite interpreter, pandas and pymodbus are in $(VENV)"

.PHONY: frameworks-large
frameworks-large: $(VENV)/.frameworks-large ## add PyTorch for processors, and Keras on it (800 MB, 220 MB to fetch), else their tests are skipped
	@echo "PyTorch and Keras are in $(VENV)"

.PHONY: clients
clients: $(VENV)/.clients ## add tritonclient, Dask, a reader of CycloneDX, an S3 server (moto), and twine, check-wheel-contents and pipx, each in an environment of its own, and with npm Node-RED and a Sparkplug decoder (320 MB), for the tests that use them

.PHONY: fmt
fmt: $(VENV)/.setup ## format the code, and apply the corrections that need no decision
	$(BIN)/python -m ruff check --fix-only --quiet $(SOURCES)
	$(BIN)/python -m ruff format $(SOURCES)

.PHONY: lint
lint: $(VENV)/.setup ## style and common mistakes
	$(BIN)/python -m ruff check $(SOURCES)
	$(BIN)/python -m ruff check --preview --select PLR0917 --config 'lint.pylint.max-positional-args=4' edge_runtime converter benchmarks examples tests/support .ci
	$(BIN)/python -m ruff format --check $(SOURCES)
	$(BIN)/python .ci/check_files.py

.PHONY: types
types: $(VENV)/.setup ## mypy, strict
	$(BIN)/python -m mypy $(filter-out .ci,$(SOURCES))

.PHONY: check-configs
check-configs: $(VENV)/.setup ## every sample in device_configs/ loads, every unit in systemd/ is sound and sealed off
	$(BIN)/python -m pytest --quiet --no-header tests/unit/config/test_samples.py tests/unit/systemd

.PHONY: check
check: lint types check-configs ## lint, types and check-configs: what has to be green before a commit

##@ Test
.PHONY: test
test: $(VENV)/.setup ## every test, the system tests against an installed wheel
	$(CLIENTS) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=15 $(PYTEST)

.PHONY: test-system
test-system: $(VENV)/.setup ## only the tests that start the installed program
	$(CLIENTS) $(BIN)/python -m pytest -m system --durations=15 $(PYTEST)

.PHONY: screenshots
screenshots: $(VENV)/.setup ## make the pictures of the status page and the converter's report in docs/images anew; needs Chromium
	EDGE_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/system/test_http_page.py tests/system/test_report_page.py

.PHONY: torture
torture: $(VENV)/.setup ## the long form of the tests that kill, cut and damage: hours (see docs/reliability.md)
	$(CLIENTS) EDGE_TORTURE=long $(BIN)/python -m pytest -o timeout=3600 tests/faults tests/fuzz tests/contract/core \
	  tests/system/test_fallback.py tests/system/test_exchange_load.py tests/system/test_ota_transfer.py \
	  tests/system/test_distribution.py tests/system/fleet $(PYTEST)

.PHONY: fleet-run
fleet-run: $(VENV)/.setup ## rollouts over 40, 200 and 1,000 stand-ins and eight real daemons, and 50 interruptions: half an hour (see docs/fleet.md)
	EDGE_TORTURE=long $(BIN)/python -m pytest -o timeout=3600 -rP tests/system/fleet/test_large_run.py $(PYTEST)

.PHONY: restarts
restarts: $(VENV)/.setup ## restart the service 1,440 times behind nginx and Caddy under clients, as a day of a restart a minute has it: an hour
	EDGE_TORTURE=long $(BIN)/python -m pytest -o timeout=14400 tests/system/test_http_proxy.py -k restarts $(PYTEST)

.PHONY: controls
controls: $(VENV)/.setup ## break each promise of docs/guarantees.md once, and see its test go red: half an hour
	EDGE_TORTURE=long $(BIN)/python -m pytest -o timeout=3600 tests/faults/controls $(PYTEST)

# Broken in one small place at a time: in full over the modules of tests/mutants/modules.toml, or a sample of what has
# changed since a revision, for at most two minutes. `make mutants MUTANTS=edge_runtime/stream/decide.py` tries one module.
.PHONY: mutants
mutants: $(VENV)/.setup ## break the product in small places and see whether the tests notice: an hour
	nice -n 19 $(BIN)/python -m tests.support.mutation_run $(MUTANTS)

.PHONY: mutants-changed
mutants-changed: $(VENV)/.setup ## the same for a sample of what has changed: SINCE=revision, two minutes
	nice -n 19 $(BIN)/python -m tests.support.mutation_run --seconds 120 --changed $(SINCE)
SINCE ?= HEAD~1

.PHONY: lock
lock: $(VENV)/.demo ## write tests/locked/ anew: the releases of tests/constraints.txt with the digests of their files
	$(BIN)/python .ci/lock.py

.PHONY: audit
audit: $(VENV)/.audit ## ask the advisory database about every locked package; what is ignored stands in tests/audit.toml, with a date
	$(BIN)/python .ci/audit.py $(VENV)/audit/bin/pip-audit

.PHONY: cover
cover: $(VENV)/.setup ## which lines no test in this process reaches
	$(BIN)/python -m pytest -m "not system" --cov=edge_runtime --cov=converter --cov-report=term-missing:skip-covered $(PYTEST)

.PHONY: bench
bench: $(VENV)/.setup ## what the runtime costs beside what you would write yourself: BENCH=--quick for two minutes
	$(BIN)/python -m benchmarks $(BENCH)

.PHONY: device-bench
device-bench: $(VENV)/.demo ## what this board does: start, memory, CPU of a reading; writes one JSON file for docs/boards.md
	$(BIN)/python benchmarks/device_bench.py

##@ Deliver
.PHONY: wheel
wheel: $(VENV)/.demo ## dist/*.whl, for `pip install`, and its bill of materials (CycloneDX) beside it
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	wheel="$$(ls -t dist/*.whl | head -n 1)" && \
	  $(BIN)/python -m edge_runtime.fleet.sbom --lock $(LOCKED)/device.txt -o "$${wheel%.whl}.cdx.json" "$$wheel"

.PHONY: dist
dist: wheel $(VENV)/.setup $(VENV)/.clients ## the wheel and the source distribution, judged by twine and check-wheel-contents
	$(BIN)/python -m build --sdist --no-isolation --outdir dist
	$(VENV)/wheel/bin/python -m twine check --strict dist/*.whl dist/*.tar.gz
	$(VENV)/wheel/bin/python -m check_wheel_contents "$$(ls -t dist/*.whl | head -n 1)"

.PHONY: wheelhouse
wheelhouse: wheel ## wheelhouse/: every wheel that a device needs, to install without a network (MACHINE=arm64)
	$(BIN)/python -m edge_runtime.fleet.wheelhouse $(MACHINES) --lock $(LOCKED)/device.txt "$$(ls -t dist/*.whl | head -n 1)"

.PHONY: deb
deb: wheelhouse ## Debian packages of the runtime, made of the wheelhouse
	$(BIN)/python -m edge_runtime.fleet.deb $(MACHINES) wheelhouse

.PHONY: clean
clean: ## remove everything that make has made
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Run a fleet (device_configs/fleet.toml, or INVENTORY=file)
FLEET = $(BIN)/python -m edge_runtime
NAMED = $(if $(INVENTORY),--inventory "$(INVENTORY)") $(OPTIONS)

.PHONY: devices
devices: $(VENV)/.demo ## what every device is doing
	@$(FLEET) devices $(NAMED)

.PHONY: flash
flash: $(VENV)/.demo ## bring a model to a device: make flash DEVICE=name MODEL=file.onnx
	@$(call need,DEVICE,the name of a device)$(call need,MODEL,a bundle)$(FLEET) flash $(NAMED) "$(MODEL)" $(DEVICE)

.PHONY: flash-all
flash-all: $(VENV)/.demo ## bring a model to every device, in waves: make flash-all MODEL=file.onnx
	@$(call need,MODEL,a bundle)$(FLEET) flash $(NAMED) --all "$(MODEL)"

.PHONY: rollback
rollback: $(VENV)/.demo ## take a device back to the model before: make rollback DEVICE=name
	@$(call need,DEVICE,the name of a device)$(FLEET) rollback $(NAMED) $(DEVICE)

.PHONY: captures
captures: $(VENV)/.demo ## bring in what devices keep to be labelled: make captures DEVICE=name (all when left out) DIR=captures
	@$(FLEET) captures $(NAMED) $(if $(DEVICE),$(DEVICE),--all) -o "$(if $(DIR),$(DIR),captures)"

.PHONY: provision
provision: wheel ## install the runtime and its service on a device: make provision DEVICE=name
	@$(call need,DEVICE,the name of a device)$(FLEET) provision $(NAMED) $(DEVICE)

# $(call need,VARIABLE,what it is): a recipe that goes no further when the variable is not given.
need = $(if $($(1)),,echo "make: expected $(1)=..., $(2)" >&2; exit 2; )

# The environment. Each stamp is newer than what it depends on, so a second `make` starts at once.
$(VENV)/.python:
	@python="$$(sh .ci/find_python.sh)" && \
	echo "Making $(VENV) with $$python" && \
	"$$python" -m venv --clear $(VENV) && \
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml $(LOCKED)/demo.txt
	@echo "Installing the runtime and the converter into $(VENV) (about 350 MB, a minute or two the first time)"
	@$(INSTALL_LOCKED) $(LOCKED)/demo.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.setup: $(VENV)/.demo $(LOCKED)/tests.txt
	@echo "Installing what the tests need into $(VENV)"
	@$(INSTALL_LOCKED) $(LOCKED)/tests.txt
	@touch $@

$(VENV)/.frameworks: $(VENV)/.setup $(LOCKED)/frameworks.txt
	@$(INSTALL_LOCKED) $(LOCKED)/frameworks.txt
	@touch $@

# Not compiled ahead: of PyTorch's 2,000 modules few are ever imported.
$(VENV)/.frameworks-large: $(VENV)/.frameworks tests/frameworks-large.txt
	@$(INSTALL) --no-deps --no-compile --requirement tests/frameworks-large.txt
	@touch $@

# Apart from the project's packages: it judges them, and is not locked with them.
$(VENV)/.audit: $(VENV)/.demo
	@$(BIN)/python -m venv --clear $(VENV)/audit
	@$(PIP) --python $(VENV)/audit/bin/python install --quiet pip-audit
	@touch $@

NPM = npm install --silent --no-fund --no-audit --ignore-scripts
# Environments that see .venv's packages, and have their own beside them.
$(VENV)/.clients: $(VENV)/.setup $(wildcard tests/client-*.txt)
	@for name in triton dask cyclonedx s3 wheel; do \
	  $(BIN)/python -m venv --clear --without-pip $(VENV)/$$name && \
	  beside="$$($(VENV)/$$name/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" && \
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$beside/beside.pth" && \
	  $(PIP) --python $(VENV)/$$name/bin/python install --quiet --no-deps --constraint $(LOCK) \
	    --requirement tests/client-$$name.txt || exit 1; \
	done
	@if command -v npm >/dev/null; then \
	  $(NPM) --prefix $(VENV)/sparkplug sparkplug-payload@1.0.3 && $(NPM) --prefix $(VENV)/node-red node-red@4.1.15 || exit 1; \
	else \
	  echo "npm is not installed: the tests with Node-RED and with a Sparkplug decoder of others are skipped"; \
	fi
	@touch $@
CLIENTS = $(if $(wildcard $(VENV)/.clients),EDGE_TRITON_PYTHON="$(CURDIR)/$(VENV)/triton/bin/python" EDGE_DASK_PYTHON="$(CURDIR)/$(VENV)/dask/bin/python" EDGE_CYCLONEDX_PYTHON="$(CURDIR)/$(VENV)/cyclonedx/bin/python" EDGE_S3_PYTHON="$(CURDIR)/$(VENV)/s3/bin/python" EDGE_WHEEL_PYTHON="$(CURDIR)/$(VENV)/wheel/bin/python")
