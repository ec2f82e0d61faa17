"Relabelling: the original's losses and toy run, a slow restatement, resume, chance, odd data."
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noisymem import train as T
from noisymem.data import Dataset, from_arrays, load_dataset, sample, take, with_labels
from noisymem.losses import cross_entropy
from noisymem.metrics import auroc
from noisymem.methods import relabel as R
from noisymem.methods.relabel import CARDS, Relabel, WatchAccuracy, entropy_penalty, follow_labels, joint_loss, make_prior, prior_penalty, score_relabel, soft_cross_entropy, train_relabel
from noisymem.noise import add_noise
from noisymem.train import get_recipe, learning_rate, train

DIGITS = {'name': 'digits', 'epochs': 6}


@pytest.fixture(scope='module')
def noisy(): return add_noise(sample(load_dataset('digits'), 200, seed=0), 'symmetric_exact-0.4')


def weights(model): return torch.cat([p.detach().flatten() for p in model.state_dict().values() if p.is_floating_point()])


@pytest.fixture
def in_order(monkeypatch):
    "Batches in the order of the data, as the toy runs of the original had them."
    monkeypatch.setattr(T, 'epoch_order', lambda n, batch_size, seed, epoch: list(torch.arange(n).split(batch_size)))


class Toy(nn.Module):
    "The network of the toy runs, on flattened inputs."
    def __init__(self, init):
        super().__init__()
        self.conv1, self.bn1, self.layer4 = nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.Sequential(nn.Conv2d(24, 32, 3, 2, 1, bias=False))
        self.linear, self.linear_2 = nn.Linear(32, 5), nn.Linear(32, 5)
        self.load_state_dict({k[5:]: torch.from_numpy(v) for k, v in init.items() if k.startswith('init.')})

    def forward(self, x): return self.linear(self.layer4(F.relu(self.bn1(self.conv1(x.view(-1, 3, 4, 4))))).mean((2, 3)))


def toy_data(a):
    x = torch.from_numpy(a['x']).flatten(1)
    names = tuple('abcde')
    return Dataset('toy', x, torch.from_numpy(a['given_labels']), torch.from_numpy(a['true_labels']), torch.arange(len(x)), x[:0], torch.zeros(0, dtype=torch.int64), names, (0.,)*48, (1.,)*48)


def test_losses_of_the_original(oracle):
    a = {k: torch.from_numpy(v) for k, v in oracle('forgetting/losses.npz').items()}
    logits = a['logits'].requires_grad_()
    assert abs(prior_penalty(logits) - a['L_p']) < 1e-6
    assert abs(entropy_penalty(logits) - a['L_e']) < 1e-6
    assert abs(soft_cross_entropy(logits, a['targets_a']) - a['mixup_CE_a']) < 1e-6
    loss = joint_loss(logits, a['targets_a'], float(a['w_Lp']), float(a['w_Le']))
    assert abs(loss - a['joint_loss']) < 1e-6
    assert (torch.autograd.grad(loss, logits)[0] - a['joint_grad']).abs().max() < 1e-6


def test_toy_run_of_the_original(oracle, in_order):
    a = oracle('forgetting/relabel_toy_cewarm.npz')
    data, net = toy_data(a), Toy(a)
    labels, soft, tracked, losses = Relabel(data, warmup=3, average_last=1, warmup_loss='ce'), [], [], []

    def look(state):
        soft.append(labels.soft.clone())
        tracked.append(cross_entropy(state.evaluation.logits, data.given_label, reduction='none'))
        losses.append(state.train_loss)
    recipe = dict(name='paper', epochs=6, batch_size=20, lr=.1, milestones=(4,), weight_decay=1e-4, augment=())
    train(net, data, recipe, objective=labels, observers=[labels, look], device='cpu')
    assert np.abs(torch.stack(soft).numpy() - a['soft_labels_after_epoch']).max() < 1e-4
    assert (torch.stack(labels.rows).numpy() == a['hard_labels_after_epoch']).all()
    assert np.abs(torch.stack(tracked).numpy() - a['tracked_loss']).max() < 1e-4
    assert np.abs(np.array(losses) - a['train_loss_avg']).max() < 1e-4
    for k, v in net.state_dict().items(): assert (v - torch.from_numpy(a[f'end.{k}'])).abs().max() < 1e-4, k


