"Training with robust losses and the regulariser: stages, terms, peers, norms, resume, memorization, bad input."
import math

import numpy as np
import pytest
import torch

from noisymem.augment import normalize
from noisymem.data import from_arrays, load_dataset, sample
from noisymem.losses import LOSSES, EarlyLearning, cross_entropy, peer_loss
from noisymem.methods import robust as M
from noisymem.methods.representation import rep_reg
from noisymem.methods.robust import CARDS, RobustObjective, follow_memorization, list_stages, train_robust, transition_of
from noisymem.methods.simclr import save_encoder
from noisymem.noise import add_noise
from noisymem.records import Records
from noisymem.train import train

RECIPE = dict(name='digits', epochs=4, batch_size=32, lr=.05)


@pytest.fixture(scope='module')
def data(): return add_noise(sample(load_dataset('digits'), 150, seed=0), 'symmetric', .4)


def run(data, recipe=RECIPE, model='mlp', **options): return train_robust(data, model, recipe, options.pop('width', .1), device='cpu', **options)


@pytest.mark.parametrize('warmup, plain_until, compat, ce, first', [
    (0, 0, None, 0, 1), (0, 0, 'original', 0, 1), (20, 22, None, 20, 23), (20, 22, 'original', 21, 24), (1, 25, 'original', 2, 27), (0, 30, 'original', 0, 32), (5, None, None, 5, None)])
def test_stages(warmup, plain_until, compat, ce, first):
    "Epochs from 1; the original's epoch e from 0 is our e + 1."
    table = list_stages(40, warmup, plain_until, compat)
    assert (table.loss == 'cross-entropy').sum() == ce and (table.loss[:ce] == 'cross-entropy').all()
    assert (table.epoch[table.regularised].min() == first) if first else not table.regularised.any()


class Spy:
    "Keep what a training used."
    def __init__(self, objective): self.objective, self.batches = objective, []

    def __call__(self, model, batch):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        loss = self.objective(model, batch)
        self.batches.append((batch, before, loss.item(), model))
        return loss


def first_step(data, recipe=RECIPE, model='mlp', **options):
    objective = RobustObjective(data, **options)
    spy = Spy(objective)
    net = (M.make_encoder if options.get('regulariser') else M.make_model)(model, data.n_classes, tuple(data.x.shape[1:]), width=.1, seed=0)
    train(net, data, recipe | dict(epochs=1, batch_size=150, precision='fp32'), objective=spy, observers=[objective], device='cpu')
    batch, before, loss, net = spy.batches[0]
    net.load_state_dict(before)
    return objective, batch, net.train(), loss


@pytest.mark.parametrize('loss', [*LOSSES])
def test_a_plain_step_is_the_loss(data, loss):
    _, batch, net, got = first_step(data, loss=loss)
    assert got == pytest.approx(LOSSES[loss](net(batch.x), batch.given_label).item(), rel=1e-5)


def test_a_regularised_step_has_three_terms(data):
    objective, batch, net, got = first_step(data, loss='gce', options=dict(q=.5), regulariser='distance', reg=dict(lam=2.), alpha=.3, contrast=.7, view=dict(jitter=0.))
    out = net(batch.x, heads=('head', 'projection'))
    terms = [LOSSES['gce'](out['head'], batch.given_label, q=.5), objective.views(net, batch), rep_reg(out['head'], out['projection'], lam=2.)]
    np.testing.assert_allclose(objective.rows[0], [t.item() for t in terms], rtol=1e-4)
    assert got == pytest.approx((.3*terms[0] + .7*terms[1] + terms[2]).item(), rel=1e-4)


def test_a_peer_step_passes_other_inputs_and_other_labels(data):
    objective, batch, net, got = first_step(data, loss='peer')
    inputs, labels = objective.peers
    assert sorted(inputs.tolist()) == sorted(labels.tolist()) == list(range(150)) and not torch.equal(inputs, labels)
    want = peer_loss(net(batch.x), batch.given_label, net(normalize(data.x[inputs], data.mean, data.std)), data.given_label[labels])
    assert got == pytest.approx(want.item(), rel=1e-4)


