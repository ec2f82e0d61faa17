"Reach: what a notebook can come to run is found in the text of the library, and nothing that it does run is missed."
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from noisymem import reach as R
from noisymem.batch import find_notebook
from noisymem.reach import reached_code

FILES = {
    '__init__.py': '', 'a.py': 'import os\ndef x(): ...\ndef other(): return x()', 'b.py': 'from .a import x\ny = x', 'd.py': 'z = 1', 'e.py': 'from . import d\ndef g(): return d.z', 'f.py': 'def g():\n    import noisymem.d',
    's.py': 'from .a import *', 'sub/__init__.py': '', 'sub/c.py': 'from ..b import (\n    y)\nv = y'}


@pytest.fixture
def library(tmp_path):
    "Write a small library; returns what reads it."
    folder = tmp_path/'noisymem'

    def write(files=FILES):
        for f, text in files.items():
            (folder/f).parent.mkdir(parents=True, exist_ok=True)
            (folder/f).write_text(text)
        return lambda *cells: reached_code(list(cells), folder)
    return write


@pytest.mark.parametrize('code,names', [
    ('from noisymem.b import y', {'a.x', 'b.y'}), ('import noisymem.sub.c as c', {'a.x', 'b.y', 'sub.c.v'}), ('from noisymem import e', {'d.z', 'e.g'}), ('from noisymem.f import g', {'d.z', 'f.g'}),
    ('import os, numpy', set()), ('import noisymem', set()), ('%matplotlib inline\nfrom noisymem.a import x', {'a.x'}), ('from noisymem.b import *', {'a.x', 'b.y'}), ('from noisymem.sub import c', {'a.x', 'b.y', 'sub.c.v'}),
    ('from noisymem.s import other', {'a.x', 'a.other'}), ('from noisymem.a import other', {'a.x', 'a.other'}), ('if 0:\n    def f():\n        from noisymem.d import z', {'d.z'}), ('run("from noisymem.a import x; x()")', {'a.x'}),
    ('t = {"k": "a:x"}', {'a.x'}), ('import_module("noisymem.d")', {'d.z'}), ('f"d:{name}"', {'d.z'}), ('from noisymem.nothing import x\nimport noisymem.none', set()), ('"see noisymem.d.z, a: b"', set())])
def test_what_a_notebook_reaches(library, code, names):
    assert set(library()(code)) == {f'noisymem.{n}' for n in names}


@pytest.mark.parametrize('module,name,reached', [
    ('TABLE = {}\nTABLE["f"] = hidden\ndef hidden(): ...\ndef g(): ...', 'g', {'', 'TABLE', 'hidden', 'g'}), ('def register(f): ...\n@register\ndef hidden(): ...\ndef g(): ...', 'g', {'', 'register', 'g'}),
    ('from functools import cache\n@cache\ndef hidden(): ...\ndef g(): ...', 'g', {'g'}), ('class C:\n    def m(self): return hidden()\ndef hidden(): ...\ndef g(): return C()', 'g', {'C', 'hidden', 'g'}),
    ('try: import fast\nexcept ImportError: fast = slow\ndef slow(): ...\ndef g(): return fast', 'g', {'', 'fast', 'slow', 'g'}), ('def hidden(): ...\ndef g(): return globals()["hid" + "den"]()', 'g', {'hidden', 'g'}),
    ('Q = 3\ndef g(q=Q): ...', 'g', {'Q', 'g'}), ('def hidden(): ...\nT = dict(h=hidden)\ndef g(n): return T[n]', 'g', {'T', 'hidden', 'g'}), ('A, B = 1, 2\ndef g(): return B', 'g', {'A', 'B', 'g'}),
    ('async def hidden(): ...\nasync def g(): await hidden()', 'g', {'hidden', 'g'}), ('x = 1\nx += 1\ndef g(): ...', 'g', {'', 'x', 'g'}), ('"Words."\nimport os\n__all__ = ["g"]\ndef g(): ...', 'g', {'g'})])
def test_what_a_name_reaches_in_its_module(library, module, name, reached):
    assert set(library({'m.py': module})(f'from noisymem.m import {name}')) == {f'noisymem.m.{n}'.rstrip('.') for n in reached}


