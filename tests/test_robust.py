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
from noisymem.methods.linear_probe import make_bank
from noisymem.methods.robust import ORIGINAL, TABLES, RobustObjective, choose_epoch, follow_memorization, list_stages, train_robust, transition_of
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
    assert set(rec.rows) == {'loss', 'margin', 'prediction', 'correct', 'test_accuracy', 'learning_rate', 'base', 'contrast', 'regulariser'} and len(rec) == 4


@pytest.mark.parametrize('options', [dict(loss='elr', regulariser='distance', plain_until=2), dict(loss='peer', warmup=1, held_out=.2), dict(loss='sce', regulariser='angle', warmup=1, plain_until=1, compat='original')], ids=str)
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


def test_colour_images_and_every_line_of_the_tables():
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, 24), layout='NHWC', class_names=tuple('abcdefghij'))
    seen = set()
    for name, table in TABLES.items():
        for method, how in table['methods'].items():
            options = {k: v for k, v in how.items() if k not in ('recipe', 'first', 'after', 'transition')} | (dict(options=dict(transition=torch.eye(10))) if how.get('loss') == 'forward' else {})
            if str(options) in seen: continue
            seen.add(str(options))
            _, rec = run(data, how.get('recipe', table['recipe']) | dict(epochs=1, batch_size=12, augment=()), model='mlp', **options)
            assert np.isfinite(rec['base']).all(), (name, method)


def test_the_tables_are_those_of_the_study():
    "Rows, columns, stages and recipes of the command lines."
    assert list(TABLES['cifar10']['methods']) == [l + r for l in ('CE', 'GCE', 'peer', 'forward', 'HOC', 'ELR') for r in ('', ' + R')]
    assert TABLES['cifar10']['noises'][:3] == ['symmetric-0.6', 'symmetric-0.8', 'pair-0.4'] and TABLES['gce cifar10']['noises'] == ['symmetric-0.6'] and TABLES['gce cifar100']['noises'] == ['symmetric-0.8']
    stages = {n: {k: how.get(k) for k in ('warmup', 'plain_until')} for n, how in TABLES['cifar100']['methods'].items()}
    assert [stages[n]['plain_until'] for n in ('GCE + R', 'SCE + R', 'bootstrap + R', 'ELR + R')] == [22, 23, 23, 25] and [stages[n]['warmup'] for n in ('GCE', 'SCE', 'bootstrap', 'ELR')] == [20, 20, 20, 1]
    assert TABLES['peer cifar10']['methods']['peer']['after'] == 'last' and TABLES['hoc_reg cifar10']['methods']['HOC + R']['recipe']['lr'] == .01
    table = list_stages(100, 20, None, TABLES['gce cifar100, original']['methods']['GCE']['compat'])
    assert (table.loss == 'cross-entropy').sum() == 21 and not table.regularised.any()
    assert list_stages(100, 20, 22, 'original').regularised.sum() == 100 - 23
    recipe = M.get_recipe(TABLES['ce cifar10']['recipe'])
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_size, recipe.epochs, recipe.milestones) == (0, 0, 256, 150, (50,))


def test_every_switch_of_the_original_is_there(data):
    "Each is taken by what it is for, and is not the default but for the regulariser."
    import inspect
    takes = lambda f: inspect.signature(f).parameters
    assert ORIGINAL['compat'] == 'original' and all(takes(f)['compat'].default is None for f in (RobustObjective, list_stages, M.estimate_transition))
    assert takes(transition_of)['mode'].default != ORIGINAL['mode'] and takes(make_bank)['statistics'].default != ORIGINAL['statistics'] and takes(choose_epoch)['select'].default != ORIGINAL['select']
    assert all(takes(rep_reg)[k].default == v for k, v in ORIGINAL['reg'].items())
    with pytest.raises(ValueError): transition_of(None, data, mode='train_aug')
    assert add_noise(data, rate=.4, **ORIGINAL['noise']).n == data.n
    assert all(how['compat'] == 'original' and how.get('extra_views', False) == ('cifar100' in name or 'ELR' in m) for name, t in TABLES.items() if name.endswith('original') for m, how in t['methods'].items())


def test_extra_views_move_the_norms_of_a_baseline(data):
    "`--base` of the CIFAR-100 scripts: all three views are passed, one is used."
    runs = {extra: run(data, RECIPE | dict(epochs=1), model='fast', extra_views=extra, view=dict(jitter=0.))[0].state_dict() for extra in (False, True)}
    differ = {k for k, v in runs[False].items() if not torch.equal(v, runs[True][k])}
    assert differ and all('running' in k or 'tracked' in k for k in differ), 'weights are those of a run without'


