# Two commands do all set-up from a fresh clone: `make demo` and `make test`.
# The first of these that runs and is new enough (a pyenv shim may stand there and not run).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: demo test lint format clean

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "selfsight needs Python 3.11 or newer"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/demo.ok: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	touch $@

.venv/dev.ok: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ .venv/demo.ok

# The gallery's tests run in a real browser; where it can't be installed, they are skipped and say so.
.venv/browser.ok: | $(BIN)/python
	@command -v chromium >/dev/null && ls /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf >/dev/null 2>&1 \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium fonts-noto-color-emoji >/dev/null; } \
		|| echo "no chromium or no fonts-noto-color-emoji: the tests of the page in a browser will be skipped"
	touch $@

demo: .venv/demo.ok
	$(BIN)/selfsight demo --out runs/demo

# Small models gain nothing from a second thread, and the whole from a second process: three quarters of the time.
test: lint .venv/browser.ok
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/dev.ok
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.ok
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
