"Stopping: the oracles, a slow reference of every rule, online against offline, weights that come back, bad input."
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from noisymem import stopping as S
from noisymem.data import load_dataset, sample
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.recorder import Recorder
from noisymem.stopping_runs import hold_out
from noisymem.train import train

RULES = ('first_extremum', 'label_wave', 'plateau', 'change_point', 'threshold', 'last', 'oracle')


def test_oracle_rules(oracle):
    a = oracle('early_stopping/stopping_rules.npz')
    for case, expected in zip(a['case'], a['values']):
        name, patience = str(case).split('|patience=')
        seq, p = a[f'seq_{name}'], int(patience)
        found = [
            S.first_extremum(seq, 'max', p, 'original'), S.first_extremum(seq, 'min', p, 'original') if len(seq) else 0, S.local_extremum(seq, 'max', max(p, 1)), S.local_extremum(seq, 'min', max(p, 1)),
            S.last_local_extremum(seq, 'max'), S.last_local_extremum(seq, 'min'), S.first_fall(seq, 2)]
        assert found == expected.tolist(), case


def test_oracle_moving_averages(oracle):
    a = oracle('early_stopping/stopping_rules.npz')
    for w in (1, 2, 3, 6):
        for kind in ('trailing', 'performances'): np.testing.assert_allclose(S.smooth(a['ma_input'], w), a[f'ma_{kind}_w{w}'], rtol=1e-6)
    with pytest.raises(ValueError, match=r'window must be in \[1, 6\]'): S.smooth(a['ma_input'], 7)


def test_oracle_prediction_changes(oracle):
    a = oracle('early_stopping/prediction_changes.npz')
    history = dict(prediction_changes=np.r_[np.nan, a['PC']])
    for w in (1, 3, 5):
        np.testing.assert_allclose(S.smooth(a['PC'], w), a[f'PC_ma{w}'], rtol=1e-6)
        for p in (1, 2, 5):
            assert S.first_extremum(S.smooth(a['PC'], w), 'min', p, 'original') == a[f'stop_w{w}_p{p}_first_min_index_in_smoothed']
            stop = S.find_stop(history, dict(signal='prediction_changes', window=w, patience=p, compat='original'))
            assert stop.epoch - 1 == a[f'stop_w{w}_p{p}_best_epoch'], 'epochs here are counted from 1'


def test_oracle_performance_stats(oracle):
    a = oracle('early_stopping/performance_stats.npz')
    for lags, name in ((0, 'no_lag'), (5, 'best_lag')):
        tau, lag = S.lagged_kendall(a['vect_1'], a['vect_2'], lags)
        np.testing.assert_allclose(tau, a[f'kendall_{name}'], atol=1e-9)
        assert lag == a['lag_no_lag' if name == 'no_lag' else 'best_lag']
    mean, sd = S.masked_mean(a['masked_input'])
    np.testing.assert_allclose(mean, a['masked_mean'], atol=1e-6)
    np.testing.assert_allclose(sd, a['masked_std'], atol=1e-6)


def slow_kendall(a, b, lag):
    "SciPy's tau-b of two curves aligned by hand: leading unknown epochs of either left out of both, then the lag, then pairwise complete epochs."
    known = ~(np.isnan(a) | np.isnan(b))
    if not known.any(): return np.nan
    start = max(np.flatnonzero(~np.isnan(v))[0] for v in (a, b))
    a, b = a[start + lag:], b[start:len(b) - lag]
    both = ~(np.isnan(a) | np.isnan(b))
    return stats.kendalltau(a[both], b[both]).statistic if both.sum() > 1 else np.nan


