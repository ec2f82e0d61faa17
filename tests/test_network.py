"Graphs, frequencies, masks, percentiles, gradients: the published numbers, slow references, bad input."
import math

import numpy as np
import pytest
import torch
from torch import nn

from noisymem.signals.network import GradientSums, activation_frequency, class_graph_entropy, class_graphs, frequent, graph_weights, gradient_statistics, intrinsic_dimension, layer_densities, layer_percentiles, masked, shannon_entropy, von_neumann_entropy, weight_norm


@pytest.fixture
def published(oracle):
    d = oracle('early_stopping/graph_entropy.npz')
    return d, [torch.tensor(d[f'param_fc{i}_weight']) for i in (1, 2, 3)], [torch.tensor(d[f'layer_input_{i}']) for i in (1, 2, 3)], torch.tensor(d['labels'])


def test_published_graphs(published):
    d, w, a, y = published
    np.testing.assert_allclose(class_graph_entropy(w, a, y, 3, compat='original'), d['CGE'], atol=2e-6)
    np.testing.assert_allclose(class_graph_entropy(w, a, y, 3, 'shannon', compat='original'), [d[f'sel123_graph{g}_shannon'] for g in range(3)], atol=2e-6)
    graphs = class_graphs(w, a, y, 3, compat='original')
    for g in range(3): np.testing.assert_allclose(graphs[(g + 1) % 3], d[f'sel123_graph{g}_edges'], atol=1e-6)


def test_corrected_graphs(published):
    d, w, a, y = published
    for c, edges in class_graphs(w, a, y, 3).items(): assert len(edges[:, :2].unique()) == d[f'REF_class{c}_nodes']
    np.testing.assert_allclose(class_graph_entropy(w, a, y, 3), [d[f'REF_class{c}_von_neumann'] for c in range(3)], atol=1e-6)
    np.testing.assert_allclose(class_graph_entropy(w, a, y, 3, 'shannon'), [d[f'REF_class{c}_shannon'] for c in range(3)], atol=1e-6)


def test_published_single_layers_and_toy(published):
    d, w, a, _ = published
    for i in (1, 2, 3):
        edges = class_graphs([w[i - 1]], [a[i - 1][:1]], [0], 1)[0]
        np.testing.assert_allclose(edges[:, 2], d[f'single_layer{i}_edges'][:, 2], atol=1e-6)
        assert abs(von_neumann_entropy(edges) - d[f'single_layer{i}_von_neumann']) < 2e-6 and abs(shannon_entropy(edges) - d[f'single_layer{i}_shannon']) < 2e-6
    assert abs(von_neumann_entropy(d['toy_edges']) - d['toy_von_neumann']) < 1e-9 and abs(shannon_entropy(d['toy_edges']) - d['toy_shannon']) < 1e-9


@pytest.mark.parametrize('seed', range(4))
def test_von_neumann_slowly(seed):
    rng = np.random.default_rng(seed)
    edges = np.array([(i, 4 + j, rng.random()) for i in range(4) for j in range(5)])
    adjacent = np.zeros((9, 9))
    for u, v, w in edges: adjacent[int(u), int(v)] += w; adjacent[int(v), int(u)] += w
    laplacian = np.diag(adjacent.sum(1)) - adjacent
    values = np.linalg.eigvals(laplacian/np.trace(laplacian)).real
    want = -sum(v*math.log(v) for v in values if v > 1e-12)
    assert abs(von_neumann_entropy(edges) - want) < 1e-9 and want <= math.log(8)
    assert von_neumann_entropy(edges, exact=False) <= want


def test_a_convolution_is_a_graph_of_channels():
    conv, x = nn.Conv2d(3, 4, 1, bias=False), torch.rand(6, 3, 5, 5)
    flat = nn.Linear(3, 4, bias=False)
    with torch.no_grad(): flat.weight.copy_(conv.weight[..., 0, 0])
    np.testing.assert_allclose(graph_weights(conv.weight, x), graph_weights(flat.weight, x.mean((2, 3))), rtol=1e-6)


def test_a_class_without_example_and_dead_layers_have_no_entropy():
    w, a = [torch.ones(2, 3)], [torch.ones(4, 3)]
    got = class_graph_entropy(w, a, [0, 0, 2, 2], 4)
    assert torch.isnan(got).tolist() == [False, True, False, True]
    assert torch.isnan(class_graph_entropy(w, [torch.zeros(4, 3)], [0, 0, 1, 1], 2)).all()
    with pytest.raises(ValueError, match='labels'): class_graph_entropy(w, a, [0, 0, 2, 9], 4)
    with pytest.raises(ValueError, match='kind must be one of'): class_graph_entropy(w, a, [0]*4, 4, 'renyi')


def test_published_percentiles(oracle):
    d = oracle('early_stopping/performance_stats.npz')
    runs = oracle('early_stopping/stopping_epochs.npz')
    of = np.repeat(np.arange(3), runs['neurons_per_layer'])
    for which in ('top', 'bottom'): np.testing.assert_allclose(layer_percentiles(runs['CND'][0], of, -1, d[f'{which}_percentiles'].tolist()), d[f'{which}_of_last'], atol=1e-9)
    np.testing.assert_allclose(layer_percentiles(runs['CND'][0], of)[0], runs['cnd_quantile90_PMF_lastlayer'], atol=1e-6)


