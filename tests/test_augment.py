"Augmentation: pixel-exact against torchvision, against loops, same numbers on every device, speed of shape only."
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from noisymem.augment import (OPERATIONS, alternating_flip, apply_augmentation, check_augmentation, cutout, draw_augmentation, normalize,
                              random_crop, random_flip, translate)
from noisymem.core import make_generator

CIFAR = (.4914, .4822, .4465), (.2023, .1994, .2010)


def images(*shape, seed=0): return torch.randint(256, shape, generator=make_generator(seed, 'images'), dtype=torch.uint8)


def variants(x):
    "The same values in other memory layouts."
    b, c, h, w = x.shape
    big = x.new_zeros(2*b, c, h + 3, w + 1)
    big[::2, :, 3:, 1:] = x
    return [x, x.contiguous(memory_format=torch.channels_last), big[::2, :, 3:, 1:], x.transpose(2, 3).contiguous().transpose(2, 3)]


@pytest.mark.parametrize('mode, tv', [('zeros', 'constant'), ('reflect', 'reflect')])
@pytest.mark.parametrize('shape, pad', [((3, 32, 32), 4), ((1, 8, 8), 2), ((3, 7, 12), 6)])
def test_crop_and_flip_like_torchvision_on_pil(shape, pad, mode, tv):
    "Every offset and both sides, as crop and flip of the PIL image before it becomes a tensor."
    c, h, w = shape
    offset = torch.cartesian_prod(torch.arange(2*pad + 1), torch.arange(2*pad + 1))
    n = len(offset)
    x, flip = images(n, *shape), torch.arange(n) % 3 == 0
    got = random_flip(random_crop(x, pad, offset, mode=mode), flip)
    for i, (top, left) in enumerate(offset.tolist()):
        a = x[i].permute(1, 2, 0).numpy()
        pic = TF.crop(TF.pad(Image.fromarray(a if c == 3 else a[:, :, 0]), pad, padding_mode=tv), top, left, h, w)
        pic = TF.hflip(pic) if flip[i] else pic
        assert torch.equal(got[i], TF.pil_to_tensor(pic)), (top, left)


def test_whole_chain_like_torchvision():
    x = images(40, 3, 32, 32)
    draws = draw_augmentation({'crop': 4, 'flip': True}, 40, make_generator(3), (3, 32, 32))
    got = normalize(apply_augmentation(x, draws), *CIFAR)
    for i in range(40):
        pic = TF.crop(TF.pad(TF.to_pil_image(x[i]), 4), *draws.values['crop'][i].tolist(), 32, 32)
        want = TF.normalize(TF.to_tensor(TF.hflip(pic) if draws.values['flip'][i] else pic), *CIFAR)
        assert torch.equal(got[i], want)


@pytest.mark.parametrize('shape', [(1, 3, 32, 32), (5, 1, 8, 8), (4, 2, 5, 9)])
def test_layouts_and_dtypes(shape):
    x, (b, c, h, w) = images(*shape), shape
    draws = draw_augmentation({'crop': 2, 'translate': 1, 'flip': True, 'cutout': 3}, b, make_generator(1), (c, h, w))
    want = apply_augmentation(x, draws)
    assert want.shape == x.shape and want.dtype == torch.uint8
    for v in variants(x):
        assert torch.equal(v, x)
        assert torch.equal(apply_augmentation(v, draws), want) and torch.equal(v, x)       # and the input is left alone
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int16):
            assert torch.equal(apply_augmentation(v.to(dtype), draws), want.to(dtype))
        assert torch.equal(normalize(v, .5, .25), normalize(x, .5, .25))


@pytest.mark.parametrize('seed', range(4))
def test_against_loops(seed):
    g = torch.Generator().manual_seed(seed)
    b, c, h, w = (int(torch.randint(1, 9, (1,), generator=g)) for _ in range(4))
    x, pad, size = images(b, c, h, w, seed=seed) + 1, int(torch.randint(0, 12, (1,), generator=g)), int(torch.randint(0, 9, (1,), generator=g))
    shift = torch.randint(-pad, pad + 1, (b, 2), generator=g)
    centre = torch.stack([torch.randint(h, (b,), generator=g), torch.randint(w, (b,), generator=g)], 1)
    moved, cut = translate(x, pad, shift), cutout(x, size, centre, fill=7)
    for i in range(b):
        (dy, dx), (cy, cx) = shift[i].tolist(), centre[i].tolist()
        for r in range(h):
            for s in range(w):
                inside = 0 <= r - dy < h and 0 <= s - dx < w
                assert moved[i, :, r, s].tolist() == (x[i, :, r - dy, s - dx].tolist() if inside else [0]*c)
                blank = 0 <= r - cy + size//2 < size and 0 <= s - cx + size//2 < size
                assert cut[i, :, r, s].tolist() == ([7]*c if blank else x[i, :, r, s].tolist())


