"Metrics against slow definitions; intervals where a resample can miss a class."
import numpy as np
import pytest
import torch
from scipy import stats

from noisymem.metrics import agreement_curve, auroc, average_precision, bootstrap_interval, correlation, describe_ends, roc_curve


@pytest.mark.parametrize('seed', range(5))
def test_auroc_is_the_chance_of_a_right_order(seed):
    rng = np.random.default_rng(seed)
    score, wrong = rng.integers(0, 5, 40).astype(float), rng.random(40) < .4
    score[:3] = np.nan
    ok = ~np.isnan(score)
    pairs = [(a > b) + .5*(a == b) for a in score[ok & wrong] for b in score[ok & ~wrong]]
    assert auroc(score, wrong) == pytest.approx(np.mean(pairs))


def test_no_ranking_gives_the_noise_rate(): assert average_precision(np.zeros(8), [1, 0, 0, 0]*2) == .25


def test_correlation_wants_pairs():
    with pytest.raises(ValueError, match=r'a and b must have one shape, got \(1,\) and \(3,\)'): correlation([1.], [1., 2, 3])


def test_a_resample_without_wrong_labels_is_left_out():
    score, wrong = np.array([.1, .2, .3, .9, .8]), np.array([0, 0, 0, 1, 0])
    low, high = bootstrap_interval(auroc, score, wrong, n_resamples=300)
    assert (low, high) == (1, 1)
    low, high = bootstrap_interval(auroc, np.array([.1, .85, .3, .9, .8, .2]), np.array([0, 0, 0, 1, 1, 0]), n_resamples=300)
    assert 0 <= low < high <= 1


def test_the_usual_case_is_the_plain_bootstrap():
    x = np.random.default_rng(3).normal(size=50)
    draws = [np.mean(x[i]) for i in np.random.default_rng(0).integers(0, 50, (200, 50))]
    assert bootstrap_interval(np.mean, x, n_resamples=200) == pytest.approx(tuple(np.quantile(draws, [.025, .975])))
    exact = stats.norm.interval(.95, x.mean(), x.std()/50**.5)
    assert bootstrap_interval(np.mean, x) == pytest.approx(exact, abs=.08)


def test_too_few_usable_resamples():
    def fussy(x):
        if len(set(x)) < len(x): raise ValueError('ties')
        return x.mean()
    with pytest.raises(ValueError, match='0 of 100 resamples .* ties'): bootstrap_interval(fussy, np.arange(30.), n_resamples=100)


@pytest.mark.parametrize('arrays,options,match', [
    (([1., 2], [1., 2, 3]), {}, r'arrays must have one length, got 2, 3'), (([],), {}, 'arrays must hold at least one example'),
    (([1., 2],), dict(level=95), r'level must be in \(0, 1\), got 95'), (([1., 2],), dict(n_resamples=0), 'n_resamples must be in')])
def test_bad_arguments(arrays, options, match):
    with pytest.raises(ValueError, match=match): bootstrap_interval(lambda *a: float(np.mean(a[0])), *arrays, **options)


def test_an_error_of_the_statistic_on_all_examples_is_its_own():
    with pytest.raises(ValueError, match='must hold wrong and correct labels'): bootstrap_interval(auroc, [.1, .2], [1, 1])


def test_no_value_no_interval(): assert np.isnan(bootstrap_interval(correlation, [1, 1, 1], [1, 2, 3])).all()


def ranked(seed, n=60, s=7):
    "Scores with ties, NaN, infinities and subnormal distances, and labels."
    rng = np.random.default_rng(seed)
    score = rng.choice([0, 5e-324, 1e-300, .1, .1 + 1e-17, .2, 3, 1e300], (s, n)) if seed % 2 else rng.normal(size=(s, n))
    score[rng.random((s, n)) < .1] = np.nan
    return score, rng.random(n) < .3


@pytest.mark.parametrize('measure', [auroc, average_precision])
@pytest.mark.parametrize('seed', range(6))
def test_tensors_as_arrays(measure, seed):
    score, wrong = ranked(seed)
    many = measure(torch.as_tensor(score), wrong)
    assert many.shape == (7,) and many.dtype == torch.float64
    np.testing.assert_allclose(many, [measure(s, wrong) for s in score], atol=1e-12, rtol=0)
    one = measure(torch.as_tensor(score[0]), torch.as_tensor(wrong))
    assert isinstance(one, float) and one == many[0]
    assert measure(torch.as_tensor(score[0]).requires_grad_(), wrong) == one


@pytest.mark.parametrize('measure', [auroc, average_precision])
def test_tensors_of_every_type(measure):
    wrong = np.array([0, 1, 0, 1, 1], bool)
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8): assert measure(torch.tensor([0, 2, 1, 1, 3], dtype=dtype), wrong) == pytest.approx(measure([0, 2, 1, 1, 3], wrong), abs=1e-12)
    assert measure(torch.tensor([-torch.inf, 2, torch.nan, torch.inf, 1]), wrong) == 1, 'infinite scores are an order too'
    assert measure(torch.tensor([-torch.inf, -torch.inf, torch.nan, -torch.inf, -torch.inf]), wrong) == (.5 if measure is auroc else .75)


