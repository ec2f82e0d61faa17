"Divergences of neurons: the published numbers, slow references, chance, bad input."
import math

import numpy as np
import pytest
import torch

from noisymem.signals.densities import ENTROPIES, GRIDS, adaptive_divergence, ecf_divergence, entropy, kde_divergence, knn_divergence, mean_activation, top_divergence
from noisymem.signals.divergence import BINNINGS, classes_used, debiased_divergence, gaussian_divergence, histogram_divergence, score_by_density

ALL = [histogram_divergence, debiased_divergence, gaussian_divergence, adaptive_divergence, top_divergence, knn_divergence, kde_divergence, ecf_divergence]
name = lambda f: f.__name__


@pytest.fixture
def published(oracle):
    d = oracle('early_stopping/cnd_histogram.npz')
    return d, torch.tensor(d['pre_activations']), torch.tensor(d['labels'])


def test_published_histograms(published):
    d, x, y = published
    keep = y != 3
    np.testing.assert_allclose(histogram_divergence(x, y, 4, compat='original'), d['jsd_PMF'], atol=1e-6)
    np.testing.assert_allclose(histogram_divergence(x, y, 4, bins=20, compat='original'), d['jsd_PMF_bins20'], atol=1e-6)
    np.testing.assert_allclose(histogram_divergence(x[keep], y[keep], 4, compat='original'), d['jsd_PMF_class3_absent'], atol=1e-6)
    np.testing.assert_allclose(adaptive_divergence(x, y, 4, compat='original'), d['jsd_PMF_adaptive'], atol=1e-6)


def test_published_others(published):
    d, x, y = published
    keep = y != 3
    np.testing.assert_allclose(gaussian_divergence(x, y, 4, compat='original'), d['jsd_GL'], atol=1e-6)
    np.testing.assert_allclose(gaussian_divergence(x[keep], y[keep], 4, compat='original'), d['jsd_GL_class3_absent'], atol=1e-6)
    for k in (1, 2, 3): np.testing.assert_allclose(top_divergence(x, y, 4, k, compat='original'), d[f'topK{k}_jsd_min_th0.001'], atol=1e-6)
    for t in ('0', '0.5'): np.testing.assert_allclose(mean_activation(x, y, 4, float(t)), d[f'mean_approx_JSD_min_th{t}'], atol=1e-6)
    np.testing.assert_allclose(knn_divergence(x, y, 4, compat='original'), d['kNN_jsd'], atol=2e-6)


def test_the_shared_frequencies_spoil_every_neuron(published):
    _, x, y = published
    bad, good = ecf_divergence(x[:, :6], y, 4, compat='original'), ecf_divergence(x[:, :5], y, 4, compat='original')
    assert (bad[:5] < -16).all() and -1.2 < good.min() < -1 and good.max() < .1  # what the specification tells of the published code
    assert torch.isnan(kde_divergence(x[:, :6], y, 4, 'quantile', compat='original')).tolist() == [False]*5 + [True]


def slow_histogram(x, y, n_classes, bins, original):
    "Value by value, in float64 entropies."
    out = []
    for column in x.T:
        low, high = column.min(), column.max()
        width = np.float32((high - low)/np.float32(bins))
        edges = np.arange(bins + 1, dtype=np.float32)*width + low
        classes, used = np.zeros((n_classes, bins)), set(y.tolist())
        for v, c in zip(column, y):
            if original: k = int(np.searchsorted(edges, v, 'right')) - 1
            else: k = 0 if high == low else min(int(np.float32(v - low)*np.float32(bins/np.float32(high - low))), bins - 1)
            if 0 <= k < bins: classes[c, k] += 1
        with np.errstate(invalid='ignore'): p = np.array([classes[c]/classes[c].sum() for c in sorted(used)])
        def h(q):
            q = np.maximum(q, 1e-10) if original else q[q > 0]
            return -(q*np.log2(q)).sum()
        out.append(0 if high == low else h(p.mean(0)) - np.mean([h(q) for q in p]))
    return np.array(out)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('compat', [None, 'original'])
