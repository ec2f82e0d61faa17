"The training loop: schedules, chance, resume, observers, the shared pass."
import numpy as np
import pytest
import torch

from noisymem import train as T
from noisymem.augment import normalize
from noisymem.data import from_arrays
from noisymem.models import Whitening, make_model
from noisymem.train import RECIPES, Dynamics, Recipe, epoch_order, get_recipe, learning_rate, predict, supervised, train


def weights(state): return torch.cat([p.detach().flatten() for p in state.model.state_dict().values() if p.is_floating_point()])


def run(data, model='mlp', epochs=3, seed=0, **kwargs):
    recipe = {'name': 'digits', 'epochs': epochs} | kwargs.pop('recipe', {})
    return train(make_model(model, data.n_classes, tuple(data.x.shape[1:]), seed=0), data, recipe, seed=seed, device='cpu', **kwargs)


def test_rates_of_the_paper():
    rates = [learning_rate(RECIPES['paper'], e*701 + s, 701) for e in range(80) for s in (0, 700)]
    assert set(np.round(rates, 12)) == {.1, .01} and np.round(rates, 12).tolist().index(.01) == 80


@pytest.mark.parametrize('schedule', ['constant', 'step', 'cosine', 'onecycle'])
def test_every_schedule_stays_within_its_peak(schedule):
    r = Recipe(epochs=7, schedule=schedule, milestones=(3,))
    rates = np.array([learning_rate(r, s, 11) for s in range(77)])
    assert (rates > 0).all() and rates.max() <= r.lr + 1e-12
    if schedule == 'onecycle': assert abs(rates.max() - r.lr) < .1*r.lr and (np.diff(np.sign(np.diff(rates))) != 0).sum() == 1


def test_torch_agrees_on_cosine():
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=.1)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 50)
    r = Recipe(epochs=5, schedule='cosine')
    for s in range(50):
        assert abs(learning_rate(r, s, 10) - opt.param_groups[0]['lr']) < 1e-9
        opt.step(); sched.step()


@pytest.mark.parametrize('n,b', [(1, 1), (1, 64), (2, 1), (64, 64), (65, 64), (129, 64), (7, 100)])
def test_order_is_a_permutation_and_never_ends_with_one(n, b):
    parts = epoch_order(n, b, 3, 2)
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert len(parts) == 1 or len(parts[-1]) > 1 or b == 1


@pytest.mark.parametrize('model,augment', [('mlp', ()), ('fast', (('crop', 2), ('flip', True), ('cutout', 3)))])
def test_same_seed_same_bits_and_global_chance_untouched(images, model, augment):
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    a = run(images, model, recipe=dict(augment=augment))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(7)
    b, c = run(images, model, recipe=dict(augment=augment)), run(images, model, seed=1, recipe=dict(augment=augment))
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))


@pytest.mark.parametrize('optimizer', ['sgd', 'adam'])
@pytest.mark.parametrize('stop_at', [1, 2, 3])
def test_resume_equals_uninterrupted(images, tmp_path, optimizer, stop_at):
    recipe = dict(optimizer=optimizer, lr=.01, augment=(('flip', True),))
    whole = run(images, 'fast', 4, recipe=recipe)
    class Kill(Exception): pass
    def kill(state):
        if state.epoch == stop_at + 1: raise Kill
    with pytest.raises(Kill): run(images, 'fast', 4, recipe=recipe, checkpoint=tmp_path/'c', observers=[kill])
    resumed = run(images, 'fast', 4, recipe=recipe, checkpoint=tmp_path/'c')
    assert torch.equal(weights(whole), weights(resumed)) and resumed.step == whole.step


def test_resume_with_dropout(images, tmp_path):
    def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 20), torch.nn.Dropout(.5), torch.nn.Linear(20, 3))
    def go(**kw):
        with torch.random.fork_rng():
            torch.manual_seed(0); m = net()
        return train(m, images, {'name': 'digits', 'epochs': 3}, device='cpu', **kw)
    def kill(state):
        if state.epoch == 2: raise KeyboardInterrupt
    whole = go()
    with pytest.raises(KeyboardInterrupt): go(checkpoint=tmp_path/'c', observers=[kill])
    assert torch.equal(weights(whole), weights(go(checkpoint=tmp_path/'c')))


def test_finished_checkpoint_trains_no_more(digits, tmp_path):
    a = run(digits, checkpoint=tmp_path/'c')
    b = run(digits, checkpoint=tmp_path/'c')
    assert b.step == a.step and torch.equal(weights(a), weights(b))


