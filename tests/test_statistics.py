"Statistics of many methods on few runs: the oracle, brute force, what must not matter, bad input."
import sys
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from noisymem import statistics as S


@pytest.fixture(scope='module')
def tables(oracle):
    a = oracle('early_stopping/friedman_nemenyi.npz')
    return a, pd.DataFrame(a['scores'], columns=a['methods_input'])[list(a['methods_sorted'])], pd.DataFrame(a['scores2'], columns=a['methods_input'])[list(a['methods_sorted'])]


def test_oracle(tables):
    a, one, two = tables
    for table, end in ((one, ''), (two, '2')):
        f, n = S.friedman(table), S.nemenyi(table, compat='original')
        np.testing.assert_allclose([f['statistic'], f['p'], n['cd']], [a[f'friedman_stat{end}'], a[f'friedman_p{end}'], a[f'CD{end}']], rtol=1e-9)
        np.testing.assert_allclose(f['ranks'], a[f'avg_ranks{end}'], atol=1e-9)
        assert [f'{p.a}|{p.b}' for p in n['pairs'][n['pairs'].significant].itertuples()] == a[f'sig_pairs{end}'].tolist()
        assert str(n['best']) == str(a[f'best_method{end}'])
    assert (n['n'], n['k']) == (10, 4) and (f['n'], f['k']) == (10, 4)


def test_oracle_holm(tables):
    a, one, _ = tables
    found = S.compare_with(one, 'PC').set_index('method').loc[a['holm_method']]
    np.testing.assert_allclose(found.p, a['holm_p'], atol=1e-9)
    np.testing.assert_allclose(found.rank_difference, a['holm_rank_diff'], atol=1e-9)
    np.testing.assert_allclose(found['rank'], a['holm_avg_rank'], atol=1e-9)
    assert found.significant.tolist() == a['holm_sig'].tolist()
    assert found.significant.tolist() == (found.p <= found.threshold).tolist()


def test_oracle_critical_values(tables):
    a, _, _ = tables
    for k, q in zip(a['q_table_k'].tolist(), a['q_table']):
        assert S.critical_difference(k, 1, compat='original') == pytest.approx(q*np.sqrt(k*(k + 1)/6), rel=1e-9)
        assert abs(S.critical_difference(k, 1)/np.sqrt(k*(k + 1)/6) - q) < (1e-3 if k <= 10 else .2)


def test_oracle_incomplete_rows(tables):
    a, one, _ = tables
    tidy = one.reset_index().melt('index', var_name='method', value_name='score')
    tidy.loc[5, 'score'] = np.nan
    wide = S.pivot_scores(tidy, 'index', 'method', 'score')
    assert len(wide) == a['n_after_dropping_one_cell'] and wide.attrs['dropped'] == 1
    assert S.pivot_scores(tidy.drop(5), 'index', 'method', 'score').equals(wide)


def brute(ranks):
    "All permutations of all blocks."
    observed = (ranks.sum(0)**2).sum()
    every = [[np.array(p) for p in permutations(r)] for r in ranks]
    hits = [((sum(c))**2).sum() >= observed - 1e-9 for c in product(*every)]
    return np.mean(hits)


def test_exact_against_all_permutations():
    rng = np.random.default_rng(0)
    for n, k in ((2, 3), (3, 3), (4, 3), (2, 4), (3, 4)):
        for levels in (1000, 3):
            scores = rng.integers(0, levels, (n, k)).astype(float)
            assert S.exact_friedman(scores)['p'] == pytest.approx(brute(stats.rankdata(-scores, axis=1)))


def test_drawn_is_near_exact_and_large_tables_end():
    scores = np.random.default_rng(1).random((6, 3))
    assert abs(S.exact_friedman(scores, limit=0)['p'] - S.exact_friedman(scores)['p']) < .02
    found = S.exact_friedman(np.random.default_rng(2).random((12, 9)))
    assert not found['exact'] and 0 < found['p'] <= 1


def test_the_exact_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(3)
    p = np.array([S.exact_friedman(rng.random((3, 3)))['p'] for _ in range(400)])
    for alpha in (.03, .2, .5): assert (p <= alpha).mean() <= alpha + .05


def test_friedman_is_scipys_and_direction_only_turns_ranks():
    scores = np.random.default_rng(4).integers(0, 5, (7, 4)).astype(float)
    f, g = S.friedman(scores), S.friedman(scores, higher=False)
    assert f['statistic'] == pytest.approx(stats.friedmanchisquare(*scores.T).statistic) and f['p'] == g['p']
    np.testing.assert_allclose(f['ranks'] + g['ranks'], 5)


def test_holm_is_a_step_down():
    rng = np.random.default_rng(5)
    for _ in range(50):
        p, alpha = rng.random(6)*.1, .05
        order, rejected = np.argsort(p), np.zeros(6, bool)
        for i, j in enumerate(order):
            if p[j] > alpha/(6 - i): break
            rejected[j] = True
        assert ((S.holm(p) <= alpha) == rejected).all()


