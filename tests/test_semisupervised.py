"Semi-supervised training: the original's selections, losses and streams, a slow restatement, what may not leak, resume, odd data."
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noisymem import train as T
from noisymem.augment import normalize
from noisymem.core import derive_seed
from noisymem.data import Dataset, load_dataset, sample, take, with_labels
from noisymem.jitter import jitter
from noisymem.losses import cross_entropy
from noisymem.methods import semisupervised as S
from noisymem.methods.relabel import joint_loss, soft_cross_entropy
from noisymem.methods.semisupervised import CARDS, PseudoLabels, WeightAverage, describe_selection, draw_mix, hold_out, labelled_stream, mix, report_accuracy, select_trusted, train_semisupervised, train_twice, update_labels
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.scores.mixture import score_mixture
from noisymem.train import get_recipe, learning_rate, predict, train

DIGITS = {'name': 'digits', 'epochs': 4}


@pytest.fixture(scope='module')
def noisy(): return add_noise(sample(load_dataset('digits'), 200, seed=0), 'symmetric_exact-0.4')


@pytest.fixture(scope='module')
def trusted(noisy): return select_trusted(noisy.is_noisy.double() + .1*torch.arange(200)/200, 'share', .4)


def weights(model): return torch.cat([p.detach().flatten() for p in model.state_dict().values() if p.is_floating_point()])


def ssl(data, labelled, **options): return train_semisupervised(data, labelled, **(dict(model='mlp', recipe=DIGITS, warmup=2, device='cpu') | options))


TAGS = {
    'thr20': dict(), 'thr20_balanced': dict(balanced=True), 'thr20_two_union': dict(scores=2), 'thr20_two_agree': dict(scores=2, agree=True), 'thr20_balanced_two_agree': dict(scores=2, agree=True, balanced=True),
    'bmm05': dict(cut=.05), 'bmm50': dict(cut=.5), 'bmm05_two_agree': dict(cut=.05, scores=2, agree=True), 'bmm05_fnd': dict(cut=.05, veto=True)}


@pytest.mark.parametrize('tag', TAGS)
def test_selections_of_the_original(oracle, tag):
    a, how = oracle('forgetting/ssl_selection.npz'), TAGS[tag]
    name, rule = ('bmm', 'probability') if 'cut' in how else ('metric', 'share')
    score = np.stack([a[f'{name}1'], a[f'{name}2']]) if how.get('scores') else a[f'{name}1']
    chosen = select_trusted(score, rule, how.get('cut', .2), how.get('agree', False), a['given_labels'] if how.get('balanced') else None, a['fnd_prob'] if how.get('veto') else None)
    assert np.array_equal(chosen.nonzero()[:, 0], a[f'{tag}_labeled_idx'])
    assert np.array_equal((~chosen).nonzero()[:, 0], a[f'{tag}_unlabeled_idx'])
    share, n = a[f'{tag}_percent_clean_nimgs']
    assert int(chosen.sum()) == n and (~a['is_noisy'])[chosen.numpy()].mean() == pytest.approx(share, abs=1e-6)


def test_mixture_rule_is_the_mixture(oracle):
    loss = oracle('forgetting/bmm.npz')['sep_metric']
    assert torch.equal(select_trusted(loss, cut=.05), score_mixture(loss, device='cpu').double() < .05)
    with pytest.raises(ValueError, match='score 1 must fall into two groups'): select_trusted(np.stack([loss, np.ones_like(loss)]))


@pytest.mark.parametrize('seed', range(5))
def test_share_against_a_slow_loop(seed):
    rng = np.random.default_rng(seed)
    n, k, share = rng.integers(1, 60), 4, rng.random()
    score, given = rng.integers(0, 6, n).astype(float), rng.integers(0, k, n)
    score[rng.random(n) < .1] = np.nan
    for groups in (None, given):
        slow = np.zeros(n, bool)
        for g in range(k) if groups is not None else [None]:
            members = [i for i in range(n) if g is None or given[i] == g]
            best = sorted((i for i in members if not np.isnan(score[i])), key=lambda i: (score[i], i))[:round(share*len(members))]
            slow[best] = True
        assert np.array_equal(select_trusted(score, 'share', share, balanced_by=groups), slow)


