"Fixed encoders: frozen to the bit, heads beside plain loops, balance beside the original, files of others."
import copy
import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noisymem.augment import normalize
from noisymem.core import make_generator
from noisymem.data import from_arrays, load_dataset, sample, take
from noisymem.losses import LOSSES, forward_corrected
from noisymem.methods.linear_probe import _OF_CLASSES, _OF_LABEL, EVALUATION, HEADS, FeatureBank, Heads, Task, _losses, balanced_part, input_bank, make_bank, make_tasks, standardize, stream_after, train_heads
from noisymem.methods.simclr import PUBLISHED, pretrain
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.train import epoch_order
from noisymem.views import apply_view, draw_view

FP32 = HEADS | dict(epochs=3, batch_size=32, lr=1e-2, precision='fp32')


@pytest.fixture(scope='module')
def data(): return sample(load_dataset('digits'), 200, seed=0)


def md5(a): return hashlib.md5(np.ascontiguousarray(a, dtype='<i8').tobytes()).hexdigest()


@pytest.mark.parametrize('model', ['fast', 'resnet18', 'mlp', 'densenet'])
@pytest.mark.parametrize('statistics', ['running', 'batch'])
def test_the_encoder_is_bit_for_bit_what_it_was(data, model, statistics):
    net = make_model(model, 10, (1, 8, 8), width=.125)
    net.backbone.train()
    before = copy.deepcopy(net.state_dict())
    bank = make_bank(net, take(data, torch.arange(50)), 2, 'strong', statistics=statistics, device='cpu')
    train_heads(bank, take(data, torch.arange(50)), [Task(data.given_label[:50])], recipe=FP32, device='cpu')
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training


def test_a_bank_is_what_the_encoder_says_of_each_view(data):
    net = make_model('fast', 10, (1, 8, 8), width=.25).eval()
    bank = make_bank(net, data, 3, 'weak', seed=5, batch_size=37, device='cpu', pad=2)
    for v in range(3):
        x = apply_view(data.x, draw_view('weak', data.n, make_generator(5, 'bank', v), (1, 8, 8), pad=2))
        with torch.no_grad(): assert torch.allclose(bank.views[v].float(), net.features(normalize(x, data.mean, data.std)), atol=.03)
    with torch.no_grad(): assert torch.allclose(bank.test.float(), net.features(normalize(data.x_test, data.mean, data.std)), atol=.03)
    assert not torch.equal(bank.views[0], bank.views[1])
    again = make_bank(net, data, 3, 'weak', seed=5, batch_size=37, device='cpu', pad=2)
    assert all(np.array_equal(a, b) for a, b in zip(bank.arrays().values(), again.arrays().values()))
    none = make_bank(net, data, 0, device='cpu')
    assert torch.equal(none.views[0], none.plain) and torch.equal(none.plain, bank.plain)


def test_statistics_of_the_batch_are_another_thing(data):
    net = make_model('fast', 10, (1, 8, 8), width=.25)
    a, b = (make_bank(net, data, 1, 'weak', statistics=s, device='cpu', pad=1) for s in ('running', 'batch'))
    assert torch.equal(a.plain, b.plain) and (a.views.float() - b.views.float()).abs().max() > .1


def test_no_test_set(data):
    alone = from_arrays(data.x[:30], data.given_label[:30] % 3, data.true_label[:30] % 3)
    bank = make_bank(make_model('fast', 3, (1, 8, 8), width=.25), alone, 1, device='cpu')
    assert bank.test.shape == (0, 32)
    table = train_heads(bank, alone, [Task(alone.given_label)], recipe=FP32, device='cpu')[1]
    assert table.test_accuracy.isna().all() and table.fitted.notna().all()