def test_early_learning_has_one_memory_for_the_run(data):
    objective, batch, net, got = first_step(data, loss='elr')
    fresh = EarlyLearning(150, 10)
    assert got == pytest.approx(fresh(net(batch.x), batch.given_label, batch.position).item(), rel=1e-5)
    torch.testing.assert_close(objective.memory.memory, fresh.memory)


def test_warmup_is_cross_entropy(data):
    "Its options are those of the loss and do not reach it."
    _, batch, net, got = first_step(data, loss='gce', options=dict(q=.3), warmup=1)
    assert got == pytest.approx(cross_entropy(net(batch.x), batch.given_label).item(), rel=1e-5)


def test_terms_count_from_their_epoch(data):
    _, rec = run(data, regulariser='distance', plain_until=2, view=dict(jitter=0.))
    assert (rec['regulariser'] > 0).tolist() == (rec['contrast'] > 0).tolist() == [False, False, True, True] and (rec['base'] > 0).all()
    assert set(rec.rows) == {'loss', 'margin', 'prediction', 'correct', 'test_accuracy', 'base', 'contrast', 'regulariser'} and len(rec) == 4


@pytest.mark.parametrize('options', [dict(loss='elr', regulariser='distance', plain_until=2), dict(loss='peer', warmup=1), dict(loss='sce', regulariser='angle', warmup=1, plain_until=1, compat='original')], ids=str)
def test_resumed_is_uninterrupted(data, tmp_path, monkeypatch, options):
    options = dict(view=dict(jitter=0.)) | options
    whole_net, whole = run(data, model='fast', **options)

    def stop(self, state, real=M.WatchAccuracy.after_epoch):
        real(self, state)
        if state.epoch == 3: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(M.WatchAccuracy, 'after_epoch', stop)
        with pytest.raises(KeyboardInterrupt): run(data, model='fast', checkpoint=tmp_path/'c.safetensors', **options)
    net, rec = run(data, model='fast', checkpoint=tmp_path/'c.safetensors', **options)
    for k in whole.rows: np.testing.assert_array_equal(rec[k], whole[k], err_msg=k)
    for k, v in whole_net.state_dict().items(): assert torch.equal(v, net.state_dict()[k]), k


@pytest.mark.parametrize('compat', [None, 'original'])
def test_views_that_no_loss_uses_touch_the_norms_only_in_the_original_way(data, compat):
    runs = [run(data, RECIPE | dict(epochs=1), model='fast', regulariser=reg, plain_until=5, view=dict(jitter=0.), compat=compat)[0] for reg in (None, 'distance')]
    mean = [next(v for k, v in net.state_dict().items() if k.endswith('running_mean')) for net in runs]
    assert torch.equal(*mean) == (compat is None)


def test_an_encoder_file_is_where_it_starts(data, tmp_path):
    source = M.make_encoder('fast', 10, (1, 8, 8), .1, seed=9)
    save_encoder(tmp_path/'e.safetensors', source)
    seen = []

    class Look:
        def before_epoch(self, state): seen.append({k: v.clone() for k, v in state.model.state_dict().items()})
    real = M.Dynamics
    M.Dynamics = lambda: type('D', (real, Look), {})()
    try: run(data, RECIPE | dict(epochs=1), model='fast', encoder=tmp_path/'e.safetensors')
    finally: M.Dynamics = real
    assert all(torch.equal(v, seen[0][k]) for k, v in source.state_dict().items() if k.startswith('backbone.'))
    with pytest.raises(FileNotFoundError, match='is not there'): run(data, model='fast', encoder=tmp_path/'none.safetensors')


