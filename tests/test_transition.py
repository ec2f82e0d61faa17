"Transition matrices: tables against loops, known matrices recovered, the original's way, intervals, bad input."
import itertools
import math

import numpy as np
import pytest
import torch

from noisymem.methods import transition as T
from noisymem.methods.transition import (anchor_transition, confident_transition, consensus_tables, count_consensus, estimate_transition, fit_transition, local_transitions, random_transition,
                                         table_gap, transition_error)
from noisymem.noise import class_conditional


def clusters(n=1500, k=4, d=8, apart=6., seed=0):
    rng = np.random.default_rng(seed)
    true = rng.choice(k, n, p=np.arange(k, 0, -1)/sum(range(k + 1)))
    return torch.from_numpy(apart*np.eye(d)[true] + rng.normal(size=(n, d))).float(), torch.from_numpy(true)


def matrix(k=4, stay=.7): return (stay - (1 - stay)/(k - 1))*torch.eye(k, dtype=torch.float64) + (1 - stay)/(k - 1)


@pytest.mark.parametrize('k', [2, 3, 5])
def test_tables_against_loops(k):
    t, prior = torch.from_numpy(np.random.default_rng(k).dirichlet(np.ones(k), k)), torch.from_numpy(np.random.default_rng(9).dirichlet(np.ones(k)))
    one, two, three = consensus_tables(t, prior)
    for j, l, m in itertools.product(range(k), repeat=3):
        assert one[j].item() == pytest.approx(sum(prior[i]*t[i, j] for i in range(k)).item())
        assert two[j, l].item() == pytest.approx(sum(prior[i]*t[i, j]*t[i, l] for i in range(k)).item())
        assert three[j, l, m].item() == pytest.approx(sum(prior[i]*t[i, j]*t[i, l]*t[i, m] for i in range(k)).item())
    many = consensus_tables(torch.stack([t, t.flip(0)]), torch.stack([prior, prior]))
    for a, b in zip(many, (one, two, three)): torch.testing.assert_close(a[0], b)


@pytest.mark.parametrize('k', [2, 4, 10])
def test_a_known_matrix_comes_back_from_its_own_tables(k):
    rng = np.random.default_rng(k)
    true = torch.from_numpy(.6*np.eye(k) + .4*rng.dirichlet(np.ones(k), k))
    prior = torch.from_numpy(rng.dirichlet(5*np.ones(k)))
    fit = fit_transition(*consensus_tables(true, prior))
    assert (fit.transition - true).abs().max() < .02 and (fit.prior - prior).abs().max() < .02
    torch.testing.assert_close(fit.transition.sum(-1), torch.ones(k, dtype=torch.float64))


def test_the_best_matrix_is_returned_and_the_last_on_demand():
    true, prior = matrix(), torch.full((4,), .25, dtype=torch.float64)
    tables = consensus_tables(true, prior)
    best, last = fit_transition(*tables, steps=300), fit_transition(*tables, steps=300, compat='original')
    off = lambda fit: sum((a - b.float()).norm() for a, b in zip(consensus_tables(fit.transition.float(), fit.prior.float()), tables)).item()
    assert off(best) == pytest.approx(best.loss.min().item(), abs=1e-5)
    longer = fit_transition(*tables, steps=301)
    assert off(last) == pytest.approx(longer.loss[300].item(), abs=1e-5), 'after the last step'
    assert off(best) <= off(last)


def test_many_at_once_is_each_alone():
    tables = [consensus_tables(matrix(stay=s), torch.tensor([.4, .3, .2, .1], dtype=torch.float64)) for s in (.5, .7, .9)]
    many = fit_transition(*(torch.stack(t) for t in zip(*tables)), steps=60)
    for i, alone in enumerate(tables):
        one = fit_transition(*alone, steps=60)
        torch.testing.assert_close(many.transition[i], one.transition, atol=1e-3, rtol=.01)
        torch.testing.assert_close(many.loss[:, i], one.loss, atol=1e-3, rtol=.02)  # steps over a kink part in the last bits


