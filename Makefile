# course: set up, then run the whole course.  lab: set up, then open it.
# test: set up, lint, all tests.  check: the same without the slow tests, in a few minutes.
# PYTHON picks the interpreter (3.11 to 3.13). TORCH_INDEX is the index to take torch from; empty: pip's default.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
SYSTEM := $(shell uname -s)
NVIDIA := $(wildcard /proc/driver/nvidia)$(shell command -v nvidia-smi 2> /dev/null)
endif

# Linux without an NVIDIA driver: torch's CPU build, gigabytes smaller, if its index answers within 5 seconds
CPU_INDEX = https://download.pytorch.org/whl/cpu
ifeq ($(origin TORCH_INDEX) $(SYSTEM)$(NVIDIA),undefined Linux)
ASK = timeout 5 $(BIN)/python -c "import urllib.request; urllib.request.urlopen('$(CPU_INDEX)/torch/')" 2> /dev/null
TORCH_INDEX = $(shell $(ASK) && echo $(CPU_INDEX) || echo "$(CPU_INDEX) cannot be reached" >&2)
endif

.PHONY: course site lab check test faults fma-small fma-large notebooks screenshots clean

course: .venv/ready
	$(BIN)/python -m colalib course

# the executed course as a static site in site/
site: .venv/ready
	$(BIN)/python -m colalib site

lab: .venv/ready
	$(BIN)/python -m colalib lab

check: FAST = -m "not slow and not browser"
# two processes with two threads each would wait for each other
check test: export OMP_NUM_THREADS = 1
check test: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(FAST)

# hundreds of damaged files, tables, runs and lists, and kills at random moments; a sample of each is in `test`
faults: .venv/ready-test
	COLA_FAULTS=all $(BIN)/python -m pytest tests/test_faults.py tests/test_damage.py -rP

# FMA (arXiv 1612.01840), fetched to DATA: pre-train on fma_large (fma-small: on fma_small itself), compare on fma_small
DATA ?= data
FMA = --arch b0 --batch-size 1024 --lr 1e-3 --epochs 100 --resume
fma-small fma-large: fma-%: .venv/ready
	for c in fma_small fma_$*; do \
	  $(BIN)/python -m colalib fetch $$c --licence "by track" --data '$(DATA)' && \
	  $(BIN)/python -m colalib prepare $$c --data '$(DATA)' --out '$(DATA)'/$$c.store || exit 1; \
	done
	$(BIN)/python -m colalib pretrain '$(DATA)'/fma_$*.store --out runs/fma-$* $(FMA)
	$(BIN)/python -m colalib compare '$(DATA)'/fma_small.store --encoder runs/fma-$* --seeds 5 --out runs/fma-$*/official.json

# for maintainers: sources → notebooks, executed, with their figures
notebooks: .venv/ready
	for f in notebooks/source/*.py; do $(BIN)/jupytext --to ipynb --update -o notebooks/$$(basename $$f .py).ipynb $$f || exit 1; done
	$(BIN)/python -c "import sys; from colalib import course; sys.exit(course.run(publish=True))"

# the README's pictures of the widgets, by the browser tests, which then execute the course in profile quick
screenshots: .venv/ready-test
	COLA_SCREENSHOTS=notebooks/pictures $(BIN)/python -m pytest tests/browser

.venv/made:
	@$(PYTHON) -c "import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else 'Python %d.%d is not supported: use 3.11, 3.12 or 3.13, e.g. make PYTHON=python3.12' % sys.version_info[:2])"
	$(PYTHON) -m venv .venv
	touch $@

# Only torch comes from that index: what it needs has its pinned versions on the default one. An index that was
# chosen here and has no such torch is passed over; one that was named is not.
.venv/torch: .venv/made constraints.txt
	@index="$(TORCH_INDEX)"; echo "torch: from $${index:-pip's default index}"; [ -z "$$index" ] || \
	  $(BIN)/python -m pip install -q --no-deps -c constraints.txt --index-url "$$index" torch || \
	  { [ $(origin TORCH_INDEX) = file ] && echo "torch: not there, so from pip's default index"; }
	@touch $@

# what these two compile when they are first imported, for most of a minute, lies then beside their code
COMPILE = $(BIN)/python -c "import librosa.feature.inverse, umap"

.venv/ready: .venv/torch pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	$(COMPILE)
	touch $@

.venv/ready-test: .venv/torch pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	$(COMPILE)
	touch .venv/ready $@

# removes the environment only: trained runs stay
clean:
	rm -rf .venv
