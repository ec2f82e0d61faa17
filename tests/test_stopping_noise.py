"The early-stopping study's noise: its streams bit by bit, counts, every kind of input, what cannot be."
import json
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from noisymem import stopping_noise as sn
from noisymem.corruptions import OpenSet
from noisymem.data import from_arrays, load_dataset, sample
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.runs import RunConfig
from noisymem.train import supervised, train


@pytest.fixture(scope='module')
def o(oracle): return oracle('early_stopping/noise.npz')


@pytest.fixture(scope='module')
def ds(o): return from_arrays(o['images'], o['labels_clean'], true_label=o['labels_clean'], class_names=list('abcde'))


@pytest.mark.parametrize('rate', [0., .2, .5, 1.5])
def test_exact_counts_oracle(o, rate):
    c = sn.symmetric_original(o['labels_clean'], rate, 5)
    assert (c.given.numpy() == o[f'symmetric_r{rate}_labels']).all() and c.noisy.tolist() == o[f'symmetric_r{rate}_corrupted'].astype(int).tolist() and c.clean.tolist() == o[f'symmetric_r{rate}_not_corrupted'].tolist()
    y = torch.tensor(o['labels_clean'])
    if rate <= 1: assert set((c.given != y).nonzero()[:, 0].tolist()) == set(c.noisy.tolist())


def test_appended_copies_oracle(o, ds):
    a = sn.appended_copies(ds, .3, 18, 'original')
    assert (a.given_label.numpy() == o['LNreg_r0.3_labels']).all() and (a.x[60:, 0].numpy() == o['LNreg_r0.3_images_appended']).all()
    assert a.index[60:].tolist() == o['LNreg_corrupted'].tolist() and a.is_noisy.nonzero()[:, 0].tolist() == o['LNreg_corrupted'].tolist()


def test_left_out_classes_oracle(o, ds):
    a = sn.hard_noise(ds, [1, 4], 18, 'original')
    assert (a.given_label.numpy() == o['hard_labels']).all() and sorted(o['hard_indices'].tolist()) == a.is_noisy.nonzero()[:, 0].tolist() and a.n_classes == 5
    b = sn.hard_noise(ds, [1, 4], 18)
    assert b.n_classes == int(o['hard_num_classes_after']) and b.given_label.max() < 3 and b.is_ood.nonzero()[:, 0].tolist() == sorted(o['hard_indices'].tolist())


def test_noise_images_oracle(o, ds):
    a = sn.noise_images(ds, .1, 18, 'original')
    assert (a.x[:, 0].numpy() == o['imgnoise_images']).all() and a.is_ood.nonzero()[:, 0].tolist() == sorted(o['imgnoise_indices'].tolist())
    assert torch.equal(a.given_label, ds.given_label)


def test_appended_images_oracle(o):
    ten = from_arrays(o['images'], o['labels_clean'], true_label=o['labels_clean'], class_names=list('abcdefghij'))
    a = sn.appended_images(ten, .1, 18, 'original')
    assert (a.x[60:, 0].numpy() == o['imgnoise_expand_new_images']).all() and (a.given_label.numpy() == o['imgnoise_expand_labels']).all() and a.index[60:].tolist() == o['imgnoise_expand_indices'].tolist()


@pytest.mark.parametrize('append', [True, False])
@pytest.mark.parametrize('images', [True, False])
def test_polluted_copies_oracle(o, ds, append, images):
    key = f'ddef_{"expand" if append else "inplace"}_{"img" if images else "ln"}'
    a, where = sn.pollute_original(ds, .2, range(10, 50), append, images)
    assert where.tolist() == o[f'{key}_indices'].tolist() and (a.given_label.numpy() == o[f'{key}_targets']).all()
    assert (a.x.float().numpy()/255 == o[f'{key}_data']).all() or np.allclose(a.x.float().numpy()/255, o[f'{key}_data'], atol=1e-7)
    assert (where.tolist() if append else []) == o[f'{key}_new_indexes'].astype(int).tolist()


def test_labels_at_every_look_oracle(o):
    assert (sn.perturb_original(o['labels_clean'], .4, 5).numpy() == o['perturb0.4_labels']).all()


