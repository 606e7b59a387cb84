# make demo: a live conversation with the shipped model. make test: the tests. make test-newest: what the newest
# libraries could break, with constraints-newest.txt, in an environment of its own. make beam: what launch.prepare_corpus
# runs in; make test-beam: its tests. make clients: other people's clients of the web door, in an environment of their
# own; make test-clients: they talk with our server. make test-tpu: what the TPU compiler makes of the programs, on any
# machine. make test-browser: the page in a Chromium, which must be installed, and a proxy before the server. make docs:
# the API reference, of docstrings. All need Python >= 3.11, git and make.
PYTHON ?= python3
VENV ?= .venv
NEWEST_VENV ?= $(VENV)-newest
BEAM_VENV ?= $(VENV)-beam
CLIENTS_VENV ?= $(VENV)-clients
TPU_VENV ?= $(VENV)-tpu
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

export JAX_PLATFORMS ?= cpu

# Parity and files of checkpoints depend on transformers; the step, its kernels, a training run and a served
# conversation on jax and flax.
NEWEST_TESTS ?= tests/model/test_parity.py tests/model/test_streaming.py tests/model/test_batch_invariance.py \
  tests/model/test_kernels.py tests/checkpoint tests/train/test_run.py tests/serve/test_end_to_end.py

.PHONY: demo test test-newest beam test-beam clients test-clients test-tpu test-browser docs lint format types clean

demo: $(VENV)/.base
	$(BIN)/python -m launch.demo

# Two files at a time, but served conversations, which go by the clock, one after another.
test: $(VENV)/.test
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --ignore=tests/serve
	$(BIN)/python -m pytest tests/serve
endif

test-newest: $(NEWEST_VENV)/.newest
	$(NEWEST_VENV)/bin/python -m pytest $(PYTEST_ARGS) $(NEWEST_TESTS)

beam: $(BEAM_VENV)/.beam

test-beam: $(BEAM_VENV)/.beam $(VENV)/.test
	$(BEAM_VENV)/bin/python -m pytest $(PYTEST_ARGS) tests/launch/test_prepare_corpus.py

clients: $(CLIENTS_VENV)/.clients

test-clients: $(CLIENTS_VENV)/.clients $(VENV)/.test
	CLIENTS_VENV=$(CLIENTS_VENV) $(BIN)/python -m pytest -m clients $(PYTEST_ARGS) tests/serve

test-tpu: $(TPU_VENV)/.tpu
	$(TPU_VENV)/bin/python -m pytest -m 'tpu_compile and not slow' $(PYTEST_ARGS) $(TPU_TESTS)

test-browser: $(VENV)/.browser
	$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

docs: $(VENV)/.docs
	$(BIN)/pdoc --docformat google --output-directory out/docs tml_jax pallas_kernels
	@echo "The API reference is in out/docs/index.html."

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(VENV)/.dev $(VENV)/.test
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(NEWEST_VENV) $(BEAM_VENV) $(CLIENTS_VENV) $(TPU_VENV) out

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "tml_jax needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1); name another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Each stamp is an install of one set of dependencies, at the versions of constraints.txt.
$(VENV)/.base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[test,telemetry]'
	@touch $@

$(VENV)/.browser: $(VENV)/.test
	$(PIP) install -c constraints.txt -e '.[browser]'
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# A layer above the other environment: what is the same in both is installed once.
$(NEWEST_VENV)/.newest: $(VENV)/.test constraints-newest.txt
	$(BIN)/python -m venv --clear $(NEWEST_VENV)
	$(BIN)/python $(SITE) > "$$($(NEWEST_VENV)/bin/python $(SITE))/pins.pth"
	$(NEWEST_VENV)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints-newest.txt -e '.[test]'
	@touch $@

# The same for Beam, whose own pins lie above.
$(BEAM_VENV)/.beam: $(VENV)/.base constraints-beam.txt
	$(BIN)/python -m venv --clear $(BEAM_VENV)
	$(BIN)/python $(SITE) > "$$($(BEAM_VENV)/bin/python $(SITE))/pins.pth"
	$(BEAM_VENV)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints-beam.txt apache-beam
	@touch $@

# Clients of the web door, with nothing of ours beside them.
$(CLIENTS_VENV)/.clients: constraints-clients.txt
	$(PYTHON) -m venv --clear $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints-clients.txt \
	  'openai[realtime]' livekit-plugins-openai pipecat-ai
	@touch $@

# The same for the TPU compiler. With it JAX would look for a TPU: an environment without stays one.
$(TPU_VENV)/.tpu: $(VENV)/.test
	$(BIN)/python -m venv --clear $(TPU_VENV)
	$(BIN)/python $(SITE) > "$$($(TPU_VENV)/bin/python $(SITE))/pins.pth"
	$(TPU_VENV)/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt 'jax[tpu]'
	@touch $@
