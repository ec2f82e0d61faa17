"Shared runs of the separation methods: made once, keyed by everything that matters."
import numpy as np
import pytest
import torch

import noisymem.separation as separation
from noisymem.data import load_dataset, sample
from noisymem.noise import add_noise
from noisymem.separation import load_or_run_cross, load_or_run_dynamics, load_or_run_plain, load_or_run_relabel, load_or_run_second_split, load_or_run_semisupervised
from noisymem.train import Dynamics, get_recipe, train

HOW = {'name': 'digits', 'epochs': 3}


@pytest.fixture
def data(monkeypatch, tmp_path):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    return add_noise(sample(load_dataset('digits'), 120, seed=0), 'random_in-0.4', seed=0)


RUNS = {
    'train': lambda d, s=0: load_or_run_dynamics(d, 'mlp', HOW, s), 'cross_track': lambda d, s=0: load_or_run_cross(d, 'mlp', HOW, s, k=3), 'train_relabel': lambda d, s=0: load_or_run_relabel(d, 'mlp', HOW, s, warmup=2),
    'train_plain': lambda d, s=0: load_or_run_plain(d, 'mlp', HOW, s), 'train_semisupervised': lambda d, s=0: load_or_run_semisupervised(d, ~d.is_noisy, 'mlp', HOW, s, warmup=1)}


@pytest.mark.parametrize('method', RUNS)
def test_made_once(data, monkeypatch, method):
    first, made, real = RUNS[method](data), [], getattr(separation, method)
    def counted(*args, **options):
        made.append(method)
        return real(*args, **options)
    monkeypatch.setattr(separation, method, counted)
    monkeypatch.setattr(separation, 'load_or_make', lambda *args, code, load=separation.load_or_make, **options: load(*args, code=(real, *code[1:]), **options))
    again = RUNS[method](data)
    assert not made and sorted(again) == sorted(first) and all(np.array_equal(again[k], first[k]) for k in first)
    RUNS[method](data, 1)
    RUNS[method](add_noise(sample(load_dataset('digits'), 120, seed=0), 'random_in-0.4', seed=1))
    assert len(made) == 2, 'another seed and another corruption are other runs'


def test_second_split_by_hand(data):
    "Of every example the network speaks that had it first."
    found = load_or_run_second_split(data, 'mlp', HOW, 2)['correct']
    half = np.random.default_rng(0).permutation(data.n) < data.n//2
    then = get_recipe(HOW | dict(epochs=2, lr=get_recipe(HOW).lr/10))
    for first in (half, ~half):
        net, watch = separation._net(data, 'mlp', 0), Dynamics()
        train(net, data, HOW, positions=torch.from_numpy(first))
        train(net, data, then, positions=torch.from_numpy(~first), observers=[watch])
        assert np.array_equal(watch.records(data)['correct'][:, first], found[:, first])