def test_nemenyi_p_agrees_with_its_difference():
    scores = pd.DataFrame(np.random.default_rng(6).random((12, 5)) + np.arange(5)*.3, columns=list('edcba'))
    for alpha in (.01, .05, .1):
        pairs = S.nemenyi(scores, alpha)['pairs']
        assert ((pairs.p < alpha) == pairs.significant).all()
    best = S.nemenyi(pd.DataFrame(np.tile([9., 1, 1], (40, 1)), columns=list('abc')))
    assert best['best'] == 'a'


def test_groups_are_the_widest():
    ranks = pd.Series(dict(a=1., b=1.5, c=2.2, d=4.))
    assert S.equal_groups(ranks, 1.) == [['a', 'b'], ['b', 'c']]
    assert S.equal_groups(ranks, 5.) == [['a', 'b', 'c', 'd']]


def test_against_scikit_posthocs():
    posthocs = pytest.importorskip('scikit_posthocs', reason='scikit-posthocs is not installed')
    scores = pd.DataFrame(np.random.default_rng(7).random((9, 4)), columns=list('abcd'))
    theirs = posthocs.posthoc_nemenyi_friedman(scores)
    for r in S.nemenyi(scores)['pairs'].itertuples(): assert theirs.loc[r.a, r.b] == pytest.approx(r.p, abs=1e-6)


# the posterior of a difference that matters

@pytest.fixture
def posterior():
    pytest.importorskip('baycomp', reason="baycomp is not installed: pip install 'noisymem[statistics]'")
    return S.signed_rank_posterior


def drawn_posterior(d, rope, seed, n=4000):
    "Shares of draws in which each region is the likeliest, from the definition, all draws at once."
    z = np.r_[0, d]
    sums, w = z[:, None] + z, np.random.default_rng(seed).dirichlet(np.r_[.5, np.ones(len(d))], n)
    left, right = (np.einsum('ni,ij,nj->n', w, (s*sums > 2*rope).astype(float), w) for s in (-1, 1))
    return np.bincount(np.argmax([left, 1 - left - right, right], axis=0), minlength=3)/n


@pytest.mark.parametrize('n, shift, rope', [(1, .05, .01), (3, .0, .02), (6, .01, .01), (20, -.004, .005)])
def test_posterior_is_that_of_the_definition(posterior, n, shift, rope):
    rng = np.random.default_rng(n)
    a = rng.random(n)
    b = a + shift + .02*rng.normal(size=n)
    found = posterior(a, b, rope, n_draws=4000)
    np.testing.assert_allclose([found[k] for k in ('left', 'rope', 'right')], drawn_posterior(b - a, rope, 1), atol=.035)
    assert found['n'] == n and sum(found[k] for k in ('left', 'rope', 'right')) == pytest.approx(1)


def test_posterior_keeps_its_seed_and_knows_no_order(posterior):
    rng = np.random.default_rng(0)
    a, b = rng.random(7), rng.random(7)
    one = posterior(a, b, .1, seed=3, n_draws=2000)
    assert one == posterior(a, b, .1, seed=3, n_draws=2000) != posterior(a, b, .1, seed=4, n_draws=2000)
    other, state = posterior(b, a, .1, seed=3, n_draws=2000), np.random.get_state()[1].copy()
    assert (one['left'], one['rope'], one['right']) == (other['right'], other['rope'], other['left'])
    posterior(a, b, .1, n_draws=100)
    assert (np.random.get_state()[1] == state).all(), 'the global stream is left alone'


def test_posterior_at_its_ends(posterior):
    assert posterior(np.ones(5), np.ones(5), 1e-6, n_draws=500)['rope'] == 1
    assert posterior(np.zeros(9), np.ones(9), .01, n_draws=500)['right'] > .99
    assert posterior([.5], [.9], .01, n_draws=20000)['right'] == pytest.approx(2**-.25, abs=.01)


# the mixed model

def some_scores(D=4, S=3, k=5, seed=0, data=.1, seeds=.02, gain=.03, noise=.01):
    "Scores with known spread; method m0 … gain 0.01 more each."
    rng = np.random.default_rng(seed)
    u, v, w = rng.normal(0, data, D), rng.normal(0, seeds, (D, S)), rng.normal(0, gain, (D, k))
    return pd.DataFrame([dict(data=f'd{d}', kind='x', seed=s, method=f'm{m}', score=.5 + u[d] + v[d, s] + w[d, m] + .01*m + rng.normal(0, noise)) for d in range(D) for s in range(S) for m in range(k)])


@pytest.fixture
def mixed():
    pytest.importorskip('statsmodels', reason="statsmodels is not installed: pip install 'noisymem[statistics]'")
    return lambda t, reference='m0', **k: S.mixed_effects(t, ['data', 'kind'], 'seed', 'method', 'score', reference, **k)