@pytest.mark.parametrize('how', ['anchor', 'hoc'])
def test_a_matrix_read_off_in_training_mode_is_another_and_moves_the_norms(data, how):
    net, _ = run(data, RECIPE | dict(epochs=1), model='fast')
    options = dict(steps=5) if how == 'hoc' else {}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    plain = transition_of(net, data, how, **options)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    old = transition_of(net, data, how, mode='training', augment=(('crop', 1),), **options)
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all('running' in k or 'tracked' in k for k in moved) and not net.training
    assert not torch.equal(plain, old)
    torch.testing.assert_close(old.sum(1), torch.ones(10, dtype=torch.float64))


def test_features_in_training_mode_come_in_the_order_of_the_data():
    "A network without norms answers as in evaluation mode, however its batches were shuffled."
    data = sample(load_dataset('digits'), 600, seed=3)
    net = M.make_model('mlp', 10, (1, 8, 8), width=.1)
    logits, features = M._ask_in_training(net, data, 0, (), 64)
    with torch.no_grad(): torch.testing.assert_close(logits, net(normalize(data.x, data.mean, data.std)))


def test_what_is_held_out_is_not_trained_on(data):
    seen, real = [], RobustObjective.__call__
    RobustObjective.__call__ = lambda self, model, batch: (seen.append(batch.position.clone()), real(self, model, batch))[1]
    try: _, rec = run(data, RECIPE | dict(epochs=2), loss='peer', held_out=.2)
    finally: RobustObjective.__call__ = real
    out = rec['held_out']
    assert out.sum() == 30 and not out[torch.cat(seen)].any() and len(torch.cat(seen).unique()) == 120
    table = follow_memorization(rec, data.true_label)
    fits = rec['prediction'] == rec['given_label']
    wrong = (data.given_label != data.true_label).numpy() & ~out
    np.testing.assert_allclose(table.validation, fits[:, out].mean(1)); np.testing.assert_allclose(table.memorized, fits[:, wrong].mean(1)); np.testing.assert_allclose(table.fitted, fits[:, ~out].mean(1))
    for bad in (-.1, 1, math.nan):
        with pytest.raises(ValueError, match='held_out must be'): run(data, held_out=bad)


def test_peers_are_drawn_from_what_is_trained_on(data):
    objective = RobustObjective(data, 'peer')
    objective.trained = torch.arange(0, 150, 3)
    net = M.make_model('mlp', 10, (1, 8, 8), width=.1)
    train(net, data, RECIPE | dict(epochs=1), positions=objective.trained, objective=objective, observers=[objective], device='cpu')
    assert all(sorted(p.tolist()) == list(range(0, 150, 3)) for p in objective.peers)


def test_which_epoch_is_taken():
    import pandas as pd
    table = pd.DataFrame(dict(epoch=[1, 2, 3, 4], validation=[.1, .5, .5, .2], test_accuracy=[.3, .2, .6, .5]))
    assert [choose_epoch(table, s) for s in ('last', 'validation', 'test')] == [4, 2, 3]
    with pytest.raises(ValueError, match='nothing was held out'): choose_epoch(table.assign(validation=math.nan), 'validation')
    with pytest.raises(ValueError, match="select must be one of 'last'"): choose_epoch(table, 'best')


def test_a_network_goes_on_head_and_all(data):
    net, first = run(data, RECIPE | dict(epochs=3))
    for start in (net, {k: v.numpy() for k, v in net.state_dict().items()}):
        _, rec = run(data, RECIPE | dict(epochs=1, lr=1e-8), start=start, loss='peer')
        assert (rec['prediction'][0] == first['prediction'][-1]).all()
    with pytest.raises(ValueError, match='whole backbone and head'): run(data, start=M.make_model('mlp', 7, (1, 8, 8), width=.1))
    with pytest.raises(ValueError, match='whole backbone'): run(data, encoder=M.make_model('mlp', 10, (1, 8, 8), width=.2))
    assert run(data, encoder=M.make_model('mlp', 7, (1, 8, 8), width=.1))[1]['base'].shape == (4,), 'an encoder has no say in the head'


def test_the_best_weights_are_those_of_the_best_epoch(data, tmp_path):
    _, rec, best = run(data, RECIPE | dict(epochs=6, lr=.3), best=True)
    epoch = int(np.argmax(rec['test_accuracy']))
    net = M.make_model('mlp', 10, (1, 8, 8), width=.1)
    net.load_state_dict(best)
    with torch.no_grad(): said = net(normalize(data.x, data.mean, data.std)).argmax(1).numpy()
    assert (said == rec['prediction'][epoch]).all()


