# make demo: the chat page on the embedded model.   make test: the test suite.   make mini: trains the embedded model.
# make schema: a long look for answers of the API that its description does not promise.
# All set up the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 7860
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test schema lint mini setup setup-demo fonts clean

demo: setup-demo
	$(BIN)/vlchat serve --port $(PORT)

test: setup fonts
	$(BIN)/python -m pytest

# The API against its own description, with many more examples than `make test` takes.
schema: setup
	VLCHAT_SCHEMA_EXAMPLES=$${VLCHAT_SCHEMA_EXAMPLES:-1000} $(BIN)/python -m pytest tests/test_schema.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# The embedded model's whole recipe; stop and start it as you like. The variables keep glibc from giving memory back
# to the system between steps, which takes a sixth of the time of a step on a CPU.
STEADY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
mini: setup fonts
	for stage in tower lm align tune; do \
		$(STEADY) $(BIN)/vlchat train configs/mini/$$stage.yaml --resume auto || exit 1; done

setup: $(VENV)/.installed-dev
setup-demo: $(VENV)/.installed-serve

# Without an NVIDIA GPU, torch 2.13.0 in its CPU build: no CUDA packages are downloaded.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "vlchat needs Python 3.11 to 3.13; say make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	sh .ci/install-torch $(BIN)/python
	touch $@

$(VENV)/.installed-%: $(VENV)/.torch pyproject.toml
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[$*]'  # setuptools has much to say of it
	touch $@

# Drawing scenes needs the Noto Color Emoji font, the browser tests need Chromium: tests without them are skipped.
fonts:
	@command -v chromium >/dev/null || echo "note: chromium is not installed, the browser tests are skipped"
	@find /usr/share/fonts /usr/local/share/fonts ~/.fonts -name NotoColorEmoji.ttf 2>/dev/null | grep -q . \
		|| echo "note: the font Noto Color Emoji is not installed, tests that draw scenes are skipped"

clean:
	rm -rf $(VENV) build *.egg-info
