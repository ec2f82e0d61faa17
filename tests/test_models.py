"Models: published counts and reference logits, seeds, width, sizes, capture."
import numpy as np
import pytest
import torch
from torch import nn

from noisymem.models import (KINDS, MODELS, Classifier, capture, count_macs, count_parameters, layer_names, make_head,
                             make_model, scaled)

ONE_OF_EACH = ['fast', 'fast_large', 'resnet18', 'resnet50', 'preact_resnet18', 'preact_resnet50', 'mlp', 'linear']
HERE = [k for k, (build, _) in MODELS.items() if callable(build)]   # the others are tested with their own modules
TINY = {**{k: 1/16 for k in HERE}, 'mlp': .1, 'linear': 1}


def wave(*shape): return torch.sin(.013*torch.arange(int(np.prod(shape)), dtype=torch.float32)).view(shape)


@pytest.mark.parametrize('key, name, width', [
    ('cifarN_ResNet18', 'resnet18', 1), ('cifarN_ResNet34', 'resnet34', 1), ('cifarN_ResNet50', 'resnet50', 1),
    ('cifarN_PreResNet18', 'preact_resnet18', 1), ('resnet@1', 'resnet18', 1), ('resnet@0.5', 'resnet18', .5)])
def test_reference_logits(oracle, key, name, width):
    ref = oracle('susceptibility/architectures.json')[key]
    net = make_model(name, 10, (3, 32, 32), width=width).eval()
    assert [list(p.shape) for p in net.parameters()] == ref['param_shapes']
    assert count_parameters(net) == ref['params'] and count_macs(net, (3, 32, 32)) == ref['macs_32x32']
    assert len(list(net.buffers())) == ref['n_buffers']
    with torch.no_grad():
        for i, (n, p) in enumerate(net.named_parameters()):
            if p.dim() > 1: p.copy_(torch.from_numpy(np.random.RandomState(i).randn(*p.shape)*np.sqrt(2/np.prod(p.shape[1:]))))
            else: p.fill_(float(n.endswith('weight')))
        got, want = net(wave(2, 3, 32, 32)), torch.tensor(ref['eval_logits_rngfill'])
    assert (got - want).abs().max() < 1e-4*want.abs().max()


def test_two_headed_preact_against_the_forgetting_oracle(oracle):
    ref = oracle('forgetting/arch_preact18.npz')
    net = make_model('preact_resnet18', 10, (3, 32, 32), heads={'second': 7, 'rotation': 4}).eval()
    assert count_parameters(net) == int(ref['n_params']) == 11_176_917
    state, names = net.state_dict(), [str(n) for n in ref['names']]
    assert len(state) == len(names)
    for i, ((k, t), n) in enumerate(zip(state.items(), names)):
        if not t.is_floating_point(): continue
        wave_ = np.sin(.37*np.arange(t.numel()) + i)
        if n.endswith('running_var') or (t.ndim == 1 and 'bn' in n and n.endswith('weight')): v = 1 + .2*wave_
        else: v = (.1 if n.endswith('running_mean') else .05)*wave_
        t.copy_(torch.from_numpy(v.reshape(t.shape)))
    x = torch.from_numpy(np.asarray(ref['input'], dtype=np.float32))
    with torch.no_grad(): out, f = net(x, heads=['head', 'second', 'rotation']), net.features(x)
    for got, key in [(f, 'features'), (out['head'], 'logits_head1'), (out['second'], 'logits_head2'), (out['rotation'], 'logits_rot')]:
        np.testing.assert_allclose(got.numpy(), ref[key], rtol=1e-4, atol=1e-5*np.abs(ref[key]).max())


def bottleneck_count(blocks, k=10):
    "ResNet-50/101/152 by arithmetic."
    n, c_in = 3*9*64 + 2*64, 64
    for i, (b, c) in enumerate(zip(blocks, (64, 128, 256, 512))):
        for j in range(b):
            n += c_in*c + 9*c*c + 4*c*c + 2*(c + c + 4*c)
            if j == 0: n += c_in*4*c + 2*4*c
            c_in = 4*c
    return n + 2048*k + k


@pytest.mark.parametrize('name, blocks', [('resnet50', (3, 4, 6, 3)), ('resnet101', (3, 4, 23, 3)), ('resnet152', (3, 8, 36, 3))])
def test_bottleneck_counts(name, blocks):
    assert count_parameters(make_model(name, 10, (3, 32, 32))) == bottleneck_count(blocks)