@pytest.mark.parametrize('seed', range(4))
def test_many_lagged_kendalls_are_scipys(seed):
    "Ties, constant curves, infinities, curves that begin late, end early, have holes, or were never measured."
    rng = np.random.default_rng(seed)
    x = rng.integers(0, (4, 100)[seed % 2], (9, 17)).astype(float)
    x[0, :1], x[1, :6], x[2, [4, 9]], x[3], x[4], x[5, -1], x[6, 2] = np.nan, np.nan, np.nan, 7, np.nan, np.nan, np.inf
    with np.errstate(invalid='ignore', divide='ignore'): want = np.array([[[slow_kendall(a, b, lag) for b in x[:7]] for a in x] for lag in range(6)])
    np.testing.assert_allclose(S.lagged_kendalls(x, x[:7], 5), want, atol=1e-12)
    np.testing.assert_allclose(S.kendall(x, x), S.kendall(x, x).T, atol=1e-12)


def test_one_lagged_kendall_is_one_of_many():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.normal(size=14).cumsum(), rng.normal(size=12).cumsum()
        taus = [stats.kendalltau(a[2:][lag:], b[:12 - lag]).statistic for lag in range(6)]
        assert S.lagged_kendall(a, b, 5) == (pytest.approx(max(taus)), int(np.argmax(taus)))
    assert np.isnan(S.lagged_kendall([1, 1, 1], [1, 2, 3])[0])


# a second implementation of every rule, from its definition, on whole sequences

def better(a, b): return a > b + 1e-12*abs(b)


def reference(x, rule):
    "(epoch or None, decided or None) of a signal, by the words of the definition."
    x = np.asarray(x, float)
    w, p, sign, E = rule['window'], np.inf if rule['patience'] is None else rule['patience'], 1 if rule['kind'] == 'max' else -1, len(x)
    if rule['rule'] == 'last': return None, None
    if rule['compat']:
        lead = next((i for i, v in enumerate(x) if not np.isnan(v)), E)
        y = x[lead:]
        if len(y) < w: return None, None
        s = np.array([y[i:i + w].astype(np.float32).mean() for i in range(len(y) - w + 1)])
        i = S.first_extremum(s, rule['kind'], p, 'original')
        return min(i + w + max(lead - 1, 0), E - 1) + 1, None  # a first missing epoch is that of prediction changes
    epochs = [i + 1 for i, v in enumerate(x) if not np.isnan(v)]
    y = [sign*v for v in x if not np.isnan(v)]
    s = [float(np.mean(y[i:i + w])) for i in range(len(y) - w + 1)]
    at = epochs[w - 1:]
    if not s: return None, None
    if rule['rule'] == 'oracle':
        best = 0
        for i in range(len(s)): best = i if better(s[i], s[best]) else best
        return at[best], None
    if rule['rule'] == 'threshold':
        for i in range(len(s)):
            if i + 1 >= p and all(v >= sign*rule['level'] for v in s[i + 1 - int(p):i + 1]): return at[i + 1 - int(p)], at[i]
        return None, None
    if rule['rule'] == 'plateau':
        for i in range(int(p), len(s)):
            part, sofar = s[i - int(p):i + 1], s[:i + 1]
            if max(sofar) > min(sofar) and max(part) - min(part) <= rule['tolerance']*(max(sofar) - min(sofar)): return at[i - int(p)], at[i]
        return None, None
    start = 0 if rule['rule'] == 'label_wave' else next((i for i in range(1, len(s)) if better(s[i], s[i - 1])), None)
    if start is None: return None, None
    if rule['rule'] == 'change_point':
        total, low = 0., start
        for i in range(start + 1, len(s)):
            bends = [abs(s[j] - 2*s[j - 1] + s[j - 2]) for j in range(2, i + 1)]
            if len(bends) > 1: total = max(0, total - (s[i] - s[i - 1])/max(np.median(bends)/(.6745*6**.5), 1e-12*abs(s[i]) + 1e-300) - rule['drift'])
            if total > rule['height']: return at[low], at[i]
            if total == 0: low = i
        return None, None
    best = start
    for i in range(start + 1, len(s)):
        if better(s[i], s[best]): best = i
        elif i - best >= p: return at[best], at[i]
    return (None if best == len(s) - 1 else at[best]), None