def plain_loop(bank, data, task, sizes, recipe, seed=0):
    "One head the usual way: nn.Linear, batches, the same order and views."
    with torch.random.fork_rng():
        torch.manual_seed(task.seed)
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
    net = nn.Sequential(*sum([[l, nn.ReLU()] for l in layers], [])[:-1])
    make = torch.optim.Adam if recipe['optimizer'] == 'adam' else torch.optim.SGD
    optimizer = make(net.parameters(), lr=recipe['lr'], weight_decay=recipe['weight_decay'], **({} if recipe['optimizer'] == 'adam' else dict(momentum=recipe['momentum'])))
    for epoch in range(1, recipe['epochs'] + 1):
        parts = epoch_order(data.n, recipe['batch_size'], seed, epoch)
        views, start = torch.randint(len(bank.views), (data.n,), generator=make_generator(seed, 'view', epoch)), 0
        for p in parts:
            v = views[start:start + len(p)]; start += len(p)
            use = torch.ones(len(p), dtype=torch.bool) if task.keep is None else task.keep[p]
            loss = LOSSES[task.loss](net(bank.views[v, p].float())[use], task.given_label[p][use], 'mean') if use.any() else 0*sum(q.sum() for q in net.parameters())
            optimizer.zero_grad(); loss.backward(); optimizer.step()
    return net


@pytest.mark.parametrize('hidden', [(), (12,), (9, 7)])
@pytest.mark.parametrize('optimizer', [dict(optimizer='adam'), dict(optimizer='sgd', momentum=.9)])
def test_every_head_is_what_a_plain_loop_trains(data, hidden, optimizer):
    bank, recipe = FeatureBank(torch.randn(3, data.n, 16, generator=make_generator(0)), torch.randn(data.n, 16), torch.randn(len(data.x_test), 16)), FP32 | dict(weight_decay=1e-3) | optimizer
    some = torch.rand(data.n, generator=make_generator(1)) < .4
    tasks = [Task(add_noise(data, 'symmetric-0.5', seed=s).given_label, l, s, k) for s, l, k in ((0, 'ce', None), (1, 'gce', some), (2, 'sce', None), (3, 'ce', ~some), (4, 'bootstrap', some), (5, 'truncated_gce', None))]
    heads, _ = train_heads(bank, data, tasks, hidden, recipe, seed=7, device='cpu')
    for i, task in enumerate(tasks):
        want = plain_loop(bank, data, task, (16, *hidden, 10), recipe, seed=7)
        with torch.no_grad(): assert torch.allclose(heads(bank.plain)[i].t(), want(bank.plain), atol=2e-3), (i, task.loss)


def test_losses_in_the_fast_layout_are_the_named_ones():
    for seed in range(5):
        z = torch.randn(4, 7, 9, generator=make_generator(seed))*20
        y = torch.randint(7, (4, 9), generator=make_generator(seed + 100))
        z[0, 0], z[0, 1:], y[0] = 60, -60, 1
        for name in LOSSES:
            a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
            ours, theirs = _losses(a, y, [(name, torch.arange(4))]), torch.stack([LOSSES[name](u.t(), v, 'none') for u, v in zip(b, y)])
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), name
            ga, gb = (torch.autograd.grad(l.sum(), t)[0] for l, t in ((ours, a), (theirs, b)))
            assert ga.isfinite().all() and torch.allclose(ga, gb, rtol=1e-3, atol=1e-5), name
    assert set(_OF_LABEL) | set(_OF_CLASSES) == set(LOSSES), 'all of them have one'


def test_a_loss_of_your_own(data):
    t = torch.eye(10)*.6 + .04
    loss = lambda logits, labels, reduction: forward_corrected(logits, labels, reduction, t)
    _, table = train_heads(standardize(input_bank(data)), data, [Task(data.given_label, 'ce'), Task(data.given_label, loss)], recipe=FP32, device='cpu')
    assert table.train_loss.iloc[-1] > table.train_loss.iloc[-2] > 0


def test_the_table_counts_what_it_says(data):
    noisy = add_noise(data, 'symmetric-0.5')
    keep = torch.arange(data.n) % 3 > 0
    bank = standardize(input_bank(data))
    heads, table = train_heads(bank, data, [Task(noisy.given_label), Task(noisy.given_label, keep=keep, about=dict(name='third')), Task(data.true_label)], recipe=FP32 | dict(epochs=5), every=2, device='cpu')
    assert table.epoch.tolist() == [2]*3 + [4]*3 + [5]*3 and table['head'].tolist() == [0, 1, 2]*3 and table.name.tolist()[1] == 'third'
    with torch.no_grad(): said, test = heads(bank.plain).argmax(1).numpy(), heads(bank.test).argmax(1).numpy()
    true, given = data.true_label.numpy(), noisy.given_label.numpy()
    for i, k in enumerate((np.ones(data.n, bool), keep.numpy())):
        row, wrong = table.iloc[6 + i], k & (given != true)
        for name, want in dict(test_accuracy=(test[i] == data.y_test.numpy()).mean(), fitted=(said[i] == given)[k].mean(), memorized=(said[i] == given)[wrong].mean(), recovered=(said[i] == true)[wrong].mean()).items(): assert row[name] == pytest.approx(want), name
    assert math.isnan(table.memorized.iloc[8])


