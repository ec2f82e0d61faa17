"Dropouts and networks of the early-stopping study: masks, streams, sizes, gradients, the training loop."
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noisymem import dropouts as dr
from noisymem import stopping_nets as sn
from noisymem.codehash import code_hash
from noisymem.data import from_arrays
from noisymem.models import MODELS, count_macs, count_parameters, linear_backbone, make_model, mlp_backbone
from noisymem.recorder import Recorder, find_points
from noisymem.train import train

NETS = ('fcn', 'fcn_norm', 'lenet', 'resnet9', 'preact_resnet9', 'resnet9_tied', 'vgg19', 'vit')


# dropouts

@pytest.mark.parametrize('p', [.1, .3, .5])
def test_masks_are_those_of_a_seeded_global_generator(p):
    index = torch.tensor([5, 0, 77, 50_000])
    got = dr.example_masks(index, 23, .2, p)
    for row, i in zip(got, index.tolist()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            want = torch.bernoulli(torch.full((1, 19), p))
        assert (row[:4] == 1).all() and torch.equal(row[4:].float(), want[0])


def test_fixed_dropout_is_dropout_after_seed_0():
    x = torch.randn(3, 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        want = F.dropout(x, .4)
    assert torch.allclose(dr.FixedDropout(.4)(x), want)


@pytest.mark.parametrize('shape', [(3, 10), (3, 10, 2, 2), (3, 10, 5)])
def test_tied_masks_are_per_channel(shape):
    layer, x, index = dr.ExampleTiedDropout(.2, .3), torch.randn(shape), torch.tensor([9, 2, 40])
    mask = dr.example_masks(index, 10, .2, .3).view(3, 10, *[1]*(len(shape) - 2))
    before = torch.get_rng_state()
    with dr.of_examples(layer, index): assert torch.equal(layer(x), x*mask) and torch.equal(layer(x), x*mask)
    with dr.of_examples(layer, index[[1]]): assert torch.equal(layer(x[[1]]), (x*mask)[[1]])
    assert torch.equal(torch.get_rng_state(), before) and layer.index is None
    layer.eval()
    one = torch.ones(shape)
    one[:, 2:] = .3
    assert torch.allclose(layer(x), x*one)
    with dr.memory_dropped(layer):
        one[:, 2:], one[:, :2] = 0, 2.5
        assert torch.allclose(layer(x), x*one)


def test_tied_dropout_forgets_and_is_told_again():
    layer = dr.ExampleTiedDropout(.5, .5)
    with pytest.raises(ValueError, match='which 2 examples it sees .* got none'): layer(torch.ones(2, 4))
    with dr.of_examples(layer, torch.tensor([1])), pytest.raises(ValueError, match='which 2 examples it sees .* got 1'): layer(torch.ones(2, 4))
    with pytest.raises(RuntimeError), dr.of_examples(layer, torch.tensor([1])): raise RuntimeError
    assert layer.index is None
    with pytest.raises(RuntimeError), dr.memory_dropped(layer): raise RuntimeError
    assert not layer.dropped and not layer.state_dict()
    with pytest.raises(ValueError, match='at least one of 1 units'), dr.of_examples(layer, torch.tensor([1])): layer(torch.ones(1, 1))


@pytest.mark.parametrize('make, message', [
    (lambda: dr.ExampleTiedDropout(0.), 'p_fixed must be'), (lambda: dr.ExampleTiedDropout(.2, 1.1), 'p_mem must be'), (lambda: dr.FixedDropout(-.1), 'rate must be'),
    (lambda: dr.example_masks(torch.tensor([1.]), 4, .5, .5), 'index must be an int64 tensor'), (lambda: dr.tied(index=[1, 2]), 'index must be an int64 tensor')])
def test_dropouts_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_tied_training_sees_the_masks_of_the_examples(digits):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.drop, self.out = nn.Flatten(), dr.ExampleTiedDropout(.25, .2), nn.Linear(64, 10)
        def forward(self, x): return self.out(self.drop(self.flat(x)))
    seen, net = [], Net()
    net.drop.register_forward_hook(lambda m, a, out: seen.append((m.index, out, a[0])) if m.training else None)
    train(net, digits, dict(name='digits', epochs=2, batch_size=50), objective=dr.tied(index=digits.index), device='cpu')
    assert len(seen) == 6 and all(torch.equal(out, x*dr.example_masks(i, 64, .25, .2)) for i, out, x in seen)
    for epoch in (seen[:3], seen[3:]): assert sorted(torch.cat([i for i, *_ in epoch]).tolist()) == digits.index.tolist()


# networks

@pytest.mark.parametrize('name, shape, classes, count', [
    ('fcn', (3, 32, 32), 10, 460_682), ('lenet', (3, 32, 32), 10, 657_080), ('resnet9', (3, 32, 32), 10, 4_903_242), ('preact_resnet9', (3, 32, 32), 10, 4_900_426), ('vit', (3, 32, 32), 10, 141_258),
    ('resnet9_tied', (3, 32, 32), 10, 2_274_890), ('news', (6000,), 7, 7_566_607)])
def test_published_sizes(name, shape, classes, count): assert count_parameters(make_model(name, classes, shape)) == count


@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('shape', [(1, 8, 8), (3, 32, 32)])
def test_every_network_learns_repeats_and_is_read(name, shape):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, *shape, generator=g), torch.tensor([0, 1, 2, 0])
    net, again = (make_model(name, 3, shape, width=.1, seed=5) for _ in range(2))
    assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))
    with dr.of_examples(net, torch.arange(4)): F.cross_entropy(net(x), y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    with torch.no_grad(): assert torch.equal(net(x), net(x))
    assert count_macs(net, shape) > 0 and not any(getattr(m, 'inplace', False) for m in net.modules())
    known = dict(net.named_modules())
    assert all(p.removesuffix(':in') in known for p in find_points(net))


@pytest.mark.parametrize('name', NETS + ('news',))
def test_recorder_reads_every_network(name, digits):
    data = from_arrays(digits.x.flatten(1).float(), digits.given_label, true_label=digits.true_label, class_names=digits.class_names) if name == 'news' else digits
    watch = Recorder(['cnd:histogram'])
    train(make_model(name, 10, tuple(data.x.shape[1:]), width=.1), data, dict(name='digits', epochs=1), objective=dr.tied(), observers=[watch], device='cpu')
    assert np.isfinite(watch.history['cnd:histogram']).all() and watch.history['cnd:histogram'].shape[0] == 1


def test_batch_norm_flag_is_honoured():
    plain, normed = sn.fcn_backbone((9,), layers=2, units=4), sn.fcn_backbone((9,), layers=2, units=4, norm=True)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in plain.modules())
    seen = {}
    for n in ('fc1', 'bn1', 'act1'): getattr(normed, n).register_forward_hook(lambda m, a, out, n=n: seen.__setitem__(n, (a[0], out)))
    normed(torch.randn(8, 9))
    assert seen['bn1'][0] is seen['fc1'][1] and seen['act1'][0] is seen['bn1'][1] and abs(seen['bn1'][1].mean()) < 1e-5
    assert list(make_model('fcn_norm', 3, (9,)).backbone.points) == [f'backbone.fc{i}' for i in range(1, 6)]


