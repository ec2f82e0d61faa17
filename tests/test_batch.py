"Profiles, jobs, claims, gallery, command line: strict before, honest after."
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from filelock import FileLock

from noisymem import batch as B
from noisymem import cli
from noisymem.figures import Figure
from noisymem.gallery import write_gallery
from noisymem.reach import reached_code


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path/'re sults'))
    return tmp_path/'re sults'


def notebook(folder, name, code, parameters='n: int = 3  # models', tags=('parameters',), kernel='python3', more=None):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f'# Title of {name}\n\n> lead'), nbformat.v4.new_code_cell(parameters, metadata=dict(tags=list(tags))), nbformat.v4.new_code_cell(code)])
    if more: nb.cells.append(nbformat.v4.new_code_cell(more))
    if kernel: nb.metadata['kernelspec'] = dict(name=kernel, display_name=kernel, language='python')
    folder.mkdir(exist_ok=True, parents=True)
    nbformat.write(nb, folder/f'{name}.ipynb')
    return str(folder/f'{name}.ipynb')


FIGURE = '''
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt, pandas as pd
from noisymem.figures import Figure
fig = Figure('{name}', dict(n=n))
ax = plt.figure().add_subplot(); ax.plot([1, 2])
fig.save(ax, pd.DataFrame(dict(x=[1])))
fig.claim('n is above two', n, '>', 2, n=1, paper=5)
fig.finish()
'''


def run_here(job, folder, target, limits):
    "Run a notebook in this process instead of by papermill: the same code, the same files, no new interpreter."
    nb, space, error = nbformat.read(job.notebook, 4), {}, ''
    os.environ['NOISYMEM_FIGURE'] = str(folder)
    try:
        for c in nb.cells[1:]:
            exec(c.source, space)
            if c.metadata.get('tags'): space |= job.parameters
    except Exception as e: error = f'{type(e).__name__}: {e}'
    finally:
        del os.environ['NOISYMEM_FIGURE']
        plt.close('all')
    nbformat.write(nb, target)
    (folder/'log.txt').write_text(error)
    return SimpleNamespace(poll=lambda: int(bool(error)), returncode=int(bool(error)))


HERE = dict(_start=run_here, _stop=lambda process: None, check_kernel=lambda: None)


@pytest.fixture
def quick(monkeypatch):
    for name, put in HERE.items(): monkeypatch.setattr(B, name, put)


# --- strict before anything runs ------------------------------------------------------------------------------------

@pytest.mark.parametrize('text,match', [
    ('figures: {fig_memorization_histogram: {n_model: 3}}', "parameter of fig_memorization_histogram in p.yaml must be one of .* got 'n_model'"),
    ('figures: {fig_memorisation: {}}', 'notebook in p.yaml must be one of'), ('figures: {some where/none.ipynb: {}}', 'notebook in p.yaml must be a file, got some where/none.ipynb, which is none'),
    ('defaults: {datset: digits}\nfigures: {fig_memorization_histogram: {}}', "default 'datset' in p.yaml is a parameter of none"),
    ('default: {}\nfigures: {}', "key in p.yaml must be one of 'about', 'defaults', 'figures', got 'default'"),
    ('figures: {fig_influence: [null, {n_models: 4}]}', 'fig_influence in p.yaml must hold a mapping of parameters, or a list of several, got None'),
    ('figures: {fig_influence: 3}', 'fig_influence in p.yaml must hold a mapping of parameters, or a list of several, got 3'),
    ('figures: {fig_influence: false}', 'fig_influence in p.yaml must hold a mapping of parameters, or a list of several, got False'),
    ('figures: {fig_influence: {grid: [3]}}', r'grid of fig_influence in p.yaml must hold a mapping, a parameter to a list of values, got \[3\]'), ('figures: {fig_influence: {grid: {n_models: 3}}}', 'grid of fig_influence'),
    ('figures: {fig_influence: {n_models: 3, grid: {n_models: [4]}}}', 'n_models of fig_influence in p.yaml stands beside its grid and in it'), ('figures: {fig_influence: {grid: {n_modles: [4]}}}', "got 'n_modles'"),
    ('figures: {fig_influence: []}', r'fig_influence in p.yaml must hold a mapping of parameters, or a list of several, got \[\]'),
    ('defaults: [a]\nfigures: {fig_influence: {}}', r"defaults in p.yaml must hold a mapping of parameters, got \['a'\]"),
    ('defaults: 0\nfigures: {fig_influence: {}}', 'defaults in p.yaml must hold a mapping of parameters, got 0'),
    ('figures: {3: {}}', 'notebook in p.yaml must be one of .* got 3'), ('figures: {}', 'figures in p.yaml must name at least one notebook'),
    ('figures: {fig_influence: [{1: 2}]}', 'parameter of fig_influence in p.yaml must be one of .* got 1'),
    ('- a\n- b', 'must hold a mapping'), ('figures: 3', 'figures in p.yaml must hold a mapping, a notebook to its parameters, got 3'), ('', 'must hold a mapping with the key figures, got None'), ('a: [', 'not valid YAML, line 1'),
    ('figures:\n', 'figures in p.yaml must name at least one notebook, got none'), ('figures: []', 'figures in p.yaml must name at least one notebook'), ('about: x', 'figures in p.yaml must name at least one notebook'),
    ('figures:\n  fig_influence: {}\n  fig_influence: {n_models: 4}\n', "p.yaml is not valid YAML, line 3: 'fig_influence' stands twice in one mapping, first in line 2"),
    ('figures:\n  fig_influence:\n    n_models: 4\n    recipe: digits\n    "n_models": 5\n', "line 5: 'n_models' stands twice in one mapping, first in line 3"),
    ('about: a\nabout: b\nfigures: {}', "line 2: 'about' stands twice in one mapping, first in line 1"), ('figures: {fig_influence: {recipe: {name: digits, epochs: 2, epochs: 3}}}', "line 1: 'epochs' stands twice"),
    ('figures:\n\tfig_influence: {}\n', 'line 2: found character .* that cannot start any token; indent with spaces'), ('figures: {fig_influence: {}}\n---\na: 1', 'not valid YAML'), ('figures: {fig_influence: {n_models: *x}}', 'not valid YAML, line 1: found undefined alias'),
    ('figures: {fig_influence: {n_models: !!python/object:os.system 3}}', 'not valid YAML, line 1'), ('figures: {? [a] : {}}', 'not valid YAML, line 1'), ('about: \x07\nfigures: {}', 'not valid YAML')])