def test_global_generators_stay(ds):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for f in (lambda: sn.symmetric_original(ds.given_label, .5, 5), lambda: sn.hard_noise(ds, [1], compat='original'), lambda: sn.noise_images(ds, .5, compat='original'), lambda: sn.pollute_original(ds, .5), lambda: sn.appended_images(ds, .5), lambda: sn.perturb_original(ds.given_label, .5, 5)): f()
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1] and torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize('seed', range(3))
def test_counts_and_truth_on_random_data(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(20, 90)), int(rng.integers(3, 7))
    y, rate = rng.integers(0, k, n), rng.random()
    for x in (rng.integers(0, 256, (n, 3, 3), dtype=np.uint8), rng.normal(size=(n, 4)).astype(np.float32)):
        d = from_arrays(x, y, true_label=y, class_names=[str(i) for i in range(k)])
        m = int(n*rate)
        a, b, c = sn.noise_images(d, rate, seed), sn.appended_images(d, rate, seed), sn.appended_copies(d, rate, seed)
        assert int(a.is_ood.sum()) == m and torch.equal(a.x[~a.is_ood], d.x[~a.is_ood]) and torch.equal(a.given_label, d.given_label)
        assert b.n == c.n == n + m and torch.equal(b.x[:n], d.x) and torch.equal(c.x[:n], d.x) and len(b.index.unique()) == n + m
        assert b.is_ood[n:].all() and not b.is_ood[:n].any() and c.is_noisy[n:].all() and not c.is_noisy[:n].any()
        assert len({tuple(r) for r in c.x[n:].flatten(1).tolist()}) == m, 'sources differ'
        if isinstance(a, OpenSet) and x.dtype == np.float32: assert (a.x.min(0).values >= d.x.min(0).values).all() and (a.x.max(0).values <= d.x.max(0).values).all()


@pytest.mark.parametrize('k', [2, 5, 11])
def test_labels_at_every_look_are_uniform_over_the_others(k):
    y = torch.full((20000,), 1)
    new = sn.perturb_labels(y, .5, k, torch.Generator().manual_seed(0))
    share = torch.bincount(new, minlength=k)/len(y)
    assert share[1] == pytest.approx(.5, abs=.02) and np.allclose(share[[i for i in range(k) if i != 1]], .5/(k - 1), atol=.02)


def test_labels_at_every_look_resume(tmp_path, digits):
    def run(stop, checkpoint=None):
        seen = []
        objective = sn.perturbed(lambda m, b: seen.append(b.given_label) or supervised()(m, b), .5, 10)
        state = train(make_model('linear', 10, (1, 8, 8)), digits, dict(name='digits', epochs=2, lr=.01, schedule='constant', batch_size=50), objective=objective, device='cpu', checkpoint=checkpoint, observers=[lambda s: setattr(s, 'stop', s.epoch == stop)])
        return seen, state.model.head.weight.detach()
    whole, weight = run(2)
    run(1, tmp_path/'c.safetensors')
    state = load_file(tmp_path/'c.safetensors')
    with safe_open(tmp_path/'c.safetensors', 'pt') as f: about = json.loads(f.metadata()['noisymem'])
    save_file(state, tmp_path/'c.safetensors', {'noisymem': json.dumps(about | dict(stop=False))})
    again, resumed = run(2, tmp_path/'c.safetensors')
    assert len(again) == 3 and all(map(torch.equal, whole[3:], again)) and torch.equal(weight, resumed) and not torch.equal(whole[0], whole[3])


def test_by_name(digits):
    for kind in ('hard:7+8+9', 'noise_images-0.3', 'appended_images-0.2', 'appended_copies-0.2'):
        a = add_noise(digits, kind, seed=2)
        assert a.noise.startswith(kind.split('-')[0]) and a.noise_info['effective_rate'] == pytest.approx(a.noise_rate) and RunConfig(dataset='digits', noise=kind)
    assert add_noise(digits, 'hard', classes=['7', 8]).n_classes == 8
    for kind, message in (('hard', 'classes must be given'), ('hard:7-0.3', 'rate must be None'), ('noise_images', "must be written as 'noise_images-0.3'"), ('hard:10', 'classes must be one of'), ('synthetic:noise_images-0.3', 'no labels to imitate'), ('appended_copies:x-0.3', "must be written as")):
        with pytest.raises(ValueError, match=message): add_noise(digits, kind)
    with pytest.raises(ValueError, match='options must be those of noise'): add_noise(digits, 'noise_images-0.3', classes=[1])
    with pytest.raises(ValueError, match='foreign'): add_noise(add_noise(digits, 'noise_images-0.3'), 'symmetric-0.3')