def test_checkpoint_of_another_recipe_is_refused(digits, tmp_path):
    run(digits, checkpoint=tmp_path/'c')
    with pytest.raises(ValueError, match='was made with recipe'): run(digits, checkpoint=tmp_path/'c', recipe=dict(lr=.3))


def test_training_touches_only_the_chosen_positions(digits):
    seen = set()
    def objective(model, batch):
        seen.update(batch.position.tolist())
        assert torch.equal(batch.given_label, digits.given_label[batch.position])
        return supervised()(model, batch)
    run(digits, positions=torch.tensor([5, 9, 77]), objective=objective)
    assert seen == {5, 9, 77}


def test_one_evaluation_serves_all_observers(digits, monkeypatch):
    from noisymem import train as T
    calls, real = [], T.predict
    monkeypatch.setattr(T, 'predict', lambda *a, **k: calls.append(1) or real(*a, **k))
    run(digits, observers=[lambda s: s.evaluation, Dynamics(), lambda s: s.evaluation.logits])
    assert len(calls) == 3, 'one pass an epoch'


def test_no_observer_no_evaluation(digits, monkeypatch):
    from noisymem import train as T
    monkeypatch.setattr(T, 'predict', lambda *a, **k: pytest.fail('nobody asked'))
    run(digits)


def test_observers_hear_every_moment_and_may_stop(digits):
    heard = []
    class Ear:
        layers = ('backbone.fc1',)
        def before_epoch(self, s): heard.append(('before', s.epoch))
        def after_step(self, s): heard.append(('step', s.step))
        def after_epoch(self, s):
            heard.append(('after', s.epoch)); s.stop = s.epoch == 2
            assert s.evaluation.captured['backbone.fc1'].shape == (150, 512)
    state = run(digits, epochs=9, observers=[Ear()])
    assert state.epoch == 2 and heard[0] == ('before', 0) and heard[-1] == ('after', 2) and ('step', 6) in heard


def test_evaluation_is_plain_ordered_and_restores_the_mode(images):
    net = make_model('fast', 3, (3, 12, 12), seed=0).train()
    whole = predict(net, images.x, images.mean, images.std).logits
    assert net.training
    for b in (1, 7, 60): torch.testing.assert_close(predict(net, images.x, images.mean, images.std, batch_size=b).logits, whole, rtol=1e-4, atol=1e-4)


def test_dynamics_against_a_loop(digits):
    dyn, logits = Dynamics(), []
    run(digits, observers=[dyn, lambda s: logits.append(s.evaluation.logits.clone())])
    rec = dyn.records(digits)
    for e, z in enumerate(logits):
        np.testing.assert_array_equal(rec['correct'][e], (z.argmax(1) == digits.given_label).numpy())
        loss = torch.nn.functional.cross_entropy(z, digits.given_label, reduction='none')
        np.testing.assert_allclose(rec['loss'][e].astype(np.float32), loss.numpy(), rtol=2e-3, atol=1e-4)


def test_changing_labels_reach_the_next_batch(digits):
    "Pseudo-labels: an objective with labels of its own, changed between epochs."
    labels = digits.given_label.clone()
    def objective(model, batch): return torch.nn.functional.cross_entropy(model(batch.x), labels[batch.position])
    def relabel(state): labels.fill_(3)
    state = run(digits, epochs=12, objective=objective, observers=[relabel])
    assert (state.evaluation.logits.argmax(1) == 3).float().mean() > .9


def test_bad_input(digits):
    with pytest.raises(ValueError, match='positions must have 150 entries when boolean'): run(digits, positions=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match='device must be'): train(make_model('mlp', 10, (1, 8, 8)), digits, 'digits', device='cuda:99' if not torch.cuda.is_available() else 'nowhere')
    with pytest.raises(ValueError, match='schedule must be one of'): get_recipe({'name': 'cpu', 'schedule': 'cosin'})
    with pytest.raises(ValueError, match='loss became'): run(digits, recipe=dict(lr=1e12))


def test_single_example_and_single_class():
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    one = from_arrays(x, [0], layout='NHWC', class_names=('a', 'b'))
    assert run(one).epoch == 3


@pytest.mark.gpu
def test_same_on_gpu(digits):
    recipe = {'name': 'digits', 'epochs': 3, 'precision': 'fp32'}
    a, b = (train(make_model('mlp', 10, (1, 8, 8), seed=0), digits, recipe, device=d) for d in ('cpu', 'cuda'))
    torch.testing.assert_close(a.evaluation.logits, b.evaluation.logits.cpu(), rtol=1e-2, atol=1e-2)


