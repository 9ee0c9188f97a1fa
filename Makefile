# Everything is installed into .venv; nothing but Python 3.11+, make and the package index is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: train test docs test-transformers-4 test-plan reproduce clean

train: $(VENV)/.runtime
	$(BIN)/python scripts/train.py --config=configs/grpo.py $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=25 $(ARGS)

# Exports under transformers 4, in an environment of its own.
test-transformers-4: $(VENV)/.test $(VENV)-transformers-4/.done
	MECAP_TRANSFORMERS_4=$(CURDIR)/$(VENV)-transformers-4/bin/python $(BIN)/python -m pytest -q tests/experiment/test_export.py $(ARGS)

# Plans for TPUs, in an environment of their own: where libtpu is installed, JAX looks for a TPU at every start.
test-plan: $(VENV)/.test $(VENV)-plan/.done
	MECAP_LIBTPU=$(CURDIR)/$(VENV)-plan/bin/python $(BIN)/python -m pytest -q tests/planning $(ARGS)

# The documentation, into site/.
docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict $(ARGS)

reproduce: $(VENV)/.runtime
	$(BIN)/python scripts/reproduce.py $(ARGS)
	$(BIN)/python scripts/reproduce.py --budgets=150,300,450,900 --seeds=0,1 --rows=reward_off,sft_control $(ARGS)

$(VENV)/.runtime: requirements.txt requirements-no-deps.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-no-deps.txt
	$(PIP) --no-deps -e .
	touch $@

$(VENV)/.test: $(VENV)/.runtime requirements-test.txt requirements-test-no-deps.txt
	$(PIP) torch==2.13.0
	$(PIP) -r requirements-test.txt
	$(PIP) --no-deps -r requirements-test-no-deps.txt
	touch $@

$(VENV)/.docs: $(VENV)/.runtime requirements-docs.txt
	$(PIP) -r requirements-docs.txt
	touch $@

$(VENV)-transformers-4/.done:
	$(PYTHON) -m venv $(VENV)-transformers-4
	$(VENV)-transformers-4/bin/pip --disable-pip-version-check install --quiet torch==2.13.0 transformers==4.57.6 pillow librosa
	$(VENV)-transformers-4/bin/pip --disable-pip-version-check install --quiet --no-deps torchvision==0.28.0
	touch $@

$(VENV)-plan/.done:
	$(PYTHON) -m venv $(VENV)-plan
	$(VENV)-plan/bin/pip --disable-pip-version-check install --quiet -r requirements.txt 'libtpu==0.0.42.*'
	$(VENV)-plan/bin/pip --disable-pip-version-check install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-transformers-4 $(VENV)-plan
