# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
# A process a core, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo study study-smoke test fast lint docs

demo: .venv/ready
	cd selfsup-simclr-cld && ../$(BIN)/python pretrain.py --cfg configs/digits_simclr.yaml
	cd selective_labeling && ../$(BIN)/python usl-cifar.py --cfg configs/digits_usl.yaml
	cd usl-t_pretraining && ../$(BIN)/python mine-neighbors.py --cfg configs/digits_neighbors.yaml
	cd usl-t_pretraining && ../$(BIN)/python usl-t-cifar-pretrain.py --cfg configs/demo_usl-t_pretrain.yaml
	cd selective_labeling && for head in 0 1 2; do \
	  ../$(BIN)/python usl-t-cifar.py --cfg configs/demo_usl-t.yaml --opts USLT.HEAD_IN_USE $$head || exit; \
	done
	cd selective_labeling && ../$(BIN)/python compare.py --cfg configs/demo.yaml

# What choosing is worth: all selectors on all data sets, for hours; the YAML says what it needs.
study: .venv/ready
	cd selective_labeling && ../$(BIN)/python compare.py --cfg configs/study.yaml

# A piece of it that needs nothing.
study-smoke: .venv/ready
	cd selective_labeling && ../$(BIN)/python compare.py --cfg configs/study_smoke.yaml

test: .venv/ready-dev
	$(PYTEST)

# The tests that take less than seconds each.
fast: .venv/ready-dev
	$(PYTEST) -m "not slow"

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The manual, in site/.
docs: .venv/ready-docs
	$(BIN)/mkdocs build --strict

# What the original README says, in an environment of its own.
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

.venv/ready-docs: .venv/ready
	$(BIN)/pip install --quiet -e ".[docs]"
	touch $@