def test_one_pass_is_the_slow_loop(seed, compat):
    rng = np.random.default_rng(seed)
    n, k, bins = int(rng.integers(30, 200)), int(rng.integers(2, 6)), int(rng.integers(2, 50))
    y = np.concatenate([np.arange(k), np.arange(k), rng.integers(0, k, n)])
    x = (rng.normal(size=(len(y), 6))*10**rng.uniform(-3, 3, 6) + rng.normal(size=6)*5).astype('float32')
    x[:, 1], x[:, 2] = 3, np.maximum(x[:, 2], 0).round(1)
    got = histogram_divergence(x, y, k + 1, bins, compat=compat).numpy()
    want = slow_histogram(x, y, k + 1, bins, compat)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert (histogram_divergence(x, y, k + 1, bins) <= math.log2(k) + 1e-6).all()


def test_many_neurons_at_once_are_the_same_as_few():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5000, 900, generator=g), torch.randint(7, (5000,), generator=g)
    for compat in (None, 'original'): assert torch.equal(histogram_divergence(x, y, 7, compat=compat)[890:], histogram_divergence(x[:, 890:], y, 7, compat=compat))
    assert torch.equal(debiased_divergence(x, y, 7)[890:], debiased_divergence(x[:, 890:], y, 7))


@pytest.mark.parametrize('binning', BINNINGS)
def test_scale_and_shift_do_not_matter(binning):
    g = torch.Generator().manual_seed(1)
    y = torch.randint(3, (500,), generator=g)
    x = torch.randn(500, 4, generator=g) + y[:, None]
    np.testing.assert_allclose(histogram_divergence(x, y, 3, binning=binning), histogram_divergence(8*x + 16, y, 3, binning=binning), atol=.02)


@pytest.mark.parametrize('k', [10, 100, 200])
def test_chance_has_no_divergence_once_it_is_taken_off(k):
    g = torch.Generator().manual_seed(k)
    x, y = torch.randn(10000, 8, generator=g), torch.randint(k, (10000,), generator=g)
    biased = histogram_divergence(x, y, k).mean().item()
    assert abs(biased - {10: .024, 100: .23, 200: .43}[k]) < .05  # the published bias
    assert debiased_divergence(x, y, k, clip=False).abs().max() < .003
    if k == 10: assert histogram_divergence(x, y, k, miller_madow=True).mean() < .3*biased