def by_hand(t, reference):
    "Differences of means and their standard error in a balanced table, by analysis of variance."
    y = t.groupby(['data', 'method']).score.mean().unstack()
    rest = y.sub(y.mean(axis=1), axis=0) - y.mean() + y.to_numpy().mean()
    D, k = y.shape
    return (y.mean() - y.mean()[reference]).drop(reference), np.sqrt(2*(rest**2).to_numpy().sum()/((D - 1)*(k - 1))/D), (D - 1)*(k - 1)


@pytest.mark.parametrize('shape', [dict(), dict(S=1), dict(D=2, k=3, seeds=.1), dict(data=1., gain=.05), dict(D=7, S=2, k=2)])
def test_mixed_model_is_the_analysis_of_variance(mixed, shape):
    for seed in range(3):
        t = some_scores(seed=seed, **shape)
        found, (estimate, se, free) = mixed(t).set_index('method'), by_hand(t, 'm0')
        np.testing.assert_allclose(found.estimate, estimate.loc[found.index], atol=1e-9)
        np.testing.assert_allclose(found.se, se, rtol=.02)
        np.testing.assert_allclose(found.high - found.estimate, stats.t.isf(.025, free)*found.se)
        np.testing.assert_allclose(found.p, 2*stats.t.sf(abs(estimate.loc[found.index])/found.se, free))
        np.testing.assert_allclose(found.adjusted, S.holm(found.p))


def test_seeds_of_one_data_set_are_no_independent_evidence(mixed):
    few, many = (mixed(some_scores(S=s, seed=1, noise=.001, gain=.05)).se.iloc[0] for s in (2, 12))
    assert many > .5*few, 'six times the seeds would make it 0.41 if they were'


def test_mixed_model_turns_with_its_reference_and_not_with_order(mixed):
    t = some_scores()
    one, other = mixed(t).set_index('method'), mixed(t, 'm3').set_index('method')
    assert one.estimate['m3'] == pytest.approx(-other.estimate['m0']) and 'm0' not in one.index
    pd.testing.assert_frame_equal(mixed(t.sample(frac=1, random_state=0)), mixed(t), rtol=1e-3)
    scaled = mixed(t.assign(score=100*t.score))
    np.testing.assert_allclose(scaled.estimate, 100*one.estimate)
    np.testing.assert_allclose(scaled.se, 100*one.se, rtol=1e-6)


def test_mixed_model_goes_without_some_rows(mixed):
    t = some_scores()
    t.loc[[3, 17], 'score'] = np.nan
    found = mixed(t)
    pd.testing.assert_frame_equal(found, mixed(t.dropna()))
    assert found.n.sum() == (t.dropna().method != 'm0').sum() and found.attrs['converged'] and set(found.attrs['sd']) == {'data', 'seed', 'interaction', 'residual'}
    assert set(mixed(some_scores(S=1)).attrs['sd']) == {'data', 'residual'}


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    for name in ('baycomp', 'statsmodels.formula.api'): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'signed_rank_posterior needs the package baycomp: .*noisymem\[statistics\]'): S.signed_rank_posterior([1.], [2.], .1)
    with pytest.raises(ImportError, match=r'mixed_effects needs the package statsmodels: .*noisymem\[statistics\]'): S.mixed_effects(some_scores(), 'data', 'seed', 'method', 'score', 'm0')


@pytest.mark.parametrize('call, message', [
    (lambda f, m: f([.1, np.nan], [.2, .3], .01), 'must be finite, got 1 blocks'), (lambda f, m: f([], [], .01), r'n at least 1, got \(0,\) and \(0,\)'), (lambda f, m: f([[.1]], [[.1]], .01), 'one shape'),
    (lambda f, m: f([.1], [.2], -.01), r'rope must be in \(0, inf\), got -0.01'), (lambda f, m: m(some_scores(D=1)), 'got 5 and 1'), (lambda f, m: m(some_scores(k=1)), 'got 1 and 4'),
    (lambda f, m: m(some_scores().assign(score=np.nan)), 'reference must be one of'), (lambda f, m: m(some_scores(), 'm9'), "reference must be one of 'm0'"), (lambda f, m: m(some_scores().assign(score=.5)), 'scores must differ on some data'),
    (lambda f, m: m(some_scores(), level=1), 'level must be in'), (lambda f, m: m(some_scores().drop(columns='kind')), "column must be one of .* got 'kind'")])
def test_bad_input_of_the_extra(posterior, mixed, call, message):
    with pytest.raises(ValueError, match=message): call(posterior, mixed)


@pytest.mark.parametrize('call, message', [
    (lambda: S.friedman([[1, 2]]), 'at least 2 blocks'), (lambda: S.friedman([[1, 2, np.nan], [1, 2, 3]]), 'must hold no NaN'), (lambda: S.nemenyi(pd.DataFrame([[1, 2], [1, 2]]), alpha=0), 'alpha must be in'),
    (lambda: S.critical_difference(1, 3), 'k must be in'), (lambda: S.critical_difference(3, 3, compat='mine'), 'compat must be one of'), (lambda: S.compare_with(pd.DataFrame([[1, 2], [1, 2]], columns=list('ab')), 'c'), 'baseline must be one of')])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()
