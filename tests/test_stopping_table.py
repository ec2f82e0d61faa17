"The table of stops: against a slow count, exact keys, both deviations, tests over seeds and over data, settings chosen elsewhere."
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from noisymem import stopping as S
from noisymem import stopping_table as T


def some_runs(n_seeds=4, ratios=(.1, .40208), E=30, seed=0):
    rng, runs = np.random.default_rng(seed), []
    for i, ratio in enumerate(ratios):
        for s in range(n_seeds):
            t = np.arange(E)
            accuracy = .7 - .001*(t - 12 + rng.normal())**2 + .005*rng.normal(size=E)
            history = dict(
                test_accuracy=accuracy, prediction_changes=np.r_[np.nan, 40 + (t[1:] - 14)**2 + 3*rng.normal(size=E - 1)], polluted_accuracy=.1 + .001*(t - 6)**2 + .003*rng.normal(size=E),
                noisy_validation_accuracy=accuracy - .2 + .01*rng.normal(size=E), memorized=t/E, **{'cnd:histogram': rng.normal(size=(E, 6))*.1 - .01*(t[:, None] - 9)**2})
            runs.append(dict(dataset='some_data', noise=['rand1', 'worst'][i], ratio=ratio, seed=s, loss='ce', history=history, layout=dict(layers=['a', 'b'], layer_of_neuron=np.repeat([0, 1], 3))))
    return runs


@pytest.fixture(scope='module')
def runs(): return some_runs()


@pytest.fixture(scope='module')
def rules(runs): return T.list_methods([r['history'] for r in runs], window=3, patience=4)


@pytest.fixture(scope='module')
def table(runs, rules): return T.tabulate_stops(runs, rules)


def test_rows_against_the_rules(runs, rules, table):
    assert set(rules) == {'CND', 'prediction changes', 'Label Wave', 'known polluted', 'noisy validation', 'last epoch', 'oracle'} and len(table) == len(runs)*len(rules)
    for r in table.itertuples():
        run = next(x for x in runs if (x['noise'], x['seed']) == (r.noise, r.seed))
        a, stop = run['history']['test_accuracy'], S.find_stop(run['history'], rules[r.method], run['layout'])
        assert r.epoch == (stop.epoch or 30) and r.reason == stop.reason and r.accuracy == a[r.epoch - 1] and r.regret == pytest.approx(a.max() - r.accuracy) and r.ratio == run['ratio']
        assert r.delta_epoch == r.epoch - 1 - a.argmax() and r.memorized == (r.epoch - 1)/30 and r.memorization_epoch == 1
        if r.method == 'prediction changes': assert r.correlation == pytest.approx(np.corrcoef(S.smooth(run['history']['prediction_changes'][1:], 3), S.smooth(a[1:], 3))[0, 1])


def test_means_are_pandas_and_deviations_say_which(table):
    for ddof in (0, 1):
        s = T.summarise_table(table, ddof).set_index(['noise', 'method'])
        for key, t in table.groupby(['noise', 'method']):
            assert s.loc[key, 'accuracy'] == pytest.approx(t.accuracy.mean()) and s.loc[key, 'accuracy_sd'] == pytest.approx(np.std(t.accuracy, ddof=ddof))
            if t.gap.sum(): assert s.loc[key, 'recovered'] == pytest.approx(1 - t.regret.sum()/t.gap.sum())
    assert T.summarise_table(table[table.seed == 0]).accuracy_sd.isna().all()


def test_bold_survives_a_ratio_of_many_digits(table):
    "A key of four digits loses 0.40208."
    better = table.copy()
    better['accuracy'] = better.method.map({'known polluted': .9, 'CND': .5, 'prediction changes': .6, 'Label Wave': .7, 'noisy validation': .8}).fillna(.99)  # of the references, which take no part
    groups = T.compare_groups(better, compat='original')
    assert groups.best.tolist() == [('known polluted',)]*2
    text = T.latex_table(T.summarise_table(better), groups)
    assert text.count(r'\textbf{known polluted}') == 2 and '40.21' in text and r'some\_data' in text


def test_tests_over_seeds_are_adjusted(table):
    groups = T.compare_groups(table)
    assert (groups.n == 4).all() and (groups.k == 5).all() and (groups.adjusted >= groups.p_exact - 1e-15).all()
    assert not {'rank oracle', 'rank last epoch'} & set(groups.columns)
    overall = T.compare_methods(table)
    assert (overall['n'], overall['k']) == (2, 5) and 0 < overall['p_exact'] <= 1