def test_shares_of_none_and_of_all():
    score = torch.rand(30)
    assert not select_trusted(score, 'share', 0).any() and select_trusted(score, 'share', 1).all()
    assert select_trusted(torch.ones(10), 'share', .5).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4], 'equal scores: those that come first'


def test_losses_of_the_original(oracle):
    a = oracle('forgetting/losses.npz')
    x, order, share = torch.from_numpy(a['mixup_x']), torch.from_numpy(a['mixup_perm']), float(a['mixup_lam'])
    assert (mix(x, share, order) - torch.from_numpy(a['mixup_x_mixed'])).abs().max() < 1e-6
    logits, s, t, lam = torch.from_numpy(a['logits']).requires_grad_(), torch.from_numpy(a['targets_a']), torch.from_numpy(a['targets_b']), float(a['lam'])
    loss = joint_loss(logits, lam*s + (1 - lam)*t, float(a['w_Lp']), float(a['w_Le']))
    assert abs(loss.item() - a['mixup_loss']) < 1e-6
    assert np.abs(torch.autograd.grad(loss, logits)[0].numpy() - a['mixup_grad']).max() < 1e-6
    assert abs(soft_cross_entropy(logits, t).item() - a['mixup_CE_b']) < 1e-6


def test_streams_of_the_original(oracle):
    a = oracle('forgetting/two_stream_sampler.npz')
    rng = np.random.RandomState(int(a['seed']))
    n_steps = len(a['primary'])//(int(a['batch_size']) - int(a['secondary_batch']))
    first = rng.permutation(a['primary'])[:n_steps*6].reshape(n_steps, 6)
    draw = [torch.from_numpy(rng.permutation(len(a['secondary']))) for _ in range(5)]
    second = labelled_stream(torch.from_numpy(a['secondary']), 0, n_steps*4, draw.__getitem__).view(n_steps, 4)
    assert n_steps == a['length'] and np.array_equal(np.hstack([first, second]), a['batches'])


@pytest.mark.parametrize('seed', range(3))
def test_pieces_of_a_stream_join(seed):
    rng = np.random.default_rng(seed)
    m = int(rng.integers(1, 9))
    draw = lambda r: torch.from_numpy(np.random.default_rng(r).permutation(m))
    whole, at, parts = labelled_stream(torch.arange(m), 0, 60, draw), 0, []
    while at < 60:
        n = min(int(rng.integers(0, 12)), 60 - at)
        parts.append(labelled_stream(torch.arange(m), at, n, draw))
        at += n
    assert torch.equal(torch.cat(parts), whole)
    for r in range(60//m): assert sorted(whole[r*m:(r + 1)*m].tolist()) == list(range(m))


def test_rates_of_the_original(oracle):
    recipe = get_recipe(CARDS['cifar10 real as it was']['recipe'])
    assert np.allclose([learning_rate(recipe, e*10, 10) for e in range(400)], oracle('forgetting/lr_schedules.npz')['ssl_400_M250_350'])


class Net(nn.Module):
    "One convolution, batch norm and dropout, on flattened inputs."
    def __init__(self, dropout=0.):
        super().__init__()
        self.conv, self.bn, self.drop, self.linear = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Dropout(dropout), nn.Linear(8, 5)

    def forward(self, x): return self.linear(self.drop(F.leaky_relu(self.bn(self.conv(x.view(-1, 3, 4, 4))), .1).mean((2, 3))))


@pytest.fixture(scope='module')
def toy():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 48, generator=g), torch.randint(5, (80,), generator=g)
    x = x + torch.randn(5, 48, generator=g)[y]
    given = torch.where(torch.rand(80, generator=g) < .3, torch.randint(5, (80,), generator=g), y)
    return Dataset('toy', x, given, y, torch.arange(80), x[:0], y[:0], tuple('abcde'), (0.,)*48, (1.,)*48)


def net(dropout=0.):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(dropout)


RECIPE = dict(name='paper', epochs=4, batch_size=20, lr=.05, milestones=(), weight_decay=1e-4, augment=())


