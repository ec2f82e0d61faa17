"SimCLR: oracles, slow references, resume, label-freedom, files that do not fit."
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet34

from noisymem.core import make_generator
from noisymem.data import load_dataset, sample, take, with_labels
from noisymem.methods.simclr import PUBLISHED, Contrast, WatchNeighbours, load_encoder, make_encoder, neighbour_votes, nt_xent, pretrain, save_encoder, top_accuracy
from noisymem.models import count_macs, count_parameters, make_model
from noisymem.train import get_recipe, save_checkpoint, train

SHORT = PUBLISHED | dict(epochs=3, batch_size=64)


@pytest.fixture(scope='module')
def data(): return sample(load_dataset('digits'), 200, seed=0)


def slow_nt_xent(z1, z2, t):
    z = [v/v.norm() for v in (*z1, *z2)]
    n, total = len(z1), 0.
    for i in range(2*n):
        s = [float(z[i] @ z[j])/t for j in range(2*n)]
        total += -s[(i + n) % (2*n)] + math.log(sum(math.exp(s[j]) for j in range(2*n) if j != i))
    return total/(2*n)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('t', [.1, .5, 2.])
def test_the_loss_equals_two_loops(seed, t):
    z1, z2 = torch.randn(2, 1 + 2*seed, 5, dtype=torch.float64, generator=make_generator(seed)).unbind()
    assert abs(nt_xent(z1, z2, t).item() - slow_nt_xent(z1, z2, t)) < 1e-9


def test_the_loss_and_its_gradients_are_those_of_the_original(oracle):
    o = {k: torch.from_numpy(np.asarray(v)) for k, v in oracle('representation/regularizer.npz').items()}
    a, b = o['feats2'].requires_grad_(), o['feats3'].requires_grad_()
    loss = nt_xent(a, b)
    loss.backward()
    assert abs(loss.item() - o['info_nce_loss'].item()) < 1e-5
    for got, wanted in ((a.grad, o['info_nce_grad_feats2']), (b.grad, o['info_nce_grad_feats3'])): assert (got - wanted).abs().max() < 1e-5*wanted.abs().max() + 1e-8
    assert abs(nt_xent(a, b, .1).item() - o['info_nce_loss_T01'].item()) < 1e-4


@pytest.mark.parametrize('make', [
    lambda g: torch.randn(2, 4, generator=g)*1e4, lambda g: torch.ones(6, 4), lambda g: torch.zeros(3, 4), lambda g: torch.randn(1, 4, generator=g), lambda g: torch.randn(5, 1, generator=g)])
def test_gradients_are_finite_whatever_comes(make):
    a, b = make(make_generator(0)).requires_grad_(), make(make_generator(1)).requires_grad_()
    for t in (.01, .5):
        g = torch.autograd.grad(nt_xent(a, b, t), (a, b))
        assert all(v.isfinite().all() for v in g)


def test_the_loss_is_differentiable_twice():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64, generator=make_generator(0)).unbind()
    assert torch.autograd.gradgradcheck(lambda x, y: nt_xent(x, y), (a.requires_grad_(), b.requires_grad_()))


def test_the_loss_keeps_float32_under_autocast():
    a, b = torch.randn(2, 64, 32, generator=make_generator(0)).unbind()
    with torch.autocast('cpu', torch.bfloat16): inside = nt_xent(a, b)
    assert inside.dtype == torch.float32 and torch.equal(inside, nt_xent(a, b))
    assert abs(nt_xent(a.bfloat16(), b.bfloat16()) - nt_xent(a, b)) < 2e-2


@pytest.mark.parametrize('shapes', [((3, 4), (4, 4)), ((3, 4), (3, 5)), ((0, 4), (0, 4)), ((3,), (3,))])
def test_views_that_do_not_belong_together(shapes):
    with pytest.raises(ValueError, match='z1 and z2 must have one shape'): nt_xent(*[torch.zeros(s) for s in shapes])


@pytest.mark.parametrize('k', [1, 7, 50, 999])
def test_votes_equal_a_loop(k):
    g = make_generator(k)
    bank, queries, labels = torch.randn(50, 6, generator=g), torch.randn(9, 6, generator=g), torch.randint(4, (50,), generator=g)
    votes = neighbour_votes(bank, labels, queries, 5, k, .5)
    for q, row in zip(queries, votes):
        s = F.cosine_similarity(q[None].double(), bank.double())
        want = torch.zeros(5, dtype=torch.float64)
        for j in s.argsort(descending=True)[:k]: want[labels[j]] += math.exp(s[j]/.5)
        assert torch.allclose(row, want, rtol=1e-9)


