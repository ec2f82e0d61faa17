"The recorder: online = offline, a pass that is shared, any module, bad input; and the histories that are kept."
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from noisymem import stopping_table
from noisymem.data import from_arrays, load_dataset, sample
from noisymem.dropouts import tied
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.recorder import MEASURES, Recorder, find_points, record_signals, signals_of_records, watch, watched
from noisymem.signals.divergence import histogram_divergence
from noisymem.signals.predictions import check_parts, label_fit, memorized_share, pollute, prediction_changes
from noisymem.stopping_runs import flat_weights, hold_out, load_or_run_history, unflatten_weights
from noisymem.train import Dynamics, Recipe, predict, supervised, train

RECIPE = Recipe(epochs=4, batch_size=32, augment=(), precision='fp32')


class Keep:
    def __init__(self): self.weights = []
    def after_epoch(self, state): self.weights.append(copy.deepcopy(state.model.state_dict()))


@pytest.fixture(scope='module')
def blobs():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    given = np.where(rng.random(120) < .3, (y + 1) % 3, y)
    return from_arrays((rng.normal(size=(120, 5)) + 2*np.eye(5)[y]).astype('float32'), given, true_label=y, x_test=rng.normal(size=(30, 5)).astype('float32'), y_test=rng.integers(0, 3, 30), class_names=('a', 'b', 'c'))


def test_every_signal_is_the_same_afterwards(blobs):
    more, parts, positions = hold_out(blobs, .1, .1, .1)
    settings = dict(signals=list(MEASURES), parts=parts)
    keep, recorder, net = Keep(), Recorder(**settings), make_model('mlp', 3, (5,), width=.05)
    train(net, more, RECIPE, positions=positions, observers=[recorder, keep], device='cpu')
    history, layout = record_signals(make_model('mlp', 3, (5,), width=.05, seed=9), more, keep.weights, 'cpu', precision='fp32', **settings)
    assert set(recorder.history) - set(history) == {'objective', 'gradient_norm', 'gradient_evidence'}
    for k, v in history.items(): np.testing.assert_array_equal(v, recorder.history[k], err_msg=k)
    d = len(layout['layer_of_neuron'])
    assert history['cnd:kde'].shape == (4, d) and history['class_graph_entropy'].shape == (4, 3) and history['memorized'].shape == (4,)
    assert np.isnan(history['prediction_changes'][0]) and np.isfinite(history['prediction_changes'][1:]).all()
    assert (recorder.history['gradient_evidence'] < 1).all() and (recorder.history['gradient_norm'] > 0).all()


@pytest.mark.parametrize('sample', [0, 40])
def test_against_predictions_made_by_hand(blobs, sample):
    more, parts, positions = hold_out(blobs, .1, polluted=.2)
    keep, dynamics, net = Keep(), Dynamics(), make_model('mlp', 3, (5,), width=.05)
    recorder = Recorder(['cnd:histogram'], parts=parts, sample=sample)
    train(net, more, RECIPE, positions=positions, observers=[dynamics, recorder, keep], device='cpu')
    h, rows = recorder.history, parts['train'].numpy()
    p = np.stack([r['prediction'].numpy() for r in dynamics.rows])
    given, true = more.given_label.numpy(), more.true_label.numpy()
    if not sample:
        np.testing.assert_array_equal(h['prediction_changes'][1:], prediction_changes(p[:, rows])[1:])
        np.testing.assert_allclose(h['train_accuracy'], (p == given)[:, rows].mean(1))
        np.testing.assert_allclose(h['memorized'], [memorized_share(q[rows], given[rows], true[rows]) for q in p])
        net.load_state_dict(keep.weights[-1])
        with watch(net, find_points(net)) as seen: predict(net, more.x, more.mean, more.std)
        values = torch.cat([torch.cat(v) for v in seen.values()], 1)
        np.testing.assert_allclose(h['cnd:histogram'][-1], histogram_divergence(values[rows], more.given_label[rows], 3), atol=1e-6)
    held, copies = parts['noisy_validation'].numpy(), parts['polluted'].numpy()
    np.testing.assert_allclose(h['noisy_validation_accuracy'], (p == given)[:, held].mean(1))
    np.testing.assert_allclose(h['clean_validation_accuracy'], (p == true)[:, held].mean(1))
    np.testing.assert_allclose(h['polluted_accuracy'], (p == given)[:, copies].mean(1))