@pytest.mark.parametrize('view,start,b', [('original', 'given', 2), ('batch', 'given', 1), ('clean', 'hidden', 1)])
def test_against_a_slow_loop(toy, monkeypatch, view, start, b):
    "The same run, written out again: mixed losses, two passes a step, updates of the unlabelled after epoch `b`."
    monkeypatch.setattr(T, 'epoch_order', lambda n, batch_size, seed, epoch: list(torch.arange(n).split(batch_size)))
    labelled = torch.arange(80) < 30
    ours, theirs, labels = net(), net(), PseudoLabels(toy, labelled, start=start, first_update=b, view=view, prior_weight=.8, entropy_weight=.4, seed=3)
    soft_ours = []
    train(ours, toy, RECIPE, objective=labels, observers=[labels, lambda s: soft_ours.append(labels.soft.clone())], device='cpu')

    soft = F.one_hot(toy.given_label, 5).float()
    if start == 'hidden': soft[30:] = 0
    opt, step = torch.optim.SGD(theirs.parameters(), .05, momentum=.9, weight_decay=1e-4), 0
    for e in range(1, 5):
        new = torch.zeros(80, 5)
        for first in range(0, 80, 20):
            x, s = toy.x[first:first + 20], soft[first:first + 20]
            if view != 'clean':
                kept = {k: v.clone() for k, v in theirs.state_dict().items()}
                new[first:first + 20] = theirs(x).softmax(1).detach()
                if view == 'batch': theirs.load_state_dict(kept)
            lam, perm = draw_mix(20, 1., S.derive_seed(3, 'mixup', step)); step += 1
            h = theirs(lam*x + (1 - lam)*x[perm])
            p = h.softmax(1)
            ce = lambda t: -(t*p.log()).sum(1).mean()
            loss = lam*ce(s) + (1 - lam)*ce(s[perm]) - .8*p.mean(0).log().mean() - .4*(p*p.log()).sum(1).mean()
            opt.zero_grad(); loss.backward(); opt.step()
        if view == 'clean':
            theirs.eval(); new = theirs(toy.x).softmax(1).detach(); theirs.train()
        if e >= b: soft[30:] = new[30:]
        assert (soft_ours[e - 1] - soft).abs().max() < 1e-4, e
    for k, v in ours.state_dict().items():
        if k != 'bn.num_batches_tracked': assert (v - theirs.state_dict()[k]).abs().max() < 1e-4, k


def test_random_labels():
    soft, said, order = torch.eye(6), torch.full((6, 6), .1), torch.tensor([5, 3, 4, 2])
    new = update_labels(soft, said, torch.tensor([2, 3, 4, 5]), .5, order)
    assert torch.equal(new[:2], soft[:2]) and (new[[5, 3]] == 1/6).all() and (new[[4, 2]] == .1).all()
    assert torch.equal(soft, torch.eye(6)), 'the old labels stay as they were'
    assert torch.equal(update_labels(soft, said, torch.tensor([2, 3, 4, 5])), update_labels(soft, said, torch.tensor([2, 3, 4, 5]), 0.))


@pytest.mark.parametrize('options', [dict(), dict(start='hidden'), dict(view='batch'), dict(n_labelled=16), dict(random_share=.3)])
def test_given_labels_of_the_unlabelled_are_never_seen(noisy, trusted, options):
    "Other labels there, the same network, bit for bit."
    other = with_labels(noisy, torch.where(trusted, noisy.given_label, (noisy.given_label + 3) % 10), 'other')
    a, b = (ssl(d, trusted, **options) for d in (noisy, other))
    assert torch.equal(weights(a[0]), weights(b[0])) and np.array_equal(a[1]['soft_label'], b[1]['soft_label'])
    c = ssl(noisy, trusted, start='given'), ssl(other, trusted, start='given')
    assert not torch.equal(weights(c[0][0]), weights(c[1][0])), 'the original did see them'


def test_held_out_labels_are_not_trained_on(noisy, trusted):
    held = hold_out(trusted, noisy.given_label, .2)
    assert held.any() and not (held & ~trusted).any()
    other = with_labels(noisy, torch.where(held, (noisy.given_label + 1) % 10, noisy.given_label), 'other')
    _, a = ssl(noisy, trusted, validation=.2)
    assert np.array_equal(a['held_out'], held)
    labels = [PseudoLabels(d, trusted & ~held) for d in (noisy, other)]
    assert torch.equal(labels[0].soft, labels[1].soft)