def histories(n, seed=0):
    "Random signals: with ties, gaps, constant, monotone, short ones."
    rng = np.random.default_rng(seed)
    for i in range(n):
        E = int(rng.integers(1, 40))
        x = [rng.normal(size=E).cumsum(), rng.integers(0, 4, E).astype(float), rng.integers(0, 30, E)/10, np.abs(np.arange(E) - E/2) + rng.normal(size=E), np.full(E, 3.), np.arange(E, dtype=float), -np.arange(E, dtype=float)][i % 7]
        x = np.array(x)
        if i % 3 == 1: x[rng.random(E) < .2] = np.nan
        if i % 5 == 2: x[0] = np.nan
        yield x


def some_rules(seed=0):
    rng = np.random.default_rng(seed)
    for name in RULES:
        for _ in range(3):
            patience = [1, 2, 3, 7, None][rng.integers(5)] if name != 'plateau' else int(rng.integers(1, 6))
            yield S.make_rule('mine', name, kind=['min', 'max'][rng.integers(2)], window=int(rng.integers(1, 5)), patience=patience, tolerance=.3, level=.5, height=2.)
    for kind in ('min', 'max'):
        for p in (0, 1, 4, 100): yield S.make_rule('mine', kind=kind, window=int(rng.integers(1, 5)), patience=p, compat='original')


def test_every_rule_against_a_reference():
    outcomes = set()
    for k, rule in enumerate(some_rules()):
        for x in histories(28, k):
            stop, = S.walk_signals(x, rule)
            epoch, decided = reference(x, rule)
            assert stop.epoch == epoch, (rule, x.tolist(), stop)
            if not rule['compat']: assert stop.decided == decided, (rule, x.tolist(), stop)
            assert (stop.reason == 'confirmed') == (stop.decided is not None)
            outcomes.add((rule['rule'], stop.reason))
    assert {r for _, r in outcomes} == {'confirmed', 'end of training', 'still improving', 'never turns', 'too few epochs', 'last', 'best'}


def test_columns_are_single_walks():
    rng = np.random.default_rng(0)
    for rule in some_rules():
        values = np.where(rng.random((20, 12)) < .1, np.nan, rng.normal(size=(20, 12)).cumsum(0).round(1))
        window, patience = rng.integers(1, 6, 12), rng.integers(1, 6, 12)
        together = S.walk_signals(values, rule, window, patience)
        assert together == [S.walk_signals(values[:, j], rule | dict(window=int(window[j]), patience=int(patience[j])))[0] for j in range(12)]


def test_a_walk_never_looks_ahead():
    for rule in some_rules(1):
        for x in histories(14, 5):
            whole, = S.walk_signals(x, rule)
            if whole.decided: assert S.walk_signals(x[:whole.decided], rule) == [whole]
            if whole.decided and whole.decided > 1: assert S.walk_signals(x[:whole.decided - 1], rule)[0].decided is None


class Fake:
    def __init__(self, epochs): self.model, self.recipe, self.epoch, self.stop = nn.Linear(1, 1), type('R', (), dict(epochs=epochs)), 0, False


def loop(stopper, x, state=None, until=None):
    state = state or Fake(len(x))
    while state.epoch < (until or len(x)) and not state.stop:
        stopper.before_epoch(state)
        state.epoch += 1
        nn.init.constant_(state.model.weight, state.epoch)
        stopper.after_epoch(state)
    return state


@pytest.mark.parametrize('in_files', [False, True])
def test_online_is_offline_and_the_right_weights_come_back(in_files, tmp_path):
    for k, rule in enumerate(list(some_rules(2))[::3 if in_files else 1]):
        for i, x in enumerate(histories(7 if in_files else 21, k)):
            if rule['window'] > len(x) and rule['rule'] != 'last': continue
            folder = tmp_path/f'{k}-{i}' if in_files else None
            source = lambda state: x[state.epoch - 1]
            stopper, most = S.Stopper(rule, source, folder=folder), 0
            state = loop(stopper, x)
            expected, = S.walk_signals(x, rule)
            assert stopper.answer == expected
            if np.isfinite(x).any() and rule['rule'] != 'last': assert S.find_stop(dict(mine=x), rule) == expected
            assert state.epoch == (expected.decided or len(x))
            stopper.restore(state.model)
            assert state.model.weight.item() == (expected.epoch or len(x)), (rule, x)
            assert len(stopper.ring.kept) <= (2*(rule['patience'] + 2) if rule['rule'] == 'plateau' else 3)
            if in_files and folder.exists(): assert sorted(p.name for p in folder.iterdir()) == [f'epoch-{e:05}.safetensors' for e in sorted(stopper.ring.kept)]


