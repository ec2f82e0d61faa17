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
from noisymem.methods.simclr import PUBLISHED, save_encoder
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


def one_call(root, folder, **values):
    "What one papermill call of the table does in a folder, and where its results lie."
    (folder/'values.yaml').write_text(yaml.safe_dump(values))
    command = [sys.executable, '-m', 'papermill', str(root/'nbs'/'figs'/'tab_fixed_encoder.ipynb'), str(folder/'out.ipynb'), '-f', str(folder/'values.yaml'), '-k', 'python3', '--no-progress-bar']
    env = {k: v for k, v in os.environ.items() if k != 'NOISYMEM_FIGURE'} | dict(NOISYMEM_RESULTS=str(folder/'results'))
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=600), folder/'results'/'figures'/'tab_fixed_encoder'


def test_a_users_embedding_from_one_papermill_call(root, tmp_path):
    "A file of features and one of labels: the whole comparison of heads."
    data = load_dataset('digits')
    np.save(tmp_path/'features.npy', data.x[:700].flatten(1).numpy().astype(np.float32))
    np.save(tmp_path/'labels.npy', data.true_label[:700].numpy())
    done, out = one_call(root, tmp_path, embedding='features.npy', labels='labels.npy', noises=['clean', 'symmetric-0.4', 'symmetric-0.6'], head=dict(hidden=256, losses=['ce', 'mae'], seeds=2, epochs=20, batch_size=32, lr=.01))
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(out/'tab_fixed_encoder.csv')
    assert set(table.features) == {'embedding'} and len(table) == 2*2*3 and pd.read_csv(out/'claims.csv').holds.all()


def test_two_classes_of_a_users_embedding_under_the_default_noises(root, tmp_path):
    "At a rate above one half the wrong label is the one to learn; what is claimed fails nothing of a user's."
    rng = np.random.default_rng(0)
    y = np.arange(240) % 2
    np.save(tmp_path/'features.npy', (rng.normal(size=(240, 12)) + 2*y[:, None]*np.eye(12)[0]).astype(np.float32))
    np.save(tmp_path/'labels.npy', y)
    done, out = one_call(root, tmp_path, embedding='features.npy', labels='labels.npy', head=dict(hidden=32, losses=['ce'], seeds=2, epochs=5, batch_size=32, lr=.01))
    assert done.returncode == 0, done.stderr[-2000:]
    claims, table = pd.read_csv(out/'claims.csv'), pd.read_csv(out/'tab_fixed_encoder.csv')
    assert not claims.tells.any() and 'symmetric-0.4' in claims.claim[0]
    assert {'instance-0.6', 'instance-0.6 per class', 'symmetric-0.8'} <= set(table.noise)


def test_an_embedding_in_the_current_folder_comes_first(tmp_path, monkeypatch):
    for folder, n in (('data', 20), ('here', 30)):
        (tmp_path/folder).mkdir()
        np.save(tmp_path/folder/'x.npy', np.random.default_rng(0).normal(size=(n, 2)))
        np.save(tmp_path/folder/'y.npy', np.arange(n) % 2)
    monkeypatch.setenv('NOISYMEM_DATA', str(tmp_path/'data'))
    monkeypatch.chdir(tmp_path/'here')
    count = lambda d: d.n + len(d.y_test)
    assert count(load_embedded('x.npy', 'y.npy')) == 30
    (tmp_path/'here'/'x.npy').unlink(); (tmp_path/'here'/'y.npy').unlink()
    assert count(load_embedded('x.npy', 'y.npy')) == 20
    with pytest.raises(ValueError, match='embedding file z.npy is not there, looked for .*here.z.npy and .*data.z.npy'): load_embedded('z.npy', 'y.npy')


def test_labels_that_were_forgotten_load_no_data_set(tmp_path, monkeypatch):
    np.save(tmp_path/'x.npy', np.zeros((9, 2)))
    monkeypatch.setattr(encoders, 'load_dataset', lambda name: pytest.fail('nothing is to be loaded'))
    for dataset, word in (('cifar10', 'those of data set cifar10 are 50000'), ('', 'or a data set by name')):
        with pytest.raises(ValueError, match=f'labels of embedding .* must be given, a file of 9 integers.*{word}'): load_embedded(tmp_path/'x.npy', dataset=dataset)


def test_an_encoder_of_a_file(calls, data, tmp_path, monkeypatch):
    "Kept by us or saved as a state dictionary: read, not trained; found in the current folder."
    net, _ = load_or_run_simclr(data, 'fast', SHORT, .125, device='cpu', k=50, vote_temperature=.1)
    save_encoder(tmp_path/'ours.safetensors', net)
    torch.save(dict(state_dict=net.state_dict()), tmp_path/'theirs.pth')
    monkeypatch.chdir(tmp_path)
    for file in ('ours.safetensors', tmp_path/'theirs.pth'):
        read, history = load_or_run_simclr(data, 'fast', SHORT, .125, file=file)
        assert all(torch.equal(v, read.state_dict()[k]) for k, v in net.state_dict().items() if not k.startswith('head.')) and history.empty and not read.training
    assert calls == ['pretrain']
    with pytest.raises(ValueError, match='encoder file gone.pth is not there'): load_or_run_simclr(data, 'fast', file='gone.pth')
    with pytest.raises(ValueError, match='must hold the whole backbone'): load_or_run_simclr(data, 'fast', width=.25, file='ours.safetensors')
