"A sweep: each run once, whatever is added, cut off, broken, doubled or shared."
import functools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import noisymem.sweep as S
from noisymem.batch import make_job
from noisymem.models import make_model
from noisymem.plan import find_configs, plan_jobs
from noisymem.runs import prepare
from noisymem.train import get_recipe, predict, train

DATA = dict(dataset='digits', noise='uniform-0.5', n_examples=150, recipe='digits', epochs=4)
MLP = {'model': 'mlp', 'width': .05}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    "The runs that were trained, in order."
    seen, real = [], S.watch_run

    @functools.wraps(real)
    def counted(cfg, *args, **kwargs):
        seen.append((cfg.model, cfg.width, cfg.recipe.get('lr')))
        return real(cfg, *args, **kwargs)
    monkeypatch.setattr(S, 'watch_run', counted)
    return seen


def sweep(contenders, rates=(.1,), procedures=S.PROCEDURES, **kwargs):
    options = {k: kwargs.pop(k) for k in ('workers', 'device') if k in kwargs}
    return S.load_or_sweep(S.list_runs(contenders, rates, **DATA | kwargs), procedures, **dict(device='cpu', workers=0) | options)


def assert_same(a, b):
    for x, y in zip(a, b): pd.testing.assert_frame_equal(x.drop(columns='seconds', errors='ignore'), y.drop(columns='seconds', errors='ignore'))


def test_a_row_more_is_one_training(trained, capsys):
    runs, curves, probes = sweep([MLP, {'model': 'linear'}], rates=[.1, .01])
    assert len(trained) == 4 and 'seconds' in runs and '4 runs, 4 of them new' in capsys.readouterr().out
    more = sweep([MLP, {'model': 'linear'}, {'model': 'linear', 'lr': .5}], rates=[.1, .01])
    assert trained[4:] == [('linear', 1., .5)] and '5 runs, 1 of them new' in capsys.readouterr().out
    pd.testing.assert_frame_equal(more[0][:4], runs)
    pd.testing.assert_frame_equal(more[1][more[1].run < 4], curves)
    pd.testing.assert_frame_equal(more[2][more[2].run < 4], probes)


def test_the_order_of_rows_is_the_order_that_was_asked(trained):
    a, b = sweep([MLP, {'model': 'linear'}]), sweep([{'model': 'linear'}, MLP])
    assert len(trained) == 2 and list(b[0].model) == ['linear', 'mlp']
    assert_same([a[0].drop(columns='run').iloc[::-1].reset_index(drop=True)], [b[0].drop(columns='run')])


def test_a_row_twice_is_trained_once_and_counts_once(trained):
    runs, _, _ = sweep([MLP, dict(MLP), MLP | {'weight_decay': 1e-4}, MLP | {'lr': .1}, MLP | {'nesterov': True}])  # as the recipe has it
    assert len(runs) == 1 and len(trained) == 1
    cfgs = S.list_runs([MLP], [.1], **DATA)
    runs, _, _ = S.load_or_sweep(cfgs*3, device='cpu')
    assert len(runs) == 3 and len(trained) == 1, 'a list with doubles is taken as it is'


def test_what_changes_the_result_changes_the_path():
    base = dict(contenders=[MLP], rates=[.1], **DATA)
    def path(procedures=S.PROCEDURES, **changes): return S.locate_runs(S.list_runs(**base | changes), procedures, 'cpu')[0][2]
    paths = [path(), path(rates=[.2]), path(epochs=5), path(schedules=['constant']), path(seeds=[1]), path(noise='uniform-0.4'), path(n_examples=149), path(seed_noise=1), path(seed_data=1),
             path(contenders=[{'model': 'mlp'}]), path(contenders=[MLP | {'augment': [['flip', True]]}]), path({'plain': dict(n_batches=3)})]
    assert len(set(paths)) == len(paths) and path() == path()
    low, full = (path(contenders=[MLP | {'precision': p}]) for p in ('bf16', 'fp32'))
    assert low != full and path() in (low, full), 'automatic precision is what it comes to on this machine'


def test_one_run_and_one_epoch():
    runs, curves, probes = sweep([MLP])
    assert len(runs) == 1 and len(curves) == 4 and list(curves.epoch) == [1, 2, 3, 4] and list(probes[(probes.procedure == 'plain') & probes.per_rate].epoch) == [1, 2, 3]
    runs, curves, probes = sweep([MLP], epochs=1)
    assert np.isnan(runs.zeta[0]) and runs.status[0] == 'done' and len(curves) == 1 and not len(probes)


