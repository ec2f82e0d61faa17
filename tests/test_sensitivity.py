"Loss sensitivity and critical samples: the published numbers, one example at a time, bad input."
import numpy as np
import pytest
import torch
from torch import nn

from noisymem.signals.sensitivity import batch_sensitivity, class_sensitivity, critical_samples, gini, loss_sensitivity


@pytest.fixture
def published(oracle):
    d = oracle('early_stopping/loss_sensitivity.npz')
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    net.load_state_dict({f'{i}.{k}': torch.tensor(d[f'l{l}_{k}']) for l, i in ((1, 1), (2, 3)) for k in ('weight', 'bias')})
    return d, net, torch.tensor(d['X']), torch.tensor(d['y'])


def test_published_sensitivity(published):
    d, net, x, y = published
    np.testing.assert_allclose(loss_sensitivity(net, x, y), d['REF_per_sample_l1'], atol=1e-12)
    l2 = loss_sensitivity(net, x, y, norm=2)
    np.testing.assert_allclose(l2, d['REF_per_sample_l2'], atol=1e-12)
    assert abs(batch_sensitivity(l2, d['batch_sizes']) - d['LS_original_CE']) < 1e-12
    mae = loss_sensitivity(net, x, y, norm=2, loss='mae')/3  # the published error is the mean over classes, here it is the sum
    assert abs(batch_sensitivity(mae, d['batch_sizes']) - d['LS_original_MAE']) < 1e-12


def test_one_example_at_a_time(published):
    _, net, x, y = published
    for size in (1, 3, 100): np.testing.assert_allclose(loss_sensitivity(net, x, y, batch_size=size), [loss_sensitivity(net, a[None], b[None])[0] for a, b in zip(x, y)], atol=1e-14)


def test_class_matrix_slowly(published):
    _, net, x, y = published
    want = np.array([[np.mean([float(loss_sensitivity(net, x[i:i+1], torch.tensor([a]))[0]) for i in range(10) if y[i] == b]) for b in range(3)] for a in range(3)])
    np.testing.assert_allclose(class_sensitivity(net, x, y, 3), want, atol=1e-12)


def test_network_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(.5), nn.Linear(8, 3)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    a, b = loss_sensitivity(net, x, y), critical_samples(net, x, .5, .2, .1)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and all(p.grad is None for p in net.parameters())
    assert torch.equal(a, loss_sensitivity(net, x, y)) and torch.equal(b, critical_samples(net, x, .5, .2, .1))


@pytest.mark.parametrize('seed', range(5))
def test_gini_is_the_mean_difference(seed):
    v = np.random.default_rng(seed).exponential(size=50)
    assert abs(gini(v) - np.abs(v[:, None] - v).mean()/(2*v.mean())) < 1e-12


def test_linear_network_knows_who_is_critical():
    "The distance to the boundary of a linear network in the largest norm is |margin| / sum |w|."
    g = torch.Generator().manual_seed(0)
    net = nn.Linear(5, 2)
    x = torch.randn(300, 5, generator=g)
    with torch.no_grad():
        w, b = net.weight[0] - net.weight[1], net.bias[0] - net.bias[1]
        near = ((x @ w + b).abs()/w.abs().sum()) < .2
    found = critical_samples(net, x, .2, .1, .0, fewest=1)
    assert torch.equal(found, near)
    noisy = critical_samples(net, x, .2, .1, .05, fewest=1)
    assert not (noisy & ~near).any() and noisy.sum() >= .95*near.sum(), 'a search may miss, it never finds what is not there'


def test_bigger_boxes_hold_more():
    g = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4)), torch.randn(100, 6, generator=g)
    ratios = [critical_samples(net, x, r, r/2, r/10, fewest=1, rounds=20).float().mean().item() for r in (0., .01, .1, 1., 5.)]
    assert ratios[0] == 0 and ratios == sorted(ratios) and ratios[-1] > .9


def test_bad_input():
    net = nn.Linear(3, 2)
    assert loss_sensitivity(net, torch.zeros(0, 3), []).shape == (0,)
    with pytest.raises(ValueError, match='loss must be one of'): loss_sensitivity(net, torch.zeros(2, 3), [0, 1], loss='l7')
    with pytest.raises(ValueError, match='rounds'): critical_samples(net, torch.zeros(2, 3), rounds=0)
    with pytest.raises(ValueError, match='x must be floats'): critical_samples(net, torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match='values must be finite'): gini([np.nan, 1.])
