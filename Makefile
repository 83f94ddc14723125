# course: set up, then run the whole course.  lab: set up, then open it.  test: set up, lint, all tests.
# PYTHON picks the interpreter (3.11 to 3.13); TORCH_INDEX an index to take torch from, e.g. PyTorch's of CPU builds.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.PHONY: course lab test faults fma-small fma-large notebooks screenshots clean

course: .venv/ready
	$(BIN)/python -m colalib course

lab: .venv/ready
	$(BIN)/jupyter lab --ServerApp.root_dir=. notebooks/01_sound_to_mel.ipynb

test: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

# hundreds of damaged files and tables, and kills at random moments; a sample of each is in `test`
faults: .venv/ready-test
	COLA_FAULTS=all $(BIN)/python -m pytest tests/test_faults.py -rP

# FMA (arXiv 1612.01840), fetched to DATA: pre-train on fma_large (fma-small: on fma_small itself), compare on fma_small
DATA ?= data
FMA = --arch b0 --batch-size 1024 --lr 1e-3 --epochs 100 --resume
fma-small fma-large: fma-%: .venv/ready
	for c in fma_small fma_$*; do \
	  $(BIN)/python -m colalib fetch $$c --licence "by track" --data $(DATA) && \
	  $(BIN)/python -m colalib prepare $$c --data $(DATA) --out $(DATA)/$$c.store || exit 1; \
	done
	$(BIN)/python -m colalib pretrain $(DATA)/fma_$*.store --out runs/fma-$* $(FMA)
	$(BIN)/python -m colalib compare $(DATA)/fma_small.store --encoder runs/fma-$* --seeds 5 --out runs/fma-$*/official.json

# for maintainers: sources → notebooks, executed, with their figures
notebooks: .venv/ready
	for f in notebooks/source/*.py; do $(BIN)/jupytext --to ipynb --update -o notebooks/$$(basename $$f .py).ipynb $$f || exit 1; done
	$(BIN)/python -c "import sys; from colalib import course; sys.exit(course.run(publish=True))"

# the README's pictures of the widgets, by the browser tests
screenshots: .venv/ready-test
	COLA_SCREENSHOTS=notebooks/pictures $(BIN)/python -m pytest tests/browser

.venv/made:
	@$(PYTHON) -c "import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else 'Python %d.%d is not supported: use 3.11, 3.12 or 3.13, e.g. make PYTHON=python3.12' % sys.version_info[:2])"
	$(PYTHON) -m venv .venv
ifdef TORCH_INDEX
	$(BIN)/python -m pip install -q -c constraints.txt torch --index-url $(TORCH_INDEX)
endif
	touch $@

.venv/ready: .venv/made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/ready-test: .venv/made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch .venv/ready $@

clean:
	rm -rf .venv runs