def test_a_run_that_is_broken_off_goes_on(tmp_path):
    rng = np.random.default_rng(3)
    for k, rule in enumerate(list(some_rules(3))[::2]):
        for i, x in enumerate(histories(5, k)):
            if rule['window'] > len(x): continue
            for folder in (None, tmp_path/f'{k}-{i}'):
                source, cut = (lambda state: x[state.epoch - 1]), int(rng.integers(0, len(x)))
                first = S.Stopper(rule, source, folder=folder)
                state = loop(first, x, until=cut)
                saved, done = {n: v.clone() for n, v in first.save().items()}, state.epoch
                if folder is not None and not state.stop and cut < len(x): loop(first, x, Fake(len(x)) if cut == 0 else state, until=cut + 1)  # killed after the weights, before the checkpoint
                second, again = S.Stopper(rule, source, folder=folder), Fake(len(x))
                second.load(saved)
                again.epoch, again.stop = done, bool(second.walk.decided[0])
                loop(second, x, again)
                assert second.answer == S.walk_signals(x, rule)[0]
                if again.epoch > done: second.restore(again.model); assert again.model.weight.item() == (second.answer.epoch or len(x))


@pytest.fixture(scope='module')
def noisy_digits(): return sample(add_noise(load_dataset('digits'), 'symmetric-0.4'), 300, 0)


class Accuracy:
    def __init__(self): self.rows, self.weights = [], []

    def after_epoch(self, state):
        self.rows.append((state.evaluation.logits.argmax(1) == state.data.true_label).double().mean().item())
        self.weights.append({k: v.clone() for k, v in state.model.state_dict().items()})


def test_in_a_real_training(noisy_digits, tmp_path):
    recipe = dict(name='digits', epochs=14, schedule='constant')
    rule = dict(signal='clean_train_accuracy', kind='max', window=2, patience=3)
    def run(epochs, checkpoint=None, **options):
        watch = Accuracy()
        stopper = S.Stopper(rule, lambda state: watch.rows[-1], **options)
        return train(make_model('mlp', 10, (1, 8, 8), seed=1), noisy_digits, recipe | dict(epochs=epochs), seed=1, observers=[watch, stopper], device='cpu', checkpoint=checkpoint), watch, stopper
    whole, watch, passive = run(14, ends=False)
    offline = S.find_stop(dict(clean_train_accuracy=watch.rows), rule)
    assert whole.epoch == 14 and passive.answer == offline and offline.reason == 'confirmed'
    state, short, stopper = run(14, folder=tmp_path/'ring', checkpoint=tmp_path/'run.safetensors')
    assert state.epoch == offline.decided and stopper.answer == offline and short.rows == watch.rows[:offline.decided]
    assert stopper.restore(state.model) == offline
    for k, v in state.model.state_dict().items(): assert torch.equal(v, watch.weights[offline.epoch - 1][k])
    again, _, kept = run(14, folder=tmp_path/'ring', checkpoint=tmp_path/'run.safetensors')  # nothing is left to train
    assert again.epoch == offline.decided and kept.answer == offline
    kept.restore(again.model)
    for k, v in again.model.state_dict().items(): assert torch.equal(v, watch.weights[offline.epoch - 1][k])


