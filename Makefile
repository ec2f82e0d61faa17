# make demo   set everything up, run every figure on the embedded digits data, print where the gallery lies
# make test   the same set-up, then every check CI runs
# make clean  remove the virtual environment and build leftovers; results stay
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ready := $(VENV)/.ready

.PHONY: demo test setup check-export clean

demo: setup
	$(BIN)/noisymem run demo

test: setup
	sh tools/check_clean.sh $(BIN)
	$(BIN)/nbdev_test --n_workers 2
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

setup: $(ready)

$(ready): settings.ini setup.py constraints.txt tools/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/setup.sh

clean:
	rm -rf $(VENV) build dist _proc *.egg-info