def test_accuracy_among_the_first_guesses():
    votes, labels = torch.rand(100, 10, generator=make_generator(0)), torch.randint(10, (100,), generator=make_generator(1))
    order = votes.argsort(1, descending=True)
    for k in (1, 5, 10, 30): assert top_accuracy(votes, labels, k) == pytest.approx(np.mean([int(l) in o[:k].tolist() for l, o in zip(labels, order)]))
    assert math.isnan(top_accuracy(votes[:0], labels[:0]))


def test_one_epoch_is_what_a_plain_loop_does(data):
    "Objective, separate passes, batch statistics per view: beside a loop over the same batches with Adam."
    seen = []
    class Listen(Contrast):
        def __call__(self, model, batch):
            seen.append(batch.position.clone())
            return super().__call__(model, batch)
    recipe, shape = get_recipe(PUBLISHED | dict(epochs=1, batch_size=64, precision='fp32')), (1, 8, 8)
    ours, theirs = (make_encoder('fast', 10, shape, .25, 0, 16) for _ in range(2))
    objective = Listen()
    train(ours, data, recipe, seed=3, objective=objective, observers=[objective], device='cpu')
    adam = torch.optim.Adam([p for k, p in theirs.named_parameters() if not k.startswith('head.')], 1e-3, weight_decay=1e-6)
    theirs.train()
    for p in seen:
        z = [objective.project(theirs, p, i) for i in (0, 1)]
        loss = nt_xent(*z)
        adam.zero_grad(); loss.backward(); adam.step()
    for (k, a), b in zip(ours.state_dict().items(), theirs.state_dict().values()): assert torch.allclose(a, b, atol=2e-5), k
    assert int(ours.backbone.stage1.bn1.num_batches_tracked) == 2*len(seen)


def test_a_run_that_is_cut_off_goes_on_as_if_it_were_not(data, tmp_path):
    class Stop:
        def after_epoch(self, state): state.stop = state.epoch == 2
    how = dict(width=.25, every=2, device='cpu')
    whole, table = pretrain(data, 'fast', SHORT, **how)
    path, asks = tmp_path/'run.safetensors', torch.zeros(data.n, dtype=torch.bool)
    asks[torch.randperm(data.n, generator=make_generator(0, 'held out'))[:20]] = True
    objective, watch = Contrast(), WatchNeighbours(asks, data.true_label, 2)
    state = train(make_encoder('fast', 10, (1, 8, 8), .25), data, SHORT, positions=~asks, objective=objective, observers=[objective, watch, Stop()], device='cpu')
    state.stop = False
    save_checkpoint(path, state, [objective, watch])
    resumed, again = pretrain(data, 'fast', SHORT, checkpoint=path, **how)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert table.equals(again) and len(table) == 3 and table.accuracy.notna().tolist() == [False, True, True]


def test_labels_change_nothing(data):
    other = with_labels(data, (data.given_label + 3) % 10, 'turned', true_label=(data.true_label + 1) % 10)
    a, b = (pretrain(d, 'fast', SHORT | dict(epochs=1), width=.25, device='cpu')[0] for d in (data, other))
    assert all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values()))


def test_the_held_out_are_not_trained_on(data):
    kept = torch.ones(data.n, dtype=torch.bool)
    kept[torch.randperm(data.n, generator=make_generator(0, 'held out'))[:100]] = False
    x = data.x.clone(); x[~kept] = 255 - x[~kept]
    a, b = (pretrain(d, 'fast', SHORT | dict(epochs=1), width=.25, held_out=.5, device='cpu') for d in (data, dataclasses.replace(data, x=x)))
    assert all(torch.equal(u, v) for u, v in zip(a[0].state_dict().values(), b[0].state_dict().values()))
    assert pretrain(data, 'fast', SHORT | dict(epochs=1), width=.25, held_out=0, device='cpu')[1].accuracy.isna().all()


@pytest.mark.parametrize('name', ['fast', 'resnet18', 'preact_resnet18', 'mlp', 'vgg', 'whitened'])
def test_any_network_of_the_collection(data, name):
    net, table = pretrain(take(data, torch.arange(40)), name, SHORT | dict(epochs=1), width=.0625, projection=8, device='cpu', every=1)
    assert math.isfinite(table.loss[0]) and all(p.isfinite().all() for p in net.parameters())