def test_the_numbers_are_those_of_the_network():
    "Against a run of one's own."
    runs, curves, probes = sweep([MLP])
    cfg = S.list_runs([MLP], [.1], **DATA)[0]
    data = prepare(cfg)[0]
    state = train(make_model('mlp', 10, (1, 8, 8), width=.05, seed=0), data, cfg.recipe, device='cpu')
    says = lambda x: predict(state.model, x, data.mean, data.std, precision=state.precision).logits.argmax(1)
    fits, row = says(data.x) == data.given_label, runs.iloc[0]
    assert row.train_accuracy == pytest.approx(fits.double().mean()) and row.wrong_fitted == pytest.approx(fits[data.is_noisy].double().mean()) and row.correct_fitted == pytest.approx(fits[~data.is_noisy].double().mean())
    assert row.wrong_corrected == pytest.approx((says(data.x) == data.true_label)[data.is_noisy].double().mean())
    assert row.test_accuracy == pytest.approx((says(data.x_test) == data.y_test).double().mean()) == curves.test_accuracy.iloc[-1]
    assert row.effective_rate == pytest.approx(data.noise_rate) and row.nominal_rate == .5 and row.parameters == sum(p.numel() for p in state.model.parameters())
    last = probes[(probes.procedure == 'plain') & probes.per_rate].iloc[-1]
    assert row.zeta == last.zeta and row.zeta_low < row.zeta < row.zeta_high


def test_the_chosen_network_again(tmp_path):
    "Not only its numbers: the very weights, in a file too, whatever else was probed."
    from safetensors.torch import load_file
    cfgs = S.list_runs([MLP, {'model': 'efficientnet', 'width': .05, 'augment': [['flip', True]]}], [.1], seeds=[2], **DATA | dict(n_examples=30, epochs=2))
    runs, _, _ = S.load_or_sweep(cfgs, device='cpu', workers=0)
    for row, cfg in zip(runs.itertuples(), cfgs):
        state = S.train_again(cfg, device='cpu', checkpoint=tmp_path/row.model)
        data = state.data
        says = lambda x: predict(state.model, x, data.mean, data.std, precision=state.precision).logits.argmax(1)
        assert (says(data.x) == data.given_label).double().mean().item() == row.train_accuracy and (says(data.x_test) == data.y_test).double().mean().item() == row.test_accuracy
        kept, weights = load_file(tmp_path/row.model), dict(state.model.named_parameters())
        assert all(any(v.shape == w.shape and bool((v == w).all()) for v in kept.values()) for w in weights.values())


def test_probing_changes_no_run():
    cfg = S.list_runs([MLP], [.1], **DATA)[0]
    data = prepare(cfg)[0]
    np.testing.assert_array_equal(*(S.watch_run(cfg, data, p, 'cpu')['curves'][:, :-1] for p in ({}, S.PROCEDURES)))


def test_dividing_the_rate_out():
    _, _, probes = sweep([MLP], schedules=['constant'])
    for name in ('plain', 'original', 'evaluation'):
        t = probes[probes.procedure == name]
        np.testing.assert_allclose(t[t.per_rate].zeta, t[~t.per_rate].zeta/.1)
    t = probes[probes.procedure == 'fixed rate']
    np.testing.assert_allclose(t[t.per_rate].zeta, t[~t.per_rate].zeta/.01)


def test_masks_are_asked_where_there_is_dropout():
    runs, _, probes = sweep([{'model': 'efficientnet', 'width': .05}, MLP], epochs=2, n_examples=20)
    assert set(probes[probes.run == 0].procedure) == set(S.PROCEDURES) and set(probes[probes.run == 1].procedure) == set(S.PROCEDURES) - {'own step', 'two masks'}


def test_a_run_that_diverges_is_a_row(trained):
    runs, curves, probes = sweep([MLP | {'lr': 1e9}, MLP])
    assert list(runs.status) == ['broke', 'done'] and 'the loss became' in runs.message[0] and runs.message[1] == ''
    assert runs.loc[0, ['zeta', 'train_accuracy', 'wrong_fitted', 'test_accuracy']].isna().all() and runs.loc[1, ['zeta', 'train_accuracy']].notna().all()
    assert len(curves[curves.run == 0]) < 4 and len(trained) == 2
    assert_same(sweep([MLP | {'lr': 1e9}, MLP]), (runs, curves, probes))
    assert len(trained) == 2, 'a run that broke is a result'
    assert not list(S.results_dir().rglob('*.safetensors')), 'no checkpoint is left behind'