def test_rates_of_the_original(oracle):
    recipe = get_recipe(CARDS['cifar10 random']['recipe'])
    assert np.allclose([learning_rate(recipe, e*500, 500) for e in range(130)], oracle('forgetting/lr_schedules.npz')['relabel_130_M75_110'])


@pytest.mark.parametrize('view,average_last,warmup_loss', [('batch', 1, 'joint'), ('batch', 3, 'ce'), ('clean', 2, 'joint')])
def test_against_a_slow_loop(noisy, in_order, view, average_last, warmup_loss):
    "The same run, written out again without `train`."
    options, E, W, B = dict(view=view, average_last=average_last, warmup_loss=warmup_loss, prior_weight=.5, entropy_weight=.2), 6, 3, 50
    net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    torch.manual_seed(0)
    ours, theirs = net(), net()
    theirs.load_state_dict(ours.state_dict())
    labels = Relabel(noisy, warmup=W, **options)
    train(ours, noisy, dict(name='digits', epochs=E, batch_size=B, lr=.1, schedule='constant', precision='fp32'), objective=labels, observers=[labels], device='cpu')

    x = (noisy.x.float()/255 - noisy.mean[0])/noisy.std[0]
    given, soft, past = noisy.given_label, F.one_hot(noisy.given_label, 10).double(), []
    opt = torch.optim.SGD(theirs.parameters(), .1, momentum=.9, nesterov=True, weight_decay=1e-4)
    for e in range(1, E + 1):
        new = torch.zeros(200, 10, dtype=torch.float64)
        for start in range(0, 200, B):
            h = theirs(x[start:start + B]).double()
            p, s = h.softmax(1), soft[start:start + B]
            if view == 'batch': new[start:start + B] = p.detach()
            if warmup_loss == 'ce' and e < W: loss = -p.log()[torch.arange(B), given[start:start + B]].mean()
            else: loss = -(s*p.log()).sum(1).mean() - .5*p.mean(0).log().mean() - .2*(p*p.log()).sum(1).mean()
            opt.zero_grad(); loss.backward(); opt.step()
        if view == 'clean': new = theirs(x).detach().double().softmax(1)
        past.append(new)
        if e >= W: soft = torch.stack(past[-average_last:]).mean(0)
    assert (labels.soft - soft).abs().max() < 1e-4
    assert torch.equal(labels.rows[-1].long(), soft.argmax(1))


def test_penalties_at_the_edge():
    assert torch.isfinite(prior_penalty(torch.tensor([[1e4, 0.], [1e4, 0.]])))
    h = torch.tensor([[300., 0., 0.], [300., 0., 0.]], requires_grad=True)
    g, = torch.autograd.grad(joint_loss(h, torch.eye(3)[[0, 1]]), h)
    assert torch.isfinite(g).all()
    assert torch.isfinite(prior_penalty(h, torch.tensor([1., 0, 0])))
    for k in (2, 10): assert abs(prior_penalty(torch.randn(5, k)*0) - np.log(k)) < 1e-6
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        h = 5*torch.randn(7, 4, generator=rng)
        p = h.softmax(1)
        assert abs(prior_penalty(h, torch.full((4,), .25)) - prior_penalty(h)) < 1e-5
        assert abs(prior_penalty(h) - (-p.mean(0).log().mean())) < 1e-4 and prior_penalty(h) >= np.log(4) - 1e-6


def test_a_class_without_labels_does_not_attract(noisy):
    "Predictions stay away from a class that no label names."
    some = noisy.given_label != 7
    data = take(noisy, some)
    assert make_prior('uniform', data.given_label, 10)[7] == 0
    _, rec = train_relabel(data, 'mlp', DIGITS | {'epochs': 12}, warmup=4, device='cpu')
    assert not (rec['label'][-1] == 7).any()


@pytest.mark.parametrize('kind', ['clean', 'symmetric_exact-0.99'])
def test_no_and_only_wrong_labels(noisy, kind):
    data = add_noise(noisy, kind) if kind == 'clean' else with_labels(noisy, (noisy.true_label + 1) % 10, 'all wrong')
    _, rec = train_relabel(data, 'mlp', DIGITS, warmup=3, device='cpu')
    table = follow_labels(rec, data.true_label)
    assert table.auroc.isna().all()
    assert table['corrected' if kind == 'clean' else 'broken'].isna().all() and not table['broken' if kind == 'clean' else 'corrected'].isna().any()


