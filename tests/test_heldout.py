"Held-out scores against the originals' numbers, slow loops and limits."
import resource

import numpy as np
import pandas as pd
import pytest
import torch

from noisymem.records import Records, merge_records
from noisymem.scores import heldout as H


def slow_estimates(correct, included):
    mem = []
    for i in range(correct.shape[1]):
        inside = [c for c, m in zip(correct[:, i], included[:, i]) if m]
        outside = [c for c, m in zip(correct[:, i], included[:, i]) if not m]
        mem.append(np.mean(inside) - np.mean(outside) if inside and outside else np.nan)
    return np.array(mem)


@pytest.mark.parametrize('seed', range(8))
def test_estimates_against_a_loop(seed):
    rng = np.random.RandomState(seed)
    r, n = rng.randint(1, 12), rng.randint(1, 30)
    correct, included = rng.rand(r, n) < rng.rand(), rng.rand(r, n) < rng.rand()
    np.testing.assert_allclose(H.heldout_estimates(correct, included)['memorization'], slow_estimates(correct, included))
    np.testing.assert_allclose(H.soft_estimates(correct.astype(np.float32), included)['memorization'], slow_estimates(correct, included))


def test_soft_standard_error_against_numpy():
    rng = np.random.RandomState(1)
    v, m = rng.rand(30, 5), rng.rand(30, 5) < .6
    se = H.soft_estimates(v, m)['memorization_se']
    want = [np.sqrt(v[m[:, i], i].var(ddof=1)/m[:, i].sum() + v[~m[:, i], i].var(ddof=1)/(~m[:, i]).sum()) for i in range(5)]
    np.testing.assert_allclose(se, want)


def test_never_in_and_never_out_are_nan():
    est = H.heldout_estimates(np.ones((3, 2), bool), np.array([[1, 0]]*3, bool))
    assert np.isnan(est['memorization']).all() and np.isnan(est['exclusion'][0]) and np.isnan(est['inclusion'][1])
    assert est['n_excluded'].tolist() == [0, 3]


def original(a, i, **kwargs):
    prefix = f'in{i}_'
    return H.from_original({k[len(prefix):]: v for k, v in a.items() if k.startswith(prefix)}, a['train_labels'], a['test_labels'], **kwargs)


def test_oracle_aggregate(oracle):
    a = oracle('memorization/aggregate_3x7x50x20.npz')
    parts = [original(a, i, seeds=np.arange(7) + 7*i) for i in range(3)]
    rec = merge_records(parts)
    assert len(rec) == a['out_total_runs'] == 21
    est = H.heldout_estimates(rec['prediction'] == rec['given_label'], rec['included'], compat='original')
    for ours, theirs in (('inclusion', 'memorization_inclusion_prob'), ('exclusion', 'memorization_exclusion_prob'), ('memorization', 'memorization')):
        assert est[ours].dtype == np.float32
        np.testing.assert_array_equal(est[ours], a[f'out_{theirs}'])
    infl = H.influence(rec['test_prediction'] == rec['y_test'], rec['included'], compat='original', device='cpu')
    np.testing.assert_array_equal(infl, a['out_influence'])
    assert len(merge_records(parts + parts)) == 21, 'the original counted a second look at its own folder twice'


def test_oracle_default_differs_only_where_a_count_is_zero(oracle):
    a = oracle('memorization/aggregate_3x7x50x20.npz')
    rec = merge_records([original(a, i, seeds=np.arange(7) + 7*i) for i in range(3)])
    est = H.heldout_estimates(rec['prediction'] == rec['given_label'], rec['included'])
    known = (est['n_included'] > 0) & (est['n_excluded'] > 0)
    np.testing.assert_allclose(est['memorization'][known], a['out_memorization'][known], atol=1e-7)
    assert np.isnan(est['memorization'][~known]).all() and (~known).sum() == 21


def test_single_model_file_is_one_dimensional(oracle):
    a = oracle('memorization/aggregate_3x7x50x20.npz')
    flat = {k[4:]: v[0] for k, v in a.items() if k.startswith('in0_')}
    assert H.from_original(flat, a['train_labels'], a['test_labels'])['included'].shape == (1, 50)


