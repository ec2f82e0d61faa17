"Regularisers of divergence against slow references and the study's numbers; gradients; what the original leaves out."
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noisymem.losses import cross_entropy, mean_absolute_error, mean_absolute_error_original
from noisymem.methods import cnd_regularizer as cr
from noisymem.models import make_model
from noisymem.train import Batch, supervised


def case(seed, b=40, d=5, k=4, absent=False):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(k - absent, (b,), generator=g)
    return torch.randn(b, d, generator=g, dtype=torch.float64) + y[:, None]*torch.arange(d)/3, y


# losses

def test_absolute_error_oracle(oracle):
    o = oracle('early_stopping/losses.npz')
    z, y = torch.tensor(o['logits'], requires_grad=True), torch.tensor(o['targets'])
    for loss, name in ((mean_absolute_error_original, 'MAE'), (cross_entropy, 'cross_entropy_loss')):
        value = loss(z, y)
        grad, = torch.autograd.grad(value, z)
        assert value.item() == pytest.approx(float(o[name]), rel=1e-6) and np.allclose(grad, o[f'{name}_grad'], atol=1e-7)
    assert mean_absolute_error(z, y).item() == pytest.approx(4*float(o['MAE']), rel=1e-6)
    assert np.allclose((z.softmax(1) - F.one_hot(y, 4)).abs().mean().item(), o['MAE'])


# measures

@pytest.mark.parametrize('absent', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_distances_of_means_written_out(seed, absent):
    v, y = case(seed, absent=absent)
    for compat in (None, 'original'):
        means = [v[y == c].mean(0) if (y == c).any() else torch.zeros(5).double() for c in range(4) if compat or (y == c).any()]
        assert torch.allclose(cr.mean_distance(v, y, 4, compat), sum((m - v.mean(0)).abs() for m in means)/len(means))
        pairs = [(a - b).abs() for i, a in enumerate(means) for j, b in enumerate(means) if compat or i != j]
        assert torch.allclose(cr.pair_distance(v, y, 4, compat), sum(pairs)/len(pairs))


def test_gaussian_oracle(oracle):
    o = oracle('early_stopping/cnd_histogram.npz')
    v, y = torch.tensor(o['pre_activations']), torch.tensor(o['labels'])
    assert np.allclose(cr.gaussian_like(v.double(), y, 4, 'original'), o['jsd_GL'], atol=1e-5)
    assert np.allclose(cr.gaussian_like(v[y != 3].double(), y[y != 3], 4, 'original'), o['jsd_GL_class3_absent'], atol=1e-5)
    here = cr.gaussian_like(v, y, 4)
    assert (here > -1e-6).all() and (here <= math.log(4) + 1e-6).all()


@pytest.mark.parametrize('seed', range(2))
def test_kernels_written_out(seed):
    v, y = case(seed)
    def entropy(x):
        h = x.std()*len(x)**-.2
        return -sum(math.log(max(sum(math.exp(-(a - b)**2/(2*h**2)) for b in x.tolist())/len(x), 1e-10)) for a in x.tolist())/len(x)
    def density(at, x):
        h = x.std()*len(x)**-.2
        return sum(math.exp(-(at - b)**2/(2*h**2)) for b in x.tolist())/len(x)/(h*math.sqrt(2*math.pi))
    for j in (0, 4):
        x, parts = v[:, j], [v[y == c, j] for c in range(4)]
        assert cr.kernel_divergence(v, y, 4, 'original')[j].item() == pytest.approx(entropy(x) - sum(map(entropy, parts))/4, abs=1e-8)
        want = sum(sum(math.log(density(a, own)/(sum(density(a, p) for p in parts)/4)) for a in own.tolist())/len(own) for own in parts)/4
        assert cr.kernel_divergence(v, y, 4)[j].item() == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize('kind', cr.KINDS)
@pytest.mark.parametrize('compat', [None, 'original'])
def test_order_shift_and_gradient(kind, compat):
    v, y = case(0)
    p = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    a = cr.cnd_penalty(v, y, 4, kind, 1., compat)
    assert a.item() == pytest.approx(cr.cnd_penalty(v[p], y[p], 4, kind, 1., compat).item(), rel=1e-4)
    if not (compat and kind in ('mean', 'mean_pairs')): assert a.item() == pytest.approx(cr.cnd_penalty(v + 3, y, 4, kind, 1., compat).item(), rel=1e-4)
    if kind in ('mean', 'mean_pairs', 'gaussian') or (kind, compat) == ('kde', 'original'): assert torch.autograd.gradcheck(lambda w: cr.cnd_penalty(w, y, 4, kind, 1., compat), v.requires_grad_())


@pytest.mark.parametrize('kind', cr.KINDS)
@pytest.mark.parametrize('compat', [None, 'original'])
@pytest.mark.parametrize('what', ['constant', 'constant in a class', 'one example each', 'one class', 'one example', 'large'])
def test_degenerate_batches_have_finite_gradients(kind, compat, what):
    v, y = case(2)
    v = v.float()
    if what == 'constant': v[:, 1] = 0
    if what == 'constant in a class': v[y == 2, 1] = 3.
    if what == 'one example each': v, y = v[:4], torch.arange(4)
    if what == 'one class': y = y*0
    if what == 'one example': v, y = v[:1], y[:1]
    if what == 'large': v = v*1e6
    v.requires_grad_()
    loss = cr.cnd_penalty(v, y, 4, kind, 1., compat)
    loss.backward()
    assert loss.isfinite() and v.grad.isfinite().all()


@pytest.mark.parametrize('kind', ['gaussian', 'kde', 'ecf', 'uniform'])
def test_bounds_and_chance(kind):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 4
    nothing, all_ = torch.randn(400, 3, generator=g), y[:, None]*100 + torch.randn(400, 3, generator=g)
    assert (cr.KINDS[kind](nothing, y, 4) < .15).all() and torch.allclose(cr.KINDS[kind](all_, y, 4), torch.tensor(math.log(4)), atol=.03)


# the term

def test_gamma_by_layer():
    assert torch.allclose(cr.layer_weights([2, 2, 1], .5), torch.tensor([.5, .5, .275, .275, .05])) and cr.layer_weights([2], .5, False).tolist() == [.5, .5]
    v, y = case(0)
    one = cr.layer_weights([2, 2, 1], .5)
    assert cr.cnd_penalty(v, y, 4, 'kde', one).item() == pytest.approx(-(one*cr.kernel_divergence(v, y, 4)).mean().item())


@pytest.mark.parametrize('call, message', [
    (lambda v, y: cr.cnd_penalty(v, y, 4, 'pmf'), 'kind must be one of'), (lambda v, y: cr.cnd_penalty(v, y, 4, gamma=-1.), 'gamma must be'), (lambda v, y: cr.cnd_penalty(v, y, 4, gamma=torch.ones(2)), 'gamma must be a number or have 5'),
    (lambda v, y: cr.cnd_penalty(v, y, 2), 'labels must be in'), (lambda v, y: cr.cnd_penalty(v[:, 0], y, 4), 'values must be floats'), (lambda v, y: cr.cnd_penalty(v, y[:3], 4), 'labels must be int64'), (lambda v, y: cr.layer_weights([2, 0], .1), 'widths must be positive'),
    (lambda v, y: cr.regularized(4, []), 'points must name'), (lambda v, y: cr.regularized(4, 'a', compat='original'), 'batch_size'), (lambda v, y: cr.l1_penalty(nn.Linear(1, 1), -1), 'weight must be')])
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message): call(*case(0))


