# make repro          every table and figure of the current scale, from the data up; what is up to date is not run again
# make repro SCALE=lab   the same at another scale (starter, lab, paper, metaworld), which becomes the current one in params.yaml
# make repro JOBS=1   one stage at a time, with its progress bar; else as many side by side as cores and GPU have room for
# make study          the studies at scale lab, hours of them, a cell at a time; SCALE=metaworld those there
# make bench        times against other tools; for a machine that does nothing else meanwhile
# make faults     how runs survive kills, full disks, limits of memory: reports/faults.md; some of it needs root
# make test | lint    tests | formatting, lint and types
# make ui             MLflow on 127.0.0.1:5000 and Prefect on 127.0.0.1:4200; Ctrl-C stops both
# make remote URL=…   where this clone shares results with others: a folder, ssh://…, s3://…
# make push           gives that place all that was made here; `dvc repro --pull` takes from it in place of running
# make worker POOL=…  take stages that a run on another machine gives to a Prefect work pool; SLOTS= so many at a time
# make env            the Python environment in .venv, which all of the above build first
# make env-export     that, and what `python -m stages.export` needs: ONNX
# make env-metaworld  that, and the simulator of SCALE=metaworld
# make env-ssh, env-s3  that, and what a remote at ssh://… or s3://… needs
# make lock           requirements.lock, and those of the two groups above, anew from pyproject.toml
SCALE ?=
JOBS ?=
.DEFAULT_GOAL := help
.PHONY: help env repro study bench faults test lint ui remote push worker lock

# optional groups of pyproject.toml, each with a lock of its own
OPTIONAL := export metaworld ssh s3
.PHONY: $(OPTIONAL:%=env-%)

# the first of these that runs and is 3.11 or 3.12; PYTHON=… chooses another
CANDIDATES := $(or $(PYTHON),python3 python3.12 python3.11 python)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
FIND_PYTHON = for python in $(CANDIDATES); do $$python -c "$(SUPPORTED)" 2>/dev/null && { echo $$python; exit; }; done

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_PYTHON_DOWNLOADS := never
# A shell may have set what sends pip, uv or Python elsewhere than they are told to here, or text to another encoding.
export PYTHONUTF8 := 1
export PIP_USER := 0
unexport PYTHONHOME PYTHONSAFEPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_REQUIRE_VIRTUALENV PIP_DRY_RUN
unexport UV_PROJECT UV_WORKING_DIR UV_WORKING_DIRECTORY UV_CONSTRAINT UV_TORCH_BACKEND UV_NO_BUILD_ISOLATION
# Nothing is sent anywhere: telemetry of MLflow, DVC and Prefect is off.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

help:
	@sed -n 's/^# make/make/p' Makefile

env: .venv/.synced

# uv builds the environment; where there is none, it comes from the package registry into .tools, for this project alone,
# with its cache. One that is there shares its own cache with other projects.
UV = $$(command -v uv || echo .tools/bin/uv)
CHOOSE_CACHE = { test "$$uv" != .tools/bin/uv && mkdir -p "$$($$uv cache dir)" 2>/dev/null && test -w "$$($$uv cache dir)" || \
	  export UV_CACHE_DIR="$${UV_CACHE_DIR:-.tools/cache}"; }

# Bytecode is compiled at once: where Python is told to write none, each stage would compile all that it imports anew.
.venv/.synced: requirements.lock
	@unset PYTHONPATH; python=$$($(FIND_PYTHON)); test -n "$$python" || { echo "error: python3 3.11 or 3.12 is needed and was not found;" \
	  "install one and say where it is with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 2; }; \
	uv=$$(command -v uv) || { uv=.tools/bin/uv; test -x $$uv || \
	  { "$$python" -m venv .tools && .tools/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check uv; }; } && \
	$(CHOOSE_CACHE) && \
	{ test -x .venv/bin/python && .venv/bin/python -c "$(SUPPORTED)" || \
	  "$$uv" venv --quiet --clear --python "$$(command -v "$$python")" .venv; } && \
	"$$uv" pip sync --quiet --compile-bytecode --python .venv requirements.lock && \
	.venv/bin/python -c "from pipeline.utils import environment as e; e.remember_for_dvc(e.project_root())" && touch $@

$(OPTIONAL:%=env-%): env-%: .venv/.%

# A lock has all that is needed; what a package says that it needs is overridden in pyproject.toml.
$(OPTIONAL:%=.venv/.%): .venv/.%: .venv/.synced requirements-%.lock
	@uv=$(UV); $(CHOOSE_CACHE) && "$$uv" pip install --quiet --compile-bytecode --python .venv --require-hashes --no-deps \
	  -r requirements-$*.lock && touch $@

repro: env
	@python -m pipeline.orchestration.repro $(SCALE) $(if $(JOBS),--jobs $(JOBS))

study: env
	@python -m pipeline.orchestration.repro $(SCALE) --study $(if $(JOBS),--jobs $(JOBS))

bench: env
	@python -m pipeline.perf.suite

faults: env
	@python -m tests.faults

test: env
	@python -m pytest --numprocesses auto --dist worksteal

lint: env
	@ruff format --check . && ruff check . && mypy

ui: env
	@exec python -m pipeline.orchestration.ui

remote: env
	@python -m dvc remote add --quiet --local --force --default shared "$(URL)"

push: env
	@python -m pipeline.orchestration.share

worker: env
	@mkdir -p .flowtune && exec python -m pipeline.orchestration.worker --pool "$(POOL)" $(if $(SLOTS),--slots $(SLOTS))

COMPILE = "$$uv" pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --quiet

lock:
	@uv=$(UV); $(COMPILE) pyproject.toml --all-extras --group dev --group peers -o requirements.lock && for group in $(OPTIONAL); do \
	  $(COMPILE) --group $$group --constraint requirements.lock -o requirements-$$group.lock || exit; done
