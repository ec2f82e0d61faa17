"The set-up says in one sentence what is missing."
import configparser
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


def test_the_development_set_is_pinned_exactly():
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini')
    pins = set((ROOT/'constraints.txt').read_text().splitlines())
    for k in ('dev_requirements', 'compare_requirements', 'cluster_requirements'): assert set(ini['DEFAULT'][k].split()) <= pins, k
    assert {n.split('==')[0] for n in ini['DEFAULT']['dev_requirements'].split()} >= {'nbdev', 'papermill', 'jupyterlab', 'nbclient', 'nbconvert', 'nbformat', 'pytest'}


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A checkout with one module, exported."
    tree = tmp_path_factory.mktemp('a tree')
    for part in ('settings.ini', 'setup.py', 'pyproject.toml', 'nbs/index.ipynb', 'nbs/09_metrics.ipynb', 'tools/check_clean.sh', 'tools/make_readme.py'):
        (tree/part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT/part, tree/part)
    tools = Path(sys.executable).parent
    for command in ([tools/'nbdev_export'], [tools/'nbdev_clean'], [sys.executable, 'tools/make_readme.py']): subprocess.run(command, cwd=tree, check=True, capture_output=True, env=os.environ | dict(HOME=str(tree/'home')))
    return tree


@pytest.fixture
def small_tree(exported, tmp_path): return Path(shutil.copytree(exported, tmp_path/'tree'))


def check_clean(tree):
    venv = tree/'a venv'
    if not venv.exists(): venv.symlink_to(Path(sys.executable).parent.parent)
    return subprocess.run(['sh', 'tools/check_clean.sh', 'a venv/bin'], cwd=tree, capture_output=True, text=True, timeout=120)


def texts(tree): return {p: p.read_text() for part in ('nbs', 'noisymem', 'README.md') for p in ([tree/part] if (tree/part).is_file() else (tree/part).rglob('*.*')) if p.is_file()}


def test_a_clean_tree_passes(small_tree):
    result = check_clean(small_tree)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize('spoil,times', [
    (lambda t: (t/'noisymem'/'metrics.py').write_text('# edited by hand'), 2), (lambda t: (t/'noisymem'/'orphan.py').write_text('x = 1'), 1),
    (lambda t: (t/'nbs'/'09_metrics.ipynb').write_text((t/'nbs'/'09_metrics.ipynb').read_text().replace('"execution_count": null', '"execution_count": 3')), 1)], ids=['module', 'orphan', 'count'])
def test_a_tree_that_is_not_clean_fails_every_time_and_stays_as_it_is(small_tree, spoil, times):
    spoil(small_tree)
    before = texts(small_tree)
    for _ in range(times):
        result = check_clean(small_tree)
        assert result.returncode == 1 and 'is not what exporting its notebooks gives' in result.stderr, result.stderr
    assert texts(small_tree) == before