def test_one_pass_is_shared(blobs, monkeypatch):
    looks, net = [], make_model('mlp', 3, (5,), width=.05)
    import noisymem.recorder, noisymem.train
    for module, name in ((noisymem.recorder, '_pass'), (noisymem.train, 'predict')):
        def count(*a, look=getattr(module, name), **k): looks.append(len(a[1])); return look(*a, **k)
        monkeypatch.setattr(module, name, count)
    train(net, blobs, RECIPE, observers=[Recorder(['cnd:histogram']), Dynamics()], device='cpu')
    assert sorted(looks) == [30]*4 + [120]*4, 'one look at the training set and one at the test set per epoch'


def test_recording_changes_nothing(blobs):
    def run(observers): return train(make_model('mlp', 3, (5,), width=.05), blobs, RECIPE, observers=observers, device='cpu').model.state_dict()
    plain, watched = run([]), run([Recorder(list(MEASURES))])
    for k in plain: assert torch.equal(plain[k], watched[k])


def test_a_run_that_was_cut_off_goes_on(blobs, tmp_path):
    def run(epochs, name):
        r = Recorder(['cnd:gaussian', 'weight_norm'], every=2)
        train(make_model('mlp', 3, (5,), width=.05), blobs, RECIPE, observers=[r, lambda s: setattr(s, 'stop', s.epoch == epochs)], device='cpu', checkpoint=tmp_path/name)
        return r
    whole = run(4, 'a').history
    run(2, 'b')
    import json
    from safetensors import safe_open
    from safetensors.torch import save_file
    with safe_open(tmp_path/'b', 'pt') as f: about, tensors = json.loads(f.metadata()['noisymem']), {k: f.get_tensor(k) for k in f.keys()}
    save_file(tensors, tmp_path/'b', metadata={'noisymem': json.dumps(about | dict(stop=False))})
    again = run(4, 'b').history
    for k in whole: np.testing.assert_array_equal(whole[k], again[k], err_msg=k)


class Foreign(nn.Module):
    "Somebody's network: activations in place, two outputs of a module, a module used twice."
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.rnn, self.out = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)
        self.twice = nn.Tanh()

    def forward(self, x):
        h = self.act(self.conv(x)).flatten(2).transpose(1, 2)
        return self.out(self.twice(self.twice(self.rnn(h)[0])).mean(1))


@pytest.fixture(scope='module')
def images(): return from_arrays(np.random.default_rng(1).integers(0, 256, (40, 6, 6, 1), dtype=np.uint8), np.arange(40) % 2, layout='NHWC', class_names=('a', 'b'))


def test_any_module(images):
    net = Foreign().train()
    history, layout = record_signals(net, images, [net.state_dict()]*2, 'cpu', points=['conv', 'act:in', 'rnn', 'out'], signals=['cnd:histogram', 'loss_sensitivity', 'weight_norm'])
    assert np.bincount(layout['layer_of_neuron']).tolist() == [3, 3, 4, 2] and net.training
    np.testing.assert_array_equal(history['cnd:histogram'][0][:3], history['cnd:histogram'][0][3:6])
    assert history['prediction_changes'][1] == 0 and np.isnan(history['test_loss']).all() and np.isnan(history['memorized']).all()
    mean, _ = record_signals(net, images, [net.state_dict()], 'cpu', points=['conv'], reduce='mean', signals=['cnd:histogram'])
    own, _ = record_signals(net, images, [net.state_dict()], 'cpu', points=['conv'], reduce=lambda t: t.mean((2, 3)), signals=['cnd:histogram'])
    np.testing.assert_array_equal(mean['cnd:histogram'], own['cnd:histogram'])