def test_the_regulariser_keeps_from_memorizing():
    "At equal epochs, with every other setting the same."
    data = add_noise(sample(load_dataset('digits'), 400, seed=1), 'symmetric', .6)
    memorized, test = {}, {}
    for reg in (None, 'distance'):
        _, rec = run(data, dict(name='digits', epochs=16, batch_size=64, lr=.05), 'fast', width=.5, regulariser=reg, view=dict(jitter=0., flip=0., area=(.4, 1.), grey=0.))
        memorized[reg], test[reg] = follow_memorization(rec, data.true_label).iloc[-1], rec['test_accuracy'][-1]
    assert memorized[None].memorized > .8, 'cross-entropy fits wrong labels'
    assert memorized['distance'].memorized < memorized[None].memorized - .2 and memorized['distance'].recovered > memorized[None].recovered + .2 and test['distance'] > test[None] + .1


def test_shares_of_memorized_labels_against_a_loop():
    rng = np.random.default_rng(0)
    true, given, said = rng.integers(0, 4, 60), rng.integers(0, 4, 60), rng.integers(0, 4, (5, 60))
    table = follow_memorization(Records(dict(prediction=said), dict(given_label=given), axis='epoch'), true)
    wrong = [i for i in range(60) if given[i] != true[i]]
    right = [i for i in range(60) if given[i] == true[i]]
    for e, row in table.iterrows():
        assert row.memorized == pytest.approx(np.mean([said[e, i] == given[i] for i in wrong])) and row.recovered == pytest.approx(np.mean([said[e, i] == true[i] for i in wrong]))
        assert row.memorized + row.recovered + row.other == pytest.approx(1) and row.learned == pytest.approx(np.mean([said[e, i] == true[i] for i in right]))
        assert row.forgotten == pytest.approx(np.mean([said[e, i] != true[i] and any(said[f, i] == true[i] for f in range(e)) for i in right]))
    clean = follow_memorization(Records(dict(prediction=said), dict(given_label=true), axis='epoch'), true)
    assert clean.memorized.isna().all() and clean.learned.notna().all()
    with pytest.raises(ValueError, match='60 entries'): follow_memorization(Records(dict(prediction=said), dict(given_label=given), axis='epoch'), true[:-1])


def test_matrices_of_a_network_leave_it_as_it_was(data):
    net, _ = run(data, RECIPE | dict(epochs=1), model='fast')
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for how, options in (('anchor', dict(percentile=97)), ('hoc', dict(steps=5))):
        torch.testing.assert_close(transition_of(net, data, how, **options).sum(1), torch.ones(10, dtype=torch.float64))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not net.training


def test_forward_correction_with_the_identity_is_cross_entropy(data):
    plain, forward = run(data)[1], run(data, loss='forward', options=dict(transition=torch.eye(10)))[1]
    np.testing.assert_allclose(plain['base'], forward['base'], rtol=1e-4)


def test_colour_images_and_every_card():
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, 24), layout='NHWC', class_names=tuple('abcdefghij'))
    for name, card in CARDS.items():
        options = {k: card[k] for k in ('loss', 'regulariser', 'warmup', 'plain_until') if k in card} | (dict(options=dict(transition=torch.eye(10))) if card['loss'] == 'forward' else {})
        _, rec = run(data, card['recipe'] | dict(epochs=1, batch_size=12), model='fast', **options)
        assert np.isfinite(rec['base']).all(), name


@pytest.mark.parametrize('options, word', [
    (dict(loss='nce'), "loss must be one of 'ce'"), (dict(loss='forward'), 'transition must be'), (dict(loss='forward', options=dict(transition=torch.eye(3))), r'shape \(10, 10\)'),
    (dict(regulariser='rkd'), 'regulariser must be one of'), (dict(alpha=-1), 'alpha must be'), (dict(contrast=math.nan), 'contrast must be'), (dict(warmup=-1), 'warmup must be'), (dict(plain_until=-1), 'plain_until must be'), (dict(compat='orig'), 'compat must be one of')])
def test_bad_settings_are_noticed_before_training(data, options, word):
    with pytest.raises(ValueError, match=word): RobustObjective(data, **options)