def test_one_seed_or_two_methods_have_no_test(table):
    groups = T.compare_groups(table[table.seed == 0])
    assert groups.p.isna().all() and groups.best.tolist() == [(), ()]
    assert T.compare_methods(table[table.method.isin(['CND', 'noisy validation'])]) is None


def test_a_missing_run_takes_its_block_out(table):
    gone = table[~((table.seed == 3) & (table.method == 'CND') & (table.noise == 'rand1'))]
    assert T.compare_groups(gone).set_index('noise').n.to_dict() == dict(rand1=3, worst=4)


def test_verdict_names_what_helps_and_what_harms(runs, rules):
    def flat(run): return run | dict(dataset='flat', history=run['history'] | dict(test_accuracy=np.linspace(.5, .6, 30)))
    table = T.tabulate_stops(runs + [flat(r) for r in runs[:4]], rules)
    text = T.write_verdict(table, T.compare_methods(table))
    assert 'There is little to stop for on flat rand1.' in text and '12 runs on 3 label sets' in text and 'Worse than training to the end by 0.5 points or more: ' in text and 'critical difference' in text
    assert T.write_verdict(table[table.dataset == 'flat'], None).startswith('4 runs on 1 label sets')


def test_a_small_gap_does_not_rule_the_verdict():
    rows = [dict(dataset=d, noise='n', loss='ce', ratio=.4, seed=s, method=m, stopped=True, epoch=5, delta_epoch=0, accuracy=.5, regret=r, gap=g, memorized=0., correlation=0.) for d, g in (('large', .2), ('small', .01)) for s in (0, 1) for m, r in (('oracle', 0.), ('CND', .04), ('last epoch', g))]
    text = T.write_verdict(pd.DataFrame(rows))
    assert f'all label sets together: CND {1 - .08/.21:.0%}.' in text and 'Worse than training to the end by 0.5 points or more: CND on small n.' in text


def test_leave_one_out_never_looks_at_home(runs):
    atlas = pd.concat([S.make_atlas(r['history'], r['layout'], windows=(1, 3), patiences=(2, 5), percentiles=(50., 90.)).assign(dataset=r['dataset'], noise=r['noise'], seed=r['seed']) for r in runs])
    chosen = T.leave_one_out(atlas, dict(window=3, patience=5, percentile=90.))
    assert set(chosen.signal) == {'cnd:histogram', 'prediction_changes', 'polluted_accuracy', 'noisy_validation_accuracy'} and (chosen.regret >= chosen.regret_best - 1e-12).all() and chosen.regret_fixed.notna().all()
    spoilt = atlas.copy()
    spoilt.loc[spoilt.noise == 'worst', 'regret'] = np.random.default_rng(0).random((spoilt.noise == 'worst').sum())
    names = ['layer_at', 'percentile', 'window', 'patience']
    assert T.leave_one_out(spoilt)[lambda t: t.noise == 'worst'][names].equals(chosen[chosen.noise == 'worst'][names])


