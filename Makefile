# Each verb makes what it needs; the second call finds it made. PYTHON=python3.12 names an interpreter.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BIN := .venv/bin
# torch lives apart, so that what processes frames is tested without it.
LEARN := .venv-learn/bin
ARGS :=
# Tests that compute run beside each other; those with cameras, services and clocks run alone.
AT_ONCE := 3
COMPUTING := tests/house tests/infer tests/learn tests/quality
WAITING := tests/acquire tests/service
# To collect the others in every process takes longer than many of these do.
LEARNING = $(sort $(shell grep -rl --include='test_*.py' pytest.mark.learn tests))
# ARGS may choose tests of the one kind and none of the other, which pytest calls 5.
NONE = $(if $(ARGS),[ $$? -eq 5 ],false)

.NOTPARALLEL:
.PHONY: help demo test test-slow test-learn lint types docs-check bench model pins clean base dev learn

help: ## Say what each verb does
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

base:
	@tools/setup base .venv

dev:
	@tools/setup dev .venv

learn:
	@tools/setup learn .venv-learn

demo: base ## Simulate a run of 60 frames and process it
	@rm -rf demo/run
	$(BIN)/segbatch simulate demo/run --frames 60 --seed 1
	$(BIN)/segbatch process demo/run

test: dev ## Run the tests, without those that take minutes
	$(BIN)/pytest -m "not slow" -n $(AT_ONCE) --dist loadfile $(COMPUTING) $(ARGS) || $(NONE)
	$(BIN)/pytest -m "not slow" $(WAITING) $(ARGS) || $(NONE)

test-slow: dev ## Run the tests that take minutes
	$(BIN)/pytest -m slow $(ARGS)

# Threads of torch wait by spinning: beside each other they take three times the processor time.
test-learn: learn ## Run the tests that need torch
	OMP_NUM_THREADS=1 $(LEARN)/pytest -m learn -n $(AT_ONCE) --dist worksteal \
		$(if $(findstring tests/,$(ARGS)),,$(LEARNING)) $(ARGS)

lint: dev ## Check style, format and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: learn ## Check the types
	$(LEARN)/mypy

docs-check: dev ## Run the code blocks and follow the links of the documents
	$(BIN)/pytest tests/house/test_documents.py $(ARGS)

bench: learn ## Time segbatch beside others, on this machine (takes long)
	$(LEARN)/python bench/throughput.py $(ARGS)

model: learn ## Train the shipped network again (takes long)
	$(LEARN)/python bench/make_model.py $(ARGS)

pins: ## Move the pinned versions to the newest
	tools/pin

clean: ## Remove what the verbs made
	rm -rf .venv .venv-learn demo build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
