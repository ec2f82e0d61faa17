"Region selection: the reference table, moving thresholds, tables of any kind, correlations against scipy and against loops."
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from noisymem import regions as S


def test_oracle_regions(oracle):
    a = oracle('susceptibility/regions_reference_ours.npz')
    region = S.assign_regions(a['train_acc'], a['zeta'])
    np.testing.assert_array_equal(region, a['region'])
    table = S.describe_regions(region, a['test_acc'])
    np.testing.assert_array_equal(table.n, a['region_count'])
    np.testing.assert_allclose(table['mean'], a['region_mean'], atol=1e-9)
    np.testing.assert_allclose(table.sd, a['region_std_ddof0'], atol=1e-9)


def test_oracle_correlations(oracle):
    a = oracle('susceptibility/regions_reference_ours.npz')
    for key, values in a.items():
        kind = next((k for k in ('pearson', 'spearman', 'kendall') if k in key), None)
        if kind is None or np.size(values) != 2: continue
        x = a['zeta'] if 'zeta' in key else a['train_acc']
        found = S.correlate(x, a['test_acc'], interval='fisher').set_index('kind').loc[kind]
        np.testing.assert_allclose([found.value, found.p], values, atol=1e-9, err_msg=key)


def region_by_hand(a, z, ca, cz): return {(True, True): 1, (True, False): 2, (False, True): 3, (False, False): 4}[(a >= ca, z <= cz)]


