"The tree: notebooks clean, names and paths as agreed, what is generated is current."
import ast
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MODULES = [p for p in NOTEBOOKS if p.parent.name == 'nbs' and p.stem != 'index']
FIGURES = [p for p in NOTEBOOKS if p.parent.name == 'figs']
name = lambda p: p.stem


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def source(cell): return ''.join(cell['source'])


def tracked(): return [ROOT/f for f in subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n') if f]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_no_error_output_no_count_no_private_path(path):
    for c in cells(path):
        assert c.get('execution_count') is None
        assert all(o['output_type'] != 'error' for o in c.get('outputs', []))
        assert not re.search(r'/(home|root|Users|tmp|work)/\w', json.dumps(c)), source(c)[:200]


@pytest.mark.parametrize('path', MODULES, ids=name)
def test_module_notebooks_keep_the_house_style(path):
    cs = cells(path)
    assert source(cs[0]).startswith('#| default_exp') and source(cs[1]).startswith('# ') and '> ' in source(cs[1])
    assert 'nbdev_export' in source(cs[-1]) and len(cs) <= 80
    for c in cs:
        s = source(c)
        code = [l for l in s.splitlines() if l.strip() and not l.startswith('#')]
        top_imports = [l for l in code if re.match(r'(import|from)\s', l)]
        if c['cell_type'] == 'code' and 'nbdev.nbdev_export' not in s and 'if' not in ''.join(code[:1]): assert not top_imports or len(top_imports) == len(code) or all(l.startswith((' ', ')')) or re.match(r'(import|from)\s', l) for l in code), f'imports and code in one cell:\n{s[:300]}'
        if s.startswith('#| export'): assert len(s.splitlines()) <= 60, s[:200]
        assert 'test_fail(lambda x' not in s


@pytest.mark.parametrize('path', FIGURES, ids=name)
def test_figure_notebooks_have_one_parameters_cell(path):
    assert sum('parameters' in c['metadata'].get('tags', []) for c in cells(path)) == 1


def test_a_number_is_a_dependency_order():
    "A module imports only modules with a lower number."
    order = {}
    for p in MODULES:
        number, module = p.stem.split('_', 1)
        order[module] = number
    for p in MODULES:
        number, module = p.stem.split('_', 1)
        for used, name in re.findall(r'^from noisymem\.([\w.]+) import (\w+)', '\n'.join(source(c) for c in cells(p) if source(c).startswith('#| export')), re.M):
            assert order[used if used in order else f'{used}.{name}'] < number, f'{p.stem} imports {used}'


def test_exported_modules_need_no_notebook_tools():
    for p in (ROOT/'noisymem').rglob('*.py'):
        assert not re.search(r'^(import|from) (nbdev|papermill|nbformat|jupyter|IPython|cleanlab|submitit|baycomp|statsmodels)', p.read_text(), re.M), p.name


def test_nothing_is_imported_that_is_not_used():
    for p in (ROOT/'noisymem').rglob('*.py'):
        if p.name.startswith('_'): continue
        tree = ast.parse(p.read_text())
        brought = {(a.asname or a.name).split('.')[0] for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert brought <= used, f'{p.name}: {sorted(brought - used)}'


def test_every_public_name_is_documented():
    import importlib, inspect
    for p in (ROOT/'noisymem').rglob('*.py'):
        if p.name.startswith('_'): continue
        module = importlib.import_module('.'.join(p.relative_to(ROOT).with_suffix('').parts))
        for n in getattr(module, '__all__', []):
            obj = getattr(module, n)
            if inspect.isfunction(obj) or inspect.isclass(obj): assert inspect.getdoc(obj), f'{p.name}: {n}'


def test_readme_is_current():
    subprocess.run([sys.executable, ROOT/'tools'/'make_readme.py', '--check'], check=True)


def test_settings_are_the_configuration():
    ini = configparser.ConfigParser(delimiters=['=']); ini.read(ROOT/'settings.ini')
    cfg = ini['DEFAULT']
    assert cfg['allowed_cell_metadata_keys'] == 'tags', 'without it, cleaning removes the parameters tag and every sweep computes its defaults'
    pins = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().splitlines() if '==' in l)
    for need in cfg['dev_requirements'].split():
        if '==' in need: assert pins[need.split('==')[0]] == need.split('==')[1]
    import noisymem
    assert noisymem.__version__ == cfg['version']


def test_repository_stays_small_and_free_of_data():
    sizes = {f: f.stat().st_size for f in tracked() if f.exists()}
    assert sum(sizes.values()) < 40e6
    assert not [f for f in sizes if f.suffix in {'.pt', '.npz', '.npy', '.mat', '.gz', '.pkl'}]


def test_no_private_path_in_any_text():
    for f in (ROOT/'papermill_runs'/'gallery').rglob('*'):
        if f.suffix in {'.ipynb', '.md', '.csv', '.html'}: assert not re.search(r'[\s"\'(=]/(home|root|Users|work|tmp)/\w', f.read_text(encoding='utf-8')), f
    for f in tracked():
        if f.exists() and f.suffix in {'.py', '.md', '.yaml', '.ini', '.toml', '.sh', '.txt', '.cff', ''} and f.name not in {'test_hygiene.py', 'LICENSE'}:
            assert not re.search(r'/(home|root|Users|work)/\w', f.read_text(encoding='utf-8')), f
