"Profiles, jobs, claims, gallery, command line: strict before, honest after."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


# --- strict before anything runs ------------------------------------------------------------------------------------

@pytest.mark.parametrize('text,match', [
    ('figures: {fig_memorization_histogram: {n_model: 3}}', "parameter of fig_memorization_histogram in p.yaml must be one of .* got 'n_model'"),
    ('figures: {fig_memorisation: {}}', 'notebook must be one of'),
    ('defaults: {datset: digits}\nfigures: {fig_memorization_histogram: {}}', "default 'datset' in p.yaml is a parameter of none"),
    ('default: {}\nfigures: {}', "key in p.yaml must be one of 'about', 'defaults', 'figures', got 'default'"),
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
    p = subprocess.Popen([Path(sys.executable).parent/'noisymem', 'run', path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
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
    monkeypatch.setattr(B.json, 'loads', lambda t: seen.append(t) or real(t))
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