def test_influence_against_a_loop_and_blocks():
    rng = np.random.RandomState(3)
    B, A = rng.rand(25, 4) < .5, rng.rand(25, 11) < .7
    A[:, 2] = True
    full = H.influence(B, A, device='cpu')
    for j in range(4):
        for i in range(11):
            want = B[A[:, i], j].mean() - B[~A[:, i], j].mean() if (~A[:, i]).any() else np.nan
            np.testing.assert_allclose(full[j, i], want, atol=1e-6)
    for block in (1, 3, 100):
        got = np.concatenate([b.numpy() for _, b in H.influence_blocks(B, A, block=block, device='cpu')], 1)
        np.testing.assert_array_equal(got, full)
        values, cols = H.influence_topk(B, A, k=5, block=block, device='cpu')
        np.testing.assert_array_equal(values, -np.sort(-np.nan_to_num(full, nan=-np.inf), 1)[:, :5])
        np.testing.assert_array_equal(np.take_along_axis(full, cols, 1), values)


@pytest.mark.slow
def test_influence_of_the_full_study_stays_within_four_gigabytes():
    rng = np.random.default_rng(0)
    A = rng.random((1500, 50_000), dtype=np.float32) < .7
    B = rng.random((1500, 10_000), dtype=np.float32) < .9
    values, cols = H.influence_topk(B, A, k=10, block=512, device='cpu')
    assert values.shape == cols.shape == (10_000, 10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4*2**20, 'ru_maxrss is in KiB'


def test_published_thresholds_are_integer_rules():
    assert H.above([276], [460], .6).tolist() == [False]
    assert H.above([277], [460], .6).tolist() == [True]


def test_published_half(shared):
    "The released 1,500-model frequencies through our triage and detection."
    p = np.load(shared/'data'/'published_rand1_human_half.npz')
    table = pd.DataFrame(dict(
        k_included=p['incl_correct'].astype(np.int64), n_included=p['incl_runs'].astype(np.int64), k_excluded=p['excl_correct'].astype(np.int64), n_excluded=p['excl_runs'].astype(np.int64)))
    table['memorization'] = table.k_included/table.n_included - table.k_excluded/table.n_excluded
    kinds = H.triage(table)
    noisy = p['is_noisy'].astype(bool)
    both = (kinds == 'wrong but learned') & noisy
    exact = (5*table.k_included > 3*table.n_included) & (5*table.k_excluded > 3*table.n_excluded) & noisy
    assert both.tolist() == exact.tolist() and 80 <= both.sum() <= 140
    assert (20*table.k_included < table.n_included)[noisy].sum() == ((kinds == 'never learned') & noisy).sum()


@pytest.mark.gpu
def test_influence_same_on_gpu():
    rng = np.random.RandomState(0)
    B, A = rng.rand(100, 50) < .5, rng.rand(100, 70) < .7
    np.testing.assert_allclose(H.influence(B, A, device='cuda'), H.influence(B, A, device='cpu'), atol=1e-6)


@pytest.fixture(scope='module')
def published(shared):
    with np.load(shared/'data'/'published_rand1_human_half.npz') as p: return {k: p[k] for k in p.files}


def published_estimates(p):
    inclusion, exclusion = p['incl_correct']/p['incl_runs'], p['excl_correct']/p['excl_runs']
    return dict(inclusion=inclusion, exclusion=exclusion, memorization=inclusion - exclusion)


def test_simulated_reliability_against_the_specs(published, oracle):
    "How many models are enough: our simulation from half of the published pool, the table from all of it."
    table = oracle('memorization/models_needed_simulation.json')
    at = {row[0]: dict(zip(table['columns'], row)) for row in table['rows']}
    for n in (20, 50, 100, 200, 500, 1500):
        ours = np.mean([H.simulate_agreement(published_estimates(published), n, .7, seed) for seed in range(3)])
        assert abs(ours - at[n]['pearson']) < .01, (n, ours, at[n]['pearson'])


def test_published_half_against_the_published_whole(published, oracle):
    "A random half of the pool repeats the statistics of the whole within sampling error."
    from noisymem.metrics import auroc
    stats, est, noisy = oracle('memorization/published_rand1_human_stats.json'), published_estimates(published), published['is_noisy']
    for kind, mask in (('noisy', noisy), ('clean', ~noisy)):
        for ours, theirs in (('memorization', 'mem_mean'), ('inclusion', 'incl_mean'), ('exclusion', 'excl_mean')):
            assert abs(est[ours][mask].mean() - stats[kind][theirs]) < .02
    for score, name in ((est['memorization'], 'noisy vs clean by memorization'), (1 - est['exclusion'], 'by 1-exclusion_prob'), (1 - est['inclusion'], 'by 1-inclusion_prob')):
        assert abs(auroc(score, noisy) - stats['auroc'][name]) < .01
    se = np.sqrt(est['inclusion']*(1 - est['inclusion'])/published['incl_runs'] + est['exclusion']*(1 - est['exclusion'])/published['excl_runs'])
    assert abs(se.mean() - stats['binomial_SE_of_mem']['mean']) < .001


# defects found by review

def probs_record(prob):
    "A record of models that left out the one pool member, each with the given probabilities."
    from noisymem.ensemble import quantize_distribution
    prob = torch.as_tensor(prob, dtype=torch.float32)
    stored = np.stack([quantize_distribution(p[None]) for p in prob])
    R = len(prob)
    return Records(dict(seed=np.arange(R), included=np.zeros((R, 1), bool), prediction=prob.argmax(1).numpy()[:, None], heldout_prob=stored), dict(pool=np.array([0]), given_label=np.array([0]), index=np.array([0])), dict(key='x'))


@pytest.mark.parametrize('K', [2, 10, 100, 200, 1000])
def test_class_probabilities_survive_storage_whatever_the_number_of_classes(K):
    uniform = H.heldout_pred_probs(probs_record(np.full((5, K), 1/K)))
    np.testing.assert_allclose(uniform, 1/K, atol=.35/K)
    assert (uniform > 0).all()
    peaked = np.full((5, K), .4/(K - 1)); peaked[:, 0] = .6
    got = H.heldout_pred_probs(probs_record(peaked))
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
    assert abs(got[0, 0] - .6) < .02
    flat = np.random.default_rng(0).dirichlet(np.full(K, .3), 400)
    assert abs(H.heldout_pred_probs(probs_record(flat))[0] - flat.mean(0)).max() < .004


def test_soft_scores_say_what_an_original_record_lacks():
    rng = np.random.default_rng(0)
    mask, pred, given = rng.random((20, 30)) < .7, rng.integers(0, 3, (20, 30)), rng.integers(0, 3, 30)
    tests, y = rng.integers(0, 3, (20, 8)), rng.integers(0, 3, 8)
    rec = H.from_original(dict(trainset_mask=mask, trainset_correctness=pred == given, trainset_predictions=pred, testset_correctness=tests == y, testset_predictions=tests), given, y)
    table = H.score_heldout(rec)
    assert {'inclusion', 'exclusion', 'memorization'} <= set(table) and not any(c.startswith(('prob', 'margin')) for c in table)
    assert set(H.triage(table)) and len(H.split_half(rec, n_splits=2)) == 6 and H.heldout_votes(rec).shape == (30, 3)
    np.testing.assert_allclose(H.score_exclusion(rec, soft=False), 1 - table.exclusion, atol=1e-6)
    with pytest.raises(ValueError, match='must hold given_prob'): H.score_exclusion(rec)
    with pytest.raises(ValueError, match='must hold heldout_prob'): H.heldout_pred_probs(rec)


def test_outcomes_are_checked():
    included = np.array([[1, 0], [0, 1]], bool)
    with pytest.raises(ValueError, match='compat must be one of'): H.heldout_estimates(included, included, compat='orginal')
    with pytest.raises(ValueError, match='correct must hold True and False'): H.heldout_estimates(np.array([[3, 0], [1, 7]]), included)
    with pytest.raises(ValueError, match='included must hold True and False'): H.heldout_estimates(included, included*2)
    a, b = H.heldout_estimates(included, included), H.heldout_estimates(included.astype(float), included.astype(int))
    np.testing.assert_array_equal(a['memorization'], b['memorization'])


def test_nothing_known_is_said():
    included = np.array([[True, False, True]]*3)
    table = pd.DataFrame(H.heldout_estimates(included, included) | dict(index=range(3)))
    assert set(H.triage(table)) == {'unknown'}
    values, cols = H.influence_topk(np.ones((3, 2), bool), included, k=2, device='cpu')
    assert np.isnan(values).all() and (cols == -1).all()


def test_influence_ranked_by_its_lower_bound():
    rng = np.random.default_rng(1)
    B, A = rng.random((60, 4)) < .6, rng.random((60, 50)) < .7
    A[:, 0] = True; A[0, 0] = False  # left out once: its influence is mostly chance
    B[0] = False
    assert (H.influence_topk(B, A, k=1, device='cpu')[1] == 0).all()
    values, cols = H.influence_topk(B, A, k=5, block=7, device='cpu', z=2)
    assert not (cols[:, 0] == 0).any()
    full = H.influence(B, A, device='cpu')
    np.testing.assert_allclose(values, np.take_along_axis(full, cols, 1), atol=1e-6)
    with pytest.raises(ValueError, match='z must be in'): H.influence_topk(B, A, k=1, z=-1)