def test_builders_for_vectors_are_functions_to_everyone_else():
    build, _ = MODELS['fcn']
    assert build == mlp_backbone and build in (mlp_backbone, linear_backbone) and build != linear_backbone and len({build, build}) == 1
    assert code_hash(build) == code_hash(build.__wrapped__) and build.__name__ == 'fcn_backbone'
    with pytest.raises(ValueError, match='convolutional'): make_model('lenet', 3, (9,))


def test_attention_against_one_written_out():
    torch.manual_seed(0)
    a, x = sn.Attention(8, 2), torch.randn(3, 5, 8)
    q, k, v = (a.qkv.weight[8*i:8*(i + 1)] for i in range(3))
    heads = [torch.softmax((x @ q[s].T) @ (x @ k[s].T).transpose(1, 2)/math.sqrt(4), -1) @ (x @ v[s].T) for s in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(a(x), a.out(torch.cat(heads, -1)), atol=1e-6)


@pytest.mark.parametrize('call, message', [
    (lambda: sn.vit_backbone((3, 30, 32)), 'multiple of 4'), (lambda: sn.fcn_backbone((9,), layers=0), 'layers must be'), (lambda: make_model('news', 7, (0,)), 'in_shape must be'),
    (lambda: sn.WordPool(3, 2, 1)(torch.tensor([[-1.]])), 'numbers of words in \\[0, 3\\)')])
def test_networks_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_learned_words_learn_and_padding_stays():
    net = sn.news_words_backbone((6,), n_words=5, dim=3, positions=2, sizes=(4, 2))
    net(torch.tensor([[1., 2, 0, 0, 3, 4], [4, 0, 0, 0, 0, 0]])).square().sum().backward()
    grad = net.words.table.weight.grad
    assert not grad[0].any() and grad[1:].any(1).all() and not net.words.table.weight[0].any()
    frozen = sn.news_words_backbone((6,), n_words=5, dim=3, positions=2, vectors=torch.ones(5, 3), sizes=(4, 2))
    assert frozen.words.table.weight.eq(1).all() and not frozen.words.table.weight.requires_grad