def test_what_an_encoder_learns_without_labels(data):
    "Held-out digits: the neighbours of most have their label, more than after an epoch without learning."
    small = sample(load_dataset('digits'), 600, seed=1)
    how = dict(width=.5, held_out=.3, device='cpu', area=(.4, 1.), flip=0.)
    first, last = (pretrain(small, 'fast', PUBLISHED | dict(epochs=e, batch_size=128, lr=lr), every=e, **how)[1].accuracy.iloc[-1] for e, lr in ((1, 1e-9), (12, 3e-3)))
    assert last > first and last > .65, (first, last)


def original_network():
    "The encoder and projection of the study, in its own names."
    net = resnet34()
    f = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), net.bn1, net.relu, net.layer1, net.layer2, net.layer3, net.layer4, net.avgpool]
    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Sequential(*f), nn.Sequential(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128))
    return Theirs()


def test_a_state_dictionary_of_the_original_study(tmp_path):
    torch.manual_seed(0)
    theirs = original_network().eval()
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(); m.running_var.uniform_(.5, 2)
    state = theirs.state_dict() | {'f.0.total_ops': torch.zeros(1), 'total_params': torch.zeros(1)}
    torch.save(state, tmp_path/'model.pth')
    ours = make_encoder('resnet34', 10, (3, 32, 32)).eval()
    report = load_encoder(tmp_path/'model.pth', ours)
    assert len(theirs.state_dict()) == 224 and len(report['loaded']) == 224 and report['ignored'] == ['backbone.conv1.total_ops', 'total_params']
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        h = theirs.f(x).flatten(1)
        assert torch.allclose(ours.features(x), h, atol=1e-4) and torch.allclose(ours(x, heads=('projection',))['projection'], theirs.g(h), atol=1e-4)


def test_size_and_work_of_the_published_network():
    net = make_encoder('resnet34', 10, (3, 32, 32))
    assert count_parameters(net.backbone) == 21276992 and count_parameters(net.heads['projection']) == 328832
    assert abs(count_macs(net, (3, 32, 32), heads=('projection',)) - 1.1597e9) < 1e6


def test_a_checkpoint_of_a_run_is_an_encoder_file(data, tmp_path):
    net, _ = pretrain(data, 'fast', SHORT | dict(epochs=1), width=.25, device='cpu', checkpoint=tmp_path/'run.safetensors')
    other = make_encoder('fast', 3, (1, 8, 8), .25, seed=5)
    report = load_encoder(tmp_path/'run.safetensors', other)
    assert any(k.startswith('optimizer') for k in report['ignored']) and 'backbone.stage1.conv1.weight' in report['loaded'] and 'heads.projection.0.weight' in report['loaded']
    assert torch.equal(other.backbone.stage1.conv1.weight, net.backbone.stage1.conv1.weight)


def test_files_that_do_not_fit(tmp_path):
    net = make_encoder('fast', 10, (1, 8, 8), .25)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    save_encoder(tmp_path/'wide.safetensors', make_encoder('fast', 10, (1, 8, 8), .5))
    save_encoder(tmp_path/'other.safetensors', make_encoder('mlp', 10, (1, 8, 8), .25))
    state = net.state_dict()
    torch.save({k: v for k, v in state.items() if 'running_var' not in k}, tmp_path/'lacking.pt')
    torch.save(dict(state_dict={k: v + 1 for k, v in state.items()}), tmp_path/'nested.pth')
    (tmp_path/'cut.safetensors').write_bytes((tmp_path/'wide.safetensors').read_bytes()[:500])
    (tmp_path/'text.pth').write_text('no tensors')
    for name, message in (('wide.safetensors', 'must hold the whole backbone.*stage1.conv1.weight, of shape'), ('other.safetensors', 'must hold the whole backbone.*not there'), ('lacking.pt', 'running_var, not there'),
                          ('cut.safetensors', 'cannot be read'), ('text.pth', 'cannot be read'), ('weights.h5', "suffix of an encoder file must be one of '.safetensors'")):
        with pytest.raises(ValueError, match=message): load_encoder(tmp_path/name, net)
    with pytest.raises(FileNotFoundError, match='gone.pth is not there'): load_encoder(tmp_path/'gone.pth', net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), 'a refused file changes nothing'
    assert load_encoder(tmp_path/'nested.pth', net)['ignored'] == ['head.bias', 'head.weight'] and torch.equal(net.backbone.stage1.conv1.weight, before['backbone.stage1.conv1.weight'] + 1)


def test_features_have_no_views():
    from noisymem.data import from_arrays
    flat = from_arrays(np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32), [0, 1]*10)
    with pytest.raises(ValueError, match='in_shape must be'): pretrain(flat, 'mlp', SHORT, device='cpu')
    with pytest.raises(TypeError, match='blur'): Contrast(blur=1)
