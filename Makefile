# Everything that a checkout needs; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo run report test test-kills test-stock test-gpu notebooks check format bench controls wheel-check bench-sweep pretrain clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[dev]'
	touch $(STAMP)

install: $(STAMP)  ## install t5ts and its development tools into .venv

DEMO := multirun/demo-$(shell date +%Y-%m-%d_%H-%M-%S)
CONTROL := init=run,random,matched seed=0,1,2,3 init.path=$(DEMO)/donor
demo: $(STAMP)  ## install, then two small studies on packaged data, offline (under 2 minutes)
	@printf '\n1. Can t5ts say yes? An encoder learns a synthetic process, then meets a short series of the same process.\n'
	$(BIN)/python -m t5ts.run experiment=donor train.epochs=1 train.threads=1 hydra.run.dir=$(DEMO)/donor
	$(BIN)/python -m t5ts.run --multirun experiment=positive_control train.epochs=1 $(CONTROL) hydra.sweep.dir=$(DEMO)/control
	$(BIN)/python -m t5ts.report $(DEMO)/control
	@printf "\n2. Does T5's text pretraining help on packaged hourly weather?\n"
	$(BIN)/python -m t5ts.run --multirun experiment=demo init=t5,random seed=0,1,2 hydra.sweep.dir=$(DEMO)/weather
	$(BIN)/python -m t5ts.report $(DEMO)/weather
	@printf '\nThe two answers (1. the control, 2. the weather):\n\n'
	@grep -m1 '^\*\*' $(DEMO)/control/report/report.md $(DEMO)/weather/report/report.md
	@printf '\nNext, on your own table: $(BIN)/python -m t5ts.run data=csv data.path=FILE backbone=t5_tiny_en init=t5\n'

run: $(STAMP)  ## a run of your own: make run ARGS="init=t5 freeze=staged"
	$(BIN)/python -m t5ts.run $(ARGS)

report: $(STAMP)  ## what run directories show: make report ARGS="multirun/..."
	$(BIN)/python -m t5ts.report $(ARGS)

test: $(STAMP)  ## the tests, offline on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

test-kills: $(STAMP)  ## kills at every write of a run and of a sweep (`make test`: at each kind of write)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m kills $(ARGS)

test-stock: $(STAMP)  ## the tests together with hydra-optuna-sweeper (needs a package index)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m index tests/sweep/test_stock.py $(ARGS)

test-gpu: $(STAMP)  ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

notebooks: $(STAMP)  ## run the notebooks offline; ARGS=--store renews their outputs
	$(BIN)/python scripts/run_notebooks.py $(ARGS)

check: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## speed relative to named peers (installs the bench extra)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.startup

bench-sweep: $(STAMP)  ## what reuse, pruning and workers save in a sweep; killed workers
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.sweep_kills

controls: $(STAMP)  ## do the standing controls come out? writes the record that reports quote (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/run_controls.py $(ARGS)

wheel-check: $(STAMP)  ## build the wheel and run it from an empty folder
	$(BIN)/python scripts/check_wheel.py

PRETRAIN := outputs/pretrain
pretrain: $(STAMP)  ## gather text (needs Debian's apt) and pretrain the packaged T5 again; resumable
	$(BIN)/python -m tools.pretrain.gather_text --out $(PRETRAIN)/text
	$(BIN)/python -m tools.pretrain prepare --work $(PRETRAIN) --text $(PRETRAIN)/text
	$(BIN)/python -m tools.pretrain train --work $(PRETRAIN) $(ARGS)
	$(BIN)/python -m tools.pretrain evaluate --work $(PRETRAIN)
	$(BIN)/python -m tools.pretrain export --work $(PRETRAIN) --out $(PRETRAIN)/t5_tiny_en

clean:  ## remove the environment and what was built
	rm -rf $(VENV) dist build