def test_nothing_to_do_changes_nothing():
    x = images(3, 3, 8, 8)
    assert random_crop(x, 0) is x and cutout(x, 0) is x and translate(x, 0) is x
    assert torch.equal(random_crop(x, 3, torch.full((3, 2), 3)), x)
    assert torch.equal(random_flip(x, torch.zeros(3, dtype=torch.bool)), x)
    for spec in ({}, None, {'crop': 0, 'flip': False}):
        assert apply_augmentation(x, draw_augmentation(spec, 3, make_generator(0), (3, 8, 8))) is x
    assert draw_augmentation({}, 5, make_generator(0), (64,)).values == {}
    features = torch.randn(5, 64)
    assert apply_augmentation(features, draw_augmentation({}, 5, make_generator(0), (64,))) is features


def test_empty_batch():
    x = images(0, 3, 8, 8)
    draws = draw_augmentation({k: 2 if k != 'flip' else True for k in OPERATIONS}, 0, make_generator(0), (3, 8, 8))
    assert apply_augmentation(x, draws).shape == x.shape and normalize(x, .5, .5).shape == x.shape


def test_drawn_inside_equals_given():
    x = images(6, 3, 9, 8)
    g = lambda: torch.Generator().manual_seed(5)
    assert torch.equal(random_crop(x, 3, generator=g()), random_crop(x, 3, torch.randint(7, (6, 2), generator=g())))
    assert torch.equal(random_flip(x, generator=g()), random_flip(x, torch.randint(2, (6,), generator=g()).bool()))
    assert torch.equal(cutout(x, 3, generator=g()), cutout(x, 3, generator=g()))


def test_draws_are_uniform_and_do_not_touch_the_global_stream():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    n = 20_000
    d = draw_augmentation({'crop': 2, 'flip': True, 'translate': 1, 'cutout': 4}, n, make_generator(0), (3, 6, 11))
    assert torch.equal(before, torch.get_rng_state())
    counts = lambda t, k: torch.bincount(t.flatten(), minlength=k)/t.numel()
    assert (counts(d.values['crop'], 5) - 1/5).abs().max() < .01 and (counts(d.values['translate'] + 1, 3) - 1/3).abs().max() < .01
    assert abs(d.values['flip'].float().mean() - .5) < .02
    assert (counts(d.values['cutout'][:, 0], 6) - 1/6).abs().max() < .02 and (counts(d.values['cutout'][:, 1], 11) - 1/11).abs().max() < .02
    crop = d.values['crop'].double()
    assert abs(np.corrcoef(crop.T.numpy())[0, 1]) < .03


def test_batches_in_any_order_give_the_epoch():
    x = images(50, 3, 8, 8)
    d = draw_augmentation({'crop': 2, 'flip': True, 'cutout': 3}, 50, make_generator(2), (3, 8, 8))
    whole, order = apply_augmentation(x, d), torch.randperm(50, generator=make_generator(3))
    for batch in order.split(7): assert torch.equal(apply_augmentation(x[batch], d[batch]), whole[batch])
    assert torch.equal(apply_augmentation(x[10:20], d[10:20]), whole[10:20])


def test_alternating_flip():
    index = torch.arange(50_000)
    a = torch.stack([alternating_flip(index, e) for e in range(1, 5)])
    assert torch.equal(a[0], ~a[1]) and torch.equal(a[0], a[2]) and torch.equal(a[1], a[3])
    assert abs(a[0].double().mean() - .5) < .01
    f = a[0].double() - .5
    for lag in (1, 2, 3, 4, 8, 10, 64, 5000): assert abs((f[lag:]*f[:-lag]).mean()) < .01, lag     # no pattern along the index
    part = torch.randperm(50_000, generator=make_generator(0))[:100]
    d = draw_augmentation({'flip': 'alternating'}, 100, make_generator(0), (3, 8, 8), epoch=2, index=part)
    assert torch.equal(d.values['flip'], a[1][part])
    assert torch.equal(alternating_flip(part.to(torch.int32), 1), a[0][part])
    with pytest.raises(ValueError, match='index must have 5'): draw_augmentation({'flip': 'alternating'}, 5, make_generator(0), (3, 8, 8), index=part)