def test_miller_madow_by_hand():
    x, y = torch.tensor([[0.], [0], [1], [1], [2], [2], [2], [0]]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    p = np.array([[.5, .5, 0], [.25, 0, .75]])
    def h(q, n): return -(q[q > 0]*np.log(q[q > 0])).sum() + ((q > 0).sum() - 1)/(2*n)
    assert abs(histogram_divergence(x, y, 2, 3, unit='nats', miller_madow=True).item() - (h(p.mean(0), 8) - (h(p[0], 4) + h(p[1], 4))/2)) < 1e-6


def test_an_outlier_moves_the_published_estimate_and_not_the_debiased():
    g = torch.Generator().manual_seed(2)
    y = torch.randint(4, (2000,), generator=g)
    x = torch.randn(2000, 1, generator=g) + y[:, None]
    far = x.clone(); far[0] = 500
    assert histogram_divergence(far, y, 4)[0] < .5*histogram_divergence(x, y, 4)[0]
    assert abs(debiased_divergence(far, y, 4) - debiased_divergence(x, y, 4))[0] < .01


def test_classes_with_few_examples():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(103, 3, generator=g); y = torch.tensor([0]*50 + [1]*50 + [4]*3)
    assert torch.equal(histogram_divergence(x, y, 6, min_count=4), histogram_divergence(x[:100], y[:100], 2))
    assert (classes_used(y, 6), classes_used(y, 6, 4)) == (3, 2)
    for f in ALL: assert torch.isfinite(f(x, y, 6)).all(), f


@pytest.mark.parametrize('f', ALL, ids=name)
def test_hard_input(f):
    x, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    x[:, 1] = 7
    assert f(x, y, 2)[1] == 0, 'a constant neuron tells nothing'
    assert torch.equal(f(x, torch.zeros(40, dtype=torch.int64), 2), torch.zeros(3)), 'nor does anything where there is one class'
    assert torch.equal(f(x[:1], [0], 2), torch.zeros(3)), 'or one example'
    for bad in (math.nan, math.inf):
        broken = x.clone(); broken[3, 2] = bad
        with pytest.raises(ValueError, match='NaN or infinity in 1 of 3 neurons'): f(broken, y, 2)
    with pytest.raises(ValueError, match='labels'): f(x, y + 1, 2)
    with pytest.raises(ValueError, match='labels'): f(x, y[:5], 2)
    with pytest.raises(ValueError, match=r'x must be \(N, D\)'): f(x[:, 0], y, 2)
    with pytest.raises(ValueError, match=r'x must be \(N, D\)'): f(x[:0], y[:0], 2)


@pytest.mark.parametrize('f', [f for f in ALL if f is not debiased_divergence], ids=name)
def test_units(f):
    g = torch.Generator().manual_seed(4)
    y = torch.arange(600) % 3
    x = torch.randn(600, 3, generator=g) + torch.tensor([0., 1, 30])*y[:, None]
    bits, share = f(x, y, 3, unit='bits'), f(x, y, 3, unit='share')
    np.testing.assert_allclose(f(x, y, 3, unit='nats'), bits*math.log(2), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(share*(1 if f is top_divergence else math.log2(3)), bits, rtol=1e-5, atol=1e-7)
    assert (0 <= share).all() and (share <= 1 + 1e-6).all() and share[2] > .8
    with pytest.raises(ValueError, match='unit must be one of'): f(x, y, 3, unit='percent')


def true_js(distance):
    t = np.linspace(-12, 12 + distance, 20001)
    p = np.exp(-(t[None] - np.array([[0.], [distance]]))**2/2)/math.sqrt(2*math.pi)
    ratio = np.log(np.maximum(p, 1e-300)/np.maximum(p.mean(0), 1e-300))
    return np.trapezoid(p*ratio, t).mean()


@pytest.mark.parametrize('distance', [.5, 2., 6.])
def test_estimates_come_near_the_integral(distance):
    g = torch.Generator().manual_seed(5)
    y = torch.arange(4000) % 2
    x = torch.randn(4000, 1, generator=g) + distance*y[:, None]
    want = true_js(distance)
    assert abs(histogram_divergence(x, y, 2, unit='nats').item() - want) < .03
    assert abs(knn_divergence(x, y, 2).item() - want) < .06
    assert abs(ecf_divergence(x, y, 2, most=800).item() - want) < .06
    for grid in GRIDS: assert abs(kde_divergence(x, y, 2, grid).item() - want) < (.08 if grid == 'quantile' else .03)


@pytest.mark.parametrize('kind', ['gaussian', 'knn', 'kde', 'ecf', 'histogram'])
def test_entropies_of_known_distributions(kind):
    g = torch.Generator().manual_seed(6)
    assert abs(entropy(3*torch.randn(1000, 1, generator=g, dtype=torch.float64), kind).item() - .5*math.log(2*math.pi*math.e*9)) < .1


def test_original_entropies_lack_their_constants():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    h = x.std(0)*60**-.2
    np.testing.assert_allclose(entropy(x, 'kde') - entropy(x, 'kde', 'original'), (h*math.sqrt(2*math.pi)).log())
    pair = torch.tensor([[-math.log(max(np.mean([math.exp(-(float(a - b))**2/(2*float(h[j])**2)) for b in x[:, j]]), 1e-10)) for a in x[:, j]] for j in range(2)])
    np.testing.assert_allclose(entropy(x, 'kde', 'original'), pair.mean(1))
    for kind in ENTROPIES: assert (entropy(x[:1], kind) == 0).all()


@pytest.mark.parametrize('seed', range(3))
def test_score_of_examples_slowly(seed):
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, 1, 3, 3, rng.integers(0, 2, 40)]
    x = rng.normal(size=(45, 3)).astype('float32'); low, high = x.min(0), x.max(0)
    index = np.minimum(((x - low)*np.float32(6)/(high - low)).astype(int), 5)
    want = []
    for i in range(45):
        total = 0
        for j in range(3):
            def p(c, without): n = sum(y[k] == c and index[k, j] == index[i, j] for k in range(45)) - without; return (n + .5)/((y == c).sum() - without + 3)
            total += math.log(np.mean([p(c, 0) for c in (0, 1, 3) if c != y[i]])) - math.log(p(y[i], 1))
        want.append(total/3)
    np.testing.assert_allclose(score_by_density(torch.tensor(x), torch.tensor(y), 5, 6, 'range', .5), want, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize('f', ALL, ids=name)
def test_cpu_and_gpu_agree(f):
    g = torch.Generator().manual_seed(8)
    y = torch.randint(5, (800,), generator=g)
    x = torch.randn(800, 6, generator=g) + y[:, None]
    for options in ({}, {'compat': 'original'}):
        if f is debiased_divergence and options: continue
        np.testing.assert_allclose(f(x.cuda(), y.cuda(), 5, **options).cpu(), f(x, y, 5, **options), atol=.02 if not options else 1e-3)
