# Everything runs in .venv, which these targets make. PYTHON names the interpreter to make it with.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The tests' models are too small to share: a second thread would only wait for the first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# make setup             makes .venv, with all that the other targets need
# make train             trains a small language model: examples/causal_lm.py $(ARGS)
# make test-quick        PyTorch's tests without those marked slow, in two processes; for daily work
# make test              ruff, and the tests of the three backends, two processes at a time
# make test-torch        the tests of one backend; also test-jax, test-tensorflow. ARGS goes to
#                        pytest: make test-jax ARGS="tests/losses -k focal"
# make lint              ruff
# make docs              the site, in site/
# make clean             removes what these targets have made

# Folders whose quick tests take about as long as all others.
HALF := tests/backend tests/models tests/training

.PHONY: setup train test test-quick test-quick-1 test-quick-2 test-slow test-torch test-jax \
	test-tensorflow lint docs clean

setup: .venv/test.installed

train: .venv/train.installed
	$(BIN)/python examples/causal_lm.py $(ARGS)

# Two at a time, each on a core of its own, the longest first; what one prints comes when it ends.
test: lint
	$(MAKE) -j2 --keep-going --output-sync=target \
		test-slow test-tensorflow test-jax test-quick-1 test-quick-2

test-quick: .venv/test.installed
	$(MAKE) -j2 --keep-going --output-sync=target test-quick-1 test-quick-2

# Doctests and README's programs included; quick and slow are its two parts.
test-torch test-quick-1 test-quick-2 test-slow: .venv/test.installed
	KERAS_BACKEND=torch $(PYTEST) $(MARKED) $(ARGS)

test-quick-1: MARKED := -m "not slow" $(HALF)
test-quick-2: MARKED := -m "not slow" $(HALF:%=--ignore=%)
test-slow: MARKED := -m slow

# What is about PyTorch's tensors, or about no backend, is not among these.
test-jax test-tensorflow: test-%: .venv/test.installed
	KERAS_BACKEND=$* TF_CPP_MIN_LOG_LEVEL=3 $(PYTEST) tests $(ARGS)

lint: .venv/test.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The site. Guides are not run: what they print stands in their files.
docs: .venv/docs.installed
	$(BIN)/python docs/pages.py build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Open site/index.html"

.venv/%.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e ".[$(EXTRAS)]"
	$(if $(MORE),$(INSTALL) --no-deps $(MORE))
	touch $@

.venv/train.installed: EXTRAS := examples
.venv/test.installed: EXTRAS := dev
# keras-hub declares tensorflow-text, which its models do not need.
.venv/test.installed: MORE := keras-hub
.venv/docs.installed: EXTRAS := docs

clean:
	rm -rf .venv .pytest_cache build runs site
