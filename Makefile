# Each target sets everything up in .venv from nothing.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.complete
DEMO_OUT ?= demo
# Containers often forbid Python to keep bytecode; every process would then compile PyTorch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow lint benchmarks clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[demo,deid,dimse,grappa,noncartesian,serve,serve-ray,twix,test]'
	touch $(SETUP)

demo: $(SETUP)
	$(BIN)/core-mri demo --out $(DEMO_OUT)

test: $(SETUP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(SETUP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

benchmarks: $(SETUP)
	for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv demo