def test_a_probe_that_breaks_ends_no_run():
    runs, curves, probes = sweep([MLP], procedures={'plain': dict(n_batches=2), 'wild': dict(n_batches=1, lr=1e30)})
    assert runs.status[0] == 'done' and "'wild' gave no finite number after 0 epochs" in runs.message[0] and np.isfinite(runs.zeta[0])
    assert len(curves) == 4 and set(probes.procedure) == {'plain'}
    runs, _, _ = sweep([MLP], procedures={'wild': dict(n_batches=1, lr=1e30), 'plain': dict(n_batches=2)})
    assert np.isnan(runs.zeta[0]) and np.isfinite(runs.train_accuracy[0]), 'the first procedure is the one of the table'


def test_settings_that_cannot_be_trained_are_no_row(results):
    for workers in (0, 1):
        with pytest.raises(ValueError, match='width must leave every layer at least one'): sweep([MLP | {'width': 1e-4}], workers=workers)
    assert not list(results.rglob('*.npz'))
    with pytest.raises(ValueError, match='procedures must name at least one'): sweep([MLP], procedures={})
    with pytest.raises(ValueError, match='compat must be one of'): sweep([MLP], procedures={'plain': dict(compat='theirs')})


KILLED = '''
import functools, os
import noisymem.train as T
real = T.save_checkpoint
@functools.wraps(real)
def save(path, state, observers=()):
    real(path, state, observers)
    if state.epoch == 2: os.kill(os.getpid(), 9)
T.save_checkpoint = save
from noisymem.sweep import list_runs, load_or_sweep
load_or_sweep(list_runs({contenders}, [.1], **{data}), device='cpu', workers=0)
'''


def test_killed_in_the_middle_it_goes_on_and_is_the_same(results, monkeypatch, trained):
    contenders = [MLP, {'model': 'efficientnet', 'width': .05, 'augment': [['flip', True]]}]  # dropout, batch norm and augmentation
    there = results/'killed'
    env = os.environ | dict(NOISYMEM_RESULTS=str(there), OMP_NUM_THREADS='1')
    small = DATA | dict(n_examples=30)
    process = subprocess.run([sys.executable, '-c', KILLED.replace('{contenders}', repr(contenders[1:])).replace('{data}', repr(small))], env=env, capture_output=True, text=True)
    assert process.returncode == -9, process.stderr
    left = list(there.rglob('*.safetensors'))
    assert len(left) == 1 and not list(there.rglob('*.npz'))
    whole = sweep(contenders[1:], n_examples=30)
    monkeypatch.setenv('NOISYMEM_RESULTS', str(there))
    epochs, real = [], S.Curves.after_epoch
    monkeypatch.setattr(S.Curves, 'after_epoch', functools.wraps(real)(lambda self, state: (epochs.append(state.epoch), real(self, state))[1]))
    resumed = sweep(contenders[1:], n_examples=30)
    assert epochs == [3, 4], 'the epochs before the checkpoint are not trained again'
    assert_same(whole, resumed)
    assert not left[0].exists()


def test_a_damaged_checkpoint_is_no_end(results, capsys):
    path = S.locate_runs(S.list_runs([MLP], [.1], **DATA), device='cpu')[0][2]
    path.parent.mkdir(parents=True)
    path.with_suffix('.safetensors').write_bytes(b'half a file')
    assert sweep([MLP])[0].status[0] == 'done' and 'is damaged' in capsys.readouterr().out


def test_a_damaged_result_is_made_again(trained):
    first = sweep([MLP])
    path = S.locate_runs(S.list_runs([MLP], [.1], **DATA), device='cpu')[0][2]
    assert path.exists(), 'where `load_or_make` put it'
    path.write_bytes(path.read_bytes()[:200])
    assert_same(first, sweep([MLP]))
    assert len(trained) == 2


def test_processes_give_the_same(results, monkeypatch):
    contenders = [MLP, {'model': 'linear'}, MLP | {'lr': 1e9}]
    here = sweep(contenders)
    monkeypatch.setenv('NOISYMEM_RESULTS', str(results/'processes'))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert_same(here, sweep(contenders, workers=2))


