"The zoo: counts and logits of the originals, sizes, widths, seeds, gradients, capture."
import inspect

import numpy as np
import pytest
import torch
from torch import nn

from noisymem import zoo
from noisymem.codehash import code_hash
from noisymem.models import MODELS, Classifier, capture, count_macs, count_parameters, layer_names, make_model

ZOO = ['cnn', 'densenet', 'efficientnet', 'googlenet', 'mobilenet', 'mobilenetv2', 'resnet', 'resnext', 'senet', 'shufflenetv2', 'vgg']
ORIGINAL = ['efficientnet_original', 'mobilenet_original', 'mobilenetv2_original', 'shufflenetv2_original']
IMAGENET = ['imagenet_alexnet', 'imagenet_vgg19_bn', 'imagenet_resnet50']
TINY = {'cnn': 2, 'shufflenetv2_original': .5}
SCALED_AS_ORIGINAL = ['densenet', 'googlenet', 'resnet', 'senet', 'vgg']   # elsewhere the original leaves layers out
HALVES = [*SCALED_AS_ORIGINAL, *ORIGINAL]


def tiny(name, shape=(3, 8, 8), n_classes=4, **kwargs): return make_model(name, n_classes, shape, width=TINY.get(name, 1/16), **kwargs)


def on_meta(name, width=1, shape=(3, 32, 32), n_classes=10):
    build, settings = MODELS[name]
    with torch.device('meta'): return Classifier(build(shape, width=width, **settings), n_classes)


def wave(*shape): return torch.sin(.013*torch.arange(int(np.prod(shape)), dtype=torch.float32)).view(shape)


def filled(name, width):
    "The network with the oracle's weights."
    net = on_meta(name, width).to_empty(device='cpu').eval()
    with torch.no_grad():
        for b in net.buffers(): b.zero_()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d): m.running_var.fill_(1)
        for i, (n, p) in enumerate(net.named_parameters()):
            if p.dim() > 1: p.copy_(torch.from_numpy(np.random.RandomState(i).randn(*p.shape)*np.sqrt(2/np.prod(p.shape[1:]))))
            else: p.fill_(float(n.endswith('weight')))
    return net


KEYS = [(f'{k}@1', k, 1) for k in ZOO] + [(f'{k}@1', f'{k}_original', 1) for k in ('efficientnet', 'shufflenetv2')] + \
       [(f'{k.removesuffix("_original")}@0.5', k, .5) for k in HALVES] + \
       [('cnn@16', 'cnn', 16), ('cnn@64', 'cnn', 64), ('cnn@64', 'cnn64', 1)]


@pytest.mark.parametrize('key, name, width', KEYS, ids=[f'{k}-{n}' for k, n, _ in KEYS])
def test_the_originals(oracle, key, name, width):
    "Shapes in their order, counts, multiply-adds, and the numbers that come out."
    ref = oracle('susceptibility/architectures.json')[key]
    net = on_meta(name, width)
    assert [list(p.shape) for p in net.parameters()] == ref['param_shapes']
    assert count_parameters(net) == ref['params'] and count_macs(net, (3, 32, 32)) == ref['macs_32x32']
    assert len(list(net.buffers())) == ref['n_buffers']
    modules = list(net.modules())
    assert sum(isinstance(m, nn.Conv2d) for m in modules) == ref['n_conv'] and sum(isinstance(m, nn.BatchNorm2d) for m in modules) == ref['n_bn']
    with torch.no_grad(): got, want = filled(name, width)(wave(2, 3, 32, 32)), torch.tensor(ref['eval_logits_rngfill'])
    assert (got - want).abs().max() < 1e-4*want.abs().max()


def test_every_oracle_is_covered(oracle):
    keys = {k for k in oracle('susceptibility/architectures.json') if not k.startswith('cifarN')}
    assert keys == {k for k, _, _ in KEYS}


TABLE = { # spec, section 3.1: parameters at 10 classes, multiply-adds of one 32x32 image, at scale 1
    'cnn': (540, 83_024), 'cnn64': (1_558_026, 228_267_008), 'densenet': (6_956_298, 888_350_720), 'efficientnet': (3_599_686, 30_331_392), 'googlenet': (6_166_250, 1_521_756_160), 'mobilenet': (3_217_226, 46_354_432),
    'mobilenetv2': (2_296_922, 91_154_944), 'resnet': (11_173_962, 555_422_720), 'resnext': (9_128_778, 1_409_492_992), 'senet': (11_260_354, 555_509_760), 'shufflenetv2': (1_263_854, 45_002_112), 'vgg': (20_040_522, 398_136_320)}


@pytest.mark.parametrize('name', TABLE)
def test_counts_at_width_one(name):
    net = on_meta(name)
    assert (count_parameters(net), count_macs(net, (3, 32, 32))) == TABLE[name]