def test_the_test_set_chooses_nothing(noisy, trusted):
    a = ssl(noisy, trusted, validation=.2)[1]
    b = ssl(replace(noisy, y_test=(noisy.y_test + 1) % 10), trusted, validation=.2)[1]
    assert not np.array_equal(a['test_accuracy'], b['test_accuracy']) and report_accuracy(a)['chosen_epoch'] == report_accuracy(b)['chosen_epoch']
    assert report_accuracy(ssl(noisy, trusted, validation=0)[1])['chosen_epoch'] == 4
    worst = max(range(4), key=lambda e: -a['validation'][e])
    assert a['validation'][worst] <= a['validation'][report_accuracy(a)['chosen_epoch'] - 1]


def test_the_pass_that_labels_does_not_disturb_training(toy):
    "View 'batch' moves neither weights nor running statistics; that of the original moves the latter."
    runs, labelled = {}, torch.arange(80) < 30
    for view in ('clean', 'batch', 'original'):
        labels = PseudoLabels(toy, labelled, view=view, first_update=99)
        runs[view] = train(net(.5), toy, RECIPE, objective=labels, observers=[labels], device='cpu').model
    a, b, c = (r.state_dict() for r in runs.values())
    for k in a:
        if k != 'bn.num_batches_tracked': assert torch.equal(a[k], b[k]), k
    assert torch.equal(a['conv.weight'], c['conv.weight']) and not torch.allclose(a['bn.running_mean'], c['bn.running_mean'])
    assert runs['batch'].bn.momentum == .1


def test_half_precision_trains_below_the_labelling_pass(toy):
    "Weights cast under no_grad must not be taken for the training pass."
    labels = PseudoLabels(toy, torch.arange(80) < 30, view='batch')
    model = net()
    before = {k: v.clone() for k, v in model.named_parameters()}
    train(model, toy, RECIPE | dict(epochs=1, precision='bf16', weight_decay=0.), objective=labels, observers=[labels], device='cpu')
    for k, v in model.named_parameters(): assert not torch.equal(v, before[k]), f'{k} did not learn'


@pytest.mark.parametrize('n,L,B', [(200, 16, 40), (200, 3, 10), (85, 8, 20)])
def test_two_streams(noisy, n, L, B):
    "Every batch has its labelled, every epoch all unlabelled once and a fair share of the labelled."
    data, seen = sample(noisy, n, 0) if n < 200 else noisy, []
    labelled = torch.arange(n) % 4 == 0

    class Watched(PseudoLabels):
        def __call__(self, model, batch): seen.append(self.append(batch)[1]); return super().__call__(model, batch)
    labels = Watched(data, labelled, n_labelled=L)
    recipe = dict(name='digits', epochs=3, batch_size=B - L)
    train(make_model('mlp', 10, (1, 8, 8)), data, recipe, positions=labels.unlabelled, objective=labels, observers=[labels], device='cpu')
    for p in seen: assert labelled[p[-L:]].all() and not labelled[p[:-L]].any()
    steps = len(seen)//3
    for e in range(3): assert sorted(torch.cat([p[:-L] for p in seen[e*steps:(e + 1)*steps]]).tolist()) == labels.unlabelled.tolist()
    count = torch.bincount(torch.cat([p[-L:] for p in seen]), minlength=n)[labelled]
    assert count.max() - count.min() <= 1
    assert not torch.equal(seen[0], seen[steps]), 'another order in another epoch'


def test_second_run_starts_from_nothing(noisy, trusted):
    "Defect D2 of the original: the second run is exactly a run of its own with the second selection."
    options = dict(model='mlp', recipe=DIGITS, warmup=2, device='cpu')
    (_, one), (net2, two) = train_twice(noisy, trusted, 'share', .5, seed=7, **options)
    again = select_trusted(one['final_loss'], 'share', .5)
    assert np.array_equal(two['labelled'], again) and not np.array_equal(one['labelled'], two['labelled'])
    alone, rec = train_semisupervised(noisy, again, seed=S.derive_seed(7, 'run', 2), **options)
    assert torch.equal(weights(alone), weights(net2))
    for k in ('said', 'test_accuracy', 'soft_label', 'final_loss'): assert np.array_equal(rec[k], two[k])
    assert (two['soft_label'][again.numpy() & ~two['held_out']].argmax(1) == two['given_label'][again.numpy() & ~two['held_out']]).all(), 'what was promoted has its given label, not its last pseudo-label'


