# Everything runs in .venv, which these targets make. PYTHON names the interpreter to make it with.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The tests' models are too small to share: a second thread would only wait for the first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: train test test-torch test-jax test-tensorflow lint docs clean

train: .venv/train.installed
	$(BIN)/python examples/causal_lm.py $(ARGS)

# Two suites at a time, each on a core of its own; what a suite prints comes when it is over.
test: lint
	$(MAKE) -j2 --keep-going --output-sync=target test-torch test-jax test-tensorflow

# The whole suite, doctests and README's programs included.
test-torch: .venv/test.installed
	KERAS_BACKEND=torch $(PYTEST) $(ARGS)

# The part of it that is not about torch tensors.
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
	touch $@

.venv/train.installed: EXTRAS := examples
.venv/test.installed: EXTRAS := dev
.venv/docs.installed: EXTRAS := docs

clean:
	rm -rf .venv build runs site
