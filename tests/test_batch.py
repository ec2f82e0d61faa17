"Profiles, jobs, claims, gallery, command line: strict before, honest after."
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from noisymem import batch as B
from noisymem import cli
from noisymem.figures import Figure
from noisymem.gallery import write_gallery


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path/'re sults'))
    return tmp_path/'re sults'


def notebook(folder, name, code, parameters='n: int = 3  # models', tags=('parameters',), kernel='python3'):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f'# Title of {name}\n\n> lead'), nbformat.v4.new_code_cell(parameters, metadata=dict(tags=list(tags))), nbformat.v4.new_code_cell(code)])
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


@pytest.fixture
def quick(monkeypatch):
    "Run notebooks in this process instead of by papermill: the same code, the same files, no new interpreter."
    def start(job, folder, target, limits):
        nb, space, error = nbformat.read(job.notebook, 4), {}, ''
        monkeypatch.setenv('NOISYMEM_FIGURE', str(folder))
        try:
            for c in nb.cells[1:]:
                exec(c.source, space)
                if c.metadata.get('tags'): space |= job.parameters
        except Exception as e: error = f'{type(e).__name__}: {e}'
        monkeypatch.delenv('NOISYMEM_FIGURE')
        nbformat.write(nb, target)
        (folder/'log.txt').write_text(error)
        return SimpleNamespace(poll=lambda: int(bool(error)), returncode=int(bool(error)))
    monkeypatch.setattr(B, '_start', start)


# --- strict before anything runs ------------------------------------------------------------------------------------

@pytest.mark.parametrize('text,match', [
    ('figures: {fig_memorization_histogram: {n_model: 3}}', "parameter of fig_memorization_histogram in p.yaml must be one of .* got 'n_model'"),
    ('figures: {fig_memorisation: {}}', 'notebook must be one of'),
    ('defaults: {datset: digits}\nfigures: {fig_memorization_histogram: {}}', "default 'datset' in p.yaml is a parameter of none"),
    ('default: {}\nfigures: {}', "key in p.yaml must be one of 'about', 'defaults', 'figures', got 'default'"),
    ('figures: {fig_influence: [null, {n_models: 4}]}', 'fig_influence in p.yaml must hold a mapping of parameters, or a list of several, got None'),
    ('figures: {fig_influence: 3}', 'fig_influence in p.yaml must hold a mapping of parameters, or a list of several, got 3'),
    ('figures: {fig_influence: false}', 'fig_influence in p.yaml must hold a mapping of parameters, or a list of several, got False'),
    ('figures: {fig_influence: []}', r'fig_influence in p.yaml must hold a mapping of parameters, or a list of several, got \[\]'),
    ('defaults: [a]\nfigures: {fig_influence: {}}', r"defaults in p.yaml must hold a mapping of parameters, got \['a'\]"),
    ('defaults: 0\nfigures: {fig_influence: {}}', 'defaults in p.yaml must hold a mapping of parameters, got 0'),
    ('figures: {3: {}}', 'notebook must be one of .* got 3'), ('figures: {}', 'figures in p.yaml must name at least one notebook'),
    ('figures: {fig_influence: [{1: 2}]}', 'parameter of fig_influence in p.yaml must be one of .* got 1'),
    ('- a\n- b', 'must hold a mapping'), ('figures: 3', 'must hold a mapping'), ('', 'must hold a mapping'), ('a: [', 'not valid YAML')])
def test_bad_profiles(tmp_path, text, match):
    (tmp_path/'p.yaml').write_text(text)
    with pytest.raises(ValueError, match=match): B.load_profile(tmp_path/'p.yaml')


def test_crlf_profile(tmp_path):
    (tmp_path/'p.yaml').write_bytes(b'about: x\r\nfigures:\r\n  fig_memorization_histogram: {n_models: 4}\r\n')
    assert B.load_profile(tmp_path/'p.yaml')[0].parameters == dict(n_models=4)


def test_a_list_of_overrides_makes_several_jobs(tmp_path):
    (tmp_path/'p.yaml').write_text('figures: {fig_memorization_histogram: [{n_models: 4}, {n_models: 5}]}')
    assert [j.name for j in B.load_profile(tmp_path/'p.yaml')] == ['fig_memorization_histogram-1', 'fig_memorization_histogram-2']


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
    assert 'no such layer' in out and 'raises.failed.ipynb' in out and '1 of 1 claims fail: n is above two' in out
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


def test_command_line(tmp_path, results, capsys):
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


def test_gallery_escapes_and_embeds(tmp_path, results):
    job = B.make_job(notebook(tmp_path, 'fig_t', FIGURE.format(name='fig_t').replace('n is above two', '<b> & | two')), dict(n=4))
    B.run_jobs('p', [job])
    page = write_gallery('p', tmp_path/'g g')
    text = page.read_text()
    assert '&lt;b&gt; &amp; | two' in text and 'data:image/png;base64,' in text and 'src="http' not in text and str(tmp_path) not in text
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
    assert would('p', jobs, capsys) == ['cached', 'would run (parameters changed)', 'would run (claims failed before)', 'would run (failed before)', 'would run (code changed)', 'would run (not run)']
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
    assert capsys.readouterr().out == '[1/1] fig_t: would run (not run)\n' and not results.exists()
    assert cli.main(['run', path, '--retry-failed']) == 0 and 'nothing failed before' in capsys.readouterr().out


