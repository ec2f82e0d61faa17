"Neurons after training: tests against scipy by hand, masks, controls."
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from noisymem.augment import normalize
from noisymem.data import from_arrays
from noisymem.models import make_model
from noisymem.recorder import find_points, read_points
from noisymem.signals.network import masked
from noisymem.signals.neurons import LAYERS, THRESHOLDS, class_differences, evaluate_masks, layer_differences, layer_sheet, mask_neurons, neuron_entropy, neuron_masks, random_masks


@pytest.mark.parametrize('seed', range(3))
def test_kruskal_and_bonferroni(seed):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(4), rng.integers(0, 4, 60)])
    x = rng.normal(size=(64, 5)).round(1) + np.array([0, .5, 1, 3, 0])*y[:, None]
    t = class_differences(x, y, 6)
    want = [stats.kruskal(*[x[y == c, j] for c in range(4)]).pvalue for j in range(5)]
    np.testing.assert_allclose(t.p, want); np.testing.assert_allclose(t.p_corrected, np.minimum(np.array(want)*5, 1))
    assert t.significant[3] and not t.significant[0]


def test_mann_whitney():
    rng = np.random.default_rng(0)
    v, of = np.concatenate([rng.normal(size=8), rng.normal(size=9) + 3, rng.normal(size=7)]), np.repeat([0, 1, 2], [8, 9, 7])
    t = layer_differences(v, of)
    for l in range(3): assert t.p[l] == stats.mannwhitneyu(v[of == l], v[of != l], alternative='two-sided').pvalue and abs(t['std'][l] - v[of == l].std()) < 1e-12
    with pytest.raises(ValueError, match='one shape'): layer_differences(v, of[1:])


@pytest.mark.parametrize('across', [False, True])
@pytest.mark.parametrize('keep', ['high', 'low'])
def test_masks_are_quantiles_and_controls_keep_as_many(keep, across):
    rng = np.random.default_rng(1)
    v, of = rng.random(60), np.repeat([0, 1, 2], [10, 20, 30])
    kept = []
    for t in THRESHOLDS:
        masks = neuron_masks(v, of, t, keep, across)
        for l, m in enumerate(masks):
            cut = np.quantile(v if across else v[of == l], t)
            want = np.ones((of == l).sum(), bool) if keep == 'high' and t == 0 else v[of == l] > cut if keep == 'high' else v[of == l] < cut
            assert m.tolist() == want.tolist()
        assert [int(m.sum()) for m in random_masks(masks, 3)] == [int(m.sum()) for m in masks]
        kept.append(sum(int(m.sum()) for m in masks))
    assert kept == sorted(kept, reverse=keep == 'high') and (kept[0], kept[-1]) == ((60, 0) if keep == 'high' else (0, 59 if across else 57))
    assert neuron_masks(v, of, .9, keep, layers=(-1, -2))[0].all()


def test_a_planted_neuron_memorizes():
    "One hidden unit knows the wrong labels; without it they are gone, and random masks spare it mostly."
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200); noisy = rng.random(200) < .3
    x = np.stack([2.*y - 1, 4.*noisy*(1 - 2*y)], 1).astype('float32')
    data = from_arrays(x, np.where(noisy, 1 - y, y), true_label=y, x_test=np.stack([2.*y - 1, 0*y], 1).astype('float32'), y_test=y, class_names=('a', 'b'))
    net = make_model('mlp', 2, (2,), width=8/512)
    with torch.no_grad():
        for p in net.parameters(): p.zero_()
        first, second, head = net.backbone.fc1, net.backbone.fc2, net.head
        m, s = torch.tensor(data.mean), torch.tensor(data.std)
        for i, (feature, sign) in enumerate(((0, 1.), (0, -1.), (1, 1.), (1, -1.))):
            first.weight[i, feature], first.bias[i], second.weight[i, i] = sign*s[feature], sign*m[feature], 1.
            head.weight[1 if sign > 0 else 0, i] = 1.
    layout = dict(layers=['backbone.relu1:in', 'backbone.relu2:in'], layer_of_neuron=np.repeat([0, 1], [8, 4]))
    value = np.r_[[5, 6, 1, 2, 7, 8, 9, 10], np.ones(4)]  # the two lowest of the first layer know the wrong labels
    t = mask_neurons(net, data, dict(planted=value), layout, (0, .2), ('high',), (False,), dict(first=0), 2).set_index(['threshold', 'draw'])
    assert t.loc[(0, 0)].memorized == t.loc[(0, 0)].clean_accuracy == t.loc[(0, 0)].test_accuracy == 1
    assert t.loc[(.2, 0)].memorized == 0 and t.loc[(.2, 0)].test_accuracy == 1 and t.loc[(.2, 0)].kept == 10/12
    assert (t.loc[.2].query('mask == "random"').memorized > 0).any()
    assert t.loc[(.2, 0)].relative_memorized == -1 and t.loc[(.2, 0)].relative_test_accuracy == 0 and (t.loc[0].relative_memorized == 0).all()