def test_published_counts():
    count = lambda *a, **k: count_parameters(make_model(*a, **k))
    assert count('resnet34', 10, (3, 32, 32)) == 21_282_122 and count('resnet34', 100, (3, 32, 32)) == 21_328_292
    assert count('resnet101', 10, (3, 32, 32)) == 42_512_970 and count('resnet152', 10, (3, 32, 32)) == 58_156_618
    net = make_model('resnet34', 10, (3, 32, 32), heads={'projection': (512, 128)})
    assert count_parameters(net.backbone) == 21_276_992 and count_parameters(net.heads['projection']) == 328_832
    assert abs(count_macs(net, (3, 32, 32), heads=['projection']) - 1.1597e9) < 1e5


@pytest.mark.parametrize('name', ONE_OF_EACH)
@pytest.mark.parametrize('shape', [(1, 8, 8), (3, 13, 21)])
def test_every_model_takes_every_image(name, shape):
    net = make_model(name, 2, shape, width=TINY[name])
    x = torch.randn(2, *shape)
    out = net(x)
    assert out.shape == (2, 2) and out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    with torch.no_grad():
        assert net(x[:1]).shape == (1, 2)                     # a batch of one
        torch.testing.assert_close(net(x), net.head(net.features(x)), rtol=0, atol=0)
        strange = torch.empty(2, *shape[1:], shape[0]).permute(0, 3, 1, 2).copy_(x)
        torch.testing.assert_close(net(strange), net(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['fast', 'resnet18', 'preact_resnet18'])
def test_large_images(name):
    net = make_model(name, 3, (3, 224, 224), width=1/8).eval()
    with torch.no_grad(): assert net(torch.randn(1, 3, 224, 224)).shape == (1, 3)


@pytest.mark.parametrize('name', [k for k in ONE_OF_EACH if k != 'linear'])
@pytest.mark.parametrize('width', [.02, .13])
def test_every_sensible_width(name, width):
    "Odd numbers of channels work, and every layer is scaled."
    net, full = (make_model(name, 5, (3, 16, 16), width=w) for w in (width, 1))
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    for p, q in zip(net.backbone.parameters(), full.backbone.parameters()):
        assert abs(len(p) - width*len(q)) <= 2    # a bottleneck puts out 4 times its rounded width


@pytest.mark.parametrize('width', [0, -1, float('nan'), float('inf'), '1', None, True])
def test_bad_width(width):
    with pytest.raises(ValueError, match='width'): make_model('fast', 10, (3, 8, 8), width=width)


def test_width_without_channels():
    with pytest.raises(ValueError, match='need width >= 0.0156'): make_model('fast', 10, (3, 8, 8), width=.01)


@pytest.mark.parametrize('kwargs, word', [
    (dict(name='resnet17'), "'resnet34'"), (dict(n_classes=1), 'n_classes'), (dict(n_classes=2.), 'n_classes'), (dict(n_classes=True), 'n_classes'),
    (dict(in_shape=(32, 32)), 'in_shape'), (dict(in_shape=(3, 0, 8)), 'in_shape'), (dict(in_shape=5), 'in_shape'), (dict(in_shape=(10,)), 'mlp'),
    (dict(heads={'head': 2}), 'heads'), (dict(heads={'a.b': 2}), 'heads'), (dict(heads={'a': 0}), 'heads'), (dict(heads={'a': ()}), 'heads'),
    (dict(heads={'a': 'x'}), 'heads')])
def test_bad_arguments(kwargs, word):
    with pytest.raises(ValueError, match=word): make_model(**{**dict(name='fast', n_classes=10, in_shape=(3, 8, 8)), **kwargs})


@pytest.mark.parametrize('name', HERE)
def test_seed_gives_the_same_bits_and_leaves_the_global_stream(name):
    make = lambda s, **k: make_model(name, 4, (3, 8, 8), width=TINY[name], seed=s, **k)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = make(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    b, c, d = make(3), make(4), make(3, heads={'other': 3})
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    assert not torch.equal(a.head.weight, c.head.weight)
    assert all(torch.equal(v, d.state_dict()[k]) for k, v in a.state_dict().items())


def test_seed_is_that_of_a_plain_script():
    "Draws come in the order of a network built after torch.manual_seed."
    net = make_model('resnet18', 10, (3, 32, 32), seed=7, width=.25)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for m in net.modules():
            if not isinstance(m, (nn.Conv2d, nn.Linear)): continue
            fresh = nn.Conv2d(m.in_channels, m.out_channels, m.kernel_size, bias=False) if isinstance(m, nn.Conv2d) else nn.Linear(m.in_features, m.out_features)
            assert torch.equal(fresh.weight, m.weight)


def test_default_device_does_not_change_the_bits():
    with torch.device('meta'): net = make_model('fast', 10, (3, 8, 8), width=.25)
    assert torch.equal(net.head.weight, make_model('fast', 10, (3, 8, 8), width=.25).head.weight)


@pytest.mark.parametrize('name', ['fast', 'preact_resnet18', 'resnet50', 'mlp'])
def test_bf16_stays_near(name):
    net = make_model(name, 10, (3, 16, 16), width=.25).eval()
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        want = net(x)
        with torch.autocast('cpu', torch.bfloat16): got = net(x.contiguous(memory_format=torch.channels_last)).float()
    assert (got - want).abs().max() < .05*max(1, want.abs().max())


@pytest.mark.parametrize('name', ['fast', 'resnet18', 'preact_resnet18', 'mlp'])
@pytest.mark.parametrize('kind', KINDS)
def test_capture_matches_plain_hooks(name, kind):
    net = make_model(name, 3, (3, 8, 8), width=1/16)
    names, x = layer_names(net, kind), torch.randn(3, 3, 8, 8)
    if name == 'mlp' and kind in ('norm', 'conv'):
        assert not names
        return
    assert names and len(set(names)) == len(names)
    with capture(net, names, inputs=True) as pre, capture(net, names, detach=True) as post: net(x)
    assert set(pre) == set(post) == set(names)
    modules = dict(net.named_modules())
    net.eval()
    with capture(net, names, inputs=True) as pre, capture(net, names) as post: net(x)
    for n in names:
        torch.testing.assert_close(modules[n](pre[n]), post[n], rtol=1e-5, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_capture_is_removed_after_an_error_and_keeps_the_latest():
    net = make_model('linear', 3, (4,))
    with pytest.raises(RuntimeError), capture(net, 'head'): net(torch.randn(2, 5))
    with capture(net, 'head') as out:
        net(torch.randn(2, 4)); last = net(torch.randn(5, 4))
    assert not net.head._forward_hooks and out['head'] is last
    with capture(net, ['head'], detach=True) as out: net(torch.randn(2, 4))
    assert not out['head'].requires_grad
    with pytest.raises(ValueError, match="got 'nope'"), capture(net, ['head', 'nope']): pass
    assert not net.head._forward_hooks


def test_no_activation_is_in_place():
    for name in HERE:
        net = make_model(name, 3, (3, 8, 8), width=TINY[name])
        assert not any(getattr(m, 'inplace', False) for m in net.modules())


def test_counting_leaves_the_model_alone():
    net = make_model('fast', 10, (3, 16, 16), width=.25)
    net.backbone.stage1.bn1.eval()
    state, modes = {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]
    a, b = count_macs(net, (3, 16, 16)), count_macs(net.to(torch.bfloat16), (3, 32, 32))
    assert a < b < 4.01*a
    assert modes == [m.training for m in net.modules()] and not any(m._forward_hooks for m in net.modules())
    assert net.backbone.stage1.bn1.num_batches_tracked == state['backbone.stage1.bn1.num_batches_tracked']
    with pytest.raises(RuntimeError): count_macs(net, (2, 16, 16))
    assert not any(m._forward_hooks for m in net.modules()) and modes == [m.training for m in net.modules()]
    for p in net.head.parameters(): p.requires_grad_(False)
    assert count_parameters(net) - count_parameters(net, trainable_only=True) == sum(p.numel() for p in net.head.parameters())


def test_grouped_convolutions_are_counted():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.ConvTranspose2d(8, 2, 2, stride=2))
    assert count_macs(net, (4, 5, 5)) == 5*5*8*9 + 10*10*2*8


def test_scaled_rounds_half_up():
    assert [scaled(c, .5) for c in (1, 2, 3, 5)] == [1, 1, 2, 3]


def test_projection_head_is_the_published_one():
    head = make_head(512, (512, 128))
    assert [tuple(p.shape) for p in head.parameters()] == [(512, 512), (512,), (512,), (128, 512), (128,)]
    assert head(torch.randn(3, 512)).shape == (3, 128)


def test_state_dict_roundtrip():
    a, b = (make_model('fast', 10, (3, 8, 8), width=.25, seed=s, heads={'second': 3}) for s in (1, 2))
    b.load_state_dict(a.state_dict())
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(a.eval()(x), b.eval()(x)) and isinstance(a, Classifier)


@pytest.mark.gpu
@pytest.mark.parametrize('name', HERE)
def test_cpu_equals_gpu(name):
    net, x = make_model(name, 10, (3, 16, 16), width=TINY[name]).eval(), torch.randn(4, 3, 16, 16)
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        torch.testing.assert_close(net(x), net.cuda()(x.cuda()).cpu(), rtol=1e-3, atol=1e-4)
