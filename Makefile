# capsmith: `make quickstart` shows the whole product, `make help` lists what else there is. Needs Python 3.11+ and PyPI.

PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart help check test test-oldest soak pretrain-tiny gpu-wheels

quickstart: .venv/installed ## Fine-tunes, captions and measures on the built-in pictures, in some minutes.
	.venv/bin/capsmith quickstart --output runs/quickstart

help: ## Lists these targets.
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1\t\2/p' Makefile | expand -t 16

check: .venv/installed-test ## Looks for faults in the code without running it, and for lines that stand in two places.
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check --quiet
	.venv/bin/python tests/doubles.py
	.venv/bin/python -m pyright

test: .venv/installed-test ## Runs the whole suite on all cores.
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --dist loadfile $(PYTEST_FLAGS)

# The suite with the least versions that pyproject.toml names, in an environment of their own (several GB); for Python 3.11 or 3.12.
test-oldest: .venv-oldest/installed ## Runs the suite with the oldest versions that are supported.
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses auto --dist loadfile $(PYTEST_FLAGS)

# The long forms of what the suite samples: faults in generation, damaged input.
soak: .venv/installed-test ## Runs the long forms of the tests with faults and damaged input.
	CAPSMITH_FAULTS=1000 CAPSMITH_FUZZ=10000 .venv/bin/python -m pytest tests/faults tests/captioners/test_fuzz_replies.py \
		tests/test_fuzz_configs.py tests/imagetext/test_fuzz.py tests/imagetext/test_fuzz_reinforced.py $(PYTEST_FLAGS)

# The weights shipped in captioners/models/coca_tiny: seeded, at most 90 minutes on 2 cores.
pretrain-tiny: .venv/installed ## Trains the built-in captioner anew.
	.venv/bin/python -m finetune.captioner.pretrain_tiny

# What a GPU machine without a package index needs to run benchmarks/gpu (Python 3.12, x86-64), and the peer's packages beside it.
WHEELS = .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	$(foreach glibc,2_28 2_27 2_17 2_5,--platform manylinux_$(glibc)_x86_64) --platform manylinux2014_x86_64
gpu-wheels: .venv/installed ## Collects the packages that benchmarks/gpu needs on a machine without a package index.
	rm -rf .gpu-wheels
	$(WHEELS) --dest .gpu-wheels --requirement benchmarks/gpu/wheels.txt
	$(WHEELS) --dest .gpu-wheels/peer --requirement benchmarks/gpu/peer_wheels.txt
	.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir .gpu-wheels docopt==0.6.2 .
	du -sh .gpu-wheels

# An environment that is there is kept and brought up to date; these stamps say that it was, for this pyproject.toml.
.venv/installed: pyproject.toml
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "installing capsmith and what it needs into .venv (once; some minutes)"
	$(PIP) --editable .
	@touch $@

.venv/installed-test: pyproject.toml .venv/installed
	$(PIP) --editable ".[test]"
	@touch $@

.venv-oldest/installed: pyproject.toml
	@test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --upgrade --editable ".[test]"
	@touch $@