def pictures(n=30, n_test=20, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return from_arrays(rng.integers(0, 255, (n, 3, 8, 8)).astype('uint8'), np.where(rng.random(n) < .4, (y + 1) % 3, y), true_label=y, x_test=rng.integers(0, 255, (n_test, 3, 8, 8)).astype('uint8'), y_test=rng.integers(0, 3, n_test), class_names=('a', 'b', 'c'))


class Twice(torch.nn.Module):
    "No chain: the masked module feeds two branches that are added."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.one, self.two = torch.nn.Linear(192, 7), torch.nn.Linear(7, 3), torch.nn.Linear(192, 3)
    def forward(self, x): return self.one(self.inside(x.flatten(1)).relu()) + self.two(x.flatten(1))


@pytest.mark.parametrize('rescale', [True, False])
@pytest.mark.parametrize('name', ['fast', 'resnet9', 'preact_resnet9', 'lenet', 'fcn', 'mlp', 'twice'])
def test_masks_from_the_layer_they_touch_are_masks_of_the_whole(name, rescale):
    data, rng = pictures(), np.random.default_rng(1)
    net = Twice() if name == 'twice' else make_model(name, 3, (3, 8, 8), width=.05)
    points = ['inside'] if name == 'twice' else find_points(net)
    of = np.repeat(np.arange(len(points)), [v.shape[1] for v in read_points(net, data, points)[1].values()])
    masks = [neuron_masks(rng.random(len(of)), of, t, layers=l) for t in (0, .5, 1) for l in LAYERS.values() if l == 'all' or len(points) > 1]
    got = evaluate_masks(net, data, points, masks, rescale)
    assert net.training
    net.eval()
    for m, (_, row) in zip(masks, got.iterrows()):
        with masked(net, dict(zip([p.removesuffix(':in') for p in points], m)), rescale), torch.no_grad(): said, test = (net(normalize(x, data.mean, data.std)).argmax(1) for x in (data.x, data.x_test))
        right = said == data.given_label
        want = [v.double().mean() for v in (test == data.y_test, right[data.is_noisy], right[~data.is_noisy])]
        np.testing.assert_allclose(row, want, atol=1e-12)


def test_masks_say_what_does_not_fit():
    data, net = pictures(), make_model('mlp', 3, (3, 8, 8), width=.05)
    with pytest.raises(ValueError, match='masks must have 26 entries, got 3'): evaluate_masks(net, data, ['backbone.relu1'], [[torch.tensor([True, False, True])]])
    with pytest.raises(ValueError, match='layers must be names of sub-modules'): evaluate_masks(net, data, ['backbone.relu9'], [[torch.ones(26, dtype=torch.bool)]])
    t = evaluate_masks(net, replace(data, true_label=None, x_test=data.x_test[:0], y_test=data.y_test[:0]), ['backbone.relu1'], [[torch.ones(26, dtype=torch.bool)]])
    assert t[['test_accuracy', 'memorized']].isna().all(axis=None) and t.clean_accuracy.notna().all()


def test_controls_depend_on_the_draw_and_the_number_alone():
    a, b = [torch.tensor([True, False, False, True, False])], [torch.tensor([False, True, True, False, False])]
    assert random_masks(a, 3)[0].tolist() == random_masks(b, 3)[0].tolist()
    drawn = torch.stack([random_masks(a, s)[0] for s in range(2000)]).double().mean(0)
    assert (drawn - .4).abs().max() < .05


def test_sheet_is_both_tests_together():
    rng = np.random.default_rng(0)
    y = np.arange(80) % 4
    x = rng.normal(size=(80, 6)) + np.array([0, 0, 3, 3, 0, 3])*y[:, None]
    v = rng.random(6)
    t = layer_sheet(v, x, y, 4, [0, 0, 1, 1, 2, 2])
    assert t.significant.tolist() == [0, 1, .5] and t.layer.tolist() == [0, 1, 2] and t.n.tolist() == [2, 2, 2]
    np.testing.assert_allclose(t.cnd_mean, v.reshape(3, 2).mean(1)); np.testing.assert_allclose(t.cnd_sd, v.reshape(3, 2).std(1))
    assert t.p_others[1] == stats.mannwhitneyu(v[2:4], v[[0, 1, 4, 5]], alternative='two-sided').pvalue


def test_entropy_of_the_original_by_hand():
    x = np.random.default_rng(0).normal(size=(200, 2))
    want = []
    for c in x.T:
        n, e = np.histogram(c, 50)
        p = np.clip(n/n.sum(), 1e-12, None); at = (e[1:] + e[:-1])/2
        want.append(sum(-(p[i]*np.log(p[i]) + p[i+1]*np.log(p[i+1]))/2*(at[i+1] - at[i]) for i in range(49)))
    np.testing.assert_allclose(neuron_entropy(x, compat='original'), want)
    with pytest.raises(ValueError, match='finite'): neuron_entropy(x*np.nan)