def test_what_cannot_be_watched_is_named(images):
    net = Foreign()
    def look(**k): return record_signals(net, images, [net.state_dict()], 'cpu', **({'signals': ['cnd:histogram']} | k))
    with pytest.raises(ValueError, match="'conv9'; known are conv, act"): look(points=['conv9'])
    with pytest.raises(ValueError, match='passed once by every example, got 80 values of 40'): look(points=['twice'])
    net.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'unused', which it does not use"): look(points=['unused'])
    del net.unused
    with pytest.raises(ValueError, match='reduce must be one of'): look(points=['conv'], reduce='median')
    broken = copy.deepcopy(net)
    with torch.no_grad(): broken.conv.weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='logits must be finite'): record_signals(broken, images, [broken.state_dict()], 'cpu', points=['conv'])
    with pytest.raises(ValueError, match='every must be in'): Recorder(every=0)
    with pytest.raises(ValueError, match='options must be one of'): Recorder(options={'cnd:x': {}})


def test_choices_of_the_divergence(blobs):
    net = make_model('mlp', 3, (5,), width=.05)
    def look(**options): return record_signals(net, blobs, [net.state_dict()], 'cpu', signals=['cnd:histogram'], options=dict(cnd=options))[0]['cnd:histogram'][0]
    everything, correct = look(), look(rows='correct')
    assert not np.array_equal(everything, correct) and np.array_equal(look(rows='original'), correct)
    assert not np.array_equal(everything, look(given='prediction')) and not np.array_equal(everything, look(bins=5))
    with pytest.raises(ValueError, match='rows must be one of'): look(rows='wrong')
    used = lambda **o: record_signals(net, blobs, [net.state_dict()], 'cpu', signals=['classes_used'], options=dict(cnd=o))[0]['classes_used'][0]
    said = predict(net, blobs.x, blobs.mean, blobs.std).logits.argmax(1)
    assert (used(), used(given='prediction'), used(rows='correct'), used(min_count=121)) == (3, len(said.unique()), len(said[said == blobs.given_label].unique()), 0)


def test_epochs_that_are_not_measured_and_samples(blobs):
    keep = Keep()
    train(make_model('mlp', 3, (5,), width=.05), blobs, RECIPE, observers=[keep], device='cpu')
    def look(**k): return record_signals(make_model('mlp', 3, (5,), width=.05), blobs, keep.weights, 'cpu', signals=['cnd:gaussian', 'loss_sensitivity'], **k)[0]
    whole, rare, few = look(), look(every=3), look(sample=50)
    np.testing.assert_array_equal(np.isnan(rare['loss_sensitivity']), [False, True, True, False])
    for k in whole: np.testing.assert_array_equal(whole[k][[0, 3]] if k != 'prediction_changes' else whole[k], rare[k][[0, 3]] if k != 'prediction_changes' else rare[k])
    assert np.nanmax(few['prediction_changes']) <= 50 and np.array_equal(few['cnd:gaussian'], look(sample=50)['cnd:gaussian']) and np.array_equal(few['test_loss'], whole['test_loss'])
    np.testing.assert_array_equal(look(sample=500)['cnd:gaussian'], whole['cnd:gaussian'])


@pytest.mark.parametrize('name, shape, width, widths', [
    ('resnet18', (3, 16, 16), 1, [64, 128, 256, 512]), ('resnet9', (3, 16, 16), 1, [64, 128, 256, 512]), ('preact_resnet18', (3, 16, 16), .125, [8, 16, 32, 64]),
    ('vgg19', (3, 32, 32), 1/64, [1, 2, 4, 8, 8, 64, 64]), ('vit', (3, 8, 8), .5, [32]*4), ('lenet', (1, 28, 28), 1, [20, 50, 500]), ('fcn', (9,), .25, [32]*5), ('news', (60,), .1, [120, 30]), ('fast', (3, 8, 8), 1, [32, 64, 128])])
def test_where_it_looks(name, shape, width, widths):
    net = make_model(name, 10, shape, width=width).eval()
    with watch(net, find_points(net)) as seen, torch.no_grad(): net(torch.rand(2, *shape))
    assert [v[0].shape[1] for v in seen.values()] == widths and all(len(v) == 1 for v in seen.values())


