# Every command that this project has. `make help` lists them.
#
# The Python tools live in a virtual environment of their own (VENV), made and kept up to date here; stamp files in it
# say what has been done, so that a second `make test` installs nothing and compiles only what changed.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
TORCH ?= 1
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
PYTEST_ARGS ?=
GENMC ?=
ASAN_TESTS ?= tests
FUZZ_SECONDS ?= 600
# Those that build programs of their own, or none at all, reach nothing that counts.
COVERAGE_TESTS ?= $(filter-out $(addprefix tests/test_,crash.py lint.py docs.py readme.py typing.py demo.py examples.py fuzz.py soak.py model.py),\
	$(sort $(wildcard tests/test_*.py)))
BENCH_ARGS ?=
SOAK_ARGS ?=
EXAMPLES ?= 2200

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.stamp
PYVER := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3] + sys.abiflags)' 2>/dev/null)
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint $(STAMP)-constraints
SUBMAKE = $(MAKE) --no-print-directory
# Inside a parallel make the jobs are already shared out.
CJOBS = $(if $(findstring -j,$(MAKEFLAGS)),,-j$(JOBS))

CSOURCES := $(wildcard csrc/*.c csrc/*.h)
CYSOURCES := $(wildcard shmtensor/*.pyx shmtensor/*.px[di])
CFORMATTED := $(CSOURCES) $(wildcard $(addsuffix /*.[ch],tests/c tests/fuzz tests/soak model/weak))

.DELETE_ON_ERROR:
.PHONY: help env build demo examples test test-c test-py test-proofs test-others coverage stateful asan tsan fuzz soak soak-mutants model weak lint types docs format \
	bench wheel sdist clean distclean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Variables, with what they are now:"
	@echo "  PYTHON=$(PYTHON)  the interpreter that VENV is made from"
	@echo "  VENV=$(VENV)  the virtual environment"
	@echo "  CONSTRAINTS=$(CONSTRAINTS)  versions for every install"
	@echo "  TORCH=$(TORCH)  0 leaves torch out; the tests that need it are then skipped"
	@echo "  GENMC=$(GENMC)  the model checker for make weak; found on the PATH as genmc otherwise"
	@echo "  PYTEST_ARGS, ASAN_TESTS, COVERAGE_TESTS, BENCH_ARGS, FUZZ_SECONDS, SOAK_ARGS, JOBS"
	@echo "  COMPILERS, VARIANTS, TESTS (see tests/c/Makefile)"

# ---- The environment --------------------------------------------------------------------------------------------

# Another PYTHON gives another stamp, and a VENV that was made here (own) is made anew. One that was here before is
# used as it is, and never removed.
$(STAMP)-python-$(PYVER):
	@test -n "$(PYVER)" || { echo "make: '$(PYTHON)' does not run; set PYTHON=" >&2; exit 1; }
	@if test ! -e $(VENV) || test -e $(STAMP)-own; then \
		echo "Creating $(VENV) with Python $(PYVER)"; \
		mkdir -p $(VENV) && touch $(STAMP)-own && $(PYTHON) -m venv --clear $(VENV) && touch $(STAMP)-own; \
	elif ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "make: $(VENV) exists but has no pip; remove it or set VENV=" >&2; exit 1; fi
	@touch $@

$(STAMP)-constraints: $(CONSTRAINTS) $(STAMP)-python-$(PYVER) FORCE
	@cmp -s $(CONSTRAINTS) $@ || cp $(CONSTRAINTS) $@

# pip 25.1 is the first that reads dependency groups. A new environment also needs a new editable install.
$(STAMP)-dev: pyproject.toml $(STAMP)-constraints
	@echo "Installing the development tools into $(VENV)"
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) --group dev
	@rm -f $(STAMP)-editable
	@touch $@

# torch has no build for some interpreters and platforms; everything but shmtensor.data works without it.
$(STAMP)-torch-1: $(STAMP)-dev
	@echo "Installing torch into $(VENV)"
	@if $(PIP) torch; then touch $@; else \
		echo "torch could not be installed for Python $(PYVER) (pip's reason is above)."; \
		echo "Going on without it: the tests that need torch will be skipped. TORCH=0 skips this attempt."; fi

$(STAMP)-torch-0: $(STAMP)-dev
	@echo "TORCH=0: torch is not installed; unless it already was, the tests that need it will be skipped"

# The first time an editable install, which compiles everything; after that only what changed.
$(STAMP)-build: setup.py $(CSOURCES) $(CYSOURCES) $(STAMP)-dev
	@echo "Building the extension modules"
	@if test -e $(STAMP)-editable; then $(BIN)/python setup.py --quiet build_ext --inplace; \
	else $(PIP) --no-build-isolation --editable '.[demo]' && touch $(STAMP)-editable; fi
	@touch $@

$(STAMP)-bench: $(STAMP)-dev | $(STAMP)-build
	@$(PIP) --no-build-isolation --editable '.[bench]'
	@touch $@

$(STAMP)-docs: $(STAMP)-dev
	@$(PIP) --group docs
	@touch $@

env: $(STAMP)-dev $(STAMP)-torch-$(TORCH) ## make the virtual environment, without building

build: $(STAMP)-build ## compile the extension modules in place (editable install)

# ---- What to run ------------------------------------------------------------------------------------------------

demo: $(STAMP)-build $(STAMP)-torch-$(TORCH) ## the demonstration, on real photographs (DEMO_ARGS="--workers 2")
	@$(BIN)/python -m shmtensor demo $(DEMO_ARGS)

examples: $(STAMP)-build $(STAMP)-torch-$(TORCH) ## the examples of DataLoader, one after the other
	@for name in image_folder text_batches stream train; do \
		echo "examples/$$name.py:" && $(BIN)/python examples/$$name.py || exit 1; done
	@echo "examples/torchrun_gloo.py:"
	@OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc_per_node=2 examples/torchrun_gloo.py

test: ## everything: lint, types, C tests (plain and under sanitizers), Python tests
	+@$(SUBMAKE) lint
	+@$(SUBMAKE) -j3 test-proofs test-others

# Two at a time, as most of these tests keep one core busy. The first says all that it has to say at its end. Tests
# that run make themselves are to have all of a make's jobs, and not to look for ours.
PROOFS := $(addprefix tests/test_,crash.py fuzz.py model.py typing.py weak.py)
test-proofs: $(STAMP)-build $(STAMP)-torch-$(TORCH)
	@mkdir -p build
	+@{ $(SUBMAKE) test-c && \
		$(if $(PYTEST_ARGS),true,MAKEFLAGS= $(BIN)/python -m pytest -p no:cacheprovider $(PROOFS)); } >build/proofs.log 2>&1; \
		rc=$$?; echo; cat build/proofs.log; exit $$rc
test-others: $(STAMP)-build $(STAMP)-torch-$(TORCH)
	@MAKEFLAGS= $(BIN)/python -m pytest $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(addprefix --ignore=,$(PROOFS)))

test-c: ## the C tests with gcc and clang: plain, ASan + UBSan, TSan
	+@$(SUBMAKE) -f tests/c/Makefile $(CJOBS) test

test-py: $(STAMP)-build $(STAMP)-torch-$(TORCH) ## the Python tests (PYTEST_ARGS="-k name -x")
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

stateful: $(STAMP)-build $(STAMP)-torch-$(TORCH) ## 10^5 random steps beside a model of the slots; many minutes (EXAMPLES=500)
	@SHMTENSOR_STATEFUL_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -s -o timeout=0 -o faulthandler_timeout=0 tests/test_stateful.py

weak: $(STAMP)-build ## the memory orders, by GenMC where it is installed (GENMC=path)
	@GENMC="$(GENMC)" $(BIN)/python -m pytest -rs tests/test_weak.py $(PYTEST_ARGS)

# Run from the build folder, so that children which import from the current directory get the checked build as well.
asan: ASANLIB = $(CURDIR)/build/asan/lib
asan: $(STAMP)-build $(STAMP)-torch-$(TORCH) ## the C tests and ASAN_TESTS of the Python tests under ASan + UBSan
	+@$(SUBMAKE) -f tests/c/Makefile $(CJOBS) test VARIANTS=asan
	@CC=gcc LDSHARED="gcc -shared" SHMTENSOR_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build \
		--build-base build/asan --build-lib $(ASANLIB)
	@cd $(ASANLIB) && export LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		PYTHONMALLOC=malloc PYTHONPATH=$(ASANLIB) && \
	$(BIN)/python -c 'import shmtensor._core as c; assert "build/asan" in c.__file__, c.__file__' && \
	$(BIN)/python -m pytest -p no:cacheprovider -o timeout=0 -o faulthandler_timeout=0 -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) \
		$(addprefix $(CURDIR)/,$(ASAN_TESTS)) $(PYTEST_ARGS)

# Run from the build folder, as asan is. sitecustomize.py in tests/coverage makes forked children count.
coverage: COVLIB = $(CURDIR)/build/coverage/lib
coverage: $(STAMP)-build $(STAMP)-torch-$(TORCH) ## branch coverage of csrc by C and Python tests; names each gap
	@if test -d build; then find build -name '*.gcda' -delete; fi
	+@$(SUBMAKE) -f tests/c/Makefile $(CJOBS) test COMPILERS=gcc VARIANTS=coverage
	@CC=gcc LDSHARED="gcc -shared" SHMTENSOR_COVERAGE=1 $(BIN)/python setup.py --quiet build \
		--build-base build/coverage --build-lib $(COVLIB)
	@cd $(COVLIB) && export PYTHONPATH=$(COVLIB):$(CURDIR)/tests/coverage && \
	$(BIN)/python -c 'import shmtensor._core as c; assert "build/coverage" in c.__file__, c.__file__' && \
	$(BIN)/python -m pytest -p no:cacheprovider -o timeout=0 -o faulthandler_timeout=0 -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) \
		$(addprefix $(CURDIR)/,$(COVERAGE_TESTS)) $(PYTEST_ARGS)
	@$(BIN)/python tests/coverage/report.py build/c/gcc-coverage build/coverage

tsan: ## the C tests under TSan
	+@$(SUBMAKE) -f tests/c/Makefile $(CJOBS) test VARIANTS=tsan

fuzz: ## the C core fuzzed by libFuzzer under ASan + UBSan, two targets, FUZZ_SECONDS each; finds stay in build/fuzz
	+@$(SUBMAKE) -f tests/fuzz/Makefile $(CJOBS) fuzz FUZZ_SECONDS=$(FUZZ_SECONDS)

# Amounts are those of tests/soak/__main__.py; about an hour on two idle cores. SOAK_ARGS goes to each part.
soak: $(STAMP)-build ## the long runs: kills, stops, massacres, 10^9 hand-offs (SOAK_ARGS="--seed 7")
	@for part in kills storm recovery stops massacre namespaces long; do \
		$(BIN)/python -m tests.soak $$part $(SOAK_ARGS) || exit 1; done

model: $(STAMP)-dev ## the Spin models in their largest configurations (minutes)
	SHMTENSOR_MODEL=full $(BIN)/python -m pytest tests/test_model.py -q -rs

soak-mutants: $(STAMP)-build ## cores with one mistake each, which the soak must find
	@$(BIN)/python -m tests.soak mutants $(SOAK_ARGS)

lint: types ## ruff, mypy, cython-lint, clang-format: checks only
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	@# PATH: cython-lint looks for pycodestyle there
	$(if $(CYSOURCES),PATH=$(BIN):$$PATH $(BIN)/cython-lint $(CYSOURCES))
	$(if $(CFORMATTED),$(BIN)/clang-format --dry-run -Werror $(CFORMATTED))

types: $(STAMP)-dev ## mypy, strict
	$(BIN)/mypy

# -E: what autodoc reads is compiled, and Sphinx would not notice that it changed.
docs: $(STAMP)-build $(STAMP)-docs ## the documentation as a web site in build/docs; warnings are errors
	@$(BIN)/python -m sphinx -q -E -W --keep-going -b html -d build/docs-cache docs build/docs
	@echo build/docs/index.html

format: $(STAMP)-dev ## let ruff and clang-format rewrite what they can
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format --quiet .
	$(if $(CFORMATTED),$(BIN)/clang-format -i $(CFORMATTED))

# --quick runs each benchmark once and cold: it shows that they all work, its numbers mean little.
bench: $(STAMP)-build $(STAMP)-bench $(STAMP)-torch-$(TORCH) ## every benchmark once, quickly; numbers to quote need asv without --quick
	@cd benchmarks && $(BIN)/asv machine --yes >/dev/null && $(BIN)/asv run --python=same --quick --show-stderr $(BENCH_ARGS)

# LDSHARED: some interpreters were configured with an rpath of their own, which would end up in the wheel.
wheel: $(STAMP)-dev ## a wheel for PYTHON in dist/
	@rm -rf build/lib.* build/bdist.*
	@LDSHARED="$(CC) -shared" CFLAGS=-g0 LDFLAGS=-Wl,-s $(BIN)/python -m pip wheel -qq \
		--disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

sdist: $(STAMP)-dev ## a source distribution in dist/
	@$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' >/dev/null
	@ls dist/*.tar.gz

clean: ## remove what was built, keep VENV
	@rm -rf build dist *.egg-info shmtensor/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find shmtensor tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	@rm -f $(STAMP)-build $(STAMP)-editable

distclean: clean ## remove VENV as well, where it was made here
	@if test -e $(STAMP)-own; then rm -rf $(VENV); fi