def test_unknown_truth_leaves_columns_out(data):
    blind = from_arrays(np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3, test_fraction=.2)
    table = train_heads(input_bank(blind), blind, [Task(blind.given_label)], recipe=FP32, device='cpu')[1]
    assert 'memorized' not in table and table.test_accuracy.notna().all()


def test_the_same_seed_gives_the_same_heads(data):
    bank, tasks = standardize(input_bank(data)), make_tasks(data, ['symmetric-0.4'], seeds=(0, 1))
    state = torch.get_rng_state()
    a, b = (train_heads(bank, data, tasks, (8,), HEADS | dict(epochs=2), device='cpu') for _ in range(2))
    assert all(torch.equal(u, v) for u, v in zip(a[0].parameters(), b[0].parameters())) and a[1].equals(b[1])
    assert torch.equal(state, torch.get_rng_state())
    assert a[1][a[1]['head'] == 0].test_accuracy.iloc[-1] != a[1][a[1]['head'] == 1].test_accuracy.iloc[-1]


def test_a_loss_that_is_not_finite_names_its_head(data):
    bank = FeatureBank(torch.full((1, data.n, 4), 1e4), torch.full((data.n, 4), 1e4), torch.zeros(len(data.x_test), 4))
    bad = lambda logits, labels, reduction: LOSSES['ce'](logits, labels, 'none')*math.inf
    with pytest.raises(ValueError, match='the loss of head 1 became'): train_heads(bank, data, [Task(data.given_label), Task(data.given_label, bad)], recipe=FP32, device='cpu')


# ---- balance

def slow_balance(labels, rng):
    "§2.5 of the study's description, line by line."
    lists = [[i for i, l in enumerate(labels) if l == c] for c in range(max(labels) + 1)]
    m, out = min(map(len, lists)), []
    for l in lists:
        l = np.array(l); rng.shuffle(l)
        out += l[:m].tolist()
    out = np.array(out); rng.shuffle(out)
    return out


@pytest.mark.parametrize('seed', range(5))
def test_balance_equals_a_loop(seed):
    y = np.random.default_rng(seed).choice(4, 60, p=[.1, .5, .2, .2])
    y[:4] = range(4)
    assert np.array_equal(balanced_part(y, 4, seed), slow_balance(y.tolist(), np.random.RandomState(seed)))


@pytest.mark.parametrize('kind, rate', [('symmetric', .6), ('symmetric', .2), ('pairflip', .4)])
def test_balance_of_genuine_labels_is_that_of_the_original(real_data, oracle, kind, rate):
    o = oracle('representation/noise_real_cifar.json')[f'C10_{kind}_{rate}']
    ds = load_dataset('cifar10', real_data, download=False)
    noisy = add_noise(ds, dict(pairflip='pair').get(kind, kind), rate)
    assert md5(noisy.given_label.numpy()) == o['md5_int64']
    kept = balanced_part(noisy.given_label, 10)
    assert len(kept) == o['ds_kept'] and md5(kept) == o['ds_index_md5'] and float(noisy.is_noisy[kept].double().mean()) == pytest.approx(o['ds_noise'])


