"From a source to a report: probabilities out of sample, killed and resumed to the bit, nothing of the user's touched, every refusal a sentence."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_page import look

from noisymem import own_scores
from noisymem.cli import main
from noisymem.ensemble import draw_included, load_ensemble
from noisymem.own_data import from_own_arrays, read_own
from noisymem.own_report import open_report, score_source
from noisymem.own_scores import TRIAGE, TURNS, Plan, _design, _train_round, plan_own, recipe_own, score_own, train_own
from noisymem.records import load_records
from noisymem.train import get_recipe


def folder_of_pictures(root, n=40, names=('light', 'dark, "x" <b>')):
    rng = np.random.default_rng(0)
    for i in range(n):
        a = rng.integers(0, 60, (10, 10, 3)) + 150*((i + (i < 3)) % 2)
        f = root/names[i % 2]/f'{i:02d}, a.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(a.astype(np.uint8)).save(f)
    return root


@pytest.fixture
def quick(monkeypatch):
    "Pictures are trained on for two epochs, and no speed is measured."
    monkeypatch.setitem(own_scores.KINDS_OWN, 'images', ('fast', dict(name='cpu'), 2, 1))
    monkeypatch.setattr(own_scores, 'measure_speed', lambda *a: 10.)


@pytest.fixture
def npz(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = rng.normal(size=(120, 6)) + 4*np.eye(6)[y]
    y[:6] = (y[:6] + 1) % 3
    np.savez(tmp_path/'mine.npz', x=x, y=np.array(['c', 'a', 'b'])[y])
    return tmp_path/'mine.npz'


def test_wrong_labels_come_first_and_every_file_fits_the_others(npz, tmp_path):
    out = tmp_path/'a report'
    table = score_source(npz, out, n_models=8, say=lambda s: None)
    assert set(table.nsmallest(6, 'rank')['index']) == set(range(6)), table.head(6)
    read, p, classes = pd.read_csv(out/'scores.csv'), np.load(out/'pred_probs.npy'), (out/'classes.txt').read_text().split()
    assert p.dtype == np.float32 and p.shape == (120, 3) and np.abs(p.sum(1) - 1).max() < 1e-6 and (p >= 0).all() and classes == ['a', 'b', 'c']
    assert [classes[k] for k in p.argmax(1)] == read.suggested_label.tolist() and read['index'].tolist() == list(range(120))
    assert np.allclose(p[np.arange(120), [classes.index(c) for c in read.given_label]], read.self_confidence, atol=1e-5)
    assert (read.suggested_label[:6] != read.given_label[:6]).all() and set(read.triage) <= set(TRIAGE) and (read.triage[:6] != 'fine').all()
    assert read[['suspicion', 'suspicion_se', 'aum', 'forgetting_events', 'el2n', 'neighbours', 'memorization', 'memorization_se', 'self_confidence_se']].notna().all().all() and read.suspicion.between(0, 1).all()
    assert sorted(read['rank']) == list(range(1, 121)) and read.sort_values('rank').suspicion.is_monotonic_decreasing


def test_probabilities_are_of_networks_that_did_not_see_the_example(npz, tmp_path):
    own = read_own(npz)
    rec, watched, _ = train_own(own.data, tmp_path/'o', n_models=8, say=lambda s: None)
    _, p = score_own(own, rec, watched)
    for i in (0, 50, 119):
        out = ~np.stack([draw_included(_design(own.data), s).numpy() for s in range(8)])[:, i]
        assert out.sum() == 8/TURNS
        held = [rec['heldout_prob'][m][np.flatnonzero(~rec['included'][m]).tolist().index(i)] for m in np.flatnonzero(out)]
        assert np.allclose(p[i], np.mean([h/h.sum() for h in held], 0), atol=1e-6)


def test_cleanlab_takes_the_probabilities_as_they_are(npz, tmp_path):
    filters = pytest.importorskip('cleanlab.filter')
    score_source(npz, tmp_path/'o', n_models=12, say=lambda s: None)
    given, p = pd.read_csv(tmp_path/'o'/'scores.csv').given_label, np.load(tmp_path/'o'/'pred_probs.npy')
    found = filters.find_label_issues(np.searchsorted(np.unique(given), given), p, return_indices_ranked_by='self_confidence')
    assert len(set(range(6)) & set(found)) >= 5


def test_datalab_takes_them_too(npz, tmp_path):
    pytest.importorskip('datasets')
    score_source(npz, tmp_path/'o', n_models=12, say=lambda s: None)
    given, p = pd.read_csv(tmp_path/'o'/'scores.csv').given_label, np.load(tmp_path/'o'/'pred_probs.npy')
    from cleanlab import Datalab
    lab = Datalab(dict(label=given.tolist()), label_name='label', verbosity=0)
    lab.find_issues(pred_probs=p, issue_types=dict(label={}))
    assert lab.get_issues('label').is_label_issue[:6].sum() >= 5


def run(*args, **options): return subprocess.Popen([sys.executable, '-c', 'from noisymem.cli import main; raise SystemExit(main())', 'score', *map(str, args)], **options)


def test_killed_and_resumed_gives_the_same_to_the_bit(npz, tmp_path):
    whole, cut = tmp_path/'whole', tmp_path/'cut, folder'
    score_source(npz, whole, n_models=8, device='cpu', say=lambda s: None)
    job = run(npz, '--out', cut, '--models', 8, '--device', 'cpu', stdout=subprocess.DEVNULL)
    end = time.time() + 60
    while not list(cut.glob('work/*/dynamics.safetensors')) and time.time() < end: time.sleep(.005)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert json.loads((cut/'noisymem.json').read_text())['status'] == 'running' and not (cut/'scores.csv').exists()
    assert main(['score', str(npz), '--out', str(cut), '--models', '8', '--device', 'cpu']) == 0
    for name in ('scores.csv', 'pred_probs.npy', 'classes.txt'): assert (whole/name).read_bytes() == (cut/name).read_bytes(), name


def test_several_processes_train_the_same_as_one(tmp_path):
    own = read_own(folder_of_pictures(tmp_path/'p', 24))
    plan = Plan('fast', .125, recipe_own(own.data) | dict(epochs=1), 0, 1., 4)
    found = []
    for name, workers in (('one', 0), ('two', 2)):
        work = tmp_path/name
        work.mkdir()
        found.append((_train_round(own.data, replace(plan, workers=workers), work, [0, 1, 2, 3], torch.device('cpu')), load_records(work/'dynamics.npz')))
    (a, da), (b, db) = found
    assert all((a[k] == b[k]).all() for k in a.rows if k != 'seconds') and all((da[k] == db[k]).all() for k in da.rows) and (da['features'] == db['features']).all()


def test_nothing_of_the_source_is_touched_and_a_second_run_trains_nothing(tmp_path, quick):
    source = folder_of_pictures(tmp_path/'p', 20)
    look_at = lambda: {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in source.rglob('*') if p.is_file()}
    before, told = look_at(), []
    for _ in range(2): score_source(source, tmp_path/'o', n_models=4, say=told.append)
    assert before == look_at() and '; 4 are there' in ' '.join(told)


def test_the_page_stands_alone_and_fits_a_phone(tmp_path, quick):
    source = folder_of_pictures(tmp_path/'pictures <i>&', 20)
    (source/'light'/'empty.png').touch()
    score_source(source, tmp_path/'o', n_models=4, say=lambda s: None)
    page, text = (tmp_path/'o'/'report.html').read_text(), (tmp_path/'o'/'report.md').read_text()
    assert 'src="http' not in page and '<i>&</' not in page and 'dark, &quot;x&quot; &lt;b&gt;' in page and '1 file is empty' in page and '1 file is empty' in text
    assert page.count('class="thumb"') == 20 and '| light |' in text
    seen = look(page, tmp_path, 360)
    assert seen['scroll'] <= 360 and not seen['wide'] and seen['images'] == 20 and not seen['broken'] and not seen['fetched']


@pytest.mark.parametrize('where, message', [('data/report', 'must not lie in the data'), ('data', 'must not lie in the data'), ('full', 'with other files in it'), ('file', 'is a file'), ('file/below', 'cannot be written')])
def test_where_a_report_may_not_be(tmp_path, where, message, capsys):
    folder_of_pictures(tmp_path/'data', 12), (tmp_path/'full').mkdir(), (tmp_path/'full'/'x').touch(), (tmp_path/'file').touch()
    assert main(['score', str(tmp_path/'data'), '--out', str(tmp_path/where)]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count('\n') == 1
    assert not list((tmp_path/'data').rglob('*.json'))


def test_no_permission_to_write(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__): raise PermissionError(13, 'Permission denied', 'x')
    monkeypatch.setattr('noisymem.own_report.save_atomic', refuse)
    assert main(['score', str(folder_of_pictures(tmp_path/'data', 12)), '--out', str(tmp_path/'o')]) == 2
    assert 'out cannot be written: Permission denied' in capsys.readouterr().err


@pytest.mark.parametrize('args, message', [(['nothing', '--out', 'o'], 'is not there'), (['data', '--out', 'o', '--budget', '0'], 'budget'), (['data', '--out', 'o', '--models', '2'], 'n_models'), (['data', '--out', 'o', '--size', '1'], 'size')])
def test_bad_arguments(tmp_path, monkeypatch, capsys, args, message):
    folder_of_pictures(tmp_path/'data', 12)
    monkeypatch.chdir(tmp_path)
    assert main(['score', *args]) == 2
    assert message in capsys.readouterr().err


def test_more_minutes_buy_more_networks_and_the_same_ones_buy_none(npz, tmp_path, monkeypatch):
    own, asked = read_own(npz), []
    plan = Plan('mlp', 1., recipe_own(own.data) | dict(epochs=1), 0, 30., 8)
    monkeypatch.setattr(own_scores, 'plan_own', lambda *a: plan)
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(own_scores.time, 'monotonic', lambda: next(clock))
    n = [len(train_own(own.data, tmp_path/'o', budget, say=asked.append)[0]) for budget in (10, 10, 15, 5, 15)]
    assert n[0] % TURNS == 0 and n[0] >= 8 and n[1] == n[0] and n[2] > n[1] and n[3] == n[4] == n[2], n


def test_a_plan_fits_the_budget(monkeypatch):
    data = from_own_arrays(np.zeros((5000, 16, 16), np.uint8), np.arange(5000) % 10).data
    monkeypatch.setattr(own_scores, 'measure_split', lambda n, model, width, *a, **k: (10/width, 1.))
    monkeypatch.setattr(own_scores, 'splits', lambda d: [1, 2])
    plans = [plan_own(data, b, 'cpu') for b in (.1, 3, 10, 60, 1000)]
    assert [p.n_models for p in plans][0] == TURNS and plans[-1].n_models == own_scores.MOST and all(p.n_models % TURNS == 0 for p in plans)
    assert all(a.width <= b.width and a.n_models*a.seconds <= b.n_models*b.seconds for a, b in zip(plans, plans[1:]))
    for p, b in zip(plans[1:], (3, 10, 60)): assert (p.n_models + 2)*p.seconds/2 < 60*b or p.n_models == TURNS


def test_small_data_train_longer_and_letters_are_not_mirrored():
    small, large = (recipe_own(from_own_arrays(np.zeros((n, 20, 20), np.uint8), np.arange(n) % 2).data) for n in (40, 5000))
    assert small['epochs'] > large['epochs'] and small['batch_size'] < large['batch_size'] == get_recipe('cpu').batch_size
    assert recipe_own(from_own_arrays(np.zeros((40, 20, 20), np.uint8), np.arange(40) % 2).data, flip=False)['augment'] == [['crop_reflect', 2]]


def test_names_that_are_no_text_are_written_all_the_same(tmp_path, quick):
    source = folder_of_pictures(tmp_path/'p', 20)
    os.rename(source/'light'/'00, a.png', os.fsencode(source/'light') + b'/\xff\xfe.png')
    score_source(source, tmp_path/'o', n_models=4, say=lambda s: None)
    assert '\\udcff' in (tmp_path/'o'/'scores.csv').read_text()