def test_bad_profiles(tmp_path, text, match):
    (tmp_path/'p.yaml').write_text(text)
    with pytest.raises(ValueError, match=match) as e: B.load_profile(tmp_path/'p.yaml')
    assert 'p.yaml' in str(e.value) and '\n' not in str(e.value)


def test_a_profile_names_notebooks_beside_it(tmp_path, monkeypatch):
    path, elsewhere = notebook(tmp_path/'my figures', 'fig_t', '1'), notebook(tmp_path/'else where', 'fig_u', '1')
    (tmp_path/'p.yaml').write_text('figures: {my figures/fig_t.ipynb: {n: 4}, fig_u.ipynb: {}}')
    monkeypatch.chdir(tmp_path/'else where')
    assert [str(j.notebook) for j in B.load_profile(tmp_path/'p.yaml')] == [path, elsewhere] == [str(j.notebook) for j in B.load_profile('../p.yaml')]


def test_one_set_of_parameters_can_build_on_another(tmp_path):
    (tmp_path/'p.yaml').write_text('defaults: &d {n_models: 4}\nfigures: {fig_influence: [{<<: *d, n_models: 5}, {<<: *d}]}')
    assert [j.parameters['n_models'] for j in B.load_profile(tmp_path/'p.yaml')] == [5, 4]


@pytest.mark.parametrize('data', [b'\xff\xfea\x00:\x00', b'figures: {fig_influence: {noise: "\xe9"}}'])
def test_a_profile_that_is_no_utf8(tmp_path, data):
    (tmp_path/'p.yaml').write_bytes(data)
    with pytest.raises(ValueError, match='p.yaml must be text in UTF-8'): B.load_profile(tmp_path/'p.yaml')


@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
def test_a_profile_as_other_systems_write_it(tmp_path, mark):
    (tmp_path/'p.yaml').write_bytes(mark + b'about: x\r\nfigures:\r\n  fig_memorization_histogram: {n_models: 4}\r\n')
    assert B.load_profile(tmp_path/'p.yaml')[0].parameters == dict(n_models=4)


def test_a_list_of_overrides_makes_several_jobs(tmp_path):
    (tmp_path/'p.yaml').write_text('figures: {fig_memorization_histogram: [{n_models: 4}, {n_models: 5}]}')
    assert [j.name for j in B.load_profile(tmp_path/'p.yaml')] == ['fig_memorization_histogram-1', 'fig_memorization_histogram-2']


def test_a_grid_is_crossed(tmp_path):
    (tmp_path/'p.yaml').write_text('figures: {fig_influence: [{n_models: 4}, {recipe: digits, grid: {noise: [a, b], n_models: [5, 6]}}]}'.replace('[a, b]', '[symmetric-0.1, pair-0.2]'))
    jobs = B.load_profile(tmp_path/'p.yaml')
    assert [j.name for j in jobs] == [f'fig_influence-{i}' for i in range(1, 6)]
    assert [(j.parameters.get('noise'), j.parameters['n_models']) for j in jobs] == [(None, 4), ('symmetric-0.1', 5), ('symmetric-0.1', 6), ('pair-0.2', 5), ('pair-0.2', 6)]


def test_one_notebook_under_two_names_would_share_a_folder(tmp_path):
    (tmp_path/'p.yaml').write_text(f'figures: {{fig_influence: {{}}, {B.find_notebook("fig_influence")}: {{}}}}')
    with pytest.raises(ValueError, match='fig_influence stands twice in p.yaml'): B.load_profile(tmp_path/'p.yaml')


def test_a_profile_keeps_one_name(tmp_path):
    assert B.profile_name('demo') == 'demo' == B.profile_name(B.list_profiles()['demo'])
    assert B.profile_name('my.yaml') == B.profile_name(tmp_path/'my.yml') == 'my'
    for name in ('demo.yaml', 'manual.yml'):
        with pytest.raises(ValueError, match='its name is taken'): B.profile_name(tmp_path/name)


@pytest.mark.parametrize('name', ['demo', 'laptop', 'gpu', 'paper'])
def test_the_profiles_of_the_house_are_sound(name): assert len(B.load_profile(name)) >= 10


def test_missing_parameters_tag(tmp_path):
    with pytest.raises(ValueError, match="exactly one cell tagged 'parameters', got 0"): B.make_job(notebook(tmp_path, 'a', '1', tags=()), {})


DECLARED = """
n: int = 3  # number
q: float = .5  # share
on: bool = False  # or not
name: str = 'a'  # word
recipe: str = 'digits'  # how
rates: list = [.1, .01]  # peak rates
things: list = [{'model': 'mlp'}]  # contenders
mixed: list = [1, 'a']  # anything
table: dict = {}  # mapping
foreign: Path = 'x'  # not known to us
several: list[int] = []  # whole
nothing: str = None  # or not given
""".strip()


@pytest.mark.parametrize('value', [dict(n=4), dict(q=1), dict(q=1.5), dict(on=True), dict(name='3'), dict(recipe='cpu'), dict(recipe=dict(name='cpu', epochs=2)), dict(rates=[1, .5]), dict(rates=[]), dict(things=[dict(a=1)]), dict(mixed=[None]), dict(table=dict(a=1)), dict(foreign=3), dict(several=['a']), dict(nothing='a')])
def test_values_of_the_declared_type_pass(tmp_path, value): assert B.make_job(notebook(tmp_path, 'fig_t', '1', DECLARED), value).parameters == value


@pytest.mark.parametrize('value, match', [
    (dict(n='ten'), "n of fig_t must be int, got 'ten'"), (dict(n=[3]), r'must be int, got \[3\]'), (dict(n=2.), 'must be int, got 2.0'), (dict(n=True), 'must be int, got True'), (dict(n=None), 'must be int, got None'), (dict(n='0-3'), "must be int, got '0-3'"),
    (dict(q='1e-3'), "q of fig_t must be float, got '1e-3'; YAML takes 1e-3 for text"), (dict(q='much'), "must be float, got 'much'$"), (dict(q=False), 'must be float'), (dict(on=1), 'on of fig_t must be bool, got 1'), (dict(on='yes'), 'must be bool'),
    (dict(name=3), 'name of fig_t must be str, got 3'), (dict(name=dict(a=1)), 'must be str'), (dict(recipe=[1]), 'recipe of fig_t must be str'), (dict(rates='a'), "rates of fig_t must be list, got 'a'"), (dict(rates=['1e-3']), r"rates of fig_t must be list of float, got \['1e-3'\]; YAML takes"),
    (dict(rates=dict(a=1)), 'must be list'), (dict(things=['mlp']), 'things of fig_t must be list of dict'), (dict(table=[]), 'table of fig_t must be dict'), (dict(q=float('nan')), 'q of fig_t must be made of finite numbers'), (dict(mixed=[float('inf')]), 'must be made of finite'),
    (dict(mixed=[__import__('datetime').date(2026, 1, 1)]), 'must be made of finite numbers, text, lists and mappings')])