@pytest.mark.parametrize('rate', [.2, .6])
def test_balance_after_instance_noise_continues_its_stream(real_data, oracle, rate):
    "The generator of the noise is seeded with 0 and has drawn 1,000,000 rates, a projection and one number per example before it shuffles."
    o = oracle('representation/noise_real_cifar.json')[f'C10_instance_{rate}']
    ds = load_dataset('cifar10', real_data, download=False)
    noisy = add_noise(ds, 'instance', rate, layout='chw', scale=255.)
    rng = np.random.RandomState(0)
    rng.normal(rate, .1, 1000000); rng.normal(0, 1, (3072, 10)); rng.random_sample(50000)
    kept = balanced_part(noisy.given_label, 10, stream_after(ds, 'instance', rate, layout='chw', scale=255.))
    assert np.array_equal(kept, balanced_part(noisy.given_label, 10, rng))
    assert len(kept) == o['ds_kept'] and md5(kept) == o['ds_index_md5'] and float(noisy.is_noisy[kept].double().mean()) == pytest.approx(o['ds_noise'])


def test_balanced_tasks(data):
    plain, even = make_tasks(data, ['pair-0.4'], balance=(False, True))
    counts = torch.bincount(even.given_label[even.keep], minlength=10)
    assert plain.keep is None and counts.min() == counts.max() == torch.bincount(even.given_label, minlength=10).min()
    assert even.about['noise_rate'] == pytest.approx(float((even.given_label != data.true_label)[even.keep].double().mean()))


def test_the_stream_after_noise_is_the_one_the_noise_drew_from(data, monkeypatch):
    "The generator that `instance_noise` used stands where `stream_after` says; other kinds leave a fresh one."
    from noisymem import noise
    used = []
    monkeypatch.setattr(noise, '_random_state', lambda seed: used.append(np.random.RandomState(seed)) or used[-1])
    noisy = add_noise(data, 'instance', .6, seed=3, layout='chw', scale=16.)
    stream = stream_after(data, kind='instance', rate=.6, seed=3, layout='chw', scale=16.)
    assert np.array_equal(used[0].random_sample(5), stream.random_sample(5)) and noisy.noise_rate > .4
    assert np.array_equal(stream_after(data, 'instance-0.6', seed=3).random_sample(5), stream_after(data, 'instance', .6, seed=3).random_sample(5))
    for fresh in (stream_after(data, 'symmetric', .6, seed=3), stream_after(data, 'worst', seed=3), stream_after(data, 'instance', .6, 3, 'per_class')):
        assert np.array_equal(fresh.random_sample(5), np.random.RandomState(3).random_sample(5))


def test_settings_of_noise_beside_names(data):
    per_class = dict(kind='instance', rate=.6, projection='per_class', temperature=30.)
    a, b, c = make_tasks(data, ['instance-0.6', per_class, dict(kind='symmetric-0.2')], seeds=(1,))
    assert [t.about['noise'] for t in (a, b, c)] == ['instance-0.6', 'instance-0.6 per class', 'symmetric-0.2']
    assert torch.equal(b.given_label, add_noise(data, **per_class, seed=1).given_label) and not torch.equal(a.given_label, b.given_label)
    with pytest.raises(ValueError, match='noises must differ in name'): make_tasks(data, ['instance-0.6', dict(kind='instance', rate=.6)])
    with pytest.raises(ValueError, match='noise must be a kind'): make_tasks(data, [dict(rate=.6)])


def test_no_balanced_task_of_a_class_that_is_given_to_none(data):
    "Nothing to balance: the other tasks are there."
    rare = from_arrays(np.zeros((8, 2), np.float32), [0, 1]*4, [0, 1]*4, class_names=['a', 'b', 'c'])
    assert [t.about['balanced'] for t in make_tasks(rare, ['clean'], balance=(False, True))] == [False]


def test_predictions_are_those_of_argmax(data):
    heads, x = Heads((6, 10), range(5)), torch.randn(300, 6, generator=make_generator(3))
    assert torch.equal(heads.predict(x, 128), heads(x).argmax(1))
    with torch.no_grad(): heads.weight[0].zero_(), heads.bias[0].zero_()
    assert (heads.predict(x) == 0).all(), 'the first of equals'


# ---- input that is wrong, and input of others

def test_bad_banks(data):
    ok = torch.zeros(data.n, 4)
    for views, plain, test, message in ((ok, ok, ok, 'views must be floats with 3 axes'), (ok[None].long(), ok, ok, 'views must be floats'), (ok[None], ok, ok[:, :2], 'must agree'), (ok[None][:0], ok, ok, 'must agree'), (ok[None], ok + math.inf, ok, 'plain must be finite')):
        with pytest.raises(ValueError, match=message): FeatureBank(views, plain, test)


