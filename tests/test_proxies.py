"Confidence scores against cleanlab and slow loops; input gradients and curvature against autograd's Hessian."
import numpy as np
import pytest
import torch

from noisymem.data import load_dataset, sample
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.scores.confidence import class_thresholds, confident_joint, likely_label, score_confidence
from noisymem.scores.proxies import Proxies, cumulative_gradient, input_curvature, input_gradient, mean_curvature, weight_norm_peak
from noisymem.train import train


def drawn(seed, n=200, k=5):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(k, .5), n), rng.integers(0, k, n)


@pytest.mark.parametrize('seed', range(4))
def test_confidence_is_cleanlabs(seed):
    rank, count = pytest.importorskip('cleanlab.rank'), pytest.importorskip('cleanlab.count')
    p, y = drawn(seed)
    ours = score_confidence(p, y)
    assert np.allclose(1 - ours.self_confidence, rank.get_self_confidence_for_each_label(y, p), atol=1e-6)
    assert np.allclose((1 - ours.normalized_margin)/2, rank.get_normalized_margin_for_each_label(y, p), atol=1e-6)
    assert np.allclose(1 - ours.adjusted, rank.get_label_quality_scores(y, p, method='self_confidence', adjust_pred_probs=True), atol=1e-6)
    theirs = rank.get_confidence_weighted_entropy_for_each_label(y, p)
    assert np.corrcoef(np.argsort(np.argsort(-ours.weighted_entropy)), np.argsort(np.argsort(theirs)))[0, 1] > .999
    assert np.allclose(class_thresholds(p, y), count.get_confident_thresholds(y, p), atol=1e-6)
    joint = count.compute_confident_joint(y, p, calibrate=False)
    both = likely_label(p, y)
    plain = p.argmax(1)
    if (both[both >= 0] == plain[both >= 0]).all(): assert (confident_joint(p, y) == joint).all()
    assert np.abs(confident_joint(p, y) - joint).sum() <= 2*(both != plain)[both >= 0].sum() + 2*len(y)//50


def test_confident_learning_flags_come_first():
    p, y = drawn(7)
    s, off = score_confidence(p, y).confident_learning.to_numpy(), (likely_label(p, y) >= 0) & (likely_label(p, y) != y)
    assert s[off].min() > s[~off].max() and confident_joint(p, y).sum() == (likely_label(p, y) >= 0).sum()


@pytest.mark.parametrize('p, y, message', [(np.ones((3, 2)), [0, 1, 0], 'rows adding up'), (np.full((3, 2), np.nan), [0, 1, 0], 'finite'), (np.full((3, 2), .5), [0, 2, 0], 'given_label'), (np.ones((3, 1)), [0, 0, 0], 'shape'), (np.full((3, 2), .5), [0, 1], 'given_label')])
def test_bad_probabilities(p, y, message):
    with pytest.raises(ValueError, match=message): score_confidence(p, y)


def test_a_class_without_examples_is_never_likely():
    p, y = drawn(0, k=3)
    assert class_thresholds(p, np.zeros(200, int))[1:].tolist() == [1., 1.] and set(likely_label(p, np.zeros(200, int))) <= {0, -1}


def test_gradient_and_curvature_are_autograds():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    net.float()
    g = input_gradient(net, x.float(), y)
    signs = (torch.randint(0, 2, (3000, 4, 6))*2 - 1).float()
    c = input_curvature(net, x.float(), y, g, signs, 1e-2)
    for i in range(4):
        loss = lambda v: torch.nn.functional.cross_entropy(net(v[None]), y[i:i + 1])
        assert torch.allclose(g[i], torch.autograd.functional.jacobian(loss, x[i].float()), atol=1e-5)
        want = torch.autograd.functional.hessian(loss, x[i].float()).square().sum()
        assert abs(c[i] - want) < .1*want + 1e-4
    assert all(p.grad is None for p in net.parameters())


def test_watching_changes_no_training_and_finds_wrong_labels():
    data = add_noise(sample(load_dataset('digits'), 400, 0), 'symmetric', .15, seed=0)
    runs = []
    for watch in ((), (Proxies(every=3, n_directions=2),)):
        net = make_model('mlp', 10, tuple(data.x.shape[1:]), seed=0)
        runs.append(train(net, data, dict(name='digits', epochs=10), observers=watch).model.state_dict())
    assert all((runs[0][k] == runs[1][k]).all() for k in runs[0])
    a = watch[0].arrays()
    assert a['look'].tolist() == [3, 6, 9, 10] and a['gradient'].shape == (4, 400) and a['weight_norm'].shape == (10,) and (a['curvature'] >= 0).all()
    wrong = data.is_noisy.numpy()
    for score in (cumulative_gradient(a), cumulative_gradient(a, weight_norm_peak(a['weight_norm'])), mean_curvature(a)): assert np.median(score[wrong]) > np.median(score[~wrong])


def test_no_look_and_no_curvature():
    with pytest.raises(ValueError, match='no look'): Proxies().arrays()
    with pytest.raises(ValueError, match='every'): Proxies(every=0)
    assert weight_norm_peak([5, 4, 3]) == 1 and weight_norm_peak([1, 2, 2 - 1e-6]) == 3