@pytest.mark.parametrize('seed', range(3))
def test_percentiles_slowly(seed):
    rng = np.random.default_rng(seed)
    v, of = rng.random((6, 20)), rng.integers(0, 3, 20)
    for layer in (0, 1, -1):
        own = np.sort(v[:, of == layer % 3], 1)
        at = .9*(own.shape[1] - 1)
        want = [r[int(at)] + (at - int(at))*(r[min(int(at) + 1, len(r) - 1)] - r[int(at)]) for r in own]
        np.testing.assert_allclose(layer_percentiles(v, of, layer, (90,))[0], want)


def test_percentiles_of_epochs_that_were_not_measured():
    v = np.array([[1., 2, 3], [np.nan]*3, [4, np.nan, 6]])
    np.testing.assert_array_equal(layer_percentiles(v, percentiles=(50,))[0], [2, np.nan, 5])
    with pytest.raises(ValueError, match='percentiles must be in'): layer_percentiles(v, percentiles=(101,))
    with pytest.raises(ValueError, match='layer_of_neuron'): layer_percentiles(v, [0, 1])


@pytest.mark.parametrize('shape', [(7, 4), (7, 4, 3, 3)])
def test_masks_scale_what_is_left(shape):
    x, keep = torch.randn(shape), torch.tensor([True, False, True, False])
    net = nn.Sequential(nn.Identity(), nn.Identity())
    with masked(net, {'0': keep}): np.testing.assert_allclose(net(x)[:, keep], 2*x[:, keep])
    with masked(net, {'0': keep}, rescale=False): out = net(x)
    assert torch.equal(out[:, keep], x[:, keep]) and not out[:, ~keep].any() and torch.equal(net(x), x)
    with pytest.raises(ValueError, match='masks must be'):
        with masked(net, {'0': torch.ones(4)}): pass


def test_frequency_slowly():
    v = torch.randn(30, 9).clamp_min(0); v[:, 2] = 0
    per_neuron, per_example = activation_frequency(v)
    assert per_neuron[2] == 0 and all(abs(float(per_neuron[j]) - np.mean([bool(a) for a in v[:, j]])) < 1e-6 for j in range(9))
    np.testing.assert_allclose(per_neuron.mean(), per_example.mean(), rtol=1e-6)
    assert not frequent(per_neuron)[2] and frequent(per_neuron, 1.).sum() == 0
    with pytest.raises(ValueError, match='finite, got NaN or infinity in 1 of 9'): activation_frequency(torch.where(v == v[0, 0], math.nan, v) if v[0, 0] else v.index_fill(1, torch.tensor([3]), math.nan))


def test_gradient_sums_are_those_of_the_stack():
    g = torch.Generator().manual_seed(0)
    batches = [[torch.randn(3, 2, generator=g) + .3, torch.randn(5, generator=g)*4] for _ in range(12)]
    sums = GradientSums()
    for b in batches: sums.add(b)
    flat = torch.stack([torch.cat([t.flatten() for t in b]) for b in batches]).double()
    got = sums.statistics()
    assert abs(got['gradient_norm'] - flat.norm(dim=1).mean().item()) < 1e-5
    assert abs(got['gradient_evidence'] - (1 - (12*flat.mean(0)**2/flat.var(0)).mean().item())) < 1e-4
    assert sums.n == 12 and torch.equal(batches[0][0], batches[0][0])


def test_evidence_at_the_minimum_is_higher_than_far_from_it():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(400, 3, generator=g); y = x @ torch.ones(3) + torch.randn(400, generator=g)
    net = nn.Linear(3, 1)
    def at(w):
        with torch.no_grad(): net.weight.fill_(w); net.bias.zero_()
        return gradient_statistics(net, [(a, b) for a, b in zip(x.split(20), y.split(20))], lambda o, t: (o[:, 0] - t).square().mean())['gradient_evidence']
    assert at(1.) > -1.5 > at(5.)


def test_densities_have_area_one_and_name_bad_layers():
    t = layer_densities({'a': torch.randn(5, 30), 'b': torch.zeros(5, 4)}, [1, 3], 200)
    assert set(t.layer) == {'a', 'b'} and len(t) == 800
    for _, part in t.groupby(['layer', 'row']): assert abs(np.trapezoid(part.density, part.value) - 1) < .02
    with pytest.raises(ValueError, match="layer 'a'"): layer_densities({'a': torch.full((2, 3), math.nan)}, [0])
    assert abs(weight_norm(nn.Linear(2, 2)) - 0) < 2


def test_intrinsic_dimension_slowly():
    x = torch.randn(25, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(25):
        r = sorted(float((x[i] - x[j]).norm()) for j in range(25) if j != i)[:6]
        assert abs(intrinsic_dimension(x, 6)[i].item() + 1/np.mean([math.log(v/r[-1]) for v in r])) < 1e-8
    with pytest.raises(ValueError, match='finite'): intrinsic_dimension(x*math.nan)