@pytest.mark.parametrize('change, message', [
    (dict(tasks=[Task(torch.zeros(5, dtype=torch.int64))]), 'given_label of task 0 must have 200 entries'), (dict(tasks=[Task(torch.zeros(200, dtype=torch.int64), 'hinge')]), 'loss of task 0 must be one of'),
    (dict(tasks=[Task(torch.zeros(200, dtype=torch.int64), keep=torch.zeros(200, dtype=torch.bool))]), 'keep of task 0 must be bool'), (dict(every=0), 'every must be in'), (dict(recipe='cpu'), 'recipe must not augment'), (dict(recipe=HEADS | dict(lr=-1)), 'lr must be in')])
def test_bad_settings(data, change, message):
    with pytest.raises(ValueError, match=message): train_heads(**dict(bank=input_bank(data), data=data, tasks=[Task(data.given_label)], recipe=FP32, device='cpu') | change)


def test_a_constant_feature_and_a_scale_do_no_harm(data):
    x = input_bank(data)
    rough = FeatureBank(x.views*1000 + 5, x.plain*1000 + 5, x.test*1000 + 5)
    assert (input_bank(data).plain.std(0) == 0).any()
    a, b = (train_heads(standardize(t), data, [Task(data.true_label)], recipe=FP32 | dict(epochs=10), device='cpu')[1] for t in (x, rough))
    assert a.test_accuracy.iloc[-1] == pytest.approx(b.test_accuracy.iloc[-1], abs=.02) and a.test_accuracy.iloc[-1] > .8


def test_two_classes_and_batches_of_two():
    two = from_arrays(np.random.default_rng(0).normal(size=(31, 3)).astype(np.float32), np.arange(31) % 2, np.arange(31) % 2, test_fraction=.1)
    for loss in LOSSES: assert np.isfinite(train_heads(input_bank(two), two, [Task(two.given_label, loss)], (4,), FP32 | dict(batch_size=2), device='cpu')[1].train_loss).all()


def test_a_fixed_encoder_memorizes_less(data):
    "Symmetric 0.6: a wide head on raw pixels fits the wrong labels, a linear head on features that saw no label does not, and is right more often."
    big = sample(load_dataset('digits'), 600, seed=1)
    net, _ = pretrain(big, 'fast', PUBLISHED | dict(epochs=12, batch_size=128, lr=3e-3), width=.5, held_out=0, device='cpu', area=(.4, 1.), flip=0.)
    tasks, recipe = make_tasks(big, ['symmetric-0.6'], seeds=range(3)), HEADS | dict(epochs=60, batch_size=64, lr=3e-3)
    frozen = train_heads(standardize(make_bank(net, big, 4, 'strong', device='cpu', area=(.6, 1.), flip=0.)), big, tasks, (), recipe, device='cpu')[1]
    wide = train_heads(standardize(input_bank(big)), big, tasks, (256,), recipe, device='cpu')[1]
    a, b = (t[t.epoch == 60].mean(numeric_only=True) for t in (frozen, wide))
    assert b.memorized > .9 and a.memorized < .4 and a.test_accuracy > b.test_accuracy + .1, (a, b)


def test_linear_evaluation_names_the_published_recipe():
    assert (EVALUATION['epochs'], EVALUATION['batch_size'], EVALUATION['lr'], EVALUATION['weight_decay'], HEADS['epochs'], HEADS['batch_size'], HEADS['weight_decay']) == (100, 512, 1e-3, 1e-6, 150, 256, 0)


@pytest.mark.gpu
def test_the_same_heads_on_a_gpu(data):
    bank, tasks = standardize(input_bank(data)), make_tasks(data, ['symmetric-0.4'], ['ce', 'gce', 'sce'], balance=(False, True))
    a, b = (train_heads(bank, data, tasks, (8,), FP32, device=d)[0] for d in ('cpu', 'cuda'))
    assert all(torch.allclose(u, v.cpu(), atol=2e-3) for u, v in zip(a.parameters(), b.parameters()))