@pytest.mark.parametrize('rule', [dict(signal='prediction_changes'), dict(signal='cnd:histogram', percentile=75), dict(signal='cnd:debiased', layer=0), dict(signal='noisy_validation_accuracy', rule='label_wave', kind='max'), dict(signal='train_loss', rule='plateau', tolerance=.3)])
def test_with_a_recorder(noisy_digits, rule, tmp_path):
    rule = rule | dict(window=2, patience=2)
    data, rows, positions = hold_out(noisy_digits, .1, polluted=.1)
    def run(ends):
        recorder = Recorder(parts=rows)
        stopper, keep = S.Stopper(rule, recorder, folder=tmp_path/str(ends), ends=ends), Accuracy()
        return train(make_model('mlp', 10, (1, 8, 8), seed=2), data, dict(name='digits', epochs=12, schedule='constant'), 2, positions, observers=[recorder, stopper, keep], device='cpu'), recorder, stopper, keep
    _, recorder, passive, keep = run(False)
    state, _, stopper, _ = run(True)
    stop = S.find_stop(recorder.history, rule, recorder.layout)
    assert passive.answer == stop and stopper.answer == stop and state.epoch == (stop.decided or 12)
    stopper.restore(state.model)
    for k, v in state.model.state_dict().items(): assert torch.equal(v, keep.weights[(stop.epoch or 12) - 1][k])


def test_a_recorder_that_stands_behind_or_does_not_know(noisy_digits):
    for rule, order, message in ((dict(signal='prediction_changes'), 1, 'stands before the stopper'), (dict(signal='cnd:ecf'), -1, "signal must be one of .*got 'cnd:ecf'")):
        recorder = Recorder()
        with pytest.raises(ValueError, match=message): train(make_model('mlp', 10, (1, 8, 8)), noisy_digits, 'digits', observers=[S.Stopper(rule, recorder), recorder][::order], device='cpu')


def test_bundles_online():
    rng, layout = np.random.default_rng(0), dict(layers=['a', 'b'], layer_of_neuron=np.repeat([0, 1], [3, 4]))
    cnd = rng.normal(size=(25, 7)).cumsum(0)
    for percentile, layer in ((90, -1), (10, 'a'), (50, 'all')):
        rule = dict(signal='cnd:histogram', window=2, patience=3, percentile=percentile, layer=layer)
        stopper = S.Stopper(rule, lambda state: cnd[state.epoch - 1], layout=lambda: layout)
        loop(stopper, cnd)
        assert stopper.answer == S.find_stop({'cnd:histogram': cnd}, rule, layout)


def test_percentiles_against_numpy():
    rng, where = np.random.default_rng(1), np.array([1, 0, 1, 2, 2, 0])
    layout, values = dict(layers=np.array(['x', 'y', 'z']), layer_of_neuron=where), rng.normal(size=(9, 6)).astype(np.float32)
    for layer, inside in ((-1, where == 2), ('y', where == 1), (0, where == 0), ('all', where >= 0)):
        np.testing.assert_allclose(S.extract_signal(dict(cnd=values), 'cnd', layout, [0, 37, 90], layer), np.percentile(values[:, inside].astype(float), [0, 37, 90], axis=1).T)
    values[2], values[4, 3] = np.nan, np.nan
    found = S.extract_signal(dict(cnd=values), 'cnd', layout, 50.)
    assert np.isnan(found[2]) and found[4] == values[4, 4] and not np.isnan(np.delete(found, 2)).any()


def test_atlas_against_single_rules():
    rng, layout = np.random.default_rng(2), dict(layers=['a', 'b'], layer_of_neuron=np.repeat([0, 1], 5))
    history = {'cnd:histogram': rng.normal(size=(30, 10)).cumsum(0), 'prediction_changes': np.r_[np.nan, rng.integers(0, 50, 29)], 'test_accuracy': rng.random(30), 'noisy_validation_accuracy': np.full(30, np.nan)}
    atlas = S.make_atlas(history, layout, windows=(1, 3, 40), patiences=(1, 4, None), percentiles=(10., 90.))
    assert len(atlas) == 2*3*(2*2 + 1) and set(atlas.signal) == {'cnd:histogram', 'prediction_changes'}
    for r in atlas.itertuples():
        rule = dict(signal=r.signal, window=r.window, patience=None if r.patience == np.inf else int(r.patience)) | (dict(layer=r.layer, percentile=r.percentile) if r.layer else {})
        stop = S.find_stop(history, rule, layout)
        assert (r.reason, r.epoch) == (stop.reason, stop.epoch or 30)
        assert r.regret == pytest.approx(history['test_accuracy'].max() - history['test_accuracy'][r.epoch - 1])


