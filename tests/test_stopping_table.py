"The table of stops: against a slow count, exact keys, both deviations, tests over seeds and over data, settings chosen elsewhere."
import numpy as np
import pandas as pd
import pytest

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


@pytest.mark.parametrize('call, message', [
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
