"Runs: several processes on one folder, what is refused, embeddings."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from noisymem import runs as R
from noisymem.data import load_dataset, sample
from noisymem.ensemble import load_ensemble

CFG = R.RunConfig('digits', 'symmetric-0.2', n_examples=120, model='fast', width=.25, recipe={'name': 'cpu', 'epochs': 1}, n_models=5)


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    return tmp_path


def only_workers_train(monkeypatch):
    "From here on this process may load, not train."
    monkeypatch.setattr(R, 'run_ensemble', lambda data, design, seeds, folder, *args, **kwargs: load_ensemble(folder, seeds))


def same(a, b):
    for k in a.rows:
        if k != 'seconds': np.testing.assert_array_equal(a[k], b[k], err_msg=k)


def test_two_workers_give_what_one_gives(results, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, one = R.load_or_run(CFG, 'cpu', workers=0)
        monkeypatch.setenv('NOISYMEM_RESULTS', str(results/'two workers'))
        only_workers_train(monkeypatch)
        _, two = R.load_or_run(CFG, 'cpu', workers=2)
    finally: torch.set_num_threads(threads)
    same(one, two)
    assert not list(results.rglob('*.lock'))


def test_a_worker_that_fails_is_heard(results, monkeypatch):
    only_workers_train(monkeypatch)
    bad = replace(CFG, recipe={'name': 'cpu', 'epochs': 3, 'lr': 1e30, 'schedule': 'constant'})
    with pytest.raises(ValueError, match='the loss became'): R.load_or_run(bad, 'cpu', workers=2)


def test_workers_do_not_outlive_their_parent(results):
    long = asdict(replace(CFG, n_models=400, recipe={'name': 'cpu', 'epochs': 2}))
    code = f'import json; from noisymem.runs import *; load_or_run(RunConfig(**json.loads({json.dumps(json.dumps(long))})), "cpu", workers=2)'
    parent = subprocess.Popen([sys.executable, '-c', code], env=os.environ | dict(OMP_NUM_THREADS='1'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shards = lambda: len(list(results.rglob('seed-*.npz')))
    deadline = time.time() + 120
    while shards() < 2 and time.time() < deadline: time.sleep(.2)
    assert shards() >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    time.sleep(3)
    before = shards()
    time.sleep(3)
    assert shards() == before < 400


@pytest.mark.parametrize('change, match', [(dict(model='zz'), 'model must be one of'), (dict(design='foo'), 'design must be one of'), (dict(draw='q'), 'draw must be one of'), (dict(subset_ratio=5), 'subset_ratio must be in'),
                                           (dict(eval_view='x'), 'eval_view must be one of'), (dict(width=0), 'width must be in'), (dict(n_models='9-1'), 'smaller first'), (dict(n_examples=-1), 'n_examples must be in')])
def test_a_bad_configuration_is_refused_when_it_is_written_down(change, match):
    with pytest.raises(ValueError, match=match): R.RunConfig(**change)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_DATA', str(tmp_path))
    return tmp_path


def test_embeddings_of_every_kind_of_file(folder):
    import pickle
    data = sample(load_dataset('digits'), 50, seed=0)
    rows = np.random.default_rng(0).normal(size=(1437, 6)).astype(np.float32)
    np.save(folder/'a b.npy', rows); np.savez(folder/'b.npz', rows); (folder/'c.pkl').write_bytes(pickle.dumps(rows))
    for source in ('a b.npy', 'b.npz', 'c.pkl', rows): np.testing.assert_array_equal(R.load_embedding(data, source), rows[data.index])


@pytest.mark.parametrize('rows, match', [(np.zeros((1436, 3)), 'for each of the 1437'), (np.zeros((50000, 3)), 'for each of the 1437'), (np.zeros(1437), 'got shape'), (np.full((1437, 2), np.nan), 'must be finite'), (np.array([['a']]*1437), 'got shape')])
def test_embeddings_of_something_else(folder, rows, match):
    np.save(folder/'x.npy', rows)
    with pytest.raises(ValueError, match=match): R.load_embedding(sample(load_dataset('digits'), 50, seed=0), 'x.npy')


def test_embedding_files_that_are_none(folder):
    data = sample(load_dataset('digits'), 50, seed=0)
    (folder/'x.npy').write_bytes(b'junk')
    (folder/'y.pkl').write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for source in ('x.npy', 'y.pkl'):
        with pytest.raises(ValueError, match=source): R.load_embedding(data, source)
    with pytest.raises(ValueError, match='is not there'): R.load_embedding(data, 'z.npy')


def test_noise_that_looks_at_features_of_the_users(folder):
    rows = np.random.default_rng(0).normal(size=(1437, 3)).astype(np.float32)
    np.save(folder/'e.npy', rows)
    given = {e: R.prepare(R.RunConfig('digits', 'cbn-0.2', noise_embedding=e, model='mlp', recipe='digits'))[0].given_label for e in ('', 'e.npy')}
    assert not torch.equal(given[''], given['e.npy'])
    with pytest.raises(ValueError, match='embedding'): R.prepare(R.RunConfig('digits', 'symmetric-0.2', noise_embedding='e.npy', model='mlp', recipe='digits'))


def test_a_large_pool_reaches_the_workers(results):
    with pytest.raises(ValueError, match='got 60000 of them'):  # refused by the worker that read it: no argument list and no environment would hold it
        R._train_in_processes(1, replace(CFG, design='chosen'), torch.device('cpu'), np.arange(60000) - 1, results/'x', [0], 'pool')


def test_a_named_gpu_trains_in_this_process():
    assert R.count_workers(CFG, *R.prepare(CFG), torch.device('cuda:1'), 8) == 0


def test_long_work_asks_how_many_processes_are_fastest_and_short_work_does_not(results, monkeypatch):
    asked = []
    monkeypatch.setattr(R, 'best_split', lambda *a: asked.append(a) or dict(best=2, splits=[1, 2, 4], steps_per_second=[1., 3., 2.9], memory=[1., 1., 1.]))
    monkeypatch.setattr(R, 'splits', lambda device: [1, 2, 4])
    cpu, prepared = torch.device('cpu'), R.prepare(CFG)
    assert R.count_workers(CFG, *prepared, cpu, 3) == 3 and not asked, 'one per thread, no more than models'
    for _ in range(2): assert R.count_workers(CFG, *prepared, cpu, 10**8) == 2
    assert len(asked) == 1, 'measured once, then read'
    assert R.count_workers(replace(CFG, model='mlp', recipe='digits'), *prepared, cpu, 10**8) == 0, 'perceptrons are stacked'


def test_the_order_of_settings_names_no_other_folder():
    a, b = (replace(CFG, recipe=r) for r in ({'name': 'cpu', 'epochs': 1}, {'epochs': 1, 'name': 'cpu'}))
    assert R.ensemble_folder(a, *R.prepare(a), torch.device('cpu')) == R.ensemble_folder(b, *R.prepare(b), torch.device('cpu'))


def read_only_disk(tmp_path, monkeypatch):
    "A file system of our own, which can be made read-only: root writes through mere permissions."
    where = tmp_path/'disk'
    where.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', where], capture_output=True).returncode: pytest.skip('mounting a disk needs root')
    monkeypatch.setenv('NOISYMEM_RESULTS', str(where))
    return where


def test_what_was_made_is_read_on_a_read_only_disk(tmp_path, monkeypatch):
    disk, made = read_only_disk(tmp_path, monkeypatch), []
    try:
        make = lambda a: R.load_or_make('steps', dict(a=a), lambda: made.append(a) or dict(x=np.arange(3)))
        monkeypatch.setattr(R, 'best_split', lambda *a: made.append('split') or dict(best=2, splits=[1, 2], steps_per_second=[1., 3.], memory=[1., 1.]))
        data, _ = R.prepare(CFG)
        make(1)
        split = R.find_split(CFG, data, torch.device('cpu'))
        assert made == [1, 'split']
        for path in disk.rglob('*.lock'): path.unlink()
        subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
        np.testing.assert_array_equal(make(1)['x'], np.arange(3))
        assert R.find_split(CFG, data, torch.device('cpu')) == split and made == [1, 'split']
        with pytest.raises(OSError, match='Read-only file system') as e: make(2)
        assert str(e.value.filename).startswith(str(disk/'steps'))
    finally: subprocess.run(['umount', '-l', disk], check=True)


def test_a_damaged_result_is_told_once_and_made_once(results, capsys):
    made = []
    make = lambda: R.load_or_make('steps', dict(a=1), lambda: made.append(1) or dict(x=np.arange(3)))
    make()
    path, = (results/'steps').glob('*.npz')
    path.write_bytes(path.read_bytes()[:-5])
    capsys.readouterr()
    np.testing.assert_array_equal(make()['x'], np.arange(3))
    assert capsys.readouterr().out.count('it is made again') == 1 and len(made) == 2


def test_whoever_waits_for_a_result_takes_what_was_made_meanwhile(results, monkeypatch):
    from threading import Event, Thread
    begun, go, made, got = Event(), Event(), [], []
    def make():
        made.append(1); begun.set(); go.wait(60)
        return dict(x=np.arange(3))
    ask = lambda: got.append(R.load_or_make('steps', dict(a=1), make)['x'].tolist())
    first, second = Thread(target=ask), Thread(target=ask)
    first.start(); begun.wait(60); second.start()
    time.sleep(.3)
    go.set(); first.join(60); second.join(60)
    assert made == [1] and got == [[0, 1, 2]]*2