def middle_by_hand(values, how):
    values = sorted(values)
    n = len(values)
    return sum(values)/n if how == 'mean' else (values[(n - 1)//2] + values[n//2])/2


def test_against_a_loop():
    rng = np.random.default_rng(0)
    for n in (2, 3, 7, 30):
        acc, zeta = rng.integers(0, 4, n)/4, rng.integers(0, 4, n)/4  # many ties
        for how in ('mean', 'median', (.5, .25)):
            cuts = S.find_thresholds(acc, zeta, how)
            assert cuts == pytest.approx(how if isinstance(how, tuple) else (middle_by_hand(acc, how), middle_by_hand(zeta, how)))
            assert S.assign_regions(acc, zeta, how).tolist() == [region_by_hand(a, z, *cuts) for a, z in zip(acc, zeta)]


def test_units_do_not_matter():
    rng = np.random.default_rng(1)
    acc, zeta = rng.random(20), rng.random(20)
    np.testing.assert_array_equal(S.assign_regions(acc, zeta), S.assign_regions(100*acc, 7*zeta - 3))


def test_a_candidate_far_from_the_thresholds_is_sure_of_its_region():
    acc, zeta = np.r_[.9, .1, np.linspace(.4, .6, 30)], np.r_[0, 1, np.linspace(.4, .6, 30)]
    share = S.region_stability(acc, zeta, n_resamples=300)
    assert share[0, 0] > .99 and share[1, 3] > .99 and share.max(1).min() < .95
    np.testing.assert_allclose(share.sum(1), 1)


@pytest.mark.parametrize('how', ['mean', 'median'])
def test_stability_against_a_loop(how):
    "Another generator, another way of counting, the same shares up to chance."
    rng = np.random.default_rng(2)
    acc, zeta, n = rng.random(9), rng.random(9), 2000
    count = np.zeros((9, 4))
    for _ in range(n):
        draw = [int(i) for i in np.random.default_rng(rng.integers(2**31)).choice(9, 9)]
        ca, cz = middle_by_hand([acc[i] for i in draw], how), middle_by_hand([zeta[i] for i in draw], how)
        for i in range(9): count[i, region_by_hand(acc[i], zeta[i], ca, cz) - 1] += 1
    np.testing.assert_allclose(S.region_stability(acc, zeta, how, n_resamples=n), count/n, atol=.06)


def test_statistics_against_a_loop():
    rng = np.random.default_rng(3)
    for n in (1, 4, 25):
        region, value = rng.integers(1, 5, n), rng.random(n)
        value[rng.random(n) < .2] = np.nan
        for ddof in (0, 1):
            for row in S.describe_regions(region, value, ddof).itertuples():
                members = [i for i in range(n) if region[i] == row.region]
                v = [value[i] for i in members if value[i] == value[i]]
                assert row.n == len(members) and row.known == len(v)
                if v: assert row.mean == pytest.approx(sum(v)/len(v)) and row.best == max(v)
                else: assert np.isnan(row.mean) and np.isnan(row.best)
                if len(v) > ddof: assert row.sd == pytest.approx((sum((x - sum(v)/len(v))**2 for x in v)/(len(v) - ddof))**.5)
                else: assert np.isnan(row.sd)
    with pytest.raises(ValueError, match='region must be 1, 2, 3 or 4, got 5'): S.describe_regions([1, 5], [0, 0])
    with pytest.raises(ValueError, match='one shape'): S.describe_regions([1, 2], [0])
    with pytest.raises(ValueError, match='ddof must be'): S.describe_regions([1], [0], ddof=2)


# --- tables -----------------------------------------------------------------------------------------------------------

def messy(n=24, seed=4):
    "A user's table: columns and index of their own, missing and infinite numbers, ties, runs that stand in it twice."
    rng = np.random.default_rng(seed)
    t = pd.DataFrame({'net': [f'n{i % 5}' for i in range(n)], 'acc %': rng.integers(20, 100, n).astype(object), 'ζ': rng.integers(0, 5, n)/10., 'test': pd.array(rng.random(n), dtype='Float64')})
    t.loc[3, 'acc %'], t.loc[5, 'ζ'], t.loc[7, 'ζ'], t.loc[9, 'test'] = None, np.nan, np.inf, pd.NA
    return pd.concat([t, t.iloc[[0, 0, 3]]]).set_index('net')


def test_any_table():
    runs = messy()
    kept = runs.copy(deep=True)
    judged = S.judge_runs(runs, 'acc %', 'ζ', n_resamples=50)
    pd.testing.assert_frame_equal(runs, kept)
    pd.testing.assert_frame_equal(judged[list(runs.columns)], runs)
    ok = [i for i in range(len(runs)) if runs['acc %'].iloc[i] is not None and np.isfinite(runs['ζ'].iloc[i])]
    acc, zeta = [float(runs['acc %'].iloc[i]) for i in ok], [float(runs['ζ'].iloc[i]) for i in ok]
    want = [region_by_hand(a, z, np.mean(acc), np.mean(zeta)) for a, z in zip(acc, zeta)]
    assert judged.region.iloc[ok].tolist() == want and judged.region.isna().sum() == len(runs) - len(ok) == 4
    assert judged.stays.iloc[ok].between(0, 1).all() and judged.stays.isna().sum() == 4
    assert judged.region.iloc[24] == judged.region.iloc[25] == judged.region.iloc[0], 'the same run, the same region'
    table = S.describe_regions(judged.region, judged.test)
    assert table.n.sum() == len(ok) and table.known.sum() == len(ok) - 1
    pd.testing.assert_frame_equal(S.judge_runs(judged, 'acc %', 'ζ', n_resamples=50), judged)  # judging again changes nothing
    assert S.correlate(runs['ζ'], runs['test'], interval='fisher').n.tolist() == [24]*3


def test_columns_that_are_numbers_or_text():
    runs = pd.DataFrame({0: [.1, .9, .8], 1: ['0.5', '0.1', '0.9']})
    assert S.judge_runs(runs, 0, 1, n_resamples=5).region.tolist() == [3, 1, 2]
    runs[1] = ['a', 'b', 'c']
    with pytest.raises(ValueError, match='column 1 must be numbers'): S.judge_runs(runs, 0, 1)


def test_order_of_rows_does_not_matter():
    runs = messy().reset_index().drop_duplicates()
    judged, back = S.judge_runs(runs, 'acc %', 'ζ', n_resamples=5), S.judge_runs(runs[::-1], 'acc %', 'ζ', n_resamples=5)[::-1]
    assert judged.region.equals(back.region)


@pytest.mark.parametrize('rows, options, match', [
    ([0], {}, 'at least 2 candidates with both numbers, got 1 of 1'), ([], {}, 'got 0 of 0'), ([3, 5, 7, 0], {}, 'got 1 of 4'),
    ([0, 1], dict(zeta='zeta'), "zeta must name one column of the table \\('acc %', 'ζ', 'test'\\), got 'zeta'"), ([0, 1], dict(thresholds='mode'), 'thresholds must be one of')])
def test_bad_tables(rows, options, match):
    with pytest.raises(ValueError, match=match): S.judge_runs(messy().iloc[rows], **dict(accuracy='acc %', zeta='ζ') | options)


def test_a_name_that_stands_twice():
    runs = pd.DataFrame([[1., 2., 3.], [2., 3., 4.]], columns=['a', 'a', 'z'])
    with pytest.raises(ValueError, match='must name one column'): S.judge_runs(runs, 'a', 'z')


@pytest.mark.parametrize('acc, zeta, how, match', [([1, 2], [1], 'mean', 'one shape'), ([], [], 'mean', 'n at least 1'), ([1, np.nan], [1, 1], 'mean', 'must be finite'), ([1, 2], [1, np.inf], 'mean', 'must be finite'), ([1.], [1.], (1, 2, 3), 'two finite numbers'), ([1.], [1.], (1, np.inf), 'two finite numbers'), ([1.], [1.], ('a', 1), 'must be numbers'),
                                                    ([1.], [1.], 'mean', 'at least 2 candidates, got 1'), ([1.], [1.], 'median', 'at least 2 candidates'), ([[1., 2]], [[1., 2]], 'mean', 'one dimension')])
def test_bad_input(acc, zeta, how, match):
    for go in (S.assign_regions, S.region_stability, lambda a, z, h: S.region_advantage(a, z, a, h)):
        with pytest.raises(ValueError, match=match): go(acc, zeta, how)


# --- region 1 against the others --------------------------------------------------------------------------------------

def test_advantage():
    rng = np.random.default_rng(5)
    acc, zeta = rng.random(30), rng.random(30)
    region = S.assign_regions(acc, zeta)
    value = rng.normal(0, .05, 30) + .3*(region == 1)
    found = S.region_advantage(acc, zeta, value, n_resamples=300)
    assert found['difference'] == pytest.approx(value[region == 1].mean() - value[region != 1].mean()) and found['n'] == (region == 1).sum()
    assert 0 < found['low'] < found['difference'] < found['high'] < .4 and found['empty'] < .01
    nothing = S.region_advantage(acc, zeta, rng.normal(0, 1, 30), n_resamples=300)
    assert nothing['low'] < 0 < nothing['high']
    value[3] = np.nan
    assert np.isfinite(list(S.region_advantage(acc, zeta, value, n_resamples=50).values())).all()
    alone = S.region_advantage([.9, .1, .2], [.5, .9, .1], [1, 2, 3], thresholds=(.95, .05), n_resamples=20)
    assert np.isnan(alone['difference']) and alone['empty'] == 1 and np.isnan(alone['low'])
    with pytest.raises(ValueError, match=r'value must have shape \(3,\)'): S.region_advantage([1, 2, 3], [1, 2, 3], [1])


# --- correlations -----------------------------------------------------------------------------------------------------

def kendall_by_hand(a, b):
    n, s, ta, tb = len(a), 0, 0, 0
    for i in range(n):
        for j in range(i):
            x, y = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
            s, ta, tb = s + x*y, ta + (x != 0), tb + (y != 0)
    return s/np.sqrt(ta*tb)


def ranks_by_hand(a): return [sum(x < y for x in a) + (sum(x == y for x in a) + 1)/2 for y in a]


def pearson_by_hand(a, b):
    ma, mb = sum(a)/len(a), sum(b)/len(b)
    return sum((x - ma)*(y - mb) for x, y in zip(a, b))/(sum((x - ma)**2 for x in a)*sum((y - mb)**2 for y in b))**.5


def test_correlations_against_loops():
    "Ties included."
    rng = np.random.default_rng(6)
    for n in (3, 8, 20):
        a, b = rng.integers(0, 6, n).astype(float), rng.integers(0, 6, n).astype(float)
        found = S.correlate(a, b, interval='fisher').set_index('kind').value
        assert found.pearson == pytest.approx(pearson_by_hand(a, b)) and found.spearman == pytest.approx(pearson_by_hand(ranks_by_hand(a), ranks_by_hand(b))) and found.kendall == pytest.approx(kendall_by_hand(a, b))


def test_correlations_are_scipys():
    rng = np.random.default_rng(2)
    a = rng.normal(size=40); b = a + rng.normal(size=40); b[3], a[5] = np.nan, np.inf
    table, ok = S.correlate(a, b).set_index('kind'), np.isfinite(a) & np.isfinite(b)
    for kind, test in (('pearson', stats.pearsonr), ('spearman', stats.spearmanr), ('kendall', stats.kendalltau)):
        want = test(a[ok], b[ok])
        assert table.value[kind] == pytest.approx(want.statistic) and table.p[kind] == pytest.approx(want.pvalue)
        assert table.low[kind] < want.statistic < table.high[kind] and table.n[kind] == 38
    fisher = S.correlate(a, b, level=.9, interval='fisher').iloc[0]
    assert (fisher.low, fisher.high) == pytest.approx(tuple(stats.pearsonr(a[ok], b[ok]).confidence_interval(.9)))


def test_the_interval_holds_its_level():
    "Twelve runs, a true correlation of 0.8: the share of intervals that hold it (90 %)."
    rng, rho, n, hits = np.random.default_rng(7), .8, 12, dict.fromkeys(('pearson', 'spearman', 'kendall'), 0)
    truth = dict(pearson=rho, spearman=6/np.pi*np.arcsin(rho/2), kendall=2/np.pi*np.arcsin(rho))
    for _ in range(300):
        a = rng.normal(size=n); b = rho*a + np.sqrt(1 - rho**2)*rng.normal(size=n)
        for row in S.correlate(a, b, level=.9, interval='fisher').itertuples(): hits[row.kind] += row.low <= truth[row.kind] <= row.high
    assert all(.84 < h/300 < .97 for h in hits.values()), hits


@pytest.mark.parametrize('interval', ['bootstrap', 'fisher'])
def test_correlations_without_an_answer(interval):
    flat = S.correlate([1, 1, 1, 1, 1.], [1, 2, 3, 4, 5.], interval=interval)
    assert flat[['value', 'p', 'low', 'high']].isna().all(axis=None)
    exact = S.correlate(range(8), range(8), interval=interval)
    np.testing.assert_allclose(exact[['value', 'low', 'high']], 1)
    with pytest.raises(ValueError, match='at least 2 pairs'): S.correlate([1, np.nan], [1, 2], interval=interval)
    with pytest.raises(ValueError, match='one shape'): S.correlate([1, 2], [1, 2, 3], interval=interval)
    with pytest.raises(ValueError, match='level'): S.correlate([1, 2, 3], [1, 2, 3], level=2, interval=interval)
    with pytest.raises(ValueError, match='interval must be'): S.correlate([1, 2, 3], [1, 2, 3], interval='jackknife')
