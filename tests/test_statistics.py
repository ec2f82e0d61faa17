"Statistics of many methods on few runs: the oracle, brute force, what must not matter, bad input."
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


@pytest.mark.parametrize('call, message', [
    (lambda: S.friedman([[1, 2]]), 'at least 2 blocks'), (lambda: S.friedman([[1, 2, np.nan], [1, 2, 3]]), 'must hold no NaN'), (lambda: S.nemenyi(pd.DataFrame([[1, 2], [1, 2]]), alpha=0), 'alpha must be in'),
    (lambda: S.critical_difference(1, 3), 'k must be in'), (lambda: S.critical_difference(3, 3, compat='mine'), 'compat must be one of'), (lambda: S.compare_with(pd.DataFrame([[1, 2], [1, 2]], columns=list('ab')), 'c'), 'baseline must be one of')])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()
