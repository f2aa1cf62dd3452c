# make quickstart: install into .venv, train a small sweep offline, and show it on a page. make test: the tests. make check: all checks.
# make docs: the pages of docs/ as a site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
CODE := sae_sweep tests tools bench docs
PYTEST := $(BIN)/pytest --numprocesses 2 --no-loadscope-reorder

.PHONY: quickstart paper-mini test check lint docs format oracle interop kill-test break-it gpu-check wheel-check clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m sae_sweep experiment=quickstart launcher=local
	$(BIN)/python -m sae_sweep task=analyse sweep=quickstart analysis.tokens=20_000

# The study's 73 SAEs on the bundled model, then its tables and figures: about twenty minutes on 2 cores
paper-mini: $(VENV)/.installed
	$(BIN)/python -m sae_sweep experiment=paper-mini
	$(BIN)/python -m sae_sweep task=report sweep=paper-mini

# Units, and sweeps of a few seconds: all but the tests that say why they are slow
test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

# The pages and mypy take one core each
check: $(VENV)/.dev
	$(MAKE) --jobs 2 --output-sync docs lint
	$(PYTEST) --cov --cov-report=term

lint: $(VENV)/.dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages of docs/, in docs/_build/index.html; a broken link is an error
docs: $(VENV)/.dev
	PYTHONPATH=$(CURDIR) $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# torch first and alone, so that pip takes a CPU build if it finds one. pip would compile on one core; compileall
# uses all, and fails at files that are templates or for another Python
define install
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile torch
	$(PIP) --no-compile --editable '$(1)'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $(VENV)/.installed
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,.)

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	touch $@

# Compare exported SAEs with the real SAELens, in a separate environment
oracle: $(VENV)/.dev $(VENV)-saelens/.installed $(VENV)-foreign/.installed
	SAELENS_PYTHON=$(CURDIR)/$(VENV)-saelens/bin/python $(BIN)/pytest tests/saes/test_saelens_oracle.py
	FOREIGN_PYTHON=$(CURDIR)/$(VENV)-foreign/bin/python $(BIN)/pytest tests/saes/test_foreign_oracle.py

$(VENV)-saelens/.installed:
	$(PYTHON) -m venv $(VENV)-saelens
	$(VENV)-saelens/bin/pip install --quiet torch==2.13.0
	$(VENV)-saelens/bin/pip install --quiet 'sae-lens>=6,<7'
	touch $@

$(VENV)-foreign/.installed:
	$(PYTHON) -m venv $(VENV)-foreign
	$(VENV)-foreign/bin/pip install --quiet torch==2.13.0
	$(VENV)-foreign/bin/pip install --quiet eai-sparsify==1.3.3 dictionary-learning==0.1.0
	touch $@

# What SAELens, SAEBench, sae-probes and Delphi make of what is published and exported, each in its own environment
interop: $(VENV)/.dev $(VENV)-saebench/.installed $(VENV)-saeprobes/.installed $(VENV)-delphi/.installed
	SAEBENCH_PYTHON=$(CURDIR)/$(VENV)-saebench/bin/python SAEPROBES_PYTHON=$(CURDIR)/$(VENV)-saeprobes/bin/python \
	  DELPHI_PYTHON=$(CURDIR)/$(VENV)-delphi/bin/python $(BIN)/pytest tests/e2e/test_interop_oracle.py

# torchvision is among its requirements and never imported; beside a CPU build of torch it stops other imports
$(VENV)-saebench/.installed:
	$(PYTHON) -m venv $(VENV)-saebench
	$(VENV)-saebench/bin/pip install --quiet torch==2.13.0
	$(VENV)-saebench/bin/pip install --quiet torch==2.13.0 torchvision==0.28.0 sae-bench==0.6.0
	$(VENV)-saebench/bin/pip uninstall --quiet --yes torchvision
	touch $@

$(VENV)-saeprobes/.installed:
	$(PYTHON) -m venv $(VENV)-saeprobes
	$(VENV)-saeprobes/bin/pip install --quiet torch==2.13.0
	$(VENV)-saeprobes/bin/pip install --quiet torch==2.13.0 sae-probes==0.4.2
	touch $@

# Delphi without vllm and bitsandbytes, which run its explainers on GPUs
$(VENV)-delphi/.installed:
	$(PYTHON) -m venv $(VENV)-delphi
	$(VENV)-delphi/bin/pip install --quiet torch==2.13.0
	$(VENV)-delphi/bin/pip install --quiet torch==2.13.0 asyncer blobfile datasets faiss-cpu jaxtyping orjson \
	  safetensors sentence_transformers simple_parsing transformers
	$(VENV)-delphi/bin/pip install --quiet --no-deps eai-delphi==0.1.3
	touch $@

# Kill a sweep at 30 random moments and launch it again: weights must equal those of an undisturbed one
kill-test: $(VENV)/.dev
	$(BIN)/python tools/kill_test.py --kills 30
	$(BIN)/python tools/kill_test.py --kills 30 --launcher local

# What works on this machine's GPU, and how fast: at most six minutes; says what it would do where there is none
gpu-check: $(VENV)/.dev
	PYTHONPATH=$(CURDIR) $(BIN)/python tools/gpu_check.py --json gpu-check.json

# Damage, stop, fill up and move small sweeps 3,000 times: about half an hour on 2 cores
break-it: $(VENV)/.dev
	$(BIN)/python tools/break_it.py --trials 3000

# Run the built wheel in an empty environment, from another folder
wheel-check: $(VENV)/.dev
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m build --wheel --outdir dist .
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/pip install --quiet --constraint constraints.txt torch
	$(VENV)-wheel/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	folder=$$(mktemp -d) && cd $$folder && \
	  $(CURDIR)/$(VENV)-wheel/bin/sae-sweep experiment=quickstart tokens=20_000 sweep=wheel-check && \
	  $(CURDIR)/$(VENV)-wheel/bin/sae-sweep task=report sweep=wheel-check && \
	  $(CURDIR)/$(VENV)-wheel/bin/sae-sweep task=plan experiment=paper plan.tflops=1 && rm -rf $$folder
	rm -rf $(VENV)-wheel dist

clean:
	rm -rf $(VENV) $(VENV)-* dist