@pytest.mark.parametrize('options', [dict(), dict(view='batch', random_share=.2, start='hidden'), dict(n_labelled=8)])
def test_same_seed_same_bits_and_resume(noisy, trusted, tmp_path, options):
    class Killed(Exception): pass

    def kill(state):
        if state.epoch == 3: raise Killed
    whole, twin, other = (ssl(noisy, trusted, seed=s, **options) for s in (0, 0, 1))
    assert torch.equal(weights(whole[0]), weights(twin[0])) and not torch.equal(weights(whole[0]), weights(other[0]))
    file = tmp_path/'run.safetensors'
    with pytest.raises(Killed): ssl(noisy, trusted, checkpoint=file, observers=[kill], **options)
    again = ssl(noisy, trusted, checkpoint=file, **options)
    assert torch.equal(weights(whole[0]), weights(again[0]))
    for k in ('said', 'test_accuracy', 'validation', 'soft_label', 'final_loss'): assert np.array_equal(whole[1][k], again[1][k]), k


def test_averaged_weights(noisy, tmp_path):
    kept, average = [], WeightAverage(2, 2)
    recipe = DIGITS | {'epochs': 6, 'precision': 'fp32'}
    state = train(make_model('mlp', 10, (1, 8, 8)), noisy, recipe, observers=[average, lambda s: kept.append([p.detach().clone() for p in s.model.parameters()])], device='cpu')
    mean = [torch.stack(ps).mean(0) for ps in zip(*[kept[e - 1] for e in (2, 4, 6)])]
    network = average.network(noisy)
    for a, b in zip(network.parameters(), mean): assert torch.allclose(a, b, atol=1e-6)
    assert not network.training and predict(network, noisy.x, noisy.mean, noisy.std).logits.isfinite().all()

    class Killed(Exception): pass

    def kill(s):
        if s.epoch == 5: raise Killed
    file, again = tmp_path/'run.safetensors', WeightAverage(2, 2)
    with pytest.raises(Killed): train(make_model('mlp', 10, (1, 8, 8)), noisy, recipe, observers=[WeightAverage(2, 2), kill], device='cpu', checkpoint=file)
    train(make_model('mlp', 10, (1, 8, 8)), noisy, recipe, observers=[again], device='cpu', checkpoint=file)
    for a, b in zip(again.network(noisy).state_dict().values(), network.state_dict().values()): assert torch.equal(a, b)


def test_better_than_cross_entropy():
    "The last epoch of the same network, as many epochs: with every trusted label correct, and with the labels that small losses choose."
    data = add_noise(load_dataset('digits'), 'symmetric_exact-0.4')
    accuracy = lambda model: (predict(model, data.x_test, data.mean, data.std).logits.argmax(1) == data.y_test).double().mean().item()
    recipe = {'name': 'digits', 'epochs': 20}
    plain = train(make_model('mlp', 10, (1, 8, 8)), data, recipe, device='cpu')
    early = train(make_model('mlp', 10, (1, 8, 8)), data, recipe | {'epochs': 3}, device='cpu')
    loss = cross_entropy(early.evaluation.logits, data.given_label, reduction='none')
    for trusted in (~data.is_noisy, select_trusted(loss, 'share', .5)):
        model, rec = train_semisupervised(data, trusted, 'mlp', recipe | {'epochs': 15}, warmup=5, device='cpu')
        assert accuracy(model) == pytest.approx(rec['test_accuracy'][-1], abs=.01) and accuracy(model) > accuracy(plain.model) + .1


def test_everything_trusted(noisy):
    _, rec = ssl(noisy, torch.ones(200, dtype=torch.bool), validation=0)
    assert np.array_equal(rec['soft_label'].argmax(1), noisy.given_label)


def test_a_class_that_nobody_trusts(noisy):
    "No label tells it, so no prior pushes predictions into it."
    some = noisy.given_label != 4
    _, rec = ssl(noisy, some, validation=0)
    assert describe_selection(some, noisy)['smallest_class'] == 0 and not (rec['said'][-1] == 4).any()