def test_runs_are_kept_and_found(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    studies = [dict(dataset='digits', noise='symmetric-0.4', n_examples=200, model='mlp', width=.1, recipe=dict(name='digits', epochs=4))]
    one, two = T.load_runs(studies, 2, signals=['cnd:histogram']), T.load_runs(studies, [0, 1], signals=['cnd:histogram'])
    assert len(list((tmp_path/'histories').glob('*.npz'))) == 2 and [r['seed'] for r in one] == [0, 1] and one[0]['ratio'] != one[1]['ratio']
    np.testing.assert_array_equal(one[1]['history']['cnd:histogram'], two[1]['history']['cnd:histogram'])
    rules = T.list_methods([r['history'] for r in one], window=1, patience=2)
    assert {'CND', 'prediction changes', 'known polluted', 'noisy validation', 'clean validation', 'oracle'} <= set(rules) and 'CND de-biased' not in rules
    assert len(T.tabulate_stops(one, rules)) == 2*len(rules)


# agreement of signals

def test_curves_are_the_means_of_layers(runs):
    history = runs[0]['history'] | dict(class_graph_entropy=np.random.default_rng(0).random((30, 4)))
    curves = T.list_curves(history, runs[0]['layout'])
    assert list(curves)[:2] == ['test_accuracy', 'memorized'] and len(curves) == len(history) + 1
    for name, columns in (('cnd:histogram layer 1', slice(0, 3)), ('cnd:histogram last layer', slice(3, 6))): np.testing.assert_allclose(curves[name], history['cnd:histogram'][:, columns].mean(1))
    np.testing.assert_allclose(curves['class_graph_entropy'], history['class_graph_entropy'].mean(1))
    np.testing.assert_allclose(T.list_curves(history)['cnd:histogram'], history['cnd:histogram'].mean(1))


def test_agreement_is_kendalls_of_every_pair(runs):
    history = runs[1]['history'] | dict(constant=np.ones(30), never=np.full(30, np.nan), short=np.arange(20.), sparse=np.where(np.arange(30) % 3, np.nan, np.arange(30.)))
    curves, table = T.list_curves(history, runs[1]['layout']), T.tabulate_agreement(history, runs[1]['layout'], 5)
    assert len(table) == len(curves)*(len(curves) - 1)
    for r in table.itertuples():
        a, b = (np.r_[np.full(30 - len(v), np.nan), v] for v in (curves[r.a], curves[r.b]))
        both = ~(np.isnan(a) | np.isnan(b))
        assert r.n == both.sum()
        tau = stats.kendalltau(a[both], b[both]).statistic if both.sum() > 1 else np.nan
        assert r.tau == pytest.approx(tau, nan_ok=True)
        if {'sparse', 'never', 'short'} & {r.a, r.b}: continue
        a, b = (curves[k][1:] if 'prediction_changes' in (r.a, r.b) else curves[k] for k in (r.a, r.b))  # the beginning of the longer one is dropped
        with np.errstate(invalid='ignore'): taus = np.array([stats.kendalltau(a[lag:], b[:len(b) - lag]).statistic for lag in range(6)])
        if np.isnan(taus).all(): assert np.isnan([r.best, r.strongest]).all() and (r.best_lag, r.strongest_lag) == (0, 0)
        else: assert (r.best, r.best_lag) == (pytest.approx(np.nanmax(taus)), np.nanargmax(taus)) and (r.strongest, r.strongest_lag) == (pytest.approx(taus[np.nanargmax(abs(taus))]), np.nanargmax(abs(taus)))


def test_agreement_finds_the_signal_that_runs_ahead():
    turn = np.sin(np.arange(40)/4) + .01*np.arange(40)
    found = T.tabulate_agreement(dict(late=np.roll(turn, 3), early=turn, against=-turn), max_lag=5).set_index(['a', 'b'])
    assert tuple(found.loc['late', 'early'][['best', 'best_lag']]) == (pytest.approx(1), 3) and found.loc['early', 'late'].best < 1
    assert found.loc['against', 'early'].best < 0 < -found.loc['against', 'early'].strongest == pytest.approx(1)


def test_agreement_is_averaged_over_runs(runs):
    table = pd.concat([T.tabulate_agreement(r['history'], r['layout']).assign(noise=r['noise'], seed=r['seed']) for r in runs])
    one = T.summarise_agreement(table, ['noise']).set_index(['noise', 'a', 'b']).loc['worst', 'prediction_changes', 'test_accuracy']
    t = table[(table.noise == 'worst') & (table.a == 'prediction_changes') & (table.b == 'test_accuracy')]
    assert (one.n, one.tau, one.tau_sd, one.best, one.strongest) == (4, *(pytest.approx(x) for x in (t.tau.mean(), t.tau.std(), t.best.mean(), t.strongest.mean())))
    assert (T.summarise_agreement(table).n == 8).all()


def test_null_curves_have_nothing_to_do_with_the_target(runs):
    null = T.tabulate_null(runs[:2] + runs[4:5], max_lag=4)
    t = null[(null.signal == 'prediction_changes') & (null.noise == 'rand1') & (null.seed == 0)]
    changes, accuracy = runs[0]['history']['prediction_changes'][1:], runs[0]['history']['test_accuracy'][1:]
    np.testing.assert_allclose(t[t.null == 'shifted'].tau, [stats.kendalltau(np.roll(changes, k), accuracy).statistic for k in range(5, 25)])
    np.testing.assert_allclose(t[t.null == 'other data'].tau, [stats.kendalltau(changes, runs[4]['history']['test_accuracy'][1:]).statistic])
    other = null[(null.noise == 'worst') & (null.null == 'other data') & (null.signal == 'memorized')]
    np.testing.assert_allclose(other.tau, [stats.kendalltau(runs[4]['history']['memorized'], r['history']['test_accuracy']).statistic for r in runs[:2]])
    assert set(T.tabulate_null(runs[:1]).null) == {'shifted'}


def test_the_search_over_lags_makes_nothing_out_of_something():
    "Unrelated walks: the strongest of six lags is larger than tau itself, on average well so."
    rng = np.random.default_rng(0)
    history = {f'walk{i}': rng.normal(size=30).cumsum() for i in range(12)}
    t = T.tabulate_agreement(history)
    assert t.strongest.abs().mean() > 1.2*t.tau.abs().mean() > .2


def test_extrema_are_the_plain_rules(runs):
    t = T.tabulate_extrema(runs[0]['history'], runs[0]['layout'], 4).set_index(['technique', 'extremum'])
    h = runs[0]['history']
    assert t.loc[('prediction_changes', 'local'), 'epoch'] == S.local_extremum(h['prediction_changes'][1:], 'min', 4) + 2
    assert t.loc[('cnd:histogram last layer', 'last local'), 'epoch'] == S.last_local_extremum(h['cnd:histogram'][:, 3:].mean(1), 'max') + 1
    assert t.loc[('test_accuracy', 'local'), 'accuracy'] == h['test_accuracy'][t.loc[('test_accuracy', 'local'), 'epoch'] - 1] and (t.regret >= 0).all()
    assert set(t.kind) == {'min', 'max'} and not t.index.duplicated().any()


def test_pairs_are_compared_over_label_sets(table):
    pytest.importorskip('baycomp', reason="baycomp is not installed: pip install 'noisymem[statistics]'")
    found = T.compare_pairs(table, rope=.02).set_index(['first', 'second'])
    assert set(found.index) == {('CND', 'prediction changes'), ('CND', 'known polluted'), ('prediction changes', 'noisy validation'), ('CND', 'noisy validation')} and (found.n == 2).all()
    np.testing.assert_allclose(found[['first_better', 'equal', 'second_better']].sum(axis=1), 1)
    assert T.compare_pairs(table, [('CND', 'Label Wave')], rope=1.).equal[0] == 1 and not len(T.compare_pairs(table, [('CND', 'last epoch')]))
    clear = table.assign(accuracy=table.accuracy + .5*(table.method == 'CND'))
    assert T.compare_pairs(clear, [('CND', 'known polluted')]).first_better[0] > .8


@pytest.mark.parametrize('call, message', [
    (lambda: T.tabulate_agreement(dict(x=[1., 2, 3])), 'max_lag must leave at least 2 of 3 epochs, got 5'), (lambda: T.tabulate_agreement({}), 'at least one signal, got none'), (lambda: T.tabulate_agreement(dict(x=[1., 2]), max_lag=-1), r'max_lag must be in'),
    (lambda: T.tabulate_null(some_runs(1), 'cnd:histogram'), "target must be one of 'test_accuracy', 'memorized'"), (lambda: T.tabulate_extrema(dict(x=[1.])), "got 'test_accuracy'"),
    (lambda: T.list_studies([dict(dataset='digits')], 0), 'at least one each, got 1 and 0'), (lambda: T.list_studies([dict(datasets='digits')], 1), 'setting of a study must be one of'),
    (lambda: T.tabulate_stops(some_runs(1), dict(a=dict(signal='cnd:kde'))), "signal must be one of .* got 'cnd:kde'"), (lambda: T.tabulate_stops(some_runs(1), dict(a=dict(signal='cnd:histogram', layer='c'))), "layer must be one of 'a', 'b'"),
    (lambda: T.tabulate_stops(some_runs(1), dict(a=dict(signal='prediction_changes', window=31))), 'window must be at most the 30 epochs')])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_published_accuracies():
    t = T.published_accuracies()
    pick = lambda **k: t[np.logical_and.reduce([t[name] == v for name, v in k.items()])].iloc[0]
    assert pick(dataset='mnist', noise='symmetric-0.6', setting='dropout=0.5').test_accuracy == .9533 and pick(model='resnet9', noise='worst', setting='').memorized == .9542
    assert pick(model='resnet9_tied', noise='worst', setting='p_fixed=0.6, p_mem=0.1').correct == .513 and not t[t.model == 'resnet9_tied'].verified.any()
    assert np.isnan(pick(dataset='svhn', noise='clean', setting='').memorized) and not len(t[(t.dataset == 'svhn') & (t.noise == 'symmetric-0.2') & (t.setting != '')])


def test_a_layer_is_asked_of_neurons_only():
    "Class graph entropy has a column for each class, and a table of the first layer's signals ended in an error."
    rng = np.random.default_rng(0)
    history = {'test_accuracy': rng.random(12), 'cnd:histogram': rng.random((12, 4)), 'class_graph_entropy': rng.random((12, 3))}
    rules = T.list_methods([history], window=2, patience=2, layer=0)
    table = T.tabulate_stops([dict(dataset='d', noise='n', ratio=.4, seed=0, history=history, layout=dict(layers=['a', 'b'], layer_of_neuron=np.array([0, 0, 1, 1])))], rules)
    assert {'CND', 'graph entropy'} <= set(table.method)