SIZES = (8, 16, 28, 32, 64, 96, 224)
EVERY = sorted(set(MODELS) - {'resnet34', 'resnet101', 'resnet152', 'preact_resnet34', 'preact_resnet50', 'preact_resnet101', 'preact_resnet152', 'news_words', 'resnet9_tied'})  # deeper ones of the same blocks; numbers of words and the numbers of examples are asked for in test_stopping_nets


BY_SIZE = ('imagenet_alexnet', 'imagenet_vgg19_bn', 'mlp', 'linear', 'fcn', 'fcn_dropout', 'fcn_norm', 'lenet', 'lenet_dropout', 'vgg19', 'vit', 'news')  # built differently for each size


def grid(name, forward):
    "Every size and number of channels; AlexNet says why not."
    for side in SIZES:
        for c in (1, 3):
            if name == 'imagenet_alexnet' and side < 63:
                with pytest.raises(ValueError, match=rf'in_shape must have at least 63 pixels a side for alexnet, got \({c}, {side}, {side}\); enlarge the images'): on_meta(name, 1/16, (c, side, side))
            else: forward(side, c)


@pytest.mark.parametrize('name', EVERY)
def test_every_size_one_or_three_channels(name):
    nets = {}
    def forward(side, c):
        if c not in nets or name in BY_SIZE: nets[c] = on_meta(name, TINY.get(name, 1/16), (c, side, side))
        net = nets[c]
        with torch.no_grad(): assert net(torch.zeros(2, c, side, side, device='meta')).shape == (2, 10)
    grid(name, forward)


@pytest.mark.parametrize('name', EVERY)
@pytest.mark.parametrize('width', [.125, .3, 1.5])
def test_every_width(name, width):
    "Odd ones too; a network that cannot have it says which one it needs."
    shape = (1, 64, 64) if name == 'imagenet_alexnet' else (1, 8, 8)
    if name == 'cnn' and width < .5 or name == 'shufflenetv2_original' and width != 1.5:
        with pytest.raises(ValueError, match='need width >= 0.5|must be one of .0.5., .1., .1.5., .2.'): on_meta(name, width, shape)
        return
    if width > 1: net, device = on_meta(name, width, shape), 'meta'
    else: net, device = make_model(name, 10, shape, width=width), 'cpu'
    out = net(torch.randn(2, *shape, device=device))
    assert out.shape == (2, 10) and (device == 'meta' or bool(out.isfinite().all()))


@pytest.mark.parametrize('name', EVERY)
@pytest.mark.parametrize('width', [0, -1, float('nan'), float('inf'), None, '1'])
def test_no_width_at_all(name, width):
    with pytest.raises(ValueError, match=r'width must be in \(0, inf\), got'): make_model(name, 10, (3, 64, 64), width=width)


@pytest.mark.parametrize('name', [*ZOO, *ORIGINAL, 'imagenet_vgg19_bn', 'imagenet_resnet50'])
def test_backward_gives_finite_gradients(name, shape=(1, 5, 11)):
    net, x = tiny(name, shape), torch.randn(4, *shape)
    out = net(x)
    assert out.shape == (4, 4) and out.isfinite().all()
    nn.functional.cross_entropy(out, torch.arange(4)).backward()
    for n, p in net.named_parameters():
        assert (p.grad is not None and p.grad.isfinite().all()) if p.requires_grad else p.grad is None, n
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x), net.head(net.features(x)), rtol=0, atol=0)
        torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name', [*ZOO, *IMAGENET])
def test_parameters_grow_with_width_and_every_layer_scales(name):
    shape = (3, 64, 64)
    widths = (1, 2, 5) if name == 'cnn' else (.13, .7, 1)
    nets = {w: on_meta(name, w, shape) for w in widths}
    counts = [count_parameters(n) for n in nets.values()]
    macs = [count_macs(n, shape) for n in nets.values()]
    assert counts == sorted(set(counts)) and macs == sorted(set(macs))
    full = dict(nets[1].backbone.named_parameters())
    for w, net in nets.items():
        for n, p in net.backbone.named_parameters():
            near = max(2, .12*len(full[n])) if name in ('mobilenetv2', 'efficientnet', 'densenet', 'googlenet') else 2   # rounded parts, multiplied
            assert abs(len(p) - w*len(full[n])) <= near, (w, n)


def test_widths_at_which_the_originals_fail():
    "Spec, section 6, row 16."
    for name, width in [('resnext', .5), ('resnext', 2), ('shufflenetv2', .3), ('googlenet', .3), ('senet', .125), ('efficientnet', .125), ('cnn', 1.5)]:
        net = on_meta(name, width)
        assert net(torch.zeros(1, 3, 32, 32, device='meta')).shape == (1, 10)