def test_an_atlas_takes_seconds():
    import time
    rng, layout = np.random.default_rng(2), dict(layers=list('abcde'), layer_of_neuron=np.repeat(range(5), 192))
    history = {f'cnd:{k}': rng.random((100, 960)) for k in ('histogram', 'debiased')} | dict(test_accuracy=rng.random(100))
    start = time.process_time()
    atlas = S.make_atlas(history, layout)
    assert len(atlas) == 2*5*7*6*7 and time.process_time() - start < 3


def test_intervals_of_three_seeds():
    found = S.summarise_stops([.01, .03, .02], [.1, .2, .1])
    assert found['regret_low'] >= .01 and found['regret_high'] <= .03 and found['recovered'] == pytest.approx(1 - .06/.4)
    assert np.isnan(S.summarise_stops([0, 0], [0, 0])['recovered_low'])
    assert S.judge_stop([.5, .7, np.nan, .6], S.Stop(3, 'x'))['accuracy'] in (.7, .6)


@pytest.mark.parametrize('rule, message', [
    (dict(signal='cnd:kde'), "signal must be one of 'cnd:histogram', 'prediction_changes', got 'cnd:kde'"), (dict(signal='cnd:histogram', layer='conv9'), "layer must be one of 'a', 'all', or an index in \\[-1, 1\\), got 'conv9'"),
    (dict(signal='cnd:histogram', layer=1), 'layer must be'), (dict(signal='prediction_changes', window=9), 'window must be at most the 4 epochs of the history, got 9'), (dict(signal='prediction_changes'), 'must hold at least one number, got NaN in all 4 epochs'),
    (dict(signal='cnd:histogram', rule='stop'), 'rule must be one of'), (dict(signal='cnd:histogram', percentile=-1), 'percentile must be in'), (dict(signal='cnd:histogram', window=1.5), 'window must be a whole number'),
    (dict(signal='cnd:histogram', rule='plateau', patience=None), 'patience must be finite'), (dict(signal='cnd:histogram', bogus=1), 'setting must be one of')])
def test_bad_input(rule, message):
    history = {'cnd:histogram': np.ones((4, 2)), 'prediction_changes': np.full(4, np.nan)}
    if 'window' in rule: history['prediction_changes'][1] = 5
    with pytest.raises(ValueError, match=message): S.find_stop(history, rule, dict(layers=['a'], layer_of_neuron=[0, 0]))


def test_damaged_weights_are_named(tmp_path):
    x = [5, 4, 3, 4, 5.]
    stopper = S.Stopper(dict(signal='mine', kind='min', window=1, patience=2), lambda state: x[state.epoch - 1], folder=tmp_path)
    state = loop(stopper, x)
    stopper.ring.path(3).write_bytes(b'none')
    with pytest.raises(ValueError, match='the weights of epoch 3 cannot be read'): stopper.restore(state.model)


def test_a_layout_that_holds_nothing_is_none():
    "A recorder without neurons leaves an empty layout, and a bundle such as class graph entropy met a KeyError."
    bundle = np.random.default_rng(0).normal(size=(12, 3))
    rule = S.make_rule(signal='class_graph_entropy', kind='max', window=2, patience=2)
    assert S.find_stop({'class_graph_entropy': bundle}, rule, {}) == S.find_stop({'class_graph_entropy': bundle}, rule)
    assert len(S.make_atlas({'class_graph_entropy': bundle, 'test_accuracy': bundle[:, 0]}, {})) == len(S.make_atlas({'class_graph_entropy': bundle, 'test_accuracy': bundle[:, 0]}))