def test_what_another_process_trains_is_left_to_it(trained):
    "While the first run is held, the second is trained; then the first, when it is let go."
    runs = S.locate_runs(S.list_runs([MLP, {'model': 'linear'}], [.1], **DATA), device='cpu')
    held = S.FileLock(runs[0][2].with_suffix('.lock'))
    runs[0][2].parent.mkdir(parents=True)
    held.acquire()
    S._train_missing(runs, S.PROCEDURES, 'cpu', done=held.release)
    assert [m for m, *_ in trained] == ['linear', 'mlp']


def test_without_the_truth_and_without_a_test_set():
    cfg = S.list_runs([MLP], [.1], **DATA)[0]
    data = prepare(cfg)[0]
    blind = replace(data, true_label=None, x_test=data.x_test[:0], y_test=data.y_test[:0], noise_info=None)
    found = S.watch_run(cfg, blind, device='cpu')
    last = dict(zip(S.CURVES, found['curves'][-1]))
    assert np.isnan([last[k] for k in ('wrong_fitted', 'correct_fitted', 'wrong_corrected', 'test_accuracy')]).all() and 0 <= last['train_accuracy'] <= 1
    row = S._row_of(0, cfg, blind, found, S._probes_of(found, S.PROCEDURES), 'plain')
    assert np.isnan([row['effective_rate'], row['nominal_rate'], row['test_accuracy']]).all() and np.isfinite(row['zeta'])


def test_seeds_are_rows():
    runs, _, _ = sweep([MLP], seeds=[0, 2])
    assert list(runs.seed) == [0, 2] and runs.zeta[0] != runs.zeta[1] and runs.train_loss[0] != runs.train_loss[1]


def test_schedules_take_their_milestones_from_the_epochs():
    cfg, = S.list_runs([MLP], [.1], ['step'], **DATA | dict(epochs=9))
    assert get_recipe(cfg.recipe).milestones == (4, 6)
    cfg, = S.list_runs([MLP | {'milestones': [1]}], [.1], ['step'], **DATA)
    assert get_recipe(cfg.recipe).milestones == (1,)
    runs, _, _ = sweep([MLP], schedules=['step', 'cosine', 'onecycle', 'constant'])
    assert runs.train_loss.nunique() == 4 and S.name_runs(runs) == [f'mlp, {s}' for s in ('step', 'cosine', 'onecycle', 'constant')]


def test_contenders_are_left_as_they_are():
    contenders = [dict(MLP)]
    S.list_runs(contenders, [.1, .2], ['step'], **DATA)
    assert contenders == [MLP]


def test_correlation_over_runs_and_epochs():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(run=np.repeat(range(9), 7), a=rng.normal(size=63)))
    table['b'] = table.a + np.repeat(rng.normal(size=9), 7) + .1*rng.normal(size=63)
    table.loc[3, 'a'] = np.nan
    found = S.correlate_by_run(table, 'a', 'b').set_index('kind')
    whole = table.dropna()
    for kind, f in dict(pearson=stats.pearsonr, spearman=stats.spearmanr, kendall=stats.kendalltau).items(): assert found.value[kind] == pytest.approx(f(whole.a, whole.b).statistic)
    assert (found.low < found.value).all() and (found.value < found.high).all() and (found.n == 9).all() and (found.n_points == 62).all()
    naive = np.quantile([stats.pearsonr(*whole.sample(62, replace=True, random_state=i)[['a', 'b']].T.to_numpy()).statistic for i in range(300)], [.025, .975])
    assert found.high['pearson'] - found.low['pearson'] > 1.3*(naive[1] - naive[0]), 'epochs of one run are no evidence of their own'


def test_figures_share_their_runs_and_planning_trains_nothing(trained):
    settings = DATA | dict(contenders=[MLP, {'model': 'linear'}], rates=[.1, .01], schedules=['constant'])
    jobs = [make_job(n, settings) for n in ('tab_sweep', 'fig_regions', 'fig_susceptibility_correlation', 'fig_probe_options', 'fig_susceptibility')]
    assert all(find_configs(j, single=True) == find_configs(jobs[0], single=True) and find_configs(j) == [] for j in jobs)
    plan = plan_jobs(jobs, 'cpu')
    assert list(plan.models) == [4, 0, 0, 0, 0] and not trained
    S.load_or_sweep(find_configs(jobs[0], single=True), device='cpu')
    assert list(plan_jobs(jobs[:2], 'cpu').models) == [0, 0] and len(trained) == 4