@pytest.mark.parametrize('measure', [auroc, average_precision])
def test_bad_tensors(measure):
    for wrong in ([0, 0, 0], [1, 1, 1]):
        with pytest.raises(ValueError, match='among the 3 scored examples, got one kind'): measure(torch.arange(3.), wrong)
    with pytest.raises(ValueError, match='among the 0 scored'): measure(torch.full((3,), torch.nan), [0, 1, 0])
    with pytest.raises(ValueError, match=r'score must have shape \(N,\) or \(S, N\) and is_noisy \(N,\), got \(3,\) and \(2,\)'): measure(torch.arange(3.), [0, 1])
    with pytest.raises(ValueError, match='score must have shape'): measure(torch.zeros(2, 2, 2), [0, 1])


@pytest.mark.gpu
@pytest.mark.parametrize('measure', [auroc, average_precision])
def test_same_on_gpu(measure):
    score, wrong = ranked(1)
    torch.testing.assert_close(measure(torch.as_tensor(score).cuda(), wrong).cpu(), measure(torch.as_tensor(score), wrong), atol=1e-12, rtol=0)


@pytest.mark.parametrize('seed', range(4))
def test_roc_curve_against_scikit_learn(seed):
    from sklearn.metrics import roc_curve as theirs
    rng = np.random.default_rng(seed)
    wrong = rng.random(500) < .3
    score = np.round(rng.normal(size=500) + wrong, seed % 3).astype(float)
    score[rng.random(500) < .1] = np.nan
    ours, known = roc_curve(score, wrong), ~np.isnan(score)
    false, true, _ = theirs(wrong[known], score[known], drop_intermediate=False)
    np.testing.assert_allclose(ours.false_rate, false)
    np.testing.assert_allclose(ours.true_rate, true)
    assert np.trapezoid(ours.true_rate, ours.false_rate) == pytest.approx(auroc(score, wrong))
    few = roc_curve(score, wrong, 60)
    assert len(few) <= 60 and few.iloc[0].tolist() == [0, 0] and few.iloc[-1].tolist() == [1, 1]
    assert np.trapezoid(few.true_rate, few.false_rate) == pytest.approx(auroc(score, wrong), abs=.02)


def test_roc_curve_of_equal_scores_is_the_diagonal():
    assert roc_curve(np.ones(6), [1, 0, 0, 1, 1, 0]).to_numpy().tolist() == [[0, 0], [1, 1]]
    with pytest.raises(ValueError, match='got one kind'): roc_curve([1, 2], [True, True])


@pytest.mark.parametrize('seed', range(3))
def test_agreement_against_sets(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 60))
    a, b = rng.integers(0, 8, n), rng.normal(size=n)
    order = [np.argsort(s, kind='stable') for s in (a, b)]
    slow = []
    for top in range(1, n):
        x, y = (set(o[-top:].tolist()) for o in order)
        slow.append(len(x & y)/len(x | y))
    t = agreement_curve(a, b)
    assert t['size'].tolist() == list(range(1, n))
    np.testing.assert_allclose(t.overlap, slow)
    np.testing.assert_allclose(t.chance, [k/(2*n - k) for k in range(1, n)])
    few = agreement_curve(a, b, 5)
    assert set(few['size']) <= set(t['size']) and few['size'].iloc[0] == 1 and few['size'].iloc[-1] == n - 1


@pytest.mark.parametrize('seed', range(3))
def test_ends_against_sets(seed):
    rng = np.random.default_rng(seed)
    n, share = 57, float(rng.uniform(.05, .6))
    a, b, wrong = rng.integers(0, 9, n), rng.normal(size=n), rng.random(n) < .4
    k = round(share*n)
    t = describe_ends(a, wrong, b, share)
    for end, kind, cut in (('highest', wrong, lambda o: set(o[n - k:].tolist())), ('lowest', ~wrong, lambda o: set(o[:k].tolist()))):
        x, y = (cut(np.argsort(s, kind='stable')) for s in (a, b))
        both = sorted(x & y)
        assert t.n[end] == k and t.right[end] == pytest.approx(kind[sorted(x)].mean()) and t.common[end] == pytest.approx(len(both)/k)
        assert (np.isnan(t.common_right[end]) if not both else t.common_right[end] == pytest.approx(kind[both].mean()))


@pytest.mark.parametrize('call, match', [
    (lambda: agreement_curve([1.], [1.]), r'N >= 2, got \(1,\) and \(1,\)'), (lambda: agreement_curve([[1, 2]], [[1, 2]]), 'one shape'),
    (lambda: describe_ends([1, 2, 3], [0, 1]), r'is_noisy must have shape \(3,\), got \(2,\)'), (lambda: describe_ends([1, 2], [0, 1], share=1.5), 'share must be in')])
def test_bad_rankings(call, match):
    with pytest.raises(ValueError, match=match): call()


def test_ends_that_are_all_of_one_kind():
    "The original fails where a chosen set has no wrong label, or nothing else."
    assert describe_ends([1, 2, 3, 4, 5], [0]*5).right.tolist() == [0, 1] and describe_ends([1, 2, 3, 4, 5], [1]*5).right.tolist() == [1, 0]