@pytest.mark.parametrize('regulariser', [None, 'distance', 'angle'])
def test_two_classes_in_batches_of_two(regulariser):
    "Every loss, 7 examples: two batches of two and one of three."
    rng = np.random.default_rng(0)
    two = from_arrays(rng.integers(0, 256, (7, 8, 8), dtype=np.uint8), [0, 1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 1, 1, 1])
    for loss in (*LOSSES, 'elr', 'peer', 'forward'):
        options = dict(options=dict(transition=torch.tensor([[.7, .3], [.2, .8]]))) if loss == 'forward' else {}
        _, rec = run(two, RECIPE | dict(epochs=2, batch_size=2, lr=.001), loss=loss, regulariser=regulariser, view=dict(jitter=0.), **options)
        assert np.isfinite(rec['base']).all() and np.isfinite(rec['regulariser']).all(), loss


@pytest.mark.parametrize('rows, word', [([[.5, .5], [.5, .5]], r'shape \(10, 10\)'), (np.eye(10)*.9, 'rows of probabilities that sum to 1'), (np.eye(10, dtype=int), 'be floats'), (np.full((10, 10), np.nan), 'sum to 1')])
def test_matrices_that_are_none(data, rows, word):
    "Labels outside the matrix, rows that do not sum to 1."
    with pytest.raises(ValueError, match='transition must.*' + word.removeprefix('be ')): RobustObjective(data, 'forward', dict(transition=torch.as_tensor(rows)))


def test_every_command_of_the_study_has_its_card(root):
    "The table of commands in the notebook names notebooks that are there and cards that they know."
    import re
    from noisymem.encoders import CARDS
    from noisymem.robust_runs import PATHS
    text = (root/'nbs'/'37_methods.robust.ipynb').read_text()
    named = re.findall(r"`(fig_\w+) -p card (?:'([^']+)'|(\w+))`", text)
    assert len(named) == 9
    for notebook, *card in named:
        assert (root/'nbs'/'figs'/f'{notebook}.ipynb').exists() and ''.join(card) in dict(fig_robust_losses=TABLES, fig_encoder_quality=CARDS, fig_learning_path=PATHS)[notebook], card
    for cards, parameters in ((TABLES, 'fig_robust_losses'), (CARDS, 'fig_encoder_quality'), (PATHS, 'fig_learning_path')):
        from noisymem.batch import find_notebook, notebook_parameters
        known = set(notebook_parameters(find_notebook(parameters)))
        assert all(set(card) <= known for card in cards.values())


def test_the_figure_has_the_values_of_the_table(root):
    import ast
    from noisymem.batch import find_notebook, notebook_parameters
    values = {k: ast.literal_eval(v) for k, v in notebook_parameters(find_notebook('fig_robust_losses')).items()}
    table = TABLES['cifar10']
    assert {k: values[k] for k in ('dataset', 'noises', 'model')} == {k: table[k] for k in ('dataset', 'noises', 'model')} and list(values['methods']) == list(table['methods'])
    same = lambda a, b: M.get_recipe(a) == M.get_recipe(b)
    assert same(values['recipe'], table['recipe'])
    for name, how in table['methods'].items():
        ours = values['methods'][name]
        assert set(ours) == set(how) and all(same(ours[k], v) if k in ('recipe', 'first') else ours[k] == v for k, v in how.items()), name


@pytest.mark.parametrize('options, word', [
    (dict(loss='nce'), "loss must be one of 'ce'"), (dict(loss='forward'), 'transition must be'), (dict(loss='forward', options=dict(transition=torch.eye(3))), r'shape \(10, 10\)'),
    (dict(regulariser='rkd'), 'regulariser must be one of'), (dict(alpha=-1), 'alpha must be'), (dict(contrast=math.nan), 'contrast must be'), (dict(warmup=-1), 'warmup must be'), (dict(plain_until=-1), 'plain_until must be'), (dict(compat='orig'), 'compat must be one of'),
    (dict(loss='gce', options=dict(q=3), warmup=4), 'q must be'), (dict(loss='gce', options=dict(k=.5)), "options of loss 'gce' must be those of"), (dict(loss='peer', options=dict(weight=-1)), 'weight'),
    (dict(loss='elr', options=dict(beat=.5)), "options of loss 'elr'"), (dict(regulariser='distance', reg=dict(power_ssl=-1), plain_until=5), 'power must be'), (dict(regulariser='distance', reg=dict(powers=1)), "reg of regulariser 'distance'"),
    (dict(view=dict(jiter=0.)), 'view must be those of'), (dict(loss='forward', options=dict(transition='hoc')), 'transition')])
def test_bad_settings_are_noticed_before_training(data, options, word):
    with pytest.raises(ValueError, match=word): RobustObjective(data, **options)