def slow_counts(x, y, k):
    x = x.double()/x.double().norm(dim=1, keepdim=True)
    far = 1 - x @ x.t()
    far.fill_diagonal_(math.inf)
    three = torch.zeros(k, k, k, dtype=torch.float64)
    for i in range(len(x)):
        a, b = far[i].argsort(stable=True)[:2]
        three[y[i], y[a], y[b]] += 1/len(x)
    return three.sum((1, 2)), three.sum(2), three


def test_counts_against_a_loop():
    x, y = clusters(120)
    for got, want in zip(count_consensus(x, y), slow_counts(x, y, 4)): torch.testing.assert_close(got, want)


def test_rounds_are_those_of_the_original_stream():
    x, y = clusters(90)
    order, rng, want = y.argsort(stable=True), np.random.RandomState(3), 0
    for _ in range(4):
        rows = order[torch.from_numpy(rng.choice(90, 40, replace=False))]
        want = want + slow_counts(x[rows], y[rows], 4)[2]/4
    torch.testing.assert_close(count_consensus(x, y, rounds=4, size=40, seed=3)[2], want)
    assert count_consensus(x, y, rounds=2)[2].sum().item() == pytest.approx(1), 'fewer examples than 15,000 are no error'


def test_a_known_matrix_comes_back_from_clusters():
    x, clean = clusters(3000)
    true = matrix() + .08*(torch.eye(4, dtype=torch.float64).roll(1, 1) - torch.eye(4, dtype=torch.float64).roll(2, 1))
    given = class_conditional(clean, true, seed=1)
    fit = estimate_transition(x, given, n_boot=30, steps=800)
    assert transition_error(fit.transition, true) < 12
    assert ((fit.low <= true + .01) & (true - .01 <= fit.high)).float().mean() > .75 and (fit.low <= fit.high).all()
    original = estimate_transition(x, given, rounds=5, compat='original', steps=800)
    assert transition_error(original.transition, true) < 12


def test_more_examples_narrow_the_intervals():
    def width(n):
        x, clean = clusters(n)
        fit = estimate_transition(x, class_conditional(clean, matrix(), seed=1), n_boot=20, steps=300)
        return (fit.high - fit.low).mean()
    assert width(2400) < .75*width(400)


def test_draws_are_fitted_in_parts_where_classes_are_many(monkeypatch):
    x, clean = clusters(100)
    def fit(): return estimate_transition(x, class_conditional(clean, matrix(), seed=1), n_boot=7, steps=40)
    whole, calls = fit(), []
    monkeypatch.setattr(T, '_AT_ONCE', 2*4**3)
    monkeypatch.setattr(T, 'fit_transition', lambda first, *rest, **kw: calls.append(len(first)) or fit_transition(first, *rest, **kw))
    torch.testing.assert_close(fit().low, whole.low)
    assert calls == [4, 2, 2, 2, 1]  # the tables themselves are of four classes


def test_anchors():
    probs = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(5), 400))
    t = anchor_transition(probs)
    assert all(t[i].equal(probs[probs[:, i].argmax()]/probs[probs[:, i].argmax()].sum()) for i in range(5))
    row = anchor_transition(probs, 90)[2]
    assert (probs[:, 2] <= row[2] + 1e-9).float().mean() == pytest.approx(.9)
    for bad in (probs[0], probs*2, probs[:0], torch.full((3, 2), torch.nan)):
        with pytest.raises(ValueError, match='probs must be'): anchor_transition(bad)
    for p in (0, 101):
        with pytest.raises(ValueError, match='percentile must be'): anchor_transition(probs, p)


def test_confident_joint_is_a_transition_matrix():
    pytest.importorskip('cleanlab')
    x, clean = clusters(2000)
    given = class_conditional(clean, matrix(), seed=0)
    probs = torch.softmax(2*x[:, :4], 1)
    t = confident_transition(given, probs)
    torch.testing.assert_close(t.sum(1), torch.ones(4, dtype=torch.float64))
    assert transition_error(t, matrix()) < 25