def test_values_of_another_type_are_refused(tmp_path, value, match):
    with pytest.raises(ValueError, match=match): B.make_job(notebook(tmp_path, 'fig_t', '1', DECLARED), value)


@pytest.mark.parametrize('text, match', [
    ('defaults: {n_models: ten}\nfigures: {fig_influence: {}}', "n_models of fig_influence in p.yaml must be int, got 'ten'"), ('figures: {fig_influence: [{}, {n_models: [3]}]}', r'n_models of fig_influence-2 in p.yaml must be int, got \[3\]'),
    ('figures: {fig_regions: {rates: [1e-3]}}', "rates of fig_regions in p.yaml must be list of float"), ('figures: {fig_influence: {model: resnt34}}', "fig_influence in p.yaml: model must be one of .* got 'resnt34'"),
    ('figures: {fig_influence: {recipe: {name: cpu, epoch: 3}}}', "fig_influence in p.yaml: recipe setting must be one of .* got 'epoch'"), ('figures: {fig_influence: {n_models: 0}}', 'fig_influence in p.yaml: seeds must name at least one model'),
    ('figures: {fig_influence: {dataset: cifr10}}', "fig_influence in p.yaml: dataset must be one of .* got 'cifr10'"), ('figures: {fig_influence: {n_examples: -1}}', 'fig_influence in p.yaml: n_examples must be in')])
def test_a_profile_with_values_that_no_run_takes(tmp_path, results, capsys, text, match):
    (tmp_path/'p.yaml').write_text(text)
    with pytest.raises(ValueError, match=match): B.load_profile(tmp_path/'p.yaml')
    assert cli.main(['run', str(tmp_path/'p.yaml')]) == 2 and capsys.readouterr().err.count('\n') == 1 and not results.exists()


# --- honest after ---------------------------------------------------------------------------------------------------

def test_done_cached_stale_forced(tmp_path, results, capsys):
    path = notebook(tmp_path/'a b', 'fig_t', FIGURE.format(name='fig_t'), kernel=None)
    job = B.make_job(path, dict(n=4))
    assert B.run_jobs('p', [job]) == 0 and B.run_jobs('p', [job]) == 0
    assert 'fig_t: cached' in capsys.readouterr().out
    assert {p.name for p in B.job_folder('p', job).iterdir()} >= {'fig_t.ipynb', 'fig_t.png', 'fig_t.pdf', 'fig_t.csv', 'claims.csv', 'provenance.json', 'job.json'}
    assert B.job_state('p', B.make_job(path, dict(n=5)))['status'] == 'stale'
    notebook(tmp_path/'a b', 'fig_t', FIGURE.format(name='fig_t') + '\n1 + 1')
    assert B.job_state('p', B.make_job(path, dict(n=4)))['status'] == 'stale'


def test_failures_are_told_apart_and_do_not_stop_the_rest(tmp_path, results, capsys):
    jobs = [B.make_job(notebook(tmp_path, 'raises', 'raise KeyError("no such layer")'), {}), B.make_job(notebook(tmp_path, 'claims', FIGURE.format(name='claims')), dict(n=1)), B.make_job(notebook(tmp_path, 'well', '1'), {})]
    assert B.run_jobs('p', jobs) == 2
    assert [B.job_state('p', j)['status'] for j in jobs] == ['failed', 'claims fail', 'done']
    out = capsys.readouterr().out
    assert 'no such layer' in out and 'raises.failed.ipynb' in out and '1 of 1 claims fail: n is above two' in out and '2 of 3 did not end well: raises, claims\n' in out
    assert (B.job_folder('p', jobs[1])/'claims.png').exists(), 'the picture of a failed claim is still there'
    assert not (B.job_folder('p', jobs[0])/'raises.ipynb').exists()


def test_time_out(tmp_path, results):
    job = B.make_job(notebook(tmp_path, 'slow', 'import time; time.sleep(600)'), {})
    start = time.monotonic()
    assert B.run_jobs('p', [job], timeout=8) == 1 and time.monotonic() - start < 60
    assert 'no end after 8 s' in B.job_state('p', job)['error'] and not list(B.job_folder('p', job).glob('.running*.ipynb'))


