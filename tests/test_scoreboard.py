"The scoreboard's numbers against slow loops and scikit-learn; its order, its differences, its advice."
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from noisymem import cli
from noisymem.batch import find_notebook, make_job, notebook_parameters
from noisymem.metrics import bootstrap_interval
from noisymem.scoreboard import best_within, cluster_scores, detection_draws, precision_at_errors, rank_correlations, score_difference, score_table


def drawn(seed=0, n=150, s=4, ties=False):
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < .3
    x = rng.normal(size=(n, s)) + wrong[:, None]*np.linspace(0, 2, s)
    return pd.DataFrame(np.round(x) if ties else x, columns=[f's{i}' for i in range(s)]), wrong


@pytest.mark.parametrize('seed, ties', [(0, False), (1, True), (2, True)])
def test_metrics_are_scikit_learns(seed, ties):
    scores, wrong = drawn(seed, ties=ties)
    t = score_table(scores, wrong, n_resamples=20).set_index('score')
    for s in scores:
        assert np.isclose(t.auroc[s], roc_auc_score(wrong, scores[s])) and np.isclose(t.ap[s], average_precision_score(wrong, scores[s]))
        assert t.auroc_low[s] <= t.auroc[s] <= t.auroc_high[s]


def test_precision_is_the_mean_over_orders_of_equals():
    rng = np.random.default_rng(0)
    score, wrong = rng.integers(0, 4, 60).astype(float), rng.random(60) < .4
    k, got = wrong.sum(), []
    for _ in range(4000):
        order = np.lexsort((rng.random(60), -score))
        got.append(wrong[order[:k]].mean())
    assert abs(np.mean(got) - precision_at_errors(score, wrong)) < .01
    with pytest.raises(ValueError, match='at least one wrong'): precision_at_errors(score, np.zeros(60, bool))


def test_intervals_are_those_of_a_plain_bootstrap():
    scores, wrong = drawn(3)
    t = score_table(scores, wrong, n_resamples=800).set_index('score')
    low, high = bootstrap_interval(lambda s, w: roc_auc_score(w, s), scores.s1.to_numpy(), wrong, n_resamples=800, seed=5)
    assert abs(t.auroc_low['s1'] - low) < .015 and abs(t.auroc_high['s1'] - high) < .015


def test_a_difference_is_narrower_than_its_sides_where_scores_are_alike():
    scores, wrong = drawn(4)
    scores['twin'] = scores.s2 + .05*np.random.default_rng(1).normal(size=len(scores))
    draws = detection_draws(scores, wrong, 200)
    _, low, high = score_difference(draws, list(scores), 'twin', 's2')
    one = draws['auroc'][1:, list(scores).index('s2')]
    assert high - low < .3*(np.quantile(one, .975) - np.quantile(one, .025))


def test_the_order_of_examples_does_not_matter_to_the_estimates():
    scores, wrong = drawn(5)
    p = np.random.default_rng(0).permutation(len(wrong))
    a, b = (score_table(s.reset_index(drop=True), w, n_resamples=0) for s, w in ((scores, wrong), (scores.iloc[p], wrong[p])))
    assert a.score.tolist() == b.score.tolist() and np.allclose(a.ap, b.ap)


def test_correlations_keep_every_pair_and_put_alike_ones_together():
    scores, _ = drawn(6)
    for i in range(3): scores[f'twin{i}'] = scores.s1*(i + 1)
    scores['constant'] = 1.
    rho = rank_correlations(scores)
    plain = scores.corr(method='spearman')
    assert set(rho) == set(scores) and np.allclose(rho.loc['s0', 's3'], plain.loc['s0', 's3']) and np.allclose(rho, rho.T) and (np.diag(rho) == 1).all()
    where = sorted(list(rho).index(s) for s in ('s1', 'twin0', 'twin1', 'twin2'))
    assert where == list(range(where[0], where[0] + 4))
    c = cluster_scores(rho)
    assert len({c[s] for s in ('s1', 'twin0', 'twin1', 'twin2')}) == 1 and (np.diff(c) >= 0).all()


def test_advice_never_names_what_is_too_dear_and_never_gets_worse():
    scores, wrong = drawn(7, s=6)
    about = pd.DataFrame(dict(score=list(scores), family='x', cost=[1, 3, 1, 9, 3, 20]))
    t, draws = score_table(scores, wrong, about), detection_draws(scores, wrong)
    b = best_within(t, draws, list(scores))
    assert t.equals(score_table(scores, wrong, about, draws=draws))
    assert (b.cost <= b.budget).all() and b.ap.is_monotonic_increasing and b.budget.tolist() == [1, 3, 9, 20]
    assert best_within(t, draws, list(scores), [.5]).empty


@pytest.mark.parametrize('change, message', [(lambda s, w: (s.assign(s0=np.nan), w), 'no NaN, got some in s0'), (lambda s, w: (s, w[:-1]), 'is_noisy'), (lambda s, w: (s, np.zeros(len(w), bool)), 'is_noisy')])
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message): score_table(*change(*drawn()))


def test_what_is_as_good_and_cheaper_is_the_one_to_use():
    scores, wrong = drawn(8, n=1500)
    scores['cheap'] = scores.s3 + 1e-9*np.arange(len(wrong))
    about = pd.DataFrame(dict(score=list(scores), family='x', cost=[1, 1, 1, 9, 2]))
    t, draws = score_table(scores, wrong, about), detection_draws(scores, wrong)
    b = best_within(t, draws, list(scores)).set_index('budget')
    assert b.use[9] == 'cheap' and (b.score[1], b.use[1]) == ('s2', 's2') and all(u == s or u in g.split('; ') for u, s, g in zip(b.use, b.score, b.as_good))


@pytest.mark.parametrize('words, want', [([], dict(dataset='digits', noise='symmetric-0.2', model='mlp', n_models=12)), (['cifar10', 'rand1', '--examples', '500', '-p', 'width=0.25'], dict(dataset='cifar10', noise='rand1', n_examples=500, model='fast', width=.25))])
def test_the_command_runs_the_notebook_with_parameters_that_it_has(words, want, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, '_run', lambda args: seen.append(args) or 0)
    monkeypatch.setattr(cli, 'job_folder', lambda *a: cli.results_dir()/'nowhere')
    assert cli.main(['scoreboard', *words]) == 0 and seen[0].what == 'tab_scoreboard'
    values = cli._parameters(seen[0].parameter, '-p')
    assert set(values) <= set(notebook_parameters(find_notebook('tab_scoreboard'))) and want.items() <= values.items()
    assert make_job('tab_scoreboard', values) and values['stopping']['study']['model'] == values['model']