@pytest.mark.parametrize('name', [n for n in EVERY if n not in ('linear', 'shufflenetv2_original')])
def test_a_width_that_leaves_nothing(name):
    with pytest.raises(ValueError, match=r'channels need width >= 0\.\d+, got 0.001'): make_model(name, 10, (3, 64, 64), width=.001)


def test_unscaled_layers_of_the_originals():
    "MobileNet's four blocks of stride 2 and the stem stay as they are."
    shapes = [p.shape[0] for p in on_meta('mobilenet_original', .25).parameters() if p.dim() == 4 and p.shape[1] > 1]
    assert shapes == [32, 16, 128, 32, 256, 64, 512, 128, 128, 128, 128, 128, 1024, 256]
    with pytest.raises(ValueError, match="'0.5', '1', '1.5', '2', got '0.3'"): make_model('shufflenetv2_original', 10, (3, 8, 8), width=.3)


@pytest.mark.parametrize('name', [*ZOO, *ORIGINAL, 'imagenet_vgg19_bn', 'imagenet_resnet50'])
def test_seed_and_state(name):
    "The same seed gives the same bits, another seed others; a state dict carries everything; the global stream stays."
    before = torch.get_rng_state()
    a, b, c = (tiny(name, seed=s) for s in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    state = a.state_dict()
    assert all(torch.equal(v, w) for v, w in zip(state.values(), b.state_dict().values()))
    assert not torch.equal(a.head.weight, c.head.weight)
    c.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(): assert torch.equal(a.eval()(x), c.eval()(x))


@pytest.mark.parametrize('name', [*ZOO, *ORIGINAL, 'imagenet_vgg19_bn', 'imagenet_resnet50'])
def test_what_is_captured_stays(name):
    "No layer overwrites what another has put out."
    net = tiny(name).eval()
    assert not any(getattr(m, 'inplace', False) for m in net.modules())
    modules, x = dict(net.named_modules()), torch.randn(2, 3, 8, 8)
    with torch.no_grad(), capture(net, layer_names(net), inputs=True) as pre, capture(net, layer_names(net)) as post: net(x)
    unused = set(layer_names(net)) - set(post)
    assert not unused or (name.startswith('efficientnet') and all('stage1.0.expand' in n for n in unused))
    with torch.no_grad():
        for n in post: torch.testing.assert_close(modules[n](pre[n]), post[n], rtol=1e-4, atol=1e-5)


def test_noise_of_efficientnet():
    "Dropout and left-out branches only while training; the original leaves no branch out."
    x = torch.randn(3, 3, 8, 8)
    ours, theirs = (tiny(n) for n in ('efficientnet', 'efficientnet_original'))
    for net in (ours, theirs):
        assert not torch.equal(net(x), net(x))
        net.backbone.dropout.p = 0.
    assert torch.equal(theirs(x), theirs(x)) and not torch.equal(ours(x), ours(x))
    torch.manual_seed(0); one = ours(x)
    torch.manual_seed(0); assert torch.equal(one, ours(x))
    assert torch.equal(ours.eval()(x), ours(x))
    frozen = {n for n, p in ours.named_parameters() if not p.requires_grad}
    assert frozen == {f'backbone.stage1.0.expand.{n}' for n in ('conv.weight', 'bn.weight', 'bn.bias')}


def test_drop_branch_keeps_the_mean():
    from noisymem.zoo import DropBranch
    torch.manual_seed(0)
    out = DropBranch(.2)(torch.ones(20_000, 2, 1, 1))
    assert torch.equal(out[:, 0], out[:, 1]) and abs(float(out.mean()) - 1) < .02


def test_the_table():
    "Every entry is a function and its settings; the code of the zoo is part of a key."
    for name in MODELS:
        build, settings = MODELS[name]
        assert type(inspect.unwrap(build)) is type(on_meta) and isinstance(settings, dict)
    assert set([*ZOO, *ORIGINAL, *IMAGENET, 'cnn64']) <= set(MODELS)
    hashes = {n: code_hash(MODELS[n][0]) for n in [*ZOO, 'imagenet_vgg19_bn']}
    assert len(set(hashes.values())) == len(hashes)
    with pytest.raises(KeyError): MODELS['nope']


def test_the_table_imports_nothing_by_itself():
    import subprocess, sys
    subprocess.run([sys.executable, '-c', "import sys, noisymem.models as m; m.make_model('mlp', 2, (4,)); assert not {'noisymem.zoo', 'noisymem.imagenet', 'torchvision'} & set(sys.modules)"], check=True)


@pytest.mark.parametrize('name', IMAGENET)
def test_imagenet_networks_are_those_of_torchvision(name):
    "Names, shapes and order; and at width 1/1, ported weights give torchvision's numbers."
    import torchvision
    short = name.removeprefix('imagenet_')
    with torch.device('meta'): theirs = getattr(torchvision.models, short)(weights=None, num_classes=14)
    ours = on_meta(name, 1, (3, 224, 224), 14)
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]
    assert count_macs(ours, (3, 224, 224)) == count_macs(theirs, (3, 224, 224))
    head = {'resnet50': 'fc.'}.get(short, 'classifier.6.')
    assert list(ours.backbone.state_dict()) == [k for k in theirs.state_dict() if not k.startswith(head)]


