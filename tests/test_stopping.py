"Region selection: the reference table, moving thresholds, correlations against scipy."
import numpy as np
import pytest
from scipy import stats

from noisymem import stopping as S


def test_oracle_regions(oracle):
    a = oracle('susceptibility/regions_reference_ours.npz')
    region = S.assign_regions(a['train_acc'], a['zeta'])
    np.testing.assert_array_equal(region, a['region'])
    table = S.describe_regions(region, a['test_acc'])
    np.testing.assert_array_equal(table.n, a['region_count'])
    np.testing.assert_allclose(table['mean'], a['region_mean'], atol=1e-9)
    np.testing.assert_allclose(table.sd, a['region_std_ddof0'], atol=1e-9)


def test_against_a_loop():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 30):
        acc, zeta = rng.integers(0, 4, n)/4, rng.integers(0, 4, n)/4  # many ties
        for how in ('mean', 'median', (.5, .25)):
            ca, cz = S.find_thresholds(acc, zeta, how)
            want = [{(True, True): 1, (True, False): 2, (False, True): 3, (False, False): 4}[(a >= ca, z <= cz)] for a, z in zip(acc, zeta)]
            assert S.assign_regions(acc, zeta, how).tolist() == want


def test_units_do_not_matter():
    rng = np.random.default_rng(1)
    acc, zeta = rng.random(20), rng.random(20)
    np.testing.assert_array_equal(S.assign_regions(acc, zeta), S.assign_regions(100*acc, 7*zeta - 3))


def test_a_candidate_far_from_the_thresholds_is_sure_of_its_region():
    acc, zeta = np.r_[.9, .1, np.linspace(.4, .6, 30)], np.r_[0, 1, np.linspace(.4, .6, 30)]
    share = S.region_stability(acc, zeta, n_resamples=300)
    assert share[0, 0] > .99 and share[1, 3] > .99 and share.max(1).min() < .95
    np.testing.assert_allclose(share.sum(1), 1)


def test_correlations_are_scipys():
    rng = np.random.default_rng(2)
    a = rng.normal(size=40); b = a + rng.normal(size=40); b[3] = np.nan
    table, ok = S.correlate(a, b).set_index('kind'), ~np.isnan(b)
    for kind, test in (('pearson', stats.pearsonr), ('spearman', stats.spearmanr), ('kendall', stats.kendalltau)):
        want = test(a[ok], b[ok])
        assert table.value[kind] == pytest.approx(want.statistic) and table.p[kind] == pytest.approx(want.pvalue)
        assert table.low[kind] < want.statistic < table.high[kind] and table.n[kind] == 39


@pytest.mark.parametrize('acc, zeta, how, match', [([1, 2], [1], 'mean', 'one shape'), ([], [], 'mean', 'n at least 1'), ([1, np.nan], [1, 1], 'mean', 'must be finite'), ([1.], [1.], (1, 2, 3), 'two finite numbers'), ([1.], [1.], (1, np.inf), 'two finite numbers')])
def test_bad_input(acc, zeta, how, match):
    with pytest.raises(ValueError, match=match): S.assign_regions(acc, zeta, how)