def test_one_trusted_label_per_class(noisy):
    labelled = torch.zeros(200, dtype=torch.bool)
    for c in range(10): labelled[(noisy.true_label == c).nonzero()[0]] = True
    _, rec = ssl(noisy, labelled)
    assert not rec['held_out'].any() and np.isnan(rec['validation']).all() and report_accuracy(rec)['chosen_epoch'] == 4


@pytest.mark.parametrize('options,words', [
    (dict(labelled=torch.zeros(200, dtype=torch.bool)), 'labelled must name at least one example, got none'), (dict(labelled=torch.arange(200)), 'labelled must be bool'), (dict(labelled=torch.ones(5, dtype=torch.bool)), r'shape \(200,\)'),
    (dict(start='x'), 'start must be one of'), (dict(view='x'), 'view must be one of'), (dict(first_update=0), 'first_update must be in'), (dict(every=0), 'every must be in'), (dict(mixup=-1), 'mixup must be in'),
    (dict(random_share=1.5), 'random_share must be in'), (dict(n_labelled=64), r'n_labelled must be in \[1, 64\)'), (dict(n_labelled=4, labelled=torch.ones(200, dtype=torch.bool), validation=0), 'labelled must leave some examples unlabelled'),
    (dict(warmup=0), 'warmup must be in'), (dict(validation=1), 'share must be in'), (dict(prior='x'), 'prior must be one of')])
def test_wrong_arguments_are_named(noisy, trusted, options, words):
    with pytest.raises(ValueError, match=words): ssl(noisy, **(dict(labelled=trusted) | options))


@pytest.mark.parametrize('score,options,words', [
    ([], {}, 'score must have shape'), ([.1, .2], dict(rule='x'), 'rule must be one of'), ([.1, .2], dict(rule='share', cut=1.1), 'cut must be in'), ([.1, .2], dict(rule='share', balanced_by=torch.zeros(3)), 'balanced_by must have 2 entries'),
    ([.1, .2], dict(rule='probability', veto=torch.zeros(3)), 'veto must have 2 entries'), ([.1, 2], dict(rule='probability'), r'must be in \[0, 1\]'), (np.ones(100), {}, 'two groups')])
def test_wrong_selections_are_named(score, options, words):
    with pytest.raises(ValueError, match=words): select_trusted(score, **options)


@pytest.mark.gpu
@pytest.mark.parametrize('view', ['clean', 'batch'])
def test_it_runs_on_the_device(noisy, trusted, view):
    a, b = (ssl(noisy, trusted, recipe=DIGITS | {'precision': 'fp32'}, view=view, device=d)[1] for d in ('cpu', 'cuda'))
    assert (a['said'] == b['said']).mean() > .95
    ssl(noisy, trusted, view=view, n_labelled=16, device='cuda')


@pytest.mark.parametrize('card', CARDS)
def test_cards_are_settings_of_the_functions(noisy, trusted, card):
    c = CARDS[card]
    assert get_recipe(c['recipe']).epochs >= 175
    options = {k: v for k, v in c['options'].items() if k not in ('cut', 'second_cut', 'warmup')}
    PseudoLabels(noisy, trusted, **options)
    select_trusted([.1, .2], 'probability', c['options']['cut'])


def test_jitter_by_hand():
    "The batch is recoloured in [0, 1], the inputs stay normalised; digits have one colour."
    data = add_noise(sample(load_dataset('digits'), 64, seed=0), 'symmetric_exact-0.4')
    seen, labels = [], PseudoLabels(data, ~data.is_noisy, jitter=(.4, .4, .4, .1), mixup=0, seed=3)
    class Watch(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :10]
    x = normalize(data.x[:16], data.mean, data.std)
    labels.before_epoch(type('State', (), dict(data=data, epoch=0, step=0)))
    batch = type('Batch', (), dict(x=x, position=torch.arange(16), step=5))
    labels(Watch(), batch)
    expected = normalize(jitter(data.x[:16].float()/255, (.4, .4, .4, .1), derive_seed(3, 'jitter', 5)), data.mean, data.std)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)
    a, b, c = (ssl(data, ~data.is_noisy, **o) for o in (dict(jitter=(.4, .4, .4, .1)), dict(jitter=(.4, .4, .4, .1)), dict()))
    assert torch.equal(weights(a[0]), weights(b[0])) and not torch.equal(weights(a[0]), weights(c[0]))