def test_same_seed_same_bits(noisy):
    a, b, c = (train_relabel(noisy, 'mlp', DIGITS, seed=s, warmup=3, device='cpu') for s in (0, 0, 1))
    assert torch.equal(weights(a[0]), weights(b[0])) and not torch.equal(weights(a[0]), weights(c[0]))
    for k in ('label', 'loss', 'test_accuracy'): assert np.array_equal(a[1][k], b[1][k])
    assert np.array_equal(a[1]['soft_label'], b[1]['soft_label'])


@pytest.mark.parametrize('stop', [2, 4])
def test_resume_equals_an_uninterrupted_run(noisy, tmp_path, stop):
    "Before and after the labels have begun to change."
    class Killed(Exception): pass

    def kill(state):
        if state.epoch == stop + 1: raise Killed
    whole = train_relabel(noisy, 'mlp', DIGITS, warmup=3, average_last=2, device='cpu')
    file = tmp_path/'run.safetensors'
    before = R.EpochBar.after_epoch
    try:
        R.EpochBar.after_epoch = lambda self, state: kill(state)
        with pytest.raises(Killed): train_relabel(noisy, 'mlp', DIGITS, warmup=3, average_last=2, device='cpu', checkpoint=file)
    finally: R.EpochBar.after_epoch = before
    again = train_relabel(noisy, 'mlp', DIGITS, warmup=3, average_last=2, device='cpu', checkpoint=file)
    once_more = train_relabel(noisy, 'mlp', DIGITS, warmup=3, average_last=2, device='cpu', checkpoint=file)
    for other in (again, once_more):
        assert torch.equal(weights(whole[0]), weights(other[0]))
        for k in ('label', 'loss', 'test_accuracy', 'soft_label', 'final_loss'): assert np.array_equal(whole[1][k], other[1][k]), k


def test_labels_that_are_not_trained_on_stay(noisy):
    labels = Relabel(noisy, warmup=1)
    on = torch.arange(150)
    train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), noisy, DIGITS, positions=on, objective=labels, observers=[labels], device='cpu')
    assert torch.equal(labels.soft[150:], F.one_hot(noisy.given_label[150:], 10).float())
    assert torch.allclose(labels.soft.sum(1), torch.ones(200))


def test_it_finds_and_corrects_wrong_labels():
    data = add_noise(load_dataset('digits'), 'symmetric_exact-0.4')
    _, rec = train_relabel(data, 'mlp', {'name': 'digits', 'epochs': 24, 'schedule': 'constant'}, warmup=8, device='cpu')
    table = follow_labels(rec, data.true_label)
    assert auroc(score_relabel(rec), data.is_noisy) == pytest.approx(table.auroc.iloc[-1], abs=1e-3)
    assert table.auroc.iloc[-1] > .93 and table.accuracy.iloc[-1] > .85 and table.broken.iloc[-1] < .1
    assert (rec['label'][:7] == rec['given_label']).all(), 'given labels until the end of the warm-up'


def test_no_test_set():
    rng = np.random.default_rng(0)
    data = from_arrays(rng.normal(size=(40, 5)), rng.integers(0, 3, 40), class_names=('a', 'b', 'c'))
    _, rec = train_relabel(data, 'mlp', DIGITS, warmup=2, device='cpu')
    assert np.isnan(rec['test_accuracy']).all()


@pytest.mark.parametrize('options,words', [
    (dict(warmup=0), 'warmup must be in'), (dict(warmup=7), r'warmup must be in \[1, 6\]'), (dict(warmup=2, average_last=0), 'average_last must be in'), (dict(warmup=2, view='x'), 'view must be one of'),
    (dict(warmup=2, warmup_loss='mse'), 'warmup_loss must be one of'), (dict(warmup=2, prior='none'), 'prior must be one of'), (dict(warmup=2, prior=[1.]), 'prior must be'), (dict(warmup=2, model='net'), 'name must be one of')])
def test_wrong_arguments_are_named(noisy, options, words):
    with pytest.raises(ValueError, match=words): train_relabel(noisy, **(dict(model='mlp', recipe=DIGITS) | options))


@pytest.mark.gpu
def test_the_device_gives_the_same_labels(noisy):
    a, b = (train_relabel(noisy, 'mlp', DIGITS | {'precision': 'fp32'}, warmup=3, device=d)[1] for d in ('cpu', 'cuda'))
    assert (a['label'] == b['label']).mean() > .98
