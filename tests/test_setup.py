"The set-up says in one sentence what is missing."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def fake(folder, name, text):
    path = folder/name
    path.write_text('#!/bin/sh\n' + text)
    path.chmod(0o755)
    return path


def setup(tmp_path, python, path_first=None):
    for f in ('settings.ini', 'setup.py', 'constraints.txt'): shutil.copy(ROOT/f, tmp_path)
    env = os.environ | dict(PYTHON=str(python), VENV=str(tmp_path/'a venv'))
    if path_first: env['PATH'] = f'{path_first}:{env["PATH"]}'
    return subprocess.run(['sh', ROOT/'tools'/'setup.sh'], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)


def says(result, sentence):
    assert result.returncode == 1
    lines = [l for l in result.stderr.splitlines() if l.startswith('noisymem: ')]
    assert len(lines) == 1 and sentence in lines[0], result.stderr


def test_no_python(tmp_path): says(setup(tmp_path, 'python9.9'), "no 'python9.9' on the PATH")


def test_old_python(tmp_path):
    old = fake(tmp_path, 'old', 'case "$2" in *version_info*) exit 1;; *) echo 3.9.2;; esac')
    says(setup(tmp_path, old), 'Python 3.11 or newer is needed')


def test_no_venv_module(tmp_path):
    bare = fake(tmp_path, 'bare', f'case "$2" in *ensurepip*) exit 1;; *) exec "{sys.executable}" "$@";; esac')
    says(setup(tmp_path, bare), 'apt-get install python3-venv')


def test_no_disk(tmp_path):
    (tmp_path/'bin').mkdir()
    fake(tmp_path/'bin', 'df', 'echo "Filesystem 1M-blocks Used Available Capacity Mounted"; echo "x 9 8 1 99% /"')
    says(setup(tmp_path, sys.executable, tmp_path/'bin'), '8000 MB of free disk are needed')


def test_folder_that_cannot_hold_an_environment(tmp_path):
    (tmp_path/'a venv').write_text('in the way')
    says(setup(tmp_path, sys.executable), 'could not be made')


def test_installation_that_fails_shows_why(tmp_path):
    (tmp_path/'bin').mkdir()
    broken = fake(tmp_path/'bin', 'python', 'echo "no network" >&2; exit 1')
    (tmp_path/'a venv'/'bin').mkdir(parents=True)
    shutil.copy(broken, tmp_path/'a venv'/'bin'/'python')
    result = setup(tmp_path, sys.executable)
    says(result, 'the installation failed')
    assert 'no network' in result.stderr