def test_whitening_is_fitted_to_the_training_part_and_survives_resume(images, tmp_path):
    def net(): return make_model('whitened', 3, (3, 12, 12), width=.1, seed=0)
    rows, recipe = torch.arange(0, 60, 2), {'name': 'fast', 'epochs': 3, 'batch_size': 10}
    whole = train(net(), images, recipe, positions=rows, device='cpu')
    white = Whitening(3)
    white.fit(normalize(images.x[rows], images.mean, images.std))
    assert torch.equal(whole.model.backbone.whitening.weight, white.weight)
    with pytest.raises(KeyboardInterrupt): train(net(), images, recipe, positions=rows, device='cpu', observers=[stop_in_epoch_3], checkpoint=tmp_path/'c')
    again = train(net(), images, recipe, positions=rows, device='cpu', checkpoint=tmp_path/'c')
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()): assert torch.equal(a, b)


class stop_in_epoch_3:
    "Ends the first attempt."
    @staticmethod
    def before_epoch(state):
        if state.epoch == 2: raise KeyboardInterrupt


def test_biases_of_norms_learn_at_their_own_rate(images):
    "One step of plain descent: the biases of norms move `bias_lr` times as far, everything else as before."
    def moved(bias_lr):
        net = make_model('whitened', 3, (3, 12, 12), width=.1, seed=0)
        before = {k: p.detach().clone() for k, p in net.named_parameters()}
        train(net, images, Recipe(epochs=1, batch_size=60, lr=1e-3, schedule='constant', momentum=0., weight_decay=0., bias_lr=bias_lr, augment=(), precision='fp32'), device='cpu')
        return {k: p.detach() - before[k] for k, p in net.named_parameters() if k != 'backbone.whitening.weight'}
    plain, fast = moved(1.), moved(8.)
    for k in plain: torch.testing.assert_close(fast[k], plain[k]*(8 if '.bn' in k and k.endswith('bias') else 1), rtol=1e-3, atol=1e-6)


def test_weight_decay_of_those_biases_stays_the_same_pull(images):
    net = make_model('whitened', 3, (3, 12, 12), width=.1)
    groups = T._make_optimizer(net, get_recipe('fast')).param_groups
    assert [g['factor']*g['weight_decay'] for g in groups] == pytest.approx([get_recipe('fast').weight_decay]*2)
    assert len(groups[1]['params']) == 6 and sum(len(g['params']) for g in groups) == sum(p.requires_grad for p in net.parameters())


def test_compiled_steps_give_the_same_numbers(images):
    losses = {}
    for mode in ('', 'default'):
        state = train(make_model('fast', 3, (3, 12, 12), width=.25, seed=0), images, Recipe(epochs=2, batch_size=25, lr=.01, precision='fp32'), compiled=mode, device='cpu')
        losses[mode] = state.train_loss, state.evaluation.logits
    assert losses[''][0] == pytest.approx(losses['default'][0], rel=1e-4)
    torch.testing.assert_close(losses[''][1], losses['default'][1], rtol=1e-3, atol=1e-3)


def test_deterministic_training_sets_the_switches_and_puts_them_back(images):
    seen = []
    def look(model, batch):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        return supervised()(model, batch)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    for deterministic in (True, False):
        train(make_model('fast', 3, (3, 12, 12), width=.25), images, Recipe(epochs=1, batch_size=60), objective=look, deterministic=deterministic, device='cpu')
        assert before == (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    assert seen == [(True, True, False), (False, False, True)]


@pytest.mark.gpu
@pytest.mark.parametrize('name', ['fast', 'whitened', 'resnet18'])
def test_deterministic_training_repeats_itself_on_gpu(images, name):
    runs = [train(make_model(name, 3, (3, 12, 12), width=.25, seed=0), images, Recipe(epochs=2, batch_size=20), device='cuda', deterministic=True).evaluation.logits for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.gpu
def test_an_epoch_does_not_wait_for_the_gpu(images):
    class Watch:
        "Any synchronisation between the first and the last step raises."
        def after_step(self, state): torch.cuda.set_sync_debug_mode('error' if state.step % 3 else 'default')
    try: train(make_model('fast', 3, (3, 12, 12), seed=0), images, Recipe(epochs=2, batch_size=20), device='cuda', observers=[Watch()])
    finally: torch.cuda.set_sync_debug_mode('default')


@pytest.mark.gpu
@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
def test_captured_steps_give_the_same_numbers_on_gpu(images, mode):
    recipe = Recipe(epochs=2, batch_size=25, lr=.01, precision='fp32')
    a, b = (train(make_model('fast', 3, (3, 12, 12), seed=0), images, recipe, device='cuda', compiled=m) for m in ('', mode))
    torch.testing.assert_close(a.evaluation.logits, b.evaluation.logits, rtol=1e-2, atol=1e-2)