# --- the stamp ------------------------------------------------------------------------------------------------------

@pytest.fixture
def package(tmp_path, monkeypatch):
    "A small library: a <- b <- sub.c, d beside."
    p = tmp_path/'noisymem'
    (p/'sub').mkdir(parents=True)
    for f, text in {'__init__.py': '', 'a.py': 'import os', 'b.py': 'from .a import x', 'd.py': 'x = 1', 'e.py': 'from . import d', 'f.py': 'def g():\n    import noisymem.d',
                    'sub/__init__.py': '', 'sub/c.py': 'from ..b import (\n    y)'}.items(): (p/f).write_text(text)
    monkeypatch.setattr(B, '_PACKAGE', p)
    return p


@pytest.mark.parametrize('code,reached', [
    ('from noisymem.b import y', {'a', 'b'}), ('import noisymem.sub.c as c', {'a', 'b', 'sub/c', 'sub/__init__'}), ('from noisymem import e', {'d', 'e'}), ('from noisymem.f import g', {'d', 'f'}),
    ('import os, numpy', None), ('import noisymem', set()), ('%matplotlib inline\nfrom noisymem.a import x', {'a'}), ('from noisymem.b import *', {'a', 'b'}), ('from noisymem.sub import c', {'a', 'b', 'sub/c', 'sub/__init__'})])
def test_what_a_notebook_reaches(package, code, reached):
    assert set(B._reached([code])) == (set() if reached is None else {f'{r}.py' for r in reached | {'__init__'}})


def test_what_cannot_be_read_reaches_everything(package): assert set(B._reached(['from noisymem.a import x', 'x = = 1'])) == {str(f.relative_to(package)) for f in package.rglob('*.py')}


def test_only_reached_modules_make_a_job_stale(tmp_path, package):
    job = B.make_job(notebook(tmp_path/'nb', 'fig_t', 'from noisymem.sub.c import y'), {})
    stamp = B._stamp(job)
    (package/'d.py').write_text('x = 2')
    (package/'_modidx.py').write_text('d = {}')
    assert B._stamp(job) == stamp
    (package/'a.py').write_text('import sys')
    assert B._stamp(job) != stamp


def test_the_command_is_reached_by_no_figure():
    reached = set().union(*(B._reached(B._code(j.notebook)) for j in B.load_profile('paper')))
    assert {'ensemble.py', 'figures.py', 'plots.py', 'core.py', 'scores/heldout.py'} <= reached and not reached & {'cli.py', 'batch.py', 'gallery.py', '_modidx.py'}


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


def test_two_runners_train_a_notebook_once(tmp_path, results):
    path = notebook(tmp_path, 'fig_t', 'import os, time; open(os.environ["NOISYMEM_FIGURE"] + "/../times.txt", "a").write("once\\n"); time.sleep(2)')
    code = f'from noisymem import batch as B; raise SystemExit(B.run_jobs("p", [B.make_job({path!r}, {{}})]))'
    runners = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [r.communicate(timeout=120)[0] for r in runners]
    assert all(r.returncode == 0 for r in runners) and (results/'figures'/'p'/'times.txt').read_text() == 'once\n'
    assert sum('cached' in s for s in said) == 1


def test_the_end_of_a_traceback_is_printed(tmp_path, results, capsys):
    B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', 'def f(): raise KeyError("deep inside")\nf()'), {})])
    out = capsys.readouterr().out
    assert "KeyError: 'deep inside'" in out and 'def f(): raise KeyError' in out and 'fig_t.failed.ipynb' in out


@pytest.mark.parametrize('change', [True, False])
def test_a_stale_export_is_noticed_before_anything_runs(tmp_path, results, monkeypatch, root, change):
    import shutil
    shutil.copytree(root/'nbs', tmp_path/'repo'/'nbs')
    monkeypatch.setattr(B, '_checkout', lambda: tmp_path/'repo')
    if not change: return B.check_ready()
    path = tmp_path/'repo'/'nbs'/'05_losses.ipynb'
    nb = nbformat.read(path, 4)
    cell = next(c for c in nb.cells if c.source.startswith('#| export\n') and 'def ' in c.source)
    cell.source += '\nNEW = 1'
    nbformat.write(nb, path)
    with pytest.raises(ValueError, match='the library is older than 05_losses.ipynb'): B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', '1'), {})])
    assert not (results/'figures'/'p'/'fig_t').exists()


def test_no_kernel_is_said_before_anything_runs(tmp_path, results, monkeypatch):
    real = B.importlib.util.find_spec
    monkeypatch.setattr(B.importlib.util, 'find_spec', lambda name: None if name == 'ipykernel' else real(name))
    with pytest.raises(ValueError, match='running notebooks needs ipykernel'): B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', '1'), {})])


@pytest.mark.parametrize('workers', [0, -1])
def test_no_worker_no_run(tmp_path, results, workers):
    with pytest.raises(ValueError, match='workers must be in'): B.run_jobs('p', [B.make_job(notebook(tmp_path, 'fig_t', '1'), {})], workers=workers)
