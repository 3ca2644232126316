# Every target needs only Python 3.11 or newer and a C compiler (pyradiomics, the reference of the tests, is compiled):
# it makes .venv and installs what it needs, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
READY_GPU := $(VENV)/.ready-gpu
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO   := demo
BENCH  := build/bench
SIZE   ?= small
RATIOS := benchmarks/test_end_to_end.py 'benchmarks/test_forward.py::test_forward[ct-0]' \
	benchmarks/test_cold_start.py::test_imports_of_a_first_answer \
	benchmarks/test_preparing.py::test_preparing_a_full_size_ct \
	benchmarks/test_auto.py

.PHONY: help setup hooks demo test check lint pytest docs test-slow test-gpu bench bench-ci bench-gpu faults fuzz paper-size clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/' | expand -t 20

setup: $(READY)  ## make .venv and install everything that needs no GPU

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tmi needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time) ..."
	# pyradiomics 3.0.1, which only tests need, is compiled against the installed numpy, so numpy comes first
	$(PIP) -c constraints.txt numpy setuptools wheel versioneer
	$(PIP) -c constraints.txt --no-build-isolation pyradiomics==3.0.1
	$(PIP) -c constraints.txt -e '.[all,dev,docs]'
	touch $(READY)

hooks: $(READY)  ## run the linters at every commit (pre-commit, from .venv)
	$(BIN)/pre-commit install

demo: $(READY)  ## synthetic cohort -> 3 fold models -> bundle -> predictions and a report of held-out cases
	$(BIN)/tmi synth $(DEMO)/cohort --cases 96 --seed 1 --force
	$(BIN)/tmi synth $(DEMO)/held-out --cases 24 --seed 2 --force
	$(BIN)/tmi train $(DEMO)/cohort --out $(DEMO)/run --preset tiny --set ct.shape_DHW=[16,32,32] --folds 3 --parallel-folds 2 --force
	$(BIN)/tmi export $(DEMO)/run --engine onnx --out $(DEMO)/bundle --force
	$(BIN)/tmi predict $(DEMO)/held-out --bundle $(DEMO)/bundle --batch 2 -o $(DEMO)/predictions.json --force
	$(BIN)/tmi report $(DEMO)/held-out/syn2-0001 --bundle $(DEMO)/bundle --out $(DEMO)/report --quick --force
	@echo
	@$(BIN)/python .ci/demo_summary.py $(DEMO)/predictions.json $(DEMO)/held-out
	@echo
	@echo "synthetic cohort  $(DEMO)/cohort        (truth in $(DEMO)/cohort/truth.json)"
	@echo "held-out cases    $(DEMO)/held-out"
	@echo "run               $(DEMO)/run           (metrics in $(DEMO)/run/summary.md)"
	@echo "bundle            $(DEMO)/bundle        (evidence in $(DEMO)/bundle/manifest.json)"
	@echo "predictions       $(DEMO)/predictions.json"
	@echo "report            $(DEMO)/report/index.html"
	@echo "next              tmi serve $(DEMO)/bundle; tmi report CASE --bundle $(DEMO)/bundle"

test: lint pytest  ## ruff, strict mypy, import-linter, pytest (LONG=1: with the tests marked long, as CI runs them)

check: test docs  ## tests and documentation; LONG=1: everything that a change must pass

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One worker a core, at most 4: each loads torch and builds its own fixtures (up to 2 GB). A file stays with one worker.
pytest: $(READY)
	$(BIN)/python -m pytest -m "$(if $(LONG),,not long and )not slow and not gpu" -n logical --maxprocesses 4 --dist loadfile -p no:benchmark

docs: $(READY)  ## the documentation as a site in build/site; fails on a dead link
	$(BIN)/python .ci/stage_docs.py build/docs
	$(BIN)/zensical build --clean --strict

test-slow: $(READY)  ## the tests that are too heavy for the default run
	$(BIN)/python -m pytest -m slow

$(READY_GPU): $(READY)
	@echo "installing TensorRT into $(VENV) (gigabytes, from PyPI and NVIDIA's own index) ..."
	$(PIP) -c constraints.txt -e '.[all,trt,dev,docs]'
	touch $(READY_GPU)

test-gpu: $(READY_GPU)  ## the tests that need an NVIDIA GPU, latency included; installs TensorRT first
	$(BIN)/python -m pytest -m gpu

bench: $(READY)  ## benchmarks, one question a file -> $(BENCH): JSON, a table, a plot (SIZE=paper: full size)
	mkdir -p $(BENCH)
	$(BIN)/python -m pytest benchmarks --benchmark-only --size $(SIZE) -m "not gpu" \
		--benchmark-json=$(BENCH)/benchmarks-$(SIZE).json
	$(BIN)/python benchmarks/report.py $(BENCH)/benchmarks-$(SIZE).json

bench-ci: $(READY)  ## the short form: fails on a broken ratio
	mkdir -p $(BENCH)
	$(BIN)/python -m pytest -q $(RATIOS) --benchmark-only --size small --repeats 5 \
		--benchmark-json=$(BENCH)/ci.json --benchmark-columns=median,rounds
	$(BIN)/python benchmarks/report.py $(BENCH)/ci.json --history $(BENCH)/history.json
	$(BIN)/python benchmarks/report.py $(BENCH)/ci.json --check

bench-gpu: $(READY)  ## compare the engines on an NVIDIA GPU with each other and with eager
	mkdir -p $(BENCH)
	rm -f $(BENCH)/gpu-$(SIZE).json
	$(BIN)/python -m pytest benchmarks -m gpu --benchmark-only --size $(SIZE) -W "ignore:Not saving anything" \
		--benchmark-json=$(BENCH)/gpu-$(SIZE).json
	test ! -s $(BENCH)/gpu-$(SIZE).json || $(BIN)/python benchmarks/report.py $(BENCH)/gpu-$(SIZE).json

faults: $(READY)  ## plant every known fault and check that it is blocked; export ten valid models
	$(BIN)/python benchmarks/planted_faults.py

fuzz: $(READY)  ## 20,000 mutants over every reader (FUZZ_ARGS: other options of benchmarks/fuzz.py)
	$(BIN)/python benchmarks/fuzz.py $(FUZZ_ARGS)

paper-size: $(READY)  ## the full-size preset with random weights: export, predict a real case, time and memory
	$(BIN)/python benchmarks/paper_size.py

clean:  ## remove .venv and the demo
	rm -rf $(VENV) $(DEMO)
