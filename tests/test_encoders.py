"Kept encoders, banks, heads: made once, again where anything changed, shared by all noises."
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from noisymem import encoders
from noisymem.core import results_dir
from noisymem.data import load_dataset, sample, with_labels
from noisymem.encoders import load_embedded, load_or_run_bank, load_or_run_heads, load_or_run_simclr
from noisymem.methods.linear_probe import HEADS, input_bank, make_tasks, standardize
from noisymem.methods.simclr import PUBLISHED
from noisymem.noise import add_noise

SHORT = PUBLISHED | dict(epochs=2, batch_size=64)
QUICK = HEADS | dict(epochs=3, batch_size=64)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    "How often each thing is really made."
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    made = []
    for name in ('pretrain', 'make_bank', 'train_heads'):
        def watched(*args, _name=name, _real=getattr(encoders, name), **options):
            made.append(_name)
            return _real(*args, **options)
        watched.__wrapped__ = getattr(encoders, name)
        monkeypatch.setattr(encoders, name, watched)
    return made


@pytest.fixture(scope='module')
def data(): return sample(load_dataset('digits'), 120, seed=0)


def test_each_is_made_once_and_shared_by_noises(calls, data):
    for noise in ('clean', 'symmetric-0.5', 'pair-0.2'):
        noisy = add_noise(data, noise)
        net, history = load_or_run_simclr(noisy, 'fast', SHORT, .125, device='cpu', flip=0.)
        bank = load_or_run_bank(net, noisy, device='cpu', views=1, pad=1)
    for _ in range(2): table = load_or_run_heads(bank, data, make_tasks(data, ['symmetric-0.5']), recipe=QUICK, device='cpu')
    assert calls == ['pretrain', 'make_bank', 'train_heads'] and not net.training and len(history) == 2
    assert not list((results_dir()/'encoders').glob('*.safetensors')), 'nothing unfinished is left'
    assert table.noise.tolist() == ['symmetric-0.5']


def test_what_changes_is_made_again(calls, data):
    nets = [load_or_run_simclr(data, 'fast', SHORT, .125, device='cpu', **o)[0] for o in ({}, dict(seed=1), dict(flip=0.), dict(temperature=.2), dict(projection=16))]
    assert calls == ['pretrain']*5
    for n, o in zip((nets[0], nets[1], nets[0], nets[0]), ({}, {}, dict(views=2), dict(kind='strong'))): load_or_run_bank(n, data, device='cpu', **dict(views=1) | o)
    assert calls[5:] == ['make_bank']*4
    bank = standardize(input_bank(data))
    for o in ({}, dict(hidden=(4,)), dict(seed=1), dict(every=1), dict(recipe=QUICK | dict(lr=.1))): load_or_run_heads(bank, data, make_tasks(data, ['symmetric-0.5']), **dict(recipe=QUICK, device='cpu') | o)
    for tasks in (make_tasks(data, ['symmetric-0.5'], ['gce']), make_tasks(data, ['symmetric-0.5'], seeds=(1,)), make_tasks(data, ['symmetric-0.5'], balance=(True,))): load_or_run_heads(bank, data, tasks, recipe=QUICK, device='cpu')
    assert calls[9:] == ['train_heads']*8


def test_a_run_that_died_goes_on(calls, data, monkeypatch):
    "Killed in the last epoch: what was there is not trained again, and the result is that of a run in one go."
    whole, table = load_or_run_simclr(data, 'fast', SHORT, .125, device='cpu')
    next((results_dir()/'encoders').glob('*.npz')).unlink()
    from noisymem.methods import simclr
    real, epochs = simclr.Contrast.before_epoch, []
    def dies(self, state):
        epochs.append(state.epoch + 1)
        if state.epoch == 1 and epochs.count(2) == 1: raise KeyboardInterrupt
        return real(self, state)
    monkeypatch.setattr(simclr.Contrast, 'before_epoch', dies)
    with pytest.raises(KeyboardInterrupt): load_or_run_simclr(data, 'fast', SHORT, .125, device='cpu')
    again, history = load_or_run_simclr(data, 'fast', SHORT, .125, device='cpu')
    assert epochs == [1, 2, 2] and history.equals(table)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))


def test_unknown_truth(calls, data):
    blind = with_labels(data, data.given_label, 'given', true_label=None)
    net, _ = load_or_run_simclr(blind, 'fast', SHORT, .125, device='cpu')
    assert load_or_run_bank(net, blind, device='cpu', views=1).plain.shape[0] == blind.n


@pytest.mark.parametrize('rows, labels, message', [
    (np.zeros((9, 2, 2)), np.zeros(9, int), r'must hold numbers of shape \(N, D\)'), (np.zeros((9, 2)), np.zeros(9), 'must be 9 integers'), (np.zeros((9, 2)), np.zeros((9, 1), int), 'must be 9 integers'),
    (np.zeros((9, 2)), np.arange(9) - 1, 'labels must be in'), (np.full((9, 2), np.inf), np.zeros(9, int), 'must be finite')])
def test_bad_embeddings(tmp_path, rows, labels, message):
    np.save(tmp_path/'x.npy', rows); np.save(tmp_path/'y.npy', labels)
    with pytest.raises(ValueError, match=message): load_embedded(tmp_path/'x.npy', tmp_path/'y.npy')


def test_an_embedding_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_DATA', str(tmp_path))
    rng = np.random.default_rng(0)
    np.savez(tmp_path/'x.npz', embedding=rng.normal(size=(1437, 3)), other=np.zeros(2))
    got = load_embedded('x.npz', dataset='digits')
    assert got.n + len(got.y_test) == 1437 and got.x.shape[1] == 3 and abs(len(got.y_test) - 287) < 10
    assert torch.equal(got.given_label, load_dataset('digits').true_label[got.index])


def test_a_users_embedding_from_one_papermill_call(root, tmp_path):
    "A file of features and one of labels: the whole comparison of heads."
    data = load_dataset('digits')
    np.save(tmp_path/'features.npy', data.x[:700].flatten(1).numpy().astype(np.float32))
    np.save(tmp_path/'labels.npy', data.true_label[:700].numpy())
    values = dict(embedding=str(tmp_path/'features.npy'), labels=str(tmp_path/'labels.npy'), noises=['clean', 'symmetric-0.4', 'symmetric-0.6'], head=dict(hidden=256, losses=['ce', 'mae'], seeds=2, epochs=20, batch_size=32, lr=.01))
    (tmp_path/'values.yaml').write_text(yaml.safe_dump(values))
    command = [sys.executable, '-m', 'papermill', str(root/'nbs'/'figs'/'tab_fixed_encoder.ipynb'), str(tmp_path/'out.ipynb'), '-f', str(tmp_path/'values.yaml'), '-k', 'python3', '--no-progress-bar']
    done = subprocess.run(command, env={k: v for k, v in os.environ.items() if k != 'NOISYMEM_FIGURE'} | dict(NOISYMEM_RESULTS=str(tmp_path/'results')), cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(tmp_path/'results'/'figures'/'tab_fixed_encoder'/'tab_fixed_encoder.csv')
    assert set(table.features) == {'embedding'} and len(table) == 2*2*3 and pd.read_csv(tmp_path/'results'/'figures'/'tab_fixed_encoder'/'claims.csv').holds.all()