def test_what_a_module_does_when_it_is_imported_counts_wherever_it_is_imported(library):
    read = library(FILES | {'b.py': 'from .a import x\nfrom .loud import quiet\ny = x', 'loud.py': 'set_threads(3)\ndef quiet(): ...', 'sub/__init__.py': 'set_threads(4)'})
    assert set(read('from noisymem.b import y')) == {'noisymem.a.x', 'noisymem.b.y', 'noisymem.loud'}
    assert read('from noisymem.sub.c import v')['noisymem.sub'] == 'set_threads(4)'


@pytest.mark.parametrize('change,differs', [
    ('"Other words."', False), ('# a remark', False), ('import sys', False), ('def new(): ...', False), ('q:float=.7', True), ('q:int=.5', False), ('return q + 1', True), ('@cache', True)])
def test_which_changes_count(library, change, differs):
    text = '"Words."\nfrom functools import cache\n__all__ = ["f"]\ndef f(q:float=.5):\n    "Words."\n    return q\n'
    before = library({'m.py': text})('from noisymem.m import f')
    new = {'"Other words."': text.replace('Words', 'Other words'), 'q:float=.7': text.replace('.5', '.7'), 'q:int=.5': text.replace('float', 'int'), 'return q + 1': text.replace('return q', 'return q + 1'), '@cache': text.replace('def f', '@cache\ndef f')}.get(change, f'{change}\n{text}')
    assert new != text and (library({'m.py': new})('from noisymem.m import f') != before) == differs


@pytest.mark.parametrize('module,cell', [('def f(): ...', 'x = = 1'), ('x = = 1', 'from noisymem.m import f')])
def test_what_cannot_be_read_reaches_everything(library, module, cell):
    assert set(library(FILES | {'m.py': module, '_modidx.py': 'd = {}'})('from noisymem.a import x', cell)) == {*FILES, 'm.py'}


def code_of(path): return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


def test_the_running_of_things_is_reached_by_no_figure(root):
    for path in (root/'nbs'/'figs').glob('*.ipynb'):
        reached = reached_code(code_of(path))
        assert {'noisymem.core.save_atomic', 'noisymem.figures.Figure'} <= set(reached)
        assert not {r.split('.')[1] for r in reached} & {'cli', 'batch', 'gallery', 'cluster', 'plan', '_modidx', 'reach'}


def test_a_figure_reaches_what_its_networks_are_made_of_and_no_loss_that_nobody_uses():
    reached = reached_code(code_of(find_notebook('fig_memorization_histogram')))
    assert {'noisymem.losses.cross_entropy', 'noisymem.stacked.train_stacked', 'noisymem.zoo.vgg_backbone'} <= set(reached) and 'noisymem.losses.generalized_cross_entropy' not in reached


@pytest.mark.parametrize('name', ['fig_inclusion_exclusion', 'fig_susceptibility'])
def test_nothing_that_a_figure_runs_is_missed(tmp_path, monkeypatch, root, name):
    "Every function of the library that is entered while a figure is made is among those that were found."
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    cells = code_of(find_notebook(name))
    small = yaml.safe_load((root/'tests'/'small.yaml').read_text())
    small, space, entered = small['all'] | small.get(name, {}), {}, set()

    def look(frame, event, arg):
        if event == 'call' and (module := frame.f_globals.get('__name__') or '').startswith('noisymem.'): entered.add(f'{module}.{frame.f_code.co_qualname.split(".")[0]}')
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        for i, cell in enumerate(cells[:-1]):
            exec(cell, space)
            if i == 1: space |= {k: v for k, v in small.items() if k in space}
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    entered = {e for e in entered if '<' not in e and '__create_fn__' not in e}  # lambdas, and what `dataclass` writes
    assert len(entered) > 50 and entered <= set(reached_code(cells)), entered - set(reached_code(cells))


def test_threads_find_what_one_finds():
    "Python 3.11 loses count when two threads parse at a time; notebooks are looked at by as many threads as run them."
    cells = code_of(find_notebook('fig_regions'))
    alone = reached_code(cells)

    def go(_):
        R._read.cache_clear()
        return reached_code(cells)
    with ThreadPoolExecutor(4) as pool: assert all(found == alone for found in pool.map(go, range(12)))
