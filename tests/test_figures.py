"Every figure notebook: nine cells, typed parameters, clean on the disk, and a run with small values."
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_notebook, shared_folder

from noisymem.batch import list_profiles, load_profile, notebook_parameters
from noisymem.figures import Figure
from noisymem.noise import HUMAN
from noisymem.plan import find_configs

ROOT = Path(__file__).resolve().parent.parent
FIGURES = sorted((ROOT/'nbs'/'figs').glob('*.ipynb'))
SMALL = yaml.safe_load((ROOT/'tests'/'small.yaml').read_text())
ALLOWED = {'noisymem', 'pandas', 'numpy', 'matplotlib', 'torch', 'dataclasses', 'itertools'}
HELD_OUT = {'fig_memorization_histogram', 'fig_inclusion_exclusion', 'fig_wrong_but_learned', 'fig_embedding_rings', 'fig_cluster_row', 'fig_influence',
            'fig_how_many_models', 'fig_published_validation', 'fig_human_synthetic', 'tab_detection'}
each = pytest.mark.parametrize('path', FIGURES, ids=lambda p: p.stem)


def read(path): return nbformat.read(path, as_version=4)


def parameters_cell(nb): return next(c for c in nb.cells if 'parameters' in c.metadata.get('tags', []))


def test_the_figures_of_label_memorization_are_there():
    assert HELD_OUT <= {p.stem for p in FIGURES}


def test_small_values_name_real_notebooks():
    assert set(SMALL) - {'all'} <= {p.stem for p in FIGURES}


@each
def test_nine_cells(path):
    cells = read(path).cells
    assert [c.cell_type for c in cells] == ['markdown'] + ['code']*8
    assert '**Claim.**' in cells[0].source and '**Cost.**' in cells[0].source and cells[0].source.startswith('# ')
    assert cells[8].source.strip().startswith('fig.finish()')
    assert '.claim(' in cells[7].source and '.save(' in cells[6].source
    assert re.search(r'load_\w+\(', cells[4].source)


@each
def test_imports_stand_alone(path):
    cells = [c for c in read(path).cells if c.cell_type == 'code']
    kinds = (ast.Import, ast.ImportFrom)
    body = ast.parse(cells[0].source).body
    assert all(isinstance(node, kinds) for node in body)
    names = {a.name.split('.')[0] for n in body if isinstance(n, ast.Import) for a in n.names} | {n.module.split('.')[0] for n in body if isinstance(n, ast.ImportFrom)}
    assert names <= ALLOWED, names - ALLOWED
    assert not any(isinstance(node, kinds) for c in cells[1:] for node in ast.walk(ast.parse(c.source)))


