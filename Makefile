# `make demo` and `make test` each do everything: create .venv, install the pinned versions, run.
# A second call reinstalls nothing: .venv/.EXTRA is newer than pyproject.toml and constraints.txt.

PYTHON ?= python3
# What pip is asked for first; a build without CUDA: TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch
# Files of tests that run at a time; each takes the threads of two cores, but many wait for Slurm.
TEST_PROCESSES ?= 2
BIN := .venv/bin

.PHONY: help demo test check fuzz format settings golden bench quality clean
help:
	@echo "make demo    folder of images -> shards -> MAE -> k-NN and linear probe (about 10 minutes)"
	@echo "make test    all tests"
	@echo "make check   formatting, lint, types, architecture"
	@echo "make fuzz    a minute of damaged and hostile bytes (benchmarks/fuzz.py)"
	@echo "make format  let ruff rewrite the files"
	@echo "make settings rewrite docs/settings.md from the configs"
	@echo "make golden  rewrite tests/golden (say why in the commit)"
	@echo "make bench   the benchmarks of docs/benchmarks.md"
	@echo "make quality how good the recipes become on this machine: 40 minutes a run"

.venv/.created:
	@$(PYTHON) .ci/make_venv.py .venv
	@touch $@

# torch first and alone: with it in place no other package can pull a second build of it.
.venv/.torch: .venv/.created constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH)
	@touch $@

.venv/.%: .venv/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$*]"
	@touch $@

demo: .venv/.demo
	$(BIN)/ssl-vit demo

test: .venv/.dev
	$(BIN)/python -m pytest tests -n $(TEST_PROCESSES)

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_architecture.py

fuzz: .venv/.dev
	$(BIN)/python benchmarks/fuzz.py --seconds 60

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

settings: .venv/.dev
	$(BIN)/python -m docs.settings_page

golden: .venv/.dev
	$(BIN)/python -m tests.golden.write $(RECIPES)

bench: .venv/.bench
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/data_loading.py
	$(BIN)/python benchmarks/engine.py

quality: .venv/.bench
	$(BIN)/python benchmarks/quality.py

clean:
	rm -rf .venv demo dist