def test_without_cleanlab_it_says_what_to_install(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'cleanlab.count', None)
    with pytest.raises(ImportError, match=r"noisymem\[compare\]"): confident_transition([0, 1], [[.9, .1], [.1, .9]])


def test_local_matrices_follow_noise_that_differs():
    "Left, class 0 is often given as 1; right, as 2."
    x, clean = clusters(1200, 3, 6)
    side = torch.arange(1200) % 2
    x = torch.cat([x, 60.*side[:, None]], 1)
    left, right = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    left[0], right[0] = torch.tensor([.6, .4, 0]), torch.tensor([.6, 0, .4])
    given = torch.where(side == 0, class_conditional(clean, left, seed=0), class_conditional(clean, right, seed=0))
    home, local = local_transitions(x, given, (left + right)/2, n_local=150, n_draws=8, size=80, steps=300)
    assert (home >= 0).all() and len(local) == home.max() + 1
    mine = lambda s: local[home[(side == s) & (clean == 0)]].mean(0)[0]
    assert mine(0)[1] > mine(0)[2] + .1 and mine(1)[2] > mine(1)[1] + .1
    left_over = local_transitions(x, given, left, n_local=150, n_draws=2, size=80, steps=5, most=1)[0]
    assert (left_over == 0).sum() >= 150 and (left_over == -1).any()


def test_random_matrices():
    for k in (2, 10, 14):
        t = random_transition(k, seed=k)
        assert (t.sum(1) - 1).abs().max() < 1e-12 and (t[~torch.eye(k, dtype=torch.bool)] >= .01).all() and (t*1000).round().equal((t*1000).round(decimals=6))
    own = random_transition(10, centre=3)
    assert own[3].count_nonzero() == 4 and own[3, 3] < .6
    with pytest.raises(ValueError, match='centre must be'): random_transition(4, centre=4)


def test_measures():
    assert transition_error(matrix(), matrix()) == 0 and transition_error(torch.eye(3), torch.eye(3).roll(1, 0)) == 200
    assert table_gap(torch.ones(3), torch.ones(3)) == 0
    with pytest.raises(ValueError, match='rows of probabilities'): transition_error(2*torch.eye(2), torch.eye(2))
    with pytest.raises(ValueError, match='one shape'): transition_error(torch.eye(2), torch.eye(3))


def test_bad_input():
    x, y = clusters(30)
    tables = consensus_tables(matrix(), torch.full((4,), .25, dtype=torch.float64))
    with pytest.raises(ValueError, match='K >= 2'): fit_transition(torch.ones(1), torch.ones(1, 1), torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match='finite'): fit_transition(tables[0]*math.nan, *tables[1:])
    with pytest.raises(ValueError, match='steps must be'): fit_transition(*tables, steps=0)
    with pytest.raises(ValueError, match="compat must be one of None, 'original'"): fit_transition(*tables, compat='orig')
    with pytest.raises(ValueError, match='labels must be in'): count_consensus(x, y, 3)
    with pytest.raises(ValueError, match='labels'): count_consensus(x, y[:-1])
    with pytest.raises(ValueError, match='level must be'): estimate_transition(x, y, level=1.)
    with pytest.raises(ValueError, match='size must be'): local_transitions(x, y, matrix(), size=31)
    with pytest.raises(ValueError): count_consensus(x[:2], y[:2])


@pytest.mark.gpu
def test_cpu_equals_gpu():
    x, y = clusters(300)
    for a, b in zip(count_consensus(x, y, device='cuda'), count_consensus(x, y, device='cpu')): torch.testing.assert_close(a.cpu(), b)
    for a, b in zip(count_consensus(x.cuda(), y.cuda(), device='cpu'), count_consensus(x, y, device='cpu')): torch.testing.assert_close(a, b)