@each
def test_parameters(path):
    nb = read(path)
    tagged = [i for i, c in enumerate(nb.cells) if 'parameters' in c.metadata.get('tags', [])]
    assert tagged == [2]
    source = nb.cells[2].source
    body = ast.parse(source).body
    assert 1 <= len(body) <= 9
    assert all(isinstance(node, ast.AnnAssign) for node in body), 'every parameter needs its type'
    assert all(re.search(r'  # \S', line) for line in source.splitlines()), 'every parameter needs its meaning'
    known = dict(int=int, float=float, str=str, bool=bool, list=list, dict=dict)
    for node in body:
        value = ast.literal_eval(node.value)
        assert value is None or type(value) is known[node.annotation.id], node.target.id
    names = {node.target.id for node in body}
    assert set(notebook_parameters(path)) == names, "papermill misreads a parameter whose comment holds '='"
    assigned = {n.id for i, c in enumerate(nb.cells) if c.cell_type == 'code' and i != 2 for n in ast.walk(ast.parse(c.source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert not names & assigned, 'no other cell may set a parameter'


@each
def test_defaults_are_the_papers(path):
    here = {}
    exec(parameters_cell(read(path)).source, here)
    paper = dict(dataset='cifar10', noise='rand1', n_examples=0, n_models=1500, model='resnet34', recipe='paper')
    if path.stem in HELD_OUT: assert {k: here[k] for k in paper} == paper


@each
def test_clean_on_the_disk(path):
    for c in read(path).cells:
        assert not c.get('outputs') and c.get('execution_count') is None
        assert not re.search(r'''(["'])(/|~/|[A-Za-z]:\\)''', c.source), 'no absolute path'
        assert not re.search(r'/(work|tmp|home|root|Users)\b', c.source)
        assert len(c.source.splitlines()) <= 45


@pytest.mark.parametrize('profile', ['demo', 'laptop', 'gpu', 'paper'])
def test_profiles_name_known_parameters(profile):
    assert profile in list_profiles()
    jobs = load_profile(profile)
    assert {j.notebook.stem for j in jobs} >= HELD_OUT
    for cfg in {str(c): c for j in jobs for single in (False, True) for c in find_configs(j, single=single)}.values():
        assert cfg.dataset == HUMAN.get(cfg.noise, [cfg.dataset])[0], f'{cfg.noise} is not noise of {cfg.dataset}, so nothing of this profile could be planned'
    if profile == 'paper': assert all(set(j.parameters) <= {'class_name', 'card', 'noise'} for j in jobs), 'the paper values are the defaults of the notebooks, or one of its published settings by name; other label sets beside the first'


@pytest.fixture(scope='session')
def results(tmp_path_factory):
    "What one figure has trained the next one finds, whichever worker draws it."
    folder = shared_folder(tmp_path_factory, 'figure results')
    folder.mkdir(exist_ok=True)
    return folder


def draw(name, values, results, folder):
    "Run a figure notebook; what it failed of."
    return run_notebook(ROOT/'nbs'/'figs'/f'{name}.ipynb', folder/f'{name}.ipynb', values, dict(NOISYMEM_RESULTS=str(results), NOISYMEM_FIGURE=str(folder)), folder)


def small_values(path):
    known = {n.target.id for n in ast.parse(parameters_cell(read(path)).source).body}
    return {k: v for k, v in SMALL['all'].items() if k in known} | SMALL.get(path.stem, {})


def assert_drawn(folder, name):
    "Pictures with their numbers, and claims that hold."
    pictures = sorted(folder.glob('*.png'))
    assert pictures and (folder/'provenance.json').exists()
    for picture in pictures:
        assert picture.stat().st_size > 500 and picture.with_suffix('.pdf').exists()
        assert len(pd.read_csv(picture.with_suffix('.csv'))) >= 0
    claims = pd.read_csv(folder/'claims.csv')
    assert claims.tells.any() or name in ('fig_cluster_row', 'fig_embedding_rings'), 'a figure without a single binding claim shows nothing'
    assert claims[claims.tells].holds.all()


@each
def test_runs_with_small_values(path, results, tmp_path):
    if path.stem not in HELD_OUT and path.stem not in SMALL: pytest.fail(f'tests/small.yaml has no values for {path.stem}')
    assert not draw(path.stem, small_values(path), results, tmp_path)
    assert not any(o.output_type == 'error' for c in read(tmp_path/path.name).cells for o in c.get('outputs', []))
    assert_drawn(tmp_path, path.stem)


def test_plain_papermill_draws_a_figure(results):
    "As a reader would call it, from another folder."
    notebook = ROOT/'nbs'/'figs'/'fig_memorization_histogram.ipynb'
    (results/'parameters.yaml').write_text(yaml.safe_dump(small_values(notebook)))
    env = {k: v for k, v in os.environ.items() if k != 'NOISYMEM_FIGURE'} | dict(NOISYMEM_RESULTS=str(results), PYDEVD_DISABLE_FILE_VALIDATION='1')
    command = [sys.executable, '-m', 'papermill', str(notebook), str(results/'out.ipynb'), '-f', str(results/'parameters.yaml'), '-k', 'python3', '--no-progress-bar']
    process = subprocess.run(command, env=env, cwd=results, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-2000:]
    assert not any(o.output_type == 'error' for c in read(results/'out.ipynb').cells for o in c.get('outputs', []))
    assert_drawn(results/'figures'/notebook.stem, notebook.stem)


def test_a_wrong_published_file_is_refused(results, tmp_path):
    "No shared example: the message says so, and nothing is drawn."
    (tmp_path/'foreign.csv').write_text('inclusion_prob,exclusion_prob\n' + ',\n'*3000 + '0.5,0.5\n')
    assert 'published must share examples' in draw('fig_published_validation', SMALL['all'] | dict(published=str(tmp_path/'foreign.csv')), results, tmp_path)
    assert not list(tmp_path.glob('*.png'))


def test_a_foreign_embedding_is_refused(results, tmp_path):
    np.save(tmp_path/'short.npy', np.zeros((10, 4)))
    assert 'must hold one row of features for each of the 1437 training examples' in draw('fig_embedding_rings', SMALL['all'] | dict(embedding=str(tmp_path/'short.npy')), results, tmp_path)


def test_regions_and_curves_need_no_truth(results, tmp_path):
    "Web images, whose true labels nobody knows: the label-free plane is drawn; what needs the truth says so."
    values = dict(dataset='clothing1m_mini:size=16', noise='given', contenders=[{'model': 'mlp', 'width': .1}, {'model': 'linear'}], rates=[.1, .01], schedules=['cosine'], epochs=3)
    for name in ('fig_regions', 'fig_susceptibility'):
        assert not draw(name, values, results, tmp_path)
        assert not pd.read_csv(tmp_path/'claims.csv').claim.str.contains('wrong labels that are fitted|correct labels').any()
    assert 'dataset must have labels whose truth is known' in draw('fig_susceptibility_correlation', values, results, tmp_path)


def test_a_failing_claim_keeps_the_figure(monkeypatch, tmp_path):
    import matplotlib.pyplot as plt
    monkeypatch.setenv('NOISYMEM_FIGURE', str(tmp_path))
    fig = Figure('fig_x', {})
    fig.save(plt.figure().add_subplot(), pd.DataFrame(dict(x=[1])))
    fig.claim('one is more than two', 1, '>', 2, n=1)
    with pytest.raises(AssertionError, match='one is more than two'): fig.finish()
    assert (tmp_path/'fig_x.png').exists() and not pd.read_csv(tmp_path/'claims.csv').holds.any()
