# The work of every day. `make demo` and `make test` are all that a fresh clone needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint bench bench-operators bench-compare gpu clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

# pip, as it takes wheels from PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL, such as a CPU build of torch.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

# The oldest supported Triton, beside the installed one; the compile matrix runs with both.
$(VENV)/triton-3.6/.installed: | $(VENV)/.installed
	if [ "$$(uname)" = Linux ]; then $(BIN)/python -m pip install --quiet --no-deps \
		--target $(@D) 'triton==3.6.*'; else mkdir -p $(@D); fi
	touch $@

demo: $(VENV)/.installed  ## install, generate with two overlapped stages and int8 KV, check parity
	$(BIN)/lamella generate --stages 2 --mode overlapped --kv-dtype int8 --temperature 0.6 \
		--max-new-tokens 40 --prompts-file model/bundled/prompts.txt
	$(BIN)/lamella parity --stages 2 --mode overlapped --kv-dtype int8

test: $(VENV)/.installed-dev $(VENV)/triton-3.6/.installed  ## install what is needed and run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed-dev  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev  ## decode against transformers (minutes, 8 GB of memory); ARGS="..."
	$(BIN)/python -m tests.bench.decode $(ARGS)

# Figures stand for one device, torch and Triton version; each has a folder of its own.
DEVICE ?= cpu
BOUND ?= 10
TIMED = $(BIN)/python -m pytest tests/bench/test_operators.py -m bench --device $(DEVICE) \
	-p no:cacheprovider --benchmark-columns=median,iqr,rounds --benchmark-group-by=group \
	--benchmark-storage=file://$$($(BIN)/python -m tests.bench.storage $(DEVICE))

bench-operators: $(VENV)/.installed-dev  ## time operators, store a baseline; DEVICE=cuda, ARGS="-k ..."
	$(TIMED) --benchmark-autosave $(ARGS)

bench-compare: $(VENV)/.installed-dev  ## fail if a median is BOUND=10 percent past the last baseline
	$(TIMED) --benchmark-compare --benchmark-compare-fail=median:$(BOUND)% $(ARGS)

gpu:  ## ten minutes on a GPU: check, tune, time, test; ARGS="--minutes 10"
	$(or $(wildcard $(BIN)/python),$(PYTHON)) scripts/gpu.py $(ARGS)

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