def test_objective_of_images_and_of_the_original(images):
    net = make_model('resnet9', 3, (3, 12, 12), width=.1)
    batch = Batch(torch.randn(12, 3, 12, 12), torch.arange(12) % 3, torch.arange(12), 1, 0)
    points, seen = ['backbone.layer3.0.relu:in', 'backbone.layer4.0.relu:in'], {}
    net.eval()
    for p in points: net.get_submodule(p[:-3]).register_forward_pre_hook(lambda m, a, p=p: seen.__setitem__(p, a[0]))
    plain = supervised()(net, batch).item()
    mean, largest = (torch.cat([f(seen[p].flatten(2)) for p in points], 1) for f in (lambda t: t.mean(2), lambda t: t.amax(2)))
    assert cr.regularized(3, points, 'gaussian', .5)(net, batch).item() == pytest.approx(plain + cr.cnd_penalty(mean, batch.given_label, 3, 'gaussian', .5).item(), rel=1e-5)
    widths = [seen[p].shape[1] for p in points]
    want = plain + cr.cnd_penalty(largest, batch.given_label, 3, 'gaussian', cr.layer_weights(widths, .5), 'original').item()
    original = lambda **o: cr.regularized(3, points, 'gaussian', .5, True, compat='original', **o)(net, batch).item()
    assert original(batch_size=12) == pytest.approx(want, rel=1e-5) and original(batch_size=13) == plain
    assert original(batch_size=12, l1=0.) == plain, 'an L1 weight, even 0, leaves the divergence out'
    both = cr.regularized(3, points, 'gaussian', .5, l1=.01)(net, batch)
    assert both.item() == pytest.approx(plain + cr.cnd_penalty(mean, batch.given_label, 3, 'gaussian', .5).item() + .01*sum(p.abs().sum() for p in net.parameters()).item(), rel=1e-5)
    both.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('kind', sorted(cr.KINDS))
def test_a_class_much_narrower_than_the_range_gives_numbers(kind):
    "On a grid of 128 points a narrow class lay between two points, and 0/0 ended the training."
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 3, generator=g), torch.arange(60) % 3
    x[y == 1] = 5 + 1e-4*x[y == 1]
    x.requires_grad_()
    value = cr.cnd_penalty(x, y, 3, kind, 1.)
    value.backward()
    assert value.isfinite() and x.grad.isfinite().all() and value < 0