def test_gradients_of_a_few_inputs_are_taken_in_the_precision_of_the_run(images):
    net, kinds = make_model('fast', 2, (1, 6, 6), width=.2), set()
    net.register_forward_hook(lambda m, args, out: kinds.add((torch.is_grad_enabled(), out.dtype)))
    settings = dict(signals=['loss_sensitivity', 'critical_sample_ratio', 'frozen_gradient'], test=False)
    exact, coarse = (Recorder(**settings).observe(net, images, precision) for precision in ('fp32', 'bf16'))
    assert net.training and {k for k in kinds if k[0]} == {(True, torch.float32), (True, torch.bfloat16)}
    for name in ('loss_sensitivity', 'frozen_gradient_norm'):
        assert coarse[name] != exact[name] and coarse[name] == pytest.approx(exact[name], rel=.05)


def test_an_example_of_none_of_the_classes():
    true = torch.tensor([0, 1, -1, -1]); given = torch.tensor([0, 1, 0, 1])
    from noisymem.signals.predictions import prediction_signals
    now = prediction_signals(5*torch.eye(2)[[0, 0, 0, 0]], given, true, parts=dict(clean_validation=[1, 2]))
    assert (now['clean_train_accuracy'], now['memorized'], now['clean_validation_accuracy']) == (.5, .5, 0)


