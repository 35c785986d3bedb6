# make demo | test | check | soak | reproduce | table-1 | notebooks | tutorial | scripts | tables. ARGS="--backbone resnet34 ..." adds options.
PYTHON ?= python3
ARGS ?=
ARGS1 ?= $(ARGS)
ARGS2 ?= $(ARGS)
BACKBONE ?= resnet34
IMBALANCE_FACTOR ?= 100
EPOCHS ?= 200
SEEDS ?= 0 1 2
WEIGHT_DECAY ?=
OF = --backbone $(BACKBONE) --imbalance-factor $(IMBALANCE_FACTOR)
# Of the first stage, where it is not the preset's.
DECAYS = $(if $(WEIGHT_DECAY),--weight-decays 0 $(WEIGHT_DECAY))
DECAY = $(if $(WEIGHT_DECAY),--stage1-weight-decay $(WEIGHT_DECAY))
TABLES := $(addprefix exp/,results.csv benchmarks.csv comparison.csv maxnorm.csv tuning/laptop.csv tuning/further.csv tuning/draw.csv)
BIN := .venv/bin
INSTALL ?= $(BIN)/python -m pip install --quiet
ONE := demo1_first-stage-training
TWO := demo2_second-stage-training
STUDY := study_paper-versus-code
EXECUTE := $(BIN)/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=-1 \
	--ExecutePreprocessor.record_timing=False --log-level=WARN

.PHONY: demo test check soak reproduce table-1 notebooks tutorial scripts tables clean

.venv/.installed: requirements.txt pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt
	touch $@

.venv/.developer: .venv/.installed
	$(INSTALL) -e ".[dev]"
	touch $@

# Chapters 1 and 2 on a small synthetic set and on shipped features, into build; nothing that is in git changes.
demo: .venv/.installed
	@echo "chapter 1: training two networks on a small synthetic set"
	@LTR_ARGS="--preset demo $(ARGS1)" $(EXECUTE) --output-dir build/demo/notebooks notebooks/$(ONE).ipynb
	@echo "chapter 2: balancing the classifier"
	@LTR_ARGS="--preset demo $(ARGS2)" $(EXECUTE) --output-dir build/demo/notebooks notebooks/$(TWO).ipynb
	@echo "chapter 2 again, on shipped features of real images: CIFAR100-LT, imbalance factor 100"
	@LTR_ARGS="--base shipped" $(EXECUTE) --output-dir build/shipped/notebooks notebooks/$(TWO).ipynb
	@$(BIN)/python -m ltr headline build/shipped/results.csv exp/comparison.csv
	@echo "executed chapters: build/demo/notebooks, build/shipped/notebooks"
	@echo "figures:           build/demo/figures, build/shipped/figures"
	@echo "all numbers:       build/demo/results.csv, build/shipped/results.csv (logit adjustment: exp/comparison.csv)"

test: .venv/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# The same without the tests that run whole scripts, notebooks or several processes, or take a second or more: a minute.
check: override ARGS += -m "not slow and not seconds and not soak"
check: test

# Real kills of the real scripts, twenty times.
soak: .venv/.developer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak $(ARGS)

# The paper's job; CIFAR-100 is downloaded by torchvision where it is not in data/.
reproduce: .venv/.installed
	$(BIN)/python scripts/$(ONE).py --preset paper $(ARGS1)
	$(BIN)/python scripts/$(TWO).py --preset paper $(ARGS2)
	$(BIN)/python scripts/$(STUDY).py --preset paper $(ARGS2)

# All rows of the paper's Table 1 for a network, over seeds: networks without held-out images, every row's values chosen
# on these, then the runs. What is finished is not repeated. ARGS1 are for the first stage, ARGS2 for the second.
table-1: .venv/.installed
	$(BIN)/python -m ltr sweep --preset paper $(OF) --epochs $(EPOCHS) $(DECAYS) --hold-out 20 $(ARGS1)
	$(BIN)/python -m ltr tune --preset paper $(OF) --stage1-epochs $(EPOCHS) $(DECAY) --hold-out 20 --out exp/tuning \
		$(ARGS2)
	$(BIN)/python -m ltr tune --preset paper $(OF) --stage1-epochs $(EPOCHS) --hold-out 20 --out exp/tuning \
		--stage1-weight-decay 0 $(ARGS2)
	$(BIN)/python -m ltr sweep --preset paper $(OF) --epochs $(EPOCHS) $(DECAYS) --seeds $(SEEDS) $(ARGS1)
	for seed in $(SEEDS); do \
		$(BIN)/python scripts/$(STUDY).py --preset paper $(OF) --stage1-epochs $(EPOCHS) $(DECAY) --seed $$seed \
			--tuned-on auto $(ARGS2) || exit; \
	done
	$(MAKE) tables

# Execute the chapters in place: the committed runs are read.
notebooks: .venv/.installed
	LTR_ARGS="$(ARGS1)" $(EXECUTE) --inplace notebooks/$(ONE).ipynb
	LTR_ARGS="$(ARGS2)" $(EXECUTE) --inplace notebooks/$(TWO).ipynb
	LTR_ARGS="$(ARGS2)" $(EXECUTE) --inplace notebooks/$(STUDY).ipynb

# The chapters as HTML pages, into build/tutorial.
tutorial: .venv/.installed
	$(BIN)/python -m ltr tutorial --out build/tutorial

scripts: .venv/.installed
	$(BIN)/jupyter nbconvert --to script --no-prompt --log-level=WARN --output-dir scripts notebooks/*.ipynb

# Rewrite the tables of exp/README.md and of the README from the tables in exp/.
tables: .venv/.installed
	$(BIN)/python -m ltr report $(TABLES) --readme exp/README.md
	$(BIN)/python -m ltr headline exp/results.csv exp/comparison.csv --readme README.md
	$(BIN)/python -m ltr headline exp/results.csv exp/comparison.csv --readme exp/README.md
	$(BIN)/python -m ltr costs exp/results.csv exp/comparison.csv exp/benchmarks.csv --readme README.md
	$(BIN)/python -m ltr costs exp/results.csv exp/comparison.csv exp/benchmarks.csv --readme exp/README.md

clean:
	rm -rf build .venv
