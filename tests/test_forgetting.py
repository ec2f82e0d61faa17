"Forgetting: the original's toy run, frozen layers and norms, stop rules, looks by parts, scores against slow loops, bad input."
import copy
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import noisymem.train
from noisymem.data import from_arrays, load_dataset, sample, take
from noisymem.methods import forgetting as fg
from noisymem.methods.forgetting import SecondTask, add_head, fit_images, forget, match_parameters, score_forgetting, separation, turned
from noisymem.metrics import auroc, describe_groups
from noisymem.models import Classifier, make_model
from noisymem.noise import add_noise
from noisymem.records import Records
from noisymem.train import predict, train


def toy_net():
    "The toy network of the oracles, with its weights."
    backbone = nn.Sequential(OrderedDict(shape=nn.Unflatten(1, (3, 4, 4)), conv1=nn.Conv2d(3, 24, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(24), relu1=nn.ReLU(),
                                         layer4=nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
    return backbone


def toy_model(oracle, prefix):
    backbone = toy_net()
    backbone.n_features = 32
    net = Classifier(backbone, 5, heads={'second': 5})
    names = {'backbone.conv1.weight': 'conv1.weight', 'backbone.layer4.weight': 'layer4.0.weight', 'head.weight': 'linear.weight', 'head.bias': 'linear.bias', 'heads.second.weight': 'linear_2.weight', 'heads.second.bias': 'linear_2.bias'}
    names |= {f'backbone.bn1.{k}': f'bn1.{k}' for k in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')}
    net.load_state_dict({ours: torch.from_numpy(np.asarray(oracle[f'{prefix}.{theirs}'])) for ours, theirs in names.items()})
    return net, names


def toy_data(x, labels, true=None):
    ds = from_arrays(x.reshape(len(x), -1), labels.astype(np.int64), None if true is None else true.astype(np.int64), class_names='abcde')
    return replace(ds, mean=(0.,)*48, std=(1.,)*48)


def recipe(epochs, lr, milestones=()): return dict(name='paper', epochs=epochs, batch_size=20, lr=lr, milestones=milestones, weight_decay=1e-4, augment=(), precision='fp32')


@pytest.fixture
def in_order(monkeypatch):
    "Batches in the order of the data set, as the toy runs have them."
    monkeypatch.setattr(noisymem.train, 'epoch_order', lambda n, batch_size, seed, epoch: list(torch.arange(n).split(batch_size)))


VARIANTS = dict(
    nofreeze=(dict(recipe=recipe(6, .1)), {}),
    frozen4=(dict(recipe=recipe(2, .1, (1,)), frozen_until=4), {}),
    stop_steps=(dict(recipe=recipe(2, .01)), dict(max_steps=1)),
    stop_loss=(dict(recipe=recipe(4, .1)), dict(loss_cap=.3)))


@pytest.mark.parametrize('name', VARIANTS)
def test_toy_of_the_original(oracle, in_order, monkeypatch, name):
    "Losses, neighbour scores, remembered looks, steps and end weights of the original's two-stage toy."
    z = oracle('forgetting/two_stage_toy.npz')
    net, names = toy_model(z, 'state0')
    monkeypatch.setattr(fg, 'add_head', lambda model, n, seed: model)
    first, second = toy_data(z['x1'], z['given_labels1'], z['true_labels1']), toy_data(z['x2'], z['labels2'])
    options, stop = VARIANTS[name]
    learner, rec = forget(net, first, second, **options, **stop, k=10, keep='oracle', compat='original', device='cpu')
    assert rec['loss'].shape == z[f'{name}_losses'].shape
    assert np.abs(rec['loss'] - z[f'{name}_losses']).max() < 1e-4
    assert (np.abs(rec['disagreement'] - z[f'{name}_ce']) > 1e-4).mean() < 1e-3
    assert np.allclose([auroc(l, first.is_noisy) for l in rec['loss']], z[f'{name}_loss_auc'], atol=1e-3)
    remembered = rec['remembered']
    theirs = [int(np.abs(z[f'{name}_losses'] - best).max(1).argmin()) for best in z[f'{name}_best_auc_losses']]
    assert len(set(remembered.tolist()) ^ set(theirs)) <= 1  # of looks of one AUROC to the fifth digit, float32 may prefer another
    assert [int(((rec['step'] > e*5) & (rec['step'] <= e*5 + 5)).sum()) for e in range(options['recipe']['epochs'])] == z[f'{name}_tracked_steps_per_epoch'].tolist()
    if f'{name}_state_end.conv1.weight' in z and not len(remembered):
        for ours, theirs in names.items(): assert np.abs(learner.state_dict()[ours].numpy() - z[f'{name}_state_end.{theirs}']).max() < 1e-4, ours


def test_toy_end_weights_without_keeping(oracle, in_order, monkeypatch):
    z = oracle('forgetting/two_stage_toy.npz')
    net, names = toy_model(z, 'state0')
    monkeypatch.setattr(fg, 'add_head', lambda model, n, seed: model)
    first, second = toy_data(z['x1'], z['given_labels1'], z['true_labels1']), toy_data(z['x2'], z['labels2'])
    learner, rec = forget(net, first, second, recipe(6, .1), device='cpu')
    for ours, theirs in names.items(): assert np.abs(learner.state_dict()[ours].numpy() - z[f'nofreeze_state_end.{theirs}']).max() < 1e-4, ours
    assert rec['step'].tolist() == list(range(31))  # with step 0
    assert np.abs(rec['loss'][1:] - z['nofreeze_losses']).max() < 1e-4


def test_toy_separation_finds_a_good_step(oracle):
    "The step chosen without the truth is close to the best one."
    z = oracle('forgetting/two_stage_toy.npz')
    chosen = int(separation(torch.from_numpy(z['nofreeze_losses'])).argmax())
    assert z['nofreeze_loss_auc'][chosen] > z['nofreeze_loss_auc'].max() - .03


@pytest.fixture(scope='module')
def memory():
    "Digits with 30 % wrong labels, and a perceptron that knows them by heart."
    ds = add_noise(sample(load_dataset('digits'), 200, seed=0), 'symmetric_exact-0.3')
    return ds, train(make_model('mlp', 10, (1, 8, 8), width=.25), ds, {'name': 'digits', 'epochs': 60, 'precision': 'fp32'}, device='cpu').model


@pytest.fixture(scope='module')
def other(memory):
    "Other digits, with true labels."
    ds = load_dataset('digits')
    return sample(take(ds, ~torch.isin(ds.index, memory[0].index)), 128, seed=1)


HOW = dict(name='digits', epochs=10, lr=.02, schedule='constant', precision='fp32')
def run(memory, other, **kw): return forget(memory[1], memory[0], other, HOW, device='cpu', **kw)


def test_wrong_labels_go_first_and_useless_tasks_do_not_show_them(memory, other):
    "The second task decides the sign of the effect: images of the same kind raise the AUROC, random pixels and random labels lower it."
    first, wrong = memory[0], memory[0].is_noisy
    area = {}
    for name in ('rest', 'noise', 'shuffled'):
        rec = forget(memory[1], first, fg.second_task(name, first, other), dict(HOW, lr=.1, epochs=15), device='cpu')[1]
        area[name] = auroc(rec['chosen_loss'], wrong)
    before = auroc(rec['first_loss'], wrong)
    assert area['rest'] > before + .1 and area['noise'] < before - .05 and area['shuffled'] < before - .05


def test_the_network_handed_in_stays(memory, other):
    before = {k: v.clone() for k, v in memory[1].state_dict().items()}
    learner, _ = run(memory, other, frozen='backbone.fc1.*')
    assert all(torch.equal(v, before[k]) for k, v in memory[1].state_dict().items()) and not memory[1].heads
    assert all(p.requires_grad for p in learner.parameters()) and not learner.training
    assert torch.equal(learner.backbone.fc1.weight, before['backbone.fc1.weight']) and not torch.equal(learner.backbone.fc2.weight, before['backbone.fc2.weight'])
    assert torch.equal(learner.head.weight, before['head.weight'])


def test_looks_by_parts_are_looks_at_the_same_networks(memory, other):
    "A share looks at other examples in turn, never at other losses; the training does not change."
    whole, part = run(memory, other, every=2)[1], run(memory, other, every=2, share=.25)[1]
    assert np.array_equal(whole['step'], part['step'])
    seen = ~np.isnan(part['loss'])
    assert (seen.sum(1) == 50).all() and (seen[:4].sum(0) == 1).all() and np.array_equal(seen, part['prediction'] >= 0)
    assert np.allclose(part['loss'][seen], whole['loss'][seen], atol=1e-5)
    assert np.allclose(part['chosen_loss'], whole['chosen_loss'], atol=1e-5) and np.allclose(part['first_loss'], whole['loss'][0], atol=1e-5)


@pytest.mark.parametrize('keep', ['last', 'separation', 'oracle'])
def test_kept_weights_are_those_of_the_chosen_look(memory, other, keep):
    first = memory[0]
    learner, rec = run(memory, other, keep=keep, every=3)
    loss = torch.nn.functional.cross_entropy(predict(learner, first.x, first.mean, first.std).logits, first.given_label, reduction='none')
    assert np.allclose(loss, rec['loss'][rec['chosen_look']], atol=1e-5) and np.allclose(loss, rec['chosen_loss'], atol=1e-5)
    area = [auroc(l, first.is_noisy) for l in rec['loss']]
    if keep == 'oracle': assert area[rec['chosen_look']] == max(area)
    if keep == 'last': assert rec['chosen_look'] == len(area) - 1


def test_stop_rules_end_the_stage(memory, other):
    "After so many steps, or at the first look above the cap; no look and no step after it."
    rec = run(memory, other, max_steps=7)[1]
    assert rec['step'].tolist() == list(range(8))
    whole = run(memory, other)[1]
    for reduce, middle in (('median', np.median), ('mean', np.mean)):
        middles = np.array([middle(l) for l in whole['loss'].astype(float)])
        low, high = np.sort(middles)[len(middles)//2 - 1:][:2]
        rec = run(memory, other, loss_cap=float(low + high)/2, reduce=reduce)[1]
        n = int((middles > high*(1 - 1e-9)).argmax()) + 1
        assert len(rec['step']) == n < len(middles) and np.array_equal(rec['loss'], whole['loss'][:n])


def test_steps_that_are_looked_at(memory, other):
    "Every third, or those named; always the first, the last, and that at which the rule ends the run."
    whole = run(memory, other)[1]
    for options, steps in ((dict(every=3), [0, 3, 6, 9, 12, 15, 18, 20]), (dict(every=[1, 2, 4, 8, 16, 99]), [0, 1, 2, 4, 8, 16, 20]), (dict(every=3, max_steps=7), [0, 3, 6, 7]), (dict(every=50), [0, 20]), (dict(every=4, max_steps=20), [0, 4, 8, 12, 16, 20])):
        learner, rec = run(memory, other, **options)
        assert rec['step'].tolist() == steps
        assert np.array_equal(rec['loss'], whole['loss'][steps]) and np.array_equal(rec['chosen_loss'], whole['loss'][steps[-1]])
    stays = copy.deepcopy(memory[1].state_dict())
    learner, rec = run(memory, other, loss_cap=1e-9)
    assert rec['step'].tolist() == [0] and all(torch.equal(learner.state_dict()[k], v) for k, v in stays.items())  # above the cap before the first step


def test_memorize_is_train(memory):
    first, net = memory
    net, rec = fg.memorize(first, 'mlp', {'name': 'digits', 'epochs': 60, 'precision': 'fp32'}, width=.25, device='cpu')
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in memory[1].state_dict().items())
    assert rec['loss'].shape == (60, 200) and rec['correct'][-1].all()


def test_what_is_held_still_does_not_move(other):
    "Norm statistics, frozen stages, everything but the head before `frozen_until`; weight decay and momentum included."
    net = add_head(make_model('fast', 10, (1, 8, 8), width=.25), 10)
    for kw, moves in ((dict(), lambda n: not n.startswith('head.') and 'running' not in n and 'tracked' not in n),
                      (dict(frozen=('backbone.stage1.*', '*bn*')), lambda n: not n.startswith(('head.', 'backbone.stage1')) and 'bn' not in n),
                      (dict(frozen_until=99), lambda n: n.startswith('heads.')),
                      (dict(frozen_until=3, unit='epoch'), lambda n: n.startswith('heads.')),
                      (dict(norms='train'), lambda n: not n.startswith('head.')),
                      (dict(frozen_until=2, norms='early'), lambda n: not n.startswith('head.'))):
        before, task = {k: v.clone() for k, v in net.state_dict().items()}, SecondTask(**kw)
        learner = copy.deepcopy(net)
        train(learner, other, dict(name='paper', epochs=2, batch_size=64, lr=.05, augment=(), precision='fp32'), objective=task, observers=[task], device='cpu')
        assert {n for n, v in learner.state_dict().items() if not torch.equal(v, before[n])} == {n for n in before if moves(n)}, kw


def test_buffers_made_beforehand_change_nothing(other):
    "Momentum that begins at zero is momentum that begins with the first gradient."
    a, b = (make_model('mlp', 10, (1, 8, 8), width=.25) for _ in range(2))
    train(a, other, HOW, device='cpu')
    train(b, other, HOW, observers=[SecondTask()], device='cpu')
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize('seed', range(3))
def test_scores_by_slow_loops(seed):
    rng = np.random.default_rng(seed)
    t, n = 12, 40
    loss, prediction = rng.exponential(1., (t, n)).astype(np.float32), rng.integers(0, 3, (t, n))
    given = rng.integers(0, 3, n)
    if seed:
        hidden = rng.random((t, n)) < .5
        hidden[0] = False
        loss[hidden], prediction[hidden] = np.nan, -1
    rec = dict(step=np.arange(t)*5, loss=loss, prediction=prediction, given_label=given, n_classes=3, k=0, first_loss=loss[0], chosen_loss=np.nan_to_num(loss[-1]))
    def slow(i, kind):
        looks = [j for j in range(t) if prediction[j, i] >= 0]
        bad = [loss[j, i] > np.log(3) if kind == 'uncertain' else prediction[j, i] != given[i] for j in looks]
        for p, j in enumerate(looks):
            if all(bad[p:]) if kind == 'lasting' else bad[p]: return -5*j
        return -(5*(t - 1) + 1)
    for kind in ('unlearned', 'uncertain', 'lasting'): assert score_forgetting(rec, kind).tolist() == [slow(i, kind) for i in range(n)], kind
    assert np.allclose(score_forgetting(rec, 'mean'), np.nanmean(loss, 0)) and np.allclose(score_forgetting(rec, 'rise'), rec['chosen_loss'] - loss[0])


def test_lasting_is_the_second_split_forgetting_time():
    from noisymem.scores.dynamics import second_split_forgetting_time
    correct = np.random.default_rng(0).random((9, 50)) < .6
    rec = dict(step=np.arange(1, 10), loss=np.zeros((9, 50), np.float32), prediction=np.where(correct, 0, 1), given_label=np.zeros(50, int), n_classes=2, k=0)
    assert (-score_forgetting(rec, 'lasting')).tolist() == np.asarray(second_split_forgetting_time(correct)).tolist()


@pytest.mark.parametrize('n', [2, 3, 50, 501])
def test_separation_by_a_slow_loop(n):
    "The best cut, tried out one by one."
    rng = np.random.default_rng(n)
    loss = np.concatenate([rng.exponential(.1, n//2), rng.exponential(2, n - n//2)])
    p, best = np.sort(np.exp(-loss)), 0
    for m in range(1, n):
        w = m/n
        best = max(best, 2*np.sqrt(w*(1 - w))*(p[m:].mean() - p[:m].mean()))
    assert float(separation(torch.from_numpy(loss))) == pytest.approx(best, abs=1e-9)
    with_gaps = np.r_[loss, np.nan, np.nan]
    assert float(separation(torch.from_numpy(with_gaps))) == pytest.approx(best, abs=1e-9)
    assert separation(torch.from_numpy(np.stack([loss, loss]))).shape == (2,)


def test_groups_by_numpy():
    "Mean, population deviation, quartiles and AUROC of either group at every look."
    rng = np.random.default_rng(0)
    values, wrong = rng.random((6, 500)), rng.random(500) < .3
    values[1, :400] = np.nan
    table = describe_groups(values, wrong, at=range(10, 70, 10))
    for t, row in zip(range(10, 70, 10), values):
        for kind in (False, True):
            v = row[(wrong == kind) & ~np.isnan(row)]
            got = table[(table['at'] == t) & (table.is_noisy == kind)].iloc[0]
            assert np.allclose(got[['n', 'mean', 'sd', 'low', 'median', 'high']].astype(float), [len(v), v.mean(), v.std(), *np.percentile(v, [25, 50, 75])])
            assert got.auroc == auroc(row, wrong)


def test_bad_input(memory, other):
    first, net = memory
    colour = from_arrays(np.zeros((6, 12, 12, 3), np.uint8), np.arange(6) % 3)
    with pytest.raises(ValueError, match=r'second must have inputs like those of first, \(1, 8, 8\).*got \(3, 12, 12\).*see fit_images'): run(memory, colour)
    assert len(run(memory, fit_images(colour, first))[1]['step']) == 11
    for options, message in ((dict(share=0), 'share must be in'), (dict(share=1.5), 'share must be in'), (dict(every=0), 'every must be in'), (dict(keep='best'), 'keep must be one of'), (dict(reduce='max'), 'reduce must be one of'),
                             (dict(k=200), 'k must be in'), (dict(k=60, share=.25), 'k must be in'), (dict(max_steps=0), 'max_steps must be in'), (dict(frozen='layer9*'), 'frozen must hold patterns'), (dict(norms='x'), 'norms must be one of'), (dict(share=.5, compat='original'), 'share must be 1')):
        with pytest.raises(ValueError, match=message): run(memory, other, **options)
    for given in (first.true_label, (first.true_label + 1) % 10):
        with pytest.raises(ValueError, match="keep 'oracle' needs wrong and correct labels"): forget(net, replace(first, given_label=given), other, HOW, keep='oracle', device='cpu')
    with pytest.raises(ValueError, match='data must have at least 2 examples'): forget(net, take(first, [3]), other, HOW, device='cpu')
    with pytest.raises(ValueError, match='second must have at least 2 examples'): forget(net, first, take(other, [0]), HOW, device='cpu')
    with pytest.raises(ValueError, match="compat must be one of"): run(memory, other, compat='paper')
    unknown = replace(first, true_label=None)
    assert len(forget(net, unknown, other, HOW, device='cpu')[1]['step']) == 21  # the truth is not needed
    with pytest.raises(ValueError, match='is_noisy needs true_label'): forget(net, unknown, other, HOW, keep='oracle', device='cpu')
    with pytest.raises(ValueError, match='losses of the first data must stay finite'): forget(net, first, other, dict(HOW, lr=1e30), device='cpu')


def test_no_noise_all_noise_equal_losses_missing_classes(memory, other):
    "Ratio 0 and 1: losses as ever, no AUROC; equal losses: separation 0; classes without an example: no hindrance."
    first, net = memory
    for rate in (0., 1.):
        given = first.true_label if not rate else (first.true_label + 1) % 10
        rec = forget(net, replace(first, given_label=given), other, HOW, device='cpu')[1]
        assert describe_groups(rec['loss'], replace(first, given_label=given).is_noisy).auroc.isna().all()
    for n in (1, 2, 7, 1000, 50_001): assert float(separation(torch.full((n,), .3))) == 0 and float(separation(torch.zeros(n))) == 0
    few = take(first, first.given_label < 3)
    assert len(forget(net, few, take(other, other.given_label < 2), HOW, device='cpu')[1]['loss'][0]) == few.n
    with pytest.raises(ValueError, match='first must have the 10 classes'): forget(net, replace(few, class_names=('a', 'b', 'c'), true_label=None, x_test=few.x_test[:0], y_test=few.y_test[:0]), other, HOW, device='cpu')


def test_turned_is_numpys_rotation():
    ds = sample(load_dataset('digits'), 40, seed=0)
    t = turned(ds, seed=3)
    for i in range(40): assert np.array_equal(t.x[i, 0].numpy(), np.rot90(ds.x[i, 0].numpy(), int(t.given_label[i])))
    assert torch.equal(turned(ds, 3).given_label, t.given_label) and not torch.equal(turned(ds, 4).given_label, t.given_label)


def test_weights_go_through_arrays(memory, tmp_path):
    from noisymem.methods.forgetting import put_weights, weight_arrays
    from noisymem.records import load_records, save_records
    net = make_model('preact_resnet18', 4, (3, 8, 8), width=.05, seed=1)
    save_records(tmp_path/'w.npz', Records({}, weight_arrays(net)))
    twin = put_weights(make_model('preact_resnet18', 4, (3, 8, 8), width=.05, seed=2), load_records(tmp_path/'w.npz').shared | dict(loss=np.zeros(3)))
    assert all(torch.equal(v, twin.state_dict()[k]) and v.dtype == twin.state_dict()[k].dtype for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match='arrays must be the weights of such a model'): put_weights(memory[1], weight_arrays(net))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_gpu_gives_what_the_cpu_gives(memory, other):
    options = dict(every=2, k=5, share=.5)
    for keep in ('last', 'separation', 'oracle'):
        a, b = (forget(copy.deepcopy(memory[1]), memory[0], other, HOW, device=device, keep=keep, **options)[1] for device in ('cpu', 'cuda'))
        assert np.array_equal(a['step'], b['step']) and np.allclose(a['loss'], b['loss'], atol=1e-3, equal_nan=True)
        assert np.allclose(a['first_loss'], b['first_loss'], atol=1e-4)