def test_interrupted_leaves_nothing_that_looks_finished(tmp_path, results):
    path = notebook(tmp_path, "long", f'import time; open(r"{tmp_path}/started", "w").close(); time.sleep(600)')
    p = subprocess.Popen([Path(sys.executable).parent/'noisymem', 'run', path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a test run in the background ignores it, and a child inherits that
    deadline = time.monotonic() + 60
    while not (tmp_path/'started').exists() and time.monotonic() < deadline: time.sleep(.1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and b'interrupted' in err
    job = B.make_job(path, {})
    assert B.job_state('manual', job)['status'] == 'not run'
    assert not list(B.job_folder('manual', job).glob('*.ipynb'))


def test_command_line(tmp_path, results, quick, capsys):
    path = notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t'))
    assert cli.main(['run', path, '-p', 'n=4']) == 0
    assert cli.main(['claims']) == 0 and 'yes  n is above two: 4 > 2 (paper 5' in capsys.readouterr().out
    assert cli.main(['run', path, '-p', 'm=4']) == 2 and "parameter of fig_t must be one of 'n', got 'm'" in capsys.readouterr().err
    assert cli.main(['run', path, '-p', 'n']) == 2
    assert cli.main(['run', 'dmeo']) == 2 and 'or a profile: demo' in capsys.readouterr().err
    assert cli.main(['run', path, '-p', 'n=1']) == 1
    assert cli.main(['claims']) == 1 and cli.main(['status', 'demo']) == 0 and 'not run' in capsys.readouterr().out


def test_progress_reaches_the_parent(tmp_path, results, capsys, monkeypatch):
    job = B.make_job(notebook(tmp_path, 'counts', 'import time\nfrom noisymem.progress import track\nfor i in track(range(4), "models"): time.sleep(.3)'), {})
    seen, real = [], json.loads
    monkeypatch.setattr(B.json, 'loads', lambda t, **options: seen.append(t) or real(t, **options))
    assert B.run_jobs('p', [job]) == 0
    assert any('"total": 4' in str(t) for t in seen) and not (B.job_folder('p', job)/'.progress.json').exists()


def test_gallery_escapes_and_embeds(tmp_path, results, quick):
    job = B.make_job(notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t').replace('n is above two', '<b> & | two')), dict(n=4))
    B.run_jobs('p', [job])
    page = write_gallery('p', tmp_path/'g g')
    text = page.read_text()
    assert '&lt;b&gt; &amp; | two' in text and 'data:image/webp;base64,' in text and 'src="http' not in text and str(tmp_path) not in text
    assert (tmp_path/'g g'/'fig_t.png').exists() and (tmp_path/'g g'/'fig_t.ipynb').exists()
    assert str(tmp_path) not in (tmp_path/'g g'/'README.md').read_text() + (tmp_path/'g g'/'fig_t.ipynb').read_text()


def test_claims_of_a_figure(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_FIGURE', str(tmp_path))
    fig = Figure('f', {})
    assert not fig.claim('nan', float('nan'), '>', 0, n=1, tells=False)
    assert fig.claim('about', 1.05, '~', 1, n=1, tolerance=.1)
    assert len(fig.finish()) == 2
    with pytest.raises(ValueError, match='relation must be one of'): fig.claim('x', 1, '=', 1, n=1)
    fig.claim('false', 0, '>', 1, n=1)
    with pytest.raises(AssertionError, match='1 of 3 claims fail: false'): fig.finish()
    assert len(pd.read_csv(tmp_path/'claims.csv')) == 3


def test_a_profile_of_ones_own_has_one_name_everywhere(tmp_path, results, quick, capsys):
    path = notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t'))
    mine = tmp_path/'my.yaml'
    mine.write_text(f'figures: {{{path}: [{{n: 4}}, {{n: 5}}]}}')
    assert cli.main(['run', str(mine)]) == 0
    capsys.readouterr()
    for name in (str(mine), 'my'):
        assert cli.main(['status', name]) == 0
        out = capsys.readouterr().out
        assert out.count('done') == 2 and 'not run' not in out and 'fig_t-2' in out
        assert cli.main(['claims', name]) == 0 and '2 of 2 claims hold' in capsys.readouterr().out
        assert cli.main(['gallery', name]) == 0 and 'gallery/my/index.html' in capsys.readouterr().out
    assert cli.main(['status']) == 0 and 'my\n  done' in capsys.readouterr().out
    for command in ('status', 'claims'): assert cli.main([command, 'mine']) == 2 and "profile must be one of 'demo'" in capsys.readouterr().err


def test_single_notebooks_have_a_status(tmp_path, results, quick, capsys):
    path = notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t'))
    assert cli.main(['status', 'manual']) == 2 and 'profile must be one of' in capsys.readouterr().err
    assert cli.main(['run', path, '-p', 'n=4']) == 0
    assert cli.main(['status', 'manual']) == 0 and 'done         fig_t' in capsys.readouterr().out
    notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t') + '\n1 + 1')
    assert cli.main(['status', 'manual']) == 0 and 'stale        fig_t' in capsys.readouterr().out
    Path(path).unlink()
    assert cli.main(['status', 'manual']) == 0 and 'stale        fig_t' in capsys.readouterr().out


def test_bad_words_on_the_command_line(results, capsys):
    assert cli.main(['plan', 'demo', '--only', 'zzz']) == 2 and "only must be part of one of fig_memorization_histogram" in capsys.readouterr().err
    assert cli.main(['run', 'demo', '--only', 'zzz', '--dry-run']) == 2 and 'only must be part of' in capsys.readouterr().err
    assert cli.main(['run', 'demo', '--only', 'detection', '--only', 'zzz', '--dry-run']) == 2 and "got 'zzz'" in capsys.readouterr().err
    assert cli.main(['run', 'demo', '--only', 'fig_influence', '--only', 'detection', '--dry-run']) == 0
    assert re.findall(r'\] (\w+):', capsys.readouterr().out) == ['fig_influence', 'tab_detection']
    for words in (['--wait'], ['--cluster-option', 'time=3'], ['--cluster-options', 'o.yaml']): assert cli.main(['run', 'demo', '--dry-run', *words]) == 2 and f'{words[0]} goes with --cluster' in capsys.readouterr().err
    assert cli.main(['run', 'fig_influence', '-p', 'n_models=[']) == 2 and "value of -p n_models is not valid YAML" in capsys.readouterr().err


# --- what would run, and why ----------------------------------------------------------------------------------------

def would(profile, jobs, capsys, **options):
    assert B.run_jobs(profile, jobs, dry_run=True, **options) == 0
    return [l.split(': ', 1)[1] for l in capsys.readouterr().out.splitlines()]


def test_a_dry_run_says_why_and_does_nothing(tmp_path, results, quick, capsys):
    make = lambda name, code='1', **p: B.make_job(notebook(tmp_path, name, code), p)
    jobs = [make('well'), make('other'), make('claims', FIGURE.format(name='claims'), n=1), make('raises', '1/0'), make('changed'), make('new')]
    assert B.run_jobs('p', jobs[:5]) == 2
    capsys.readouterr()
    jobs[1] = B.make_job(str(jobs[1].notebook), dict(n=7))
    notebook(tmp_path, 'changed', '2')
    before = {p: p.stat().st_mtime_ns for p in results.rglob('*')}
    assert would('p', jobs, capsys) == ['cached', 'would run (changed: n default -> 7)', 'cached, claims fail', 'would run (failed before)', 'would run (code changed: the notebook)', 'would run (new)']
    assert would('p', jobs[:1], capsys, force=True) == ['would run (forced)']
    assert would('p', jobs, capsys, retry_failed=True) == ['would run (claims failed before)', 'would run (failed before)']
    assert before == {p: p.stat().st_mtime_ns for p in results.rglob('*')}


def test_a_failed_notebook_is_tried_again_after_it_was_mended(tmp_path, results, quick, capsys):
    jobs = [B.make_job(notebook(tmp_path, 'well', '1'), {}), B.make_job(notebook(tmp_path, 'bad', '1/0'), {}), B.make_job(notebook(tmp_path, 'new', '1'), {})]
    assert B.run_jobs('p', jobs[:2]) == 1
    notebook(tmp_path, 'bad', '1')
    notebook(tmp_path, 'well', '2')
    capsys.readouterr()
    assert B.run_jobs('p', jobs, retry_failed=True) == 0
    out = capsys.readouterr().out
    assert '[1/1] bad: done' in out and 'well' not in out and 'new' not in out
    assert B.run_jobs('p', jobs, retry_failed=True) == 0 and 'nothing failed before' in capsys.readouterr().out


def test_dry_run_from_the_command_line_writes_nothing(tmp_path, results, quick, capsys):
    path = notebook(tmp_path, 'fig_t', '1')
    assert cli.main(['run', path, '--dry-run']) == 0
    assert capsys.readouterr().out == '[1/1] fig_t: would run (new)\n' and not results.exists()
    assert cli.main(['run', path, '--retry-failed']) == 0 and 'nothing failed before' in capsys.readouterr().out


def test_failed_claims_stand_until_something_changes(tmp_path, results, quick, capsys):
    job = B.make_job(notebook(tmp_path, 'fig_t', f'open(r"{tmp_path}/ran", "a").write("x")\n' + FIGURE.format(name='fig_t')), dict(n=1))
    ran = lambda **options: (B.run_jobs('p', [job], **options), (tmp_path/'ran').read_text().count('x'))
    assert ran() == (1, 1) and ran() == (1, 1)
    assert '[1/1] fig_t: cached, claims fail\n      AssertionError: 1 of 1 claims fail: n is above two\n      see ' in capsys.readouterr().out
    assert ran(retry_failed=True) == (1, 2) and ran(force=True) == (1, 3)


def test_a_gallery_keeps_nothing_of_a_figure_that_was_taken_out(tmp_path, results, quick):
    "And nothing of anybody else's."
    jobs = [B.make_job(notebook(tmp_path, name, FIGURE.format(name=name)), dict(n=n)) for name, n in (('fig a', 4), ('fig_b', 1))]
    assert B.run_jobs('p', jobs) == 1
    to = tmp_path/'g'
    to.mkdir()
    for name in ('own.png', 'own.csv'): (to/name).write_text('x')
    write_gallery('p', to)
    names = lambda: {p.name for p in to.iterdir()} - {'index.html', 'README.md', 'claims.csv', 'own.png', 'own.csv'}
    assert names() == {'fig a.png', 'fig a.csv', 'fig a.ipynb', 'fig_b.png', 'fig_b.csv', 'fig_b.failed.ipynb'}
    B.keep_order('p', jobs[1:])
    write_gallery('p', to)
    assert names() == {'fig_b.png', 'fig_b.csv', 'fig_b.failed.ipynb'} and (to/'own.png').exists() and (to/'own.csv').exists()
    (to/'README.md').write_text('# Mine\n![x](own.png)')
    write_gallery('p', to)
    assert (to/'own.png').exists()


@pytest.mark.parametrize('end', ['raise OSError("disk")', 'raise AssertionError("1 of 2 things are missing")'])
def test_another_error_after_the_claims_is_no_failed_claim(tmp_path, results, quick, end):
    job = B.make_job(notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t') + end), dict(n=4))
    assert B.run_jobs('p', [job]) == 1 and B.job_state('p', job)['status'] == 'failed'


@pytest.mark.parametrize('timeout', [0, -1, float('nan'), float('inf')])
def test_no_time_no_run(tmp_path, results, timeout):
    with pytest.raises(ValueError, match='timeout must be in'): B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', '1'), {})], timeout=timeout)


# --- the stamp ------------------------------------------------------------------------------------------------------

def test_only_code_that_is_reached_makes_a_job_stale(tmp_path, monkeypatch):
    package = tmp_path/'noisymem'
    package.mkdir()
    for f, text in {'__init__.py': '', 'a.py': 'def x(): return 1\ndef other(): return 1', 'b.py': 'from .a import x\ny = x', 'd.py': 'x = 1'}.items(): (package/f).write_text(text)
    monkeypatch.setattr(B, 'reached_code', lambda code: reached_code(code, package))
    job = B.make_job(notebook(tmp_path/'nb', 'fig_t', 'from noisymem.b import y'), {})
    stamp = B._stamp(job)
    for f, text in {'d.py': 'x = 2', '_modidx.py': 'd = {}', 'a.py': '# a remark\ndef x(): return 1\ndef other(): return 2'}.items(): (package/f).write_text(text)
    assert B._stamp(job) == stamp
    (package/'a.py').write_text('def x(): return 2\ndef other(): return 1')
    assert B._stamp(job) != stamp


# --- what has left a profile ----------------------------------------------------------------------------------------

def test_what_was_taken_out_of_a_profile_counts_no_more(tmp_path, results, quick, capsys):
    paths = [notebook(tmp_path, name, FIGURE.format(name=name)) for name in ('fig_b', 'fig_a')]
    mine = tmp_path/'my.yaml'
    mine.write_text(f'figures: {{{paths[0]}: {{n: 4}}, {paths[1]}: {{n: 1}}}}')
    assert cli.main(['run', str(mine)]) == 1
    assert set(B.load_claims('my').figure) == {'fig_a', 'fig_b'} and not B.load_claims('my').holds.all()
    mine.write_text(f'figures: {{{paths[0]}: {{n: 4}}}}')
    assert cli.main(['run', str(mine)]) == 0
    capsys.readouterr()
    assert set(B.load_claims('my').figure) == set(B.load_claims().figure) == {'fig_b'} and [j.name for j in B.stored_jobs('my')] == ['fig_b']
    assert cli.main(['claims', 'my']) == 0 and '1 of 1 claims hold' in capsys.readouterr().out
    assert cli.main(['status', 'my']) == 0 and 'fig_a' not in capsys.readouterr().out
    page = write_gallery('my', tmp_path/'g').read_text()
    assert 'fig_a' not in page and '1 of 1 claims hold' in page and not (tmp_path/'g'/'fig_a.png').exists()
    assert (results/'figures'/'my'/'fig_a'/'fig_a.png').exists(), 'kept, should it come back'
    mine.write_text(f'figures: {{{paths[1]}: {{n: 1}}, {paths[0]}: {{n: 4}}}}')
    assert cli.main(['run', str(mine)]) == 1 and 'fig_a: cached, claims fail' in capsys.readouterr().out
    assert (page := write_gallery('my', tmp_path/'g').read_text()).index('id="fig_a"') < page.index('id="fig_b"')


def test_a_profile_of_the_house_is_taken_as_it_is_now(tmp_path, results, quick, monkeypatch):
    "Before it runs again, too."
    paths = [notebook(tmp_path, name, FIGURE.format(name=name)) for name in ('fig_a', 'fig_b')]
    house = tmp_path/'house.yaml'
    house.write_text(f'figures: {{{paths[0]}: {{n: 4}}, {paths[1]}: {{n: 4}}}}')
    monkeypatch.setattr(B, 'list_profiles', lambda: dict(house=house))
    assert B.run_jobs('house', B.load_profile('house')) == 0
    house.write_text(f'figures: {{{paths[1]}: {{n: 4}}}}')
    assert set(B.load_claims().figure) == {'fig_b'} and 'id="fig_a"' not in write_gallery('house', tmp_path/'g').read_text()


def test_a_profile_that_cannot_be_read_hides_no_other(tmp_path, results, quick, monkeypatch, capsys):
    path, house = notebook(tmp_path, 'fig_a', FIGURE.format(name='fig_a')), {k: tmp_path/f'{k}.yaml' for k in 'ab'}
    for p in house.values(): p.write_text(f'figures: {{{path}: {{n: 4}}}}')
    for module in (B, cli): monkeypatch.setattr(module, 'list_profiles', lambda: house)
    for k in 'ab': assert cli.main(['run', k]) == 0
    house['a'].write_text('figures: {fig_gone: {}}')
    capsys.readouterr()
    assert cli.main(['status']) == 0 and "a\n  notebook in a.yaml must be one of" in (out := capsys.readouterr().out) and 'b\n  done         fig_a' in out
    assert cli.main(['status', 'a']) == 2 and cli.main(['claims']) == 0 and '2 of 2 claims hold' in capsys.readouterr().out, 'as it last ran'


def test_results_of_a_profile_that_is_all_leftovers(tmp_path, results, quick, capsys):
    paths = [notebook(tmp_path, name, FIGURE.format(name=name)) for name in ('fig_a', 'fig_b')]
    mine = tmp_path/'my.yaml'
    mine.write_text(f'figures: {{{paths[0]}: {{n: 4}}}}')
    assert cli.main(['run', str(mine)]) == 0
    mine.write_text(f'figures: {{{paths[1]}: {{n: 4}}}}')
    capsys.readouterr()
    assert cli.main(['run', str(mine), '--retry-failed']) == 0
    assert capsys.readouterr().out == 'nothing failed before\n'


@pytest.mark.parametrize('wrong', [b'', b'3', b'{}', b'[3]', b'["fig_a'])
def test_a_damaged_order_is_named(tmp_path, results, quick, capsys, wrong):
    mine = tmp_path/'my.yaml'
    mine.write_text(f'figures: {{{notebook(tmp_path, "fig_a", FIGURE.format(name="fig_a"))}: {{n: 4}}}}')
    assert cli.main(['run', str(mine)]) == 0
    path = results/'figures'/'my'/'order.json'
    path.write_bytes(wrong)
    for command in ('claims', 'gallery'):
        capsys.readouterr()
        assert cli.main([command, 'my']) == 2 and str(path) in capsys.readouterr().err
    assert cli.main(['run', str(mine)]) == 0 and cli.main(['claims', 'my']) == 0


# --- the gallery ----------------------------------------------------------------------------------------------------

def test_variants_of_one_notebook_stay_apart(tmp_path, results, quick):
    code = FIGURE.format(name='fig_t').replace('[1, 2]', '[1, n]').replace('dict(x=[1])))', "dict(x=[n])))\nfig.save(ax, pd.DataFrame(dict(x=[-n])), 'b')")
    path = notebook(tmp_path, 'fig_t', code)
    (tmp_path/'my.yaml').write_text(f'figures: {{{path}: [{{n: 4}}, {{n: 50}}]}}')
    assert B.run_jobs('my', B.load_profile(tmp_path/'my.yaml')) == 0
    page = write_gallery('my', tmp_path/'g')
    names = {p.name for p in (tmp_path/'g').iterdir()}
    assert names == {'index.html', 'README.md', 'claims.csv'} | {f'fig_t-{i}{panel}.{kind}' for i in (1, 2) for panel in ('', '_b') for kind in ('png', 'csv')} | {'fig_t-1.ipynb', 'fig_t-2.ipynb'}
    assert [int(pd.read_csv(tmp_path/'g'/f'fig_t-{i}.csv').x[0]) for i in (1, 2)] == [4, 50]
    assert (tmp_path/'g'/'fig_t-1.png').read_bytes() != (tmp_path/'g'/'fig_t-2.png').read_bytes()
    readme = (tmp_path/'g'/'README.md').read_text()
    assert '(fig_t-1.png)' in readme and '(fig_t-2_b.png)' in readme and '(fig_t.png)' not in readme
    assert '## Title of fig_t (fig_t-2)' in readme and 'id="fig_t-2"' in page.read_text()


def test_old_numbers_do_not_survive_a_new_run(tmp_path, results, quick):
    path = notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t').replace('x=[1])))', "x=[1])), 'old')"))
    B.run_jobs('p', [B.make_job(path, {})])
    B.run_jobs('p', [job := B.make_job(notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t')), {})])
    assert not list(B.job_folder('p', job).glob('*_old.*'))


def test_the_gallery_says_whether_the_claim_was_confirmed(tmp_path, results, quick):
    more = "fig.claim('n is <above> | three', n, '>', 3, n=1, tells=False)\nfig.finish()"
    path = notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t').replace('fig.finish()', more))
    jobs = [B.Job('yes', Path(path), dict(n=4)), B.Job('weak', Path(path), dict(n=3)), B.Job('no', Path(path), dict(n=1)), B.make_job(notebook(tmp_path, 'error', '1/0'), {}), B.make_job(notebook(tmp_path, 'none', '1'), {})]
    assert B.run_jobs('p', jobs) == 2
    page = write_gallery('p', tmp_path/'g').read_text()
    sections = {s.split('"')[0]: s for s in page.split('<h2 id="')[1:]}
    assert 'lead <span class="yes">confirmed</span>' in sections['yes'] and 'not confirmed' not in sections['yes']
    assert 'lead <span class="no">not confirmed in this run</span>' in sections['weak'] and '<li>n is &lt;above&gt; | three</li>' in sections['weak'] and '<li>n is above two' not in sections['weak']
    assert '<li>n is above two</li><li>n is &lt;above&gt; | three</li>' in sections['no']
    assert 'not confirmed in this run: it ended with an error' in sections['error'] and '>no claim was checked<' in sections['none']
    readme = (tmp_path/'g'/'README.md').read_text()
    assert all('3 of 6 claims hold; 1 of the other 3 are required here. ' in text.replace('<', ' <') for text in (readme, page))
    assert 'lead **confirmed**' in readme and 'lead **not confirmed in this run**\n\n* n is above two\n* n is ' in readme


def test_a_time_out_is_no_failed_claim(tmp_path, results, quick, monkeypatch):
    monkeypatch.setattr(B, '_watch', lambda *a: False)
    job = B.make_job(notebook(tmp_path, 'slow', FIGURE.format(name='slow')), {})
    assert B.run_job('p', job, 9)['status'] == 'failed' and B.job_state('p', job)['error'] == 'no end after 9 s'


def test_a_reader_that_leaves_early(results):
    p = subprocess.Popen([Path(sys.executable).parent/'noisymem', 'status'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.close()
    assert p.stderr.read() == b'' and p.wait(60) == 0


def test_the_banner_of_a_failed_notebook_is_no_title(tmp_path):
    from noisymem.gallery import _lead
    folder = tmp_path/'fig_x'
    folder.mkdir()
    cells = [dict(cell_type='markdown', metadata=dict(tags=['papermill-error-cell-tag']), source=['<span>An Exception was encountered</span>']), dict(cell_type='markdown', metadata={}, source=['# Title\n', '\n', '**Claim.** So.'])]
    (folder/'fig_x.failed.ipynb').write_text(json.dumps(dict(cells=cells)))
    assert _lead(folder, {}) == ('Title', '**Claim.** So.')


MEET = '''
import os, time
from pathlib import Path
mine = Path(os.environ['NOISYMEM_FIGURE'])
(mine/'threads.txt').write_text(os.environ['OMP_NUM_THREADS'])
deadline = time.time() + 60
while len(list(mine.parent.glob('*/threads.txt'))) < 2:
    if time.time() > deadline: raise TimeoutError('nobody came')
    time.sleep(.1)
'''


def test_two_notebooks_at_a_time_share_the_threads(tmp_path, results, monkeypatch):
    "Two wait for each other, so that they end only if they run together; the third fails and stops neither."
    monkeypatch.setattr(B, 'share_of_machine', lambda i, n, device: dict(OMP_NUM_THREADS=str(10*n + i)))
    jobs = [B.make_job(notebook(tmp_path, f'fig_{k}', MEET if k != 'c' else 'raise RuntimeError("boom")'), {}) for k in 'abc']
    assert B.run_jobs('p', jobs, workers=2) == 1
    assert {(results/'figures'/'p'/f'fig_{k}'/'threads.txt').read_text() for k in 'ab'} == {'20', '21'}
    assert [B.job_state('p', j)['status'] for j in jobs] == ['done', 'done', 'failed']


def test_an_interrupt_ends_all_workers_and_leaves_nothing_that_looks_finished(tmp_path, results):
    files = [notebook(tmp_path, f'fig_{k}', 'import time; time.sleep(60)') for k in 'ab']
    code = f'from noisymem import batch as B; B.run_jobs("p", [B.make_job(f, {{}}) for f in {files!r}], workers=2)'
    runner = subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n' + code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    folders = [results/'figures'/'p'/f'fig_{k}' for k in 'ab']
    deadline = time.time() + 60
    while time.time() < deadline and not all(list(f.glob('.running-*.ipynb')) for f in folders): time.sleep(.2)
    assert all(list(f.glob('.running-*.ipynb')) for f in folders), 'both started'
    runner.send_signal(signal.SIGINT)
    assert runner.wait(30) != 0
    assert not any(list(f.glob(p)) for f in folders for p in ('*.ipynb', '.running-*', 'job.json'))


def test_whoever_waits_for_another_runner_says_so_once_and_hears_an_interrupt(tmp_path, capsys):
    stop = threading.Event()
    threading.Timer(1.2, stop.set).start()
    with FileLock(tmp_path/'.fig_a.lock'), pytest.raises(KeyboardInterrupt): B._held(tmp_path/'.fig_a.lock', stop)
    assert capsys.readouterr().out == f"      waiting for another runner, which holds {tmp_path/'.fig_a.lock'}\n"


def test_the_end_of_a_traceback_is_printed(tmp_path, results, capsys):
    B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', 'def f(): raise KeyError("deep inside")\nf()'), {})])
    out = capsys.readouterr().out
    assert "KeyError: 'deep inside'" in out and 'def f(): raise KeyError' in out and 'fig_t.failed.ipynb' in out


@pytest.mark.parametrize('change', [lambda cells, i: cells[i].update(source=cells[i].source + '\nNEW = 1'), lambda cells, i: cells.pop(i), lambda cells, i: cells.append(cells.pop(i)), None], ids=['more', 'less', 'moved', 'same'])
def test_a_stale_export_is_noticed_before_anything_runs(tmp_path, results, monkeypatch, root, change):
    shutil.copytree(root/'nbs', tmp_path/'repo'/'nbs')
    monkeypatch.setattr(B, '_checkout', lambda: tmp_path/'repo')
    if not change: return B.check_ready()
    path = tmp_path/'repo'/'nbs'/'05_losses.ipynb'
    nb = nbformat.read(path, 4)
    change(nb.cells, next(i for i, c in enumerate(nb.cells) if c.source.startswith('#| export\n') and 'def ' in c.source))
    nbformat.write(nb, path)
    with pytest.raises(ValueError, match='the library is older than 05_losses.ipynb'): B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', '1'), {})])
    assert not (results/'figures'/'p'/'fig_t').exists()


def test_no_kernel_is_said_before_anything_runs(tmp_path, results, monkeypatch):
    real = B.importlib.util.find_spec
    monkeypatch.setattr(B.importlib.util, 'find_spec', lambda name: None if name == 'ipykernel' else real(name))
    with pytest.raises(ValueError, match='running notebooks needs ipykernel'): B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', '1'), {})])


def test_a_kernel_is_tried_once_and_before_the_first_notebook(tmp_path, results, quick, monkeypatch):
    "Not by the threads that run notebooks; and not at all where everything is cached."
    events, jobs = [], [B.make_job(notebook(tmp_path, f'fig_{k}', '1'), {}) for k in 'abc']
    monkeypatch.setattr(B, 'check_kernel', lambda: events.append(threading.current_thread() is threading.main_thread()))
    monkeypatch.setattr(B, '_start', lambda job, *rest: (events.append(job.name), run_here(job, *rest))[1])
    assert B.run_jobs('p', jobs[:1]) == 0 and events == [True, 'fig_a']
    assert B.run_jobs('p', jobs, workers=1) == 0 and events[2:] == [True, 'fig_b', 'fig_c']
    assert B.run_jobs('p', jobs, workers=2) == 0 and len(events) == 5


def test_why_a_job_runs_again(tmp_path, results, quick, capsys):
    make = lambda **p: B.make_job(notebook(tmp_path, 'fig_t', 'from noisymem.metrics import auroc', 'n: int = 3  # models\nways: list = []  # more'), p)
    assert B.run_jobs('p', [make(n=4)]) == 0
    why = lambda job: B.job_state('p', job)['why']
    assert why(make(n=5)) == 'changed: n 4 -> 5' and why(make(ways=[1])) == 'changed: n 4 -> default; ways default -> [1]' and why(make(n=4)) == ''
    path = results/'figures'/'p'/'fig_t'/'job.json'
    state = json.loads(path.read_text())
    assert {'metrics', 'the notebook'} == set(state['code'])
    path.write_text(json.dumps(state | dict(stamp='older', code=state['code'] | dict(metrics='older', gone='x'))))
    assert why(make(n=4)) == 'code changed: gone, metrics'
    path.write_text(json.dumps({k: v for k, v in state.items() if k != 'code'} | dict(stamp='older')))
    assert why(make(n=4)) == 'code changed'
    path.write_text('{')
    assert why(make(n=4)) == f'{path} is damaged'


@pytest.mark.parametrize('workers', [0, -1])
def test_no_worker_no_run(tmp_path, results, workers):
    with pytest.raises(ValueError, match='workers must be in'): B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', '1'), {})], workers=workers)


# --- a constant is changed -------------------------------------------------------------------------------------------

SERVER = '''
import os, sys, traceback
from pathlib import Path
from types import SimpleNamespace
import filelock, matplotlib.pyplot, nbformat, nbdev.export, pandas, PIL.Image, platformdirs, safetensors.torch, scipy.io, seaborn, sklearn.datasets, sklearn.manifold, torch, torchvision, yaml


def start(job, folder, target, limits):
    nb, space = nbformat.read(job.notebook, 4), {}
    os.environ['NOISYMEM_FIGURE'] = str(folder)
    for c in nb.cells[1:]: exec(c.source, space)
    nbformat.write(nb, target)
    (folder/'log.txt').write_text('')
    return SimpleNamespace(poll=lambda: 0, returncode=0)


def run():
    from noisymem import batch as B, cli
    assert Path(B.__file__).parent == Path.cwd()/'noisymem'
    B._start, B._stop, B.check_kernel = start, lambda process: None, lambda: None
    return cli.main(['run', 'mine.yaml'])


def export(): nbdev.export.nb_export('nbs/05_losses.ipynb', 'noisymem')


assert not [m for m in sys.modules if m.startswith('noisymem')]
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        status = 1
        try: status = globals()[line.strip()]() or 0
        except BaseException: traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print('ended', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''
TRAINED = '''
from noisymem.runs import RunConfig, load_or_run
load_or_run(RunConfig('digits', 'symmetric-0.2', n_examples=100, model='fast', width=.25, recipe={'name': 'cpu', 'epochs': 1}, n_models=1), 'cpu', workers=0)
'''
ROBUST = '''
import torch
from noisymem.losses import generalized_cross_entropy
print(generalized_cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))
'''


def test_a_changed_constant_of_a_loss_reruns_exactly_what_depends_on_it(tmp_path, root):
    "In a copy of the checkout: a notebook is edited, exported, and the profile run again, each time by a process that has not read the library before."
    here, results = tmp_path/'check out', tmp_path/'results'
    for part in ('nbs', 'noisymem', 'papermill_runs/profiles'): shutil.copytree(root/part, here/part, ignore=shutil.ignore_patterns('__pycache__', 'figs', 'tutorials'))
    for name in ('settings.ini', 'pyproject.toml'): shutil.copy(root/name, here/name)
    env = os.environ | dict(PYTHONPATH=str(here), PYTHONDONTWRITEBYTECODE='1', NOISYMEM_RESULTS=str(results), OMP_NUM_THREADS='1')
    jobs = [notebook(here/'nbs'/'figs', name, code + FIGURE.format(name=name)) for name, code in (('fig_trained', TRAINED), ('fig_robust', ROBUST), ('fig_plain', ''))]
    (here/'mine.yaml').write_text('figures:\n' + ''.join(f'  {Path(j).stem}: {{}}\n' for j in jobs))

    server = subprocess.Popen([sys.executable, '-c', SERVER], cwd=here, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ask(what, status=0):
        "What a fresh process says that runs the profile, or exports."
        server.stdin.write(what + '\n')
        server.stdin.flush()
        said = []
        while not (said and said[-1].startswith('ended ')): said.append(server.stdout.readline() or 'ended: the server')
        assert said[-1] == f'ended {status}\n', ''.join(said)
        return ''.join(said)

    def ran(): return set(re.findall(r'(fig_\w+): done', ask('run')))

    def change(function, old, new):
        path = here/'nbs'/'05_losses.ipynb'
        nb = nbformat.read(path, 4)
        cell, = [c for c in nb.cells if f'\ndef {function}(' in c.source and old in c.source]
        cell.source = cell.source.replace(old, new)
        nbformat.write(nb, path)

    shards = lambda: {p: p.stat().st_mtime_ns for p in results.rglob('seed-*.npz')}
    try:
        assert ran() == {'fig_trained', 'fig_robust', 'fig_plain'}
        first = shards()
        assert len(first) == 1
        change('generalized_cross_entropy', 'q:float=0.7', 'q:float=0.6')
        assert 'the library is older than 05_losses.ipynb' in ask('run', 2)
        ask('export')
        said = ask('run')
        assert set(re.findall(r'(fig_\w+): done', said)) == {'fig_robust'} and 'fig_robust … (code changed: losses)' in said and shards() == first
        change('cross_entropy', 'label_smoothing:float=0.,', 'label_smoothing:float=0.01,')
        ask('export')
        said = ask('run')
        assert set(re.findall(r'(fig_\w+): done', said)) == {'fig_trained', 'fig_robust'} and "changed: code '" in said
        assert len(shards()) == 2 and first.items() <= shards().items(), 'one more network, the old one is kept'
        assert ran() == set()
    finally:
        server.kill()
        server.communicate()


def test_a_gallery_keeps_a_table_whose_picture_went(tmp_path, results, quick):
    "A figure had saved its table with a second copy of a picture; without the copy the gallery wrote the table and took it away again."
    def run(save):
        B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t').replace('fig.finish()', save + '\nfig.finish()')), dict(n=4))], force=True)
        return write_gallery('p', tmp_path/'g').parent
    frame = "import pandas as pd; from noisymem.plots import make_panels; t = pd.DataFrame(dict(x=[1]))\n"
    assert (run(frame + "fig.save(make_panels()[0], t, 'more')")/'fig_t_more.png').exists()
    folder = run(frame + "fig.save_table(t, 'more')")
    assert (folder/'fig_t_more.csv').exists() and not (folder/'fig_t_more.png').exists() and '(fig_t_more.csv)' in (folder/'README.md').read_text()
    assert not (run('1')/'fig_t_more.csv').exists()
