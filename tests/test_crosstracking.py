"Cross tracking: folds, the original's halves and their labels, a slow restatement of the original's run, resumption, invariance, bad input."
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noisymem.train
from noisymem.data import from_arrays, load_dataset, sample, with_labels
from noisymem.methods.crosstracking import _ranks, choose_epoch, corrupt_apart, cross_track, make_folds, score_cross
from noisymem.metrics import auroc
from noisymem.models import Classifier, make_model
from noisymem.noise import add_noise
from noisymem.records import Records


@pytest.fixture
def in_order(monkeypatch):
    "Batches in the order of the data set."
    monkeypatch.setattr(noisymem.train, 'epoch_order', lambda n, batch_size, seed, epoch: list(torch.arange(n).split(batch_size)))


def toy_net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = nn.Sequential(OrderedDict(shape=nn.Unflatten(1, (3, 4, 4)), conv1=nn.Conv2d(3, 24, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(24), relu1=nn.ReLU(),
                                             layer4=nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
        backbone.n_features = 32
        return Classifier(backbone, 5)


@pytest.fixture(scope='module')
def toy(oracle):
    z = oracle('forgetting/two_stage_toy.npz')
    ds = from_arrays(z['x1'].reshape(200, -1), z['given_labels1'].astype(np.int64), z['true_labels1'].astype(np.int64), class_names='abcde')
    return replace(ds, mean=(0.,)*48, std=(1.,)*48)


def slow_whiten(a):
    a = a/np.linalg.norm(a, axis=1, keepdims=True)
    a = a - a.mean(0)
    u, s, _ = np.linalg.svd(a, full_matrices=False)
    keep = s > 1e-9*s[0]
    a = u[:, keep]*np.sqrt(len(a))
    return a/np.linalg.norm(a, axis=1, keepdims=True)


def slow_votes(logits, features, labels, k, n_classes):
    "Votes of k + 1 neighbours in logit space and k in feature space, the example itself among them."
    votes = np.zeros((len(labels), n_classes))
    for space, m in ((logits, k + 1), (features, k)):
        t = slow_whiten(space.astype(np.float64))
        near = ((t[:, None] - t[None])**2).sum(-1).argsort(1, kind='stable')[:, :m]
        for i, row in enumerate(near): np.add.at(votes[i], labels[row], 1)
    return votes


def slow_original(data, nets, epochs, lr, k):
    "The original's loop in lockstep: own and cross looks of both halves with votes carried over; float32 training."
    half = [torch.arange(0, 100), torch.arange(100, 200)]
    optimizers = [torch.optim.SGD(n.parameters(), lr=lr, momentum=.9, weight_decay=1e-4) for n in nets]
    cross_loss, cross, own, carry = np.zeros((epochs, 200)), np.zeros((epochs, 200)), np.zeros((epochs, 200)), [np.zeros((100, 5))]*2
    for e in range(epochs):
        for n, o, rows in zip(nets, optimizers, half):
            n.train()
            for part in rows.split(20):
                loss = F.cross_entropy(n(data.x[part]), data.given_label[part])
                o.zero_grad(); loss.backward(); o.step()
        for source, out in (((0, 1), own), ((1, 0), cross)):
            for h, which in enumerate(source):
                n = nets[which].eval()
                with torch.no_grad(): f = n.features(data.x[half[h]]); logits = n.head(f)
                labels = data.given_label[half[h]]
                if out is cross: cross_loss[e, half[h]] = F.cross_entropy(logits, labels, reduction='none')
                v = (slow_votes(logits.numpy(), f.numpy(), labels.numpy(), k, 5) + carry[h])/10
                carry[h] = np.exp(v - v.max(1, keepdims=True))
                carry[h] = carry[h]/carry[h].sum(1, keepdims=True)
                out[e, half[h]] = -np.log(carry[h][np.arange(100), labels] + 1e-6)/5
    return cross_loss, cross, own


def test_the_original_by_a_slow_loop(toy, in_order):
    "Cross losses, cross and own neighbour scores of a run of the original's kind."
    rec = cross_track(toy, lambda r, f: toy_net(1 - f), dict(name='paper', epochs=6, batch_size=20, lr=.1, milestones=(), weight_decay=1e-4, augment=(), precision='fp32'), k=10, ask=range(1, 7), compat='original', device='cpu')
    loss, cross, own = slow_original(toy, [toy_net(0), toy_net(1)], 6, .1, 10)
    assert np.abs(rec['cross_loss'][:, 0] - loss).max() < 1e-4
    assert (np.abs(rec['cross_disagreement'][:, 0] - cross) > 1e-4).mean() < .01 and (np.abs(rec['own_disagreement'][:, 0] - own) > 1e-4).mean() < .01
    assert np.allclose(score_cross(rec, 'disagreement'), rec['cross_disagreement'][-1, 0])


@pytest.fixture(scope='module')
def noisy():
    "Digits with 30 % wrong labels."
    return add_noise(sample(load_dataset('digits'), 300, seed=0), 'symmetric_exact-0.3')


HOW = dict(name='digits', epochs=6, precision='fp32')
def run(data, **kw): return cross_track(data, 'mlp', HOW, width=.25, device='cpu', **kw)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('folds', [2, 3, 7])
def test_folds_are_even(folds, seed):
    y = torch.from_numpy(np.random.default_rng(seed).integers(0, 6, 101))
    fold = make_folds(y, folds, seed)
    assert set(fold.tolist()) == set(range(folds)) and fold.bincount().max() - fold.bincount().min() <= 1
    for c in range(6): assert (count := torch.bincount(fold[y == c], minlength=folds)).max() - count.min() <= 1
    assert torch.equal(make_folds(y, folds, seed), fold) and not torch.equal(make_folds(y, folds, seed + 1), fold)


def test_no_network_judges_what_it_was_trained_on(noisy, monkeypatch):
    "Every example is held out once a repeat, and its score does not move with its own label."
    seen = []
    real = noisymem.methods.crosstracking.train
    monkeypatch.setattr('noisymem.methods.crosstracking.train', lambda *a, positions, **kw: (seen.append(positions), real(*a, positions=positions, **kw))[1])
    rec = run(noisy, folds=3, repeats=2)
    for r in range(2):
        held = ~torch.stack(seen[3*r:3*r + 3])
        assert (held.sum(0) == 1).all() and torch.equal(held.long().argmax(0), torch.from_numpy(rec['fold'][r]))


def test_scores_find_wrong_labels(noisy):
    rec = cross_track(noisy, 'mlp', dict(name='digits', epochs=15), folds=2, repeats=2, k=10, width=.5, device='cpu')
    for kind in ('loss', 'disagreement'): assert auroc(score_cross(rec, kind), noisy.is_noisy) > .85
    assert rec['epoch'][-1] == 15 and 1 <= choose_epoch(rec) <= 15 and 1 <= choose_epoch(rec, 'loss') <= 15
    assert score_cross(rec, spread=True).shape == (300,)


def test_resumed_equals_uninterrupted(noisy, tmp_path, monkeypatch):
    "A run that dies in the second network goes on from its checkpoint and gives the same bits."
    whole = run(noisy, k=5, ask=[2, 6])
    calls = []
    real = noisymem.methods.crosstracking.CrossTracker.after_epoch
    def dying(self, state):
        calls.append(state.epoch)
        if len(calls) == 9: raise KeyboardInterrupt
        return real(self, state)
    monkeypatch.setattr(noisymem.methods.crosstracking.CrossTracker, 'after_epoch', dying)
    with pytest.raises(KeyboardInterrupt): run(noisy, k=5, ask=[2, 6], folder=tmp_path)
    monkeypatch.setattr(noisymem.methods.crosstracking.CrossTracker, 'after_epoch', real)
    resumed = run(noisy, k=5, ask=[2, 6], folder=tmp_path)
    for name in ('cross_loss', 'own_loss', 'cross_correct', 'cross_disagreement'): assert np.array_equal(whole[name], resumed[name]), name


def test_every_keeps_the_last_epoch(noisy):
    rec = run(noisy, every=4, k=3, ask=[3])
    assert rec['epoch'].tolist() == [4, 6] and rec['asked_epoch'].tolist() == [3] and rec['cross_loss'].shape[0] == 2
    with pytest.raises(ValueError, match='epoch must be one of 4, 6, got 5'): score_cross(rec, epoch=5)


def test_disagreement_by_a_slow_loop(noisy):
    "Votes of the held-out examples among each other, and among the others."
    kept = {}
    def watched(r, f):
        net = make_model('mlp', 10, (1, 8, 8), width=.25, seed=f)
        kept[f] = net
        return net
    for keys in ('fold', 'others'):
        rec = cross_track(noisy, watched, HOW, k=4, keys=keys, device='cpu')
        x = (noisy.x.float()/255 - torch.tensor(noisy.mean).view(-1, 1, 1))/torch.tensor(noisy.std).view(-1, 1, 1)
        for f in (0, 1):
            with torch.no_grad(): feats = kept[f].eval().features(x); spaces = [kept[f].head(feats), feats]
            held = torch.from_numpy(rec['fold'][0] == f)
            among = held if keys == 'fold' else ~held
            for i in held.nonzero()[:20, 0].tolist():
                other = 0
                for s in spaces:
                    cos = F.cosine_similarity(s[i].double()[None], s.double())
                    if keys == 'fold': cos[i] = -2
                    cos[~among] = -2
                    other += (noisy.given_label[cos.argsort(descending=True)[:4]] != noisy.given_label[i]).sum().item()
                assert abs(rec['cross_disagreement'][0, 0, i] - other/8) < .13  # one near-tie


def test_apart_is_another_corruption(real_data):
    "The original's labels of CIFAR-10: what a perfect score calls correct is 63.7 % correct."
    ds = load_dataset('cifar10', root=real_data)
    fold = make_folds(ds.given_label, compat='original')
    together, apart = add_noise(ds, 'random_in-0.4', seed=42), corrupt_apart(ds, fold, 'random_in-0.4', seed=42)
    assert (~together.is_noisy[~apart.is_noisy]).float().mean().item() == pytest.approx(.637, abs=1e-3)
    assert torch.equal(apart.is_noisy[:25000], apart.is_noisy[25000:])  # wrong at the same places of either half
    assert apart.noise_rate == together.noise_rate == .4


def test_noise_that_changes_images_is_refused(noisy):
    with pytest.raises(ValueError, match='which changes images'): corrupt_apart(with_labels(noisy, noisy.true_label, 'clean'), make_folds(noisy.given_label), 'random_out-0.4')


@pytest.mark.parametrize('values', [[[1., 2, 3]], [[2., 2, 2]], [[3., 1, 1, 2]]])
def test_ranks_against_scipy(values):
    from scipy.stats import rankdata
    values = np.array(values)
    assert np.allclose(_ranks(values), (rankdata(values, axis=1) - 1)/(values.shape[1] - 1))


def test_bad_input(noisy):
    one = with_labels(noisy, torch.zeros(300, dtype=torch.int64), 'one class')
    assert run(one)['cross_loss'].shape == (6, 1, 300)  # classes that are missing are no hindrance
    for options, message in ((dict(folds=301), 'folds must be in'), (dict(repeats=0), 'repeats must be in'), (dict(k=-1), 'k must be in'), (dict(keys='x'), 'keys must be one of'), (dict(k=3, ask=[0]), 'ask must be in')):
        with pytest.raises(ValueError, match=message): run(noisy, **options)
    same = Records(dict(epoch=[1], cross_loss=np.ones((1, 1, 4)), cross_correct=np.ones((1, 1, 4), bool), own_loss=np.ones((1, 4))), dict(k=0), axis='epoch')
    assert score_cross(same).tolist() == [1]*4
