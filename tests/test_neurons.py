"Neurons after training: tests against scipy by hand, masks, controls."
import numpy as np
import pytest
import torch
from scipy import stats

from noisymem.data import from_arrays
from noisymem.models import make_model
from noisymem.signals.neurons import THRESHOLDS, class_differences, layer_differences, mask_neurons, neuron_entropy, neuron_masks, random_masks


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
    t = mask_neurons(net, data, value, layout, (0, .2), n_random=2, layers=0).set_index(['threshold', 'draw'])
    assert t.loc[(0, 0)].memorized == t.loc[(0, 0)].clean_accuracy == t.loc[(0, 0)].test_accuracy == 1
    assert t.loc[(.2, 0)].memorized == 0 and t.loc[(.2, 0)].test_accuracy == 1 and t.loc[(.2, 0)].kept == 10/12
    assert (t.loc[.2].query('mask == "random"').memorized > 0).any()


def test_entropy_of_the_original_by_hand():
    x = np.random.default_rng(0).normal(size=(200, 2))
    want = []
    for c in x.T:
        n, e = np.histogram(c, 50)
        p = np.clip(n/n.sum(), 1e-12, None); at = (e[1:] + e[:-1])/2
        want.append(sum(-(p[i]*np.log(p[i]) + p[i+1]*np.log(p[i+1]))/2*(at[i+1] - at[i]) for i in range(49)))
    np.testing.assert_allclose(neuron_entropy(x, compat='original'), want)
    with pytest.raises(ValueError, match='finite'): neuron_entropy(x*np.nan)