def test_resnet50_gives_the_numbers_of_torchvision(tmp_path):
    import torchvision
    from safetensors.torch import save_file
    from noisymem.imagenet import imagenet_backbone
    theirs, x = torchvision.models.resnet50(weights=None).eval(), torch.randn(2, 3, 64, 64)
    torch.save(theirs.state_dict(), tmp_path/'a.pth')
    save_file({k: v for k, v in theirs.state_dict().items() if 'num_batches' not in k}, tmp_path/'b.safetensors')
    want = theirs(x).detach()
    for file in ('a.pth', 'b.safetensors'):
        ours = imagenet_backbone((3, 64, 64), weights=tmp_path/file).eval()
        torch.testing.assert_close(theirs.fc(ours(x)), want, rtol=1e-5, atol=1e-5)
    for bad in (dict(in_shape=(1, 64, 64)), dict(in_shape=(3, 64, 64), name='alexnet'), dict(in_shape=(3, 64, 64), width=.25)):
        with pytest.raises(ValueError, match='weights must'): imagenet_backbone(**bad, weights=tmp_path/'b.safetensors')


@pytest.mark.parametrize('name', ['imagenet_vgg19_bn', 'imagenet_resnet50'])
def test_initial_weights_have_the_spread_of_torchvision(name):
    for n, p in tiny(name).named_parameters():
        if p.dim() == 4 and p.numel() > 2000: assert abs(float(p.detach().std())/np.sqrt(2/(p.shape[0]*p.shape[2]*p.shape[3])) - 1) < .1, n


@pytest.mark.gpu
@pytest.mark.parametrize('name', [*ZOO, *ORIGINAL, *IMAGENET])
def test_cpu_equals_gpu(name):
    shape = (3, 64, 64)
    net, x = tiny(name, shape).eval(), torch.randn(4, *shape)
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        torch.testing.assert_close(net(x), net.cuda()(x.cuda()).cpu(), rtol=1e-3, atol=1e-4)


def test_thirteen_layers():
    "Layers and sizes of the forgetting study's network; its two weight-normed linear layers are one plain layer here."
    net = on_meta('cnn13')
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convs] == [(128, 3, 3, 3), *[(128, 128, 3, 3)]*2, (256, 128, 3, 3), *[(256, 256, 3, 3)]*2, (512, 256, 3, 3), (256, 512, 1, 1), (128, 256, 1, 1)]
    assert [c.padding for c in convs] == [(1, 1)]*6 + [(0, 0)]*3
    assert count_parameters(net) == 3_127_208 - 2*(1280 + 10 + 10) + 1280 + 10
    assert [m.p for m in on_meta('cnn13_dropout').modules() if isinstance(m, nn.Dropout)] == [.1, .1]
    conv = next(m for m in make_model('cnn13', 10, (3, 32, 32), width=1/16).modules() if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(conv.length, conv.weight.flatten(1).norm(dim=1))
    with torch.no_grad(): conv.length[0] *= 3
    x = torch.randn(2, 3, 6, 6)
    plain = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close((conv(x) - conv.bias[:, None, None])[:, 0], 3*(plain - conv.bias[:, None, None])[:, 0])


def test_no_gradient_is_left_unset():
    "A depthwise 5x5 convolution with strides over one pixel: what its outer taps get must be zero, whatever the memory held."
    torch.manual_seed(0)
    conv = zoo._unit(36, 36, 5, 2, 36).conv.to(memory_format=torch.channels_last)
    for _ in range(40):
        conv.weight.grad = None
        junk = [torch.full((36*25*m,), 3e30, dtype=t) for m in (1, 2, 3, 4, 8, 16) for t in (torch.float32, torch.bfloat16) for _ in range(6)]
        del junk
        with torch.autocast('cpu', torch.bfloat16): out = conv(torch.randn(30, 36, 1, 1).to(memory_format=torch.channels_last))
        out.float().square().sum().backward()
        outer = conv.weight.grad.clone()
        outer[:, :, 2, 2] = 0
        assert out.shape[2:] == (1, 1) and not outer.any()