def test_a_weight_without_gradient_in_some_batches(blobs):
    class Sometimes(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.act, self.n = nn.Linear(5, 3), nn.Linear(5, 3), nn.ReLU(), 0
        def forward(self, x):
            self.n += self.training
            return self.act(self.a(x)) if self.n % 2 else self.act(self.a(x) + self.b(x))
    r = Recorder(['gradient'])
    train(Sometimes(), blobs, replace(RECIPE, momentum=0.), observers=[r], device='cpu')
    assert np.isfinite(r.history['gradient_evidence']).all()


def test_words_that_are_looked_up():
    data = from_arrays(np.random.default_rng(0).integers(0, 9, (30, 12)).astype('float32'), np.arange(30) % 3, class_names=('a', 'b', 'c'))
    data = replace(data, mean=(0.,)*12, std=(1.,)*12)
    net = make_model('news_words', 3, (12,), width=.02)
    history, _ = record_signals(net, data, [net.state_dict()], 'cpu', signals=[s for s in MEASURES if s != 'cnd:ecf'])
    assert np.isnan(history['loss_sensitivity']).all() and np.isnan(history['critical_sample_ratio']).all() and np.isfinite(history['cnd:histogram']).all()


def test_from_records(blobs):
    more, parts, positions = hold_out(blobs, .1, .1, .2)
    dynamics, recorder = Dynamics(), Recorder([], parts=parts)
    train(make_model('mlp', 3, (5,), width=.05), more, RECIPE, positions=positions, observers=[dynamics, recorder], device='cpu')
    got = signals_of_records(dynamics.records(more), more.true_label, parts)
    for k, v in got.items(): np.testing.assert_allclose(v, recorder.history[k], rtol=2e-3 if 'lo' in k.split('_')[-1] else 1e-12, err_msg=k)
    blind = signals_of_records(dynamics.records(more))
    assert np.isnan(blind['memorized']).all() and np.isnan(blind['polluted_loglik']).all() and np.isfinite(blind['prediction_changes'][1:]).all()


def test_no_example_for_a_class_and_one_example():
    data = from_arrays(np.random.default_rng(0).normal(size=(6, 2)).astype('float32'), [0, 0, 0, 2, 2, 2], class_names=tuple('abcd'))
    net = make_model('mlp', 4, (2,), width=.02)
    history, _ = record_signals(net, data, [net.state_dict()], 'cpu', signals=[s for s in MEASURES])
    assert np.isfinite(history['cnd:histogram']).all() and np.isnan(history['class_graph_entropy'][0]).tolist() == [False, True, False, True]
    one, _ = record_signals(net, data, [net.state_dict()], 'cpu', signals=[s for s in MEASURES], parts=dict(train=[0]))
    assert (one['cnd:histogram'] == 0).all()


def test_polluted_copies_are_wrong_and_drawn_from_where_they_should(blobs):
    more, copies = pollute(blobs, .5, seed=1, sources='clean')
    assert len(copies) == (~blobs.is_noisy).sum()//2
    for i in copies:
        origin = [j for j in range(120) if torch.equal(blobs.x[j], more.x[i])]
        assert any(not blobs.is_noisy[j] and more.true_label[i] == blobs.true_label[j] for j in origin) and more.given_label[i] != more.true_label[i]
    assert len(more.index.unique()) == more.n
    counts = np.bincount([int((more.given_label[i] - more.true_label[i]) % 3) for i in copies], minlength=3)
    assert counts[0] == 0 and abs(counts[1] - counts[2]) < 4*np.sqrt(len(copies))
    two = from_arrays(np.zeros((4, 2), 'float32'), [0, 1, 0, 1], true_label=[1, 0, 1, 0], class_names=('a', 'b'))
    with pytest.raises(ValueError, match='no third class'): pollute(two, 1.)


def test_published_prediction_changes(oracle):
    d = oracle('early_stopping/prediction_changes.npz')
    np.testing.assert_array_equal(prediction_changes(d['predictions'])[1:], d['PC'])


def test_parts_are_apart(blobs):
    more, parts, positions = hold_out(blobs, .2, .1, .1, polluted_use='trained')
    sets = {k: set(v.tolist()) for k, v in parts.items()}
    assert len(set.union(*sets.values())) == sum(map(len, sets.values())) == more.n and set(positions.tolist()) == sets['train'] | sets['polluted']
    with pytest.raises(ValueError, match='positions in'): check_parts(dict(polluted=[9]), 5)
    assert np.isnan(label_fit(torch.zeros(0, 2), [])).all()


def test_histories_are_kept(blobs, tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    how = dict(model='mlp', recipe=RECIPE, width=.05, keep_weights=True, signals=['cnd:histogram', 'susceptibility', 'weight_norm'], device='cpu')
    history, layout = load_or_run_history(blobs, **how)
    import noisymem.stopping_runs
    monkeypatch.setattr(noisymem.stopping_runs, 'make_model', None)
    again, again_layout = load_or_run_history(blobs, **how)
    for k in history | layout: np.testing.assert_array_equal((history | layout)[k], (again | again_layout)[k])
    monkeypatch.undo()
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    other, _ = load_or_run_history(blobs, **how | dict(seed=1))
    assert not np.array_equal(other['train_loss'], history['train_loss'])
    net = make_model('mlp', 3, (5,), width=.05)
    net.load_state_dict(unflatten_weights(net, layout['weights'][-1]))
    assert abs(history['weight_norm'][-1] - np.sqrt((layout['weights'][-1].astype(float)**2).sum())) < 1e-6 and torch.equal(flat_weights(net), torch.tensor(layout['weights'][-1]))
    assert np.isnan(history['susceptibility'][-1]) and np.isfinite(history['susceptibility'][:-1]).all()
    np.testing.assert_array_equal(layout['layers'], find_points(net))


# a training look: what passes while it is trained on

class Wobbly(nn.Module):
    "Statistics of the batch and dropout: in training it says other things than afterwards."
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act, self.drop, self.out = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(.2), nn.Linear(6, 2)

    def forward(self, x): return self.out(self.drop(self.act(self.norm(self.conv(x))).mean((2, 3))))


def wobbly():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Wobbly()


MOVING = Recipe(epochs=3, batch_size=16, lr=.05, augment=(('crop', 2), ('flip', True)), label_smoothing=.1, precision='fp32')


def test_a_training_look_against_hooks_by_hand(images):
    parts, positions = dict(train=torch.arange(3, 30), noisy_validation=torch.arange(30, 40)), torch.arange(3, 30).flip(0)
    recorder, keep, said = Recorder(['cnd:histogram', 'activation_frequency', 'gradient'], parts=parts, look='training'), Keep(), []
    def objective(model, batch):
        logits = model(batch.x)
        said[-1] |= {int(i): (l, v) for i, l, v in zip(batch.position, logits.detach().clone(), model.norm_out)}
        return supervised(label_smoothing=.1)(lambda x: logits, batch)
    net = wobbly()
    net.norm.register_forward_hook(lambda m, a, o: setattr(net, 'norm_out', o.detach().amax((2, 3))))
    class Page:
        def before_epoch(self, state): said.append({})
    train(net, images, MOVING, positions=positions, objective=watched(recorder, objective), observers=[Page(), recorder, keep], device='cpu')
    h, given = recorder.history, images.given_label
    logits, values = (torch.stack([torch.stack([epoch[i][k] for i in range(3, 30)]) for epoch in said]) for k in (0, 1))
    np.testing.assert_array_equal(h['train_accuracy'], (logits.argmax(2) == given[3:30]).double().mean(1))
    np.testing.assert_array_equal(h['prediction_changes'][1:], (logits.argmax(2)[1:] != logits.argmax(2)[:-1]).sum(1))
    np.testing.assert_allclose(h['train_loss'], [nn.functional.cross_entropy(l, given[3:30]) for l in logits], rtol=1e-6)
    for e in range(3): np.testing.assert_array_equal(h['cnd:histogram'][e], histogram_divergence(values[e], given[3:30], 2))
    np.testing.assert_allclose(h['activation_frequency'], (values > 0).float().mean(1), rtol=1e-6)
    own, _ = record_signals(wobbly(), images, keep.weights, 'cpu', precision='fp32', signals=[], parts=parts, points=['norm'])
    for k in ('noisy_validation_accuracy', 'noisy_validation_loss'): np.testing.assert_allclose(h[k], own[k], rtol=1e-6, err_msg=k)
    assert not np.array_equal(h['train_loss'], own['train_loss']) and (h['gradient_norm'] > 0).all()


@pytest.mark.parametrize('smoothing', [0., .1])
def test_a_training_look_changes_nothing_and_makes_no_pass(images, monkeypatch, smoothing):
    import noisymem.recorder, noisymem.train
    recipe, looks, passed = replace(MOVING, label_smoothing=smoothing), [], noisymem.recorder._pass
    plain = train(wobbly(), images, recipe, positions=range(35), device='cpu').model.state_dict()
    monkeypatch.setattr(noisymem.recorder, '_pass', lambda *a, **k: looks.append(len(a[1])) or passed(*a, **k))
    monkeypatch.setattr(noisymem.train, 'predict', None)
    recorder = Recorder(['cnd:histogram'], parts=dict(train=range(30), polluted=range(30, 35), clean_validation=range(37, 40)), look='training')
    seen = train(wobbly(), images, recipe, positions=range(35), objective=watched(recorder), observers=[recorder], device='cpu').model.state_dict()
    for k in plain: assert torch.equal(plain[k], seen[k])
    assert looks == [5]*3, 'the rows that are not trained on'


def test_where_nothing_moves_both_looks_agree(blobs):
    more, parts, positions = hold_out(blobs, .1, polluted=.1)
    still, settings = Recipe(epochs=2, batch_size=16, lr=1e-30, momentum=0., weight_decay=0., augment=(), precision='fp32'), dict(signals=[s for s in MEASURES if s != 'cnd:debiased'], parts=parts)
    one, other = Recorder(**settings), Recorder(**settings, look='training')
    train(make_model('mlp', 3, (5,), width=.05), more, still, positions=positions, objective=watched(other), observers=[one, other], device='cpu')
    assert set(one.history) == set(other.history)
    for k, v in one.history.items(): np.testing.assert_allclose(other.history[k], v, rtol=2e-4, atol=2e-5, err_msg=k)
    assert one.layout.keys() == other.layout.keys() and np.array_equal(one.layout['layer_of_neuron'], other.layout['layer_of_neuron'])


def test_a_training_look_that_was_cut_off_goes_on(images, tmp_path):
    def run(name, fails=0):
        recorder, net = Recorder(['cnd:gaussian', 'weight_norm'], every=2, sample=20, look='training', points=['norm']), wobbly()
        class Cut:
            def after_step(self, state):
                if fails and state.step == fails: raise KeyboardInterrupt
        try: train(net, images, MOVING, objective=watched(recorder), observers=[recorder, Cut()], device='cpu', checkpoint=tmp_path/name)
        except KeyboardInterrupt: pass
        return recorder.history
    whole = run('a')
    assert len(run('b', 5)['train_loss']) == 1, 'cut off in the second epoch'
    again = run('b')
    for k in whole: np.testing.assert_array_equal(whole[k], again[k], err_msg=k)
    assert np.nanmax(whole['prediction_changes']) <= 20 and np.isnan(whole['cnd:gaussian'][1]).all()


def test_a_training_look_in_a_loop_of_ones_own(images):
    recorder, net = Recorder(['cnd:histogram'], look='training', points=['norm']), wobbly()
    x = images.x.float()/255
    for epoch in range(2):
        for rows in torch.randperm(40, generator=torch.Generator().manual_seed(epoch)).split(8)[:4]:
            with recorder.batch(net, rows):
                logits = net(x[rows])
                net(x[:3])  # what comes later in the block does not count
            if 7 in rows: last = logits[rows == 7].argmax()
        with recorder.batch(net, [7, 7]): again = net(x[[7, 7]])  # the last time counts
        net.eval()
        row = recorder.observe(net, images)
        net.train()
        assert recorder.before[7] == again[1].argmax()
    assert np.isfinite(recorder.history['cnd:histogram']).all() and row['prediction_changes'] >= 0 and recorder.stream.rows == []


def test_what_a_training_look_cannot_see_is_named(images):
    net, x = wobbly(), images.x.float()
    recorder = Recorder(['cnd:histogram'], look='training')
    with pytest.raises(ValueError, match='has seen no batch; give `train` objective=watched'): train(net, images, MOVING, observers=[recorder], device='cpu')
    with pytest.raises(ValueError, match='has seen no batch'): record_signals(net, images, [net.state_dict()], 'cpu', look='training')
    with pytest.raises(ValueError, match="look must be one of 'evaluation', 'training', got 'both'"): Recorder(look='both')
    def block(rows, run, net=net, **k):
        r = Recorder(['cnd:histogram'], look='training', **k)
        with r.batch(net, rows): run()
        r.observe(net, images)
    with pytest.raises(ValueError, match=r'rows of a batch must be in \[0, 40\), got 1 to 40'): block([1, 40], lambda: net(x[:2]))
    with pytest.raises(ValueError, match='must pass all 3 rows of the batch through the network, got 2'): block([0, 1, 2], lambda: net(x[:2]))
    with pytest.raises(ValueError, match='must pass all 3 rows of the batch through the network, got 0'): block([0, 1, 2], lambda: None)
    with pytest.raises(ValueError, match=r'rows must be int64 \(B,\), got torch.bool'): block([True, False], lambda: net(x[:2]))
    foreign = Foreign()
    with pytest.raises(ValueError, match='passed once by every example, got 4 values of 2'): block([0, 1], lambda: foreign(x[:2]), foreign, points=['twice'])
    foreign.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'unused', which it does not use"): block([0, 1], lambda: foreign(x[:2]), foreign, points=['unused'])
    compiled = wobbly()
    compiled._orig_mod = net  # as torch.compile wraps it
    with pytest.raises(ValueError, match='cannot see into a compiled network'): block([0, 1], lambda: None, compiled)
    with torch.no_grad(): net.out.weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='logits must be finite'): block([0, 1], lambda: net(x[:2]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*net.modules(), *foreign.modules()])


def test_a_history_of_a_training_look(blobs, tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    how = dict(model='mlp', recipe=RECIPE, width=.05, signals=['cnd:histogram', 'susceptibility'], device='cpu')
    (one, layout), (other, other_layout) = load_or_run_history(blobs, **how), load_or_run_history(blobs, **how, look='training')
    assert one.keys() == other.keys() and np.array_equal(one['test_loss'], other['test_loss']) and (one['train_loss'] < other['train_loss']).all()
    np.testing.assert_array_equal(one['susceptibility'], other['susceptibility'])
    np.testing.assert_allclose(one['noisy_validation_loss'], other['noisy_validation_loss'], rtol=1e-6)
    for k in layout: np.testing.assert_array_equal(layout[k], other_layout[k])
    for k, v in load_or_run_history(blobs, **how, look='training')[0].items(): np.testing.assert_array_equal(v, other[k])


@pytest.mark.parametrize('look', ['evaluation', 'training'])
def test_example_tied_dropout_is_told_which_examples_it_sees(tmp_path, monkeypatch, look):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    data = sample(add_noise(load_dataset('digits'), 'symmetric', .4), 80, 0)
    history, _ = load_or_run_history(data, 'resnet9_tied', replace(RECIPE, epochs=2), width=.2, signals=['cnd:gaussian', 'frozen_gradient', 'susceptibility'], device='cpu', look=look)
    more, _, positions = hold_out(data, seed=0)
    net = make_model('resnet9_tied', 10, tuple(data.x.shape[1:]), width=.2)
    run = train(net, more, replace(RECIPE, epochs=2), positions=positions, objective=tied(index=more.index), device='cpu')
    assert history['objective'][-1] == run.train_loss and np.isfinite(history['cnd:gaussian']).all()


def test_absolute_error_of_the_published_study(blobs, tmp_path, monkeypatch, oracle):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    def run(loss, **k): return load_or_run_history(blobs, 'mlp', replace(RECIPE, epochs=1), width=.05, signals=[], device='cpu', loss=loss, **k)[0]
    ours, theirs = run('mae'), run('mae_original')
    assert not np.array_equal(ours['test_loss'], theirs['test_loss'])
    slow = load_or_run_history(blobs, 'mlp', replace(RECIPE, epochs=1, lr=RECIPE.lr/3, weight_decay=0.), width=.05, signals=[], device='cpu', loss='mae')[0]
    same = load_or_run_history(blobs, 'mlp', replace(RECIPE, epochs=1, weight_decay=0.), width=.05, signals=[], device='cpu', loss='mae_original')[0]
    np.testing.assert_allclose(slow['test_loss'], same['test_loss'], rtol=1e-5)
    with pytest.raises(ValueError, match="loss must be one of .*'mae_original', got 'mean'"): run('mean')


@pytest.mark.parametrize('look', ['evaluation', 'training'])
def test_regularizers_of_a_study(blobs, tmp_path, monkeypatch, look):
    "A weight of nothing changes no bit; a divergence that is rewarded grows; bad settings are refused; the table names what was minimised."
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    def run(**k): return load_or_run_history(blobs, 'mlp', replace(RECIPE, epochs=4), width=.05, signals=['cnd:gaussian'], device='cpu', look=look, **k)[0]
    plain, nothing, strong = run(), run(regularizer=dict(kind='gaussian', gamma=0.)), run(regularizer=dict(kind='gaussian', gamma=.3))
    for k, v in plain.items(): np.testing.assert_array_equal(v, nothing[k])
    assert strong['cnd:gaussian'][-1].mean() > plain['cnd:gaussian'][-1].mean()
    with pytest.raises(ValueError, match='kind must be one of'): run(regularizer=dict(kind='l7'))
    assert stopping_table._objective_name(regularizer=dict(gamma=.3, kind='mean', l1=.01)) == 'ce + 0.3 mean (l1 0.01)' and stopping_table._objective_name('gce', dict(q=.5)) == 'gce (q 0.5)'


def test_a_regularizer_knows_tied_examples(blobs, tmp_path, monkeypatch):
    monkeypatch.setenv('NOISYMEM_RESULTS', str(tmp_path))
    data = from_arrays(torch.randint(0, 256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy(), np.arange(60) % 3)
    history, _ = load_or_run_history(data, 'resnet9_tied', replace(RECIPE, epochs=1, augment=()), width=.1, signals=[], device='cpu', regularizer=dict(kind='mean', gamma=.1))
    assert np.isfinite(history['train_loss']).all()