@pytest.mark.parametrize('spec, shape, word', [
    ({'crop': 4}, (64,), 'not augmented'), ({'crop': -1}, (3, 8, 8), 'crop'), ({'crop': True}, (3, 8, 8), 'crop'), ({'crop': '4'}, (3, 8, 8), 'crop'),
    ({'flip': 'always'}, (3, 8, 8), 'flip'), ({'mixup': 1}, (3, 8, 8), 'augmentation'), ('crop', (3, 8, 8), 'dict'), ([], (3, 8, 8), 'dict'),
    ({'crop_reflect': 8}, (3, 8, 9), 'crop_reflect'), ({'cutout': 2.}, (3, 8, 8), 'cutout')])
def test_bad_spec(spec, shape, word):
    with pytest.raises(ValueError, match=word): check_augmentation(spec, shape)
    with pytest.raises(ValueError, match=word): draw_augmentation(spec, 4, make_generator(0), shape)


@pytest.mark.parametrize('call, word', [
    (lambda x: random_crop(x, 2, torch.full((4, 2), 5)), 'offset'), (lambda x: random_crop(x, 2, torch.zeros(3, 2, dtype=torch.int64)), 'offset'),
    (lambda x: random_crop(x, 2, torch.full((4, 2), -1)), 'offset'), (lambda x: random_crop(x, 1.5, generator=make_generator(0)), 'pad'),
    (lambda x: random_crop(x, 2, generator=make_generator(0), mode='wrap'), 'mode'), (lambda x: random_crop(x[0], 2), 'needs images'),
    (lambda x: random_flip(x, torch.ones(3, dtype=torch.bool)), 'flip'), (lambda x: random_flip(x.flatten(1), generator=make_generator(0)), 'needs images'),
    (lambda x: cutout(x, 3, torch.full((4, 2), 8)), 'centre'), (lambda x: cutout(x, 3), 'centre'), (lambda x: translate(x, 1, torch.full((4, 2), 2)), 'offset'),
    (lambda x: normalize(x, (.1, .2), .5), 'mean'), (lambda x: normalize(x, .5, (.1, 0., .1)), 'std'), (lambda x: normalize(x, float('nan'), 1.), 'mean'),
    (lambda x: normalize(x.long(), .5, .5), 'uint8'), (lambda x: normalize(x[0, 0, 0], .5, .5), 'batch')])
def test_bad_calls(call, word):
    with pytest.raises(ValueError, match=word): call(images(4, 3, 8, 8))


def test_normalize():
    x = images(5, 3, 8, 8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in CIFAR)
    want = (x.float()/255 - mean)/std
    assert torch.equal(normalize(x, *CIFAR), want) and torch.equal(normalize(x, list(CIFAR[0]), np.array(CIFAR[1], dtype=np.float32)), want)
    assert torch.equal(normalize(x.float()/255, *CIFAR), want)
    cl = normalize(x, *CIFAR, memory_format=torch.channels_last)
    assert torch.equal(cl, want) and cl.is_contiguous(memory_format=torch.channels_last)
    f = torch.rand(4, 6)
    kept = f.clone()
    assert torch.equal(normalize(f, 0., 1.), f) and torch.equal(f, kept) and normalize(f, 0., 1.).data_ptr() != f.data_ptr()
    assert torch.allclose(normalize(f, tuple(f.mean(0).tolist()), tuple(f.std(0).tolist())).std(0), torch.ones(6))
    assert normalize(x.bfloat16()/255, .5, .5).dtype == torch.float32


@pytest.mark.gpu
def test_cpu_equals_gpu():
    x = images(32, 3, 16, 16)
    for spec in ({'crop': 3, 'flip': True, 'cutout': 5}, {'crop_reflect': 3, 'flip': 'alternating'}, {'translate': 4}):
        d = draw_augmentation(spec, 32, make_generator(0), (3, 16, 16))
        want = apply_augmentation(x, d)
        got = apply_augmentation(x.cuda(), d.to('cuda'))
        assert torch.equal(got.cpu(), want)
        torch.testing.assert_close(normalize(got, *CIFAR).cpu(), normalize(want, *CIFAR))
