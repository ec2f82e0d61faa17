"Views: beside torchvision image by image with the same numbers, its own distribution, seeds, batches, strange sizes."
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from noisymem.augment import apply_augmentation
from noisymem.core import make_generator
from noisymem.views import apply_boxes, apply_jitter, apply_view, draw_boxes, draw_strong, draw_view, turn_hue

CHANGES = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]


def some_images(n, c, h, w, seed=0):
    "Smooth colour, noise, and images of one value."
    x = torch.randint(0, 256, (n, c, h, w), generator=make_generator(seed), dtype=torch.uint8)
    x[::3] = tv.resize(x[::3, :, :4, :4], [h, w], antialias=True)
    x[1::7] = x[1::7, :, :1, :1]
    return x


def by_hand(image, how, i):
    "The same view, one operation of torchvision after the other: a tensor of floats, or a PIL image."
    top, left, h, w = how['boxes'][i].tolist()
    size = [image.height, image.width] if isinstance(image, Image.Image) else list(image.shape[1:])
    image = tv.resized_crop(image, top, left, h, w, size, tv.InterpolationMode.BILINEAR, antialias=True)
    if how['flip'][i]: image = tv.hflip(image)
    for k in how['order'][i].tolist(): image = CHANGES[k](image, float(how['factor'][i, k]))
    if how['grey'][i]: image = tv.rgb_to_grayscale(image, len(image.getbands()) if isinstance(image, Image.Image) else len(image))
    return image


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 8, 8), (3, 20, 31), (1, 28, 28), (3, 64, 48)])
def test_strong_views_equal_torchvision_on_floats(shape):
    "Tolerance 3e-4 of the range: torchvision weighs red with .2989 where we weigh it with .299."
    x = some_images(60, *shape)
    draws = draw_view('strong', 60, make_generator(1), shape)
    ours = apply_view(x, draws)
    theirs = torch.stack([by_hand(x[i]/255, draws.values, i) for i in range(60)])
    assert (ours - theirs).abs().max() < 3e-4


@pytest.mark.parametrize('channels, mean, far', [(1, 1, 1e-3), (3, 2, .01)])
def test_strong_views_are_those_of_pil_images_up_to_their_rounding(channels, mean, far):
    "PIL rounds to 256 values after every operation, in colour also hue, saturation and value: a level (two in colour) on average, 6 levels in all but 1 of 1,000 (of 100) values."
    x = some_images(80, channels, 32, 32, seed=2)
    draws = draw_view('strong', 80, make_generator(3), x.shape[1:])
    ours = apply_view(x, draws)*255
    pictures = [Image.fromarray(im.permute(1, 2, 0).squeeze(2).numpy()) for im in x]
    theirs = torch.stack([tv.pil_to_tensor(by_hand(p, draws.values, i)) for i, p in enumerate(pictures)]).float()
    gap = (ours - theirs).abs()
    assert gap.mean() < mean and (gap > 6).float().mean() < far, (gap.mean(), (gap > 6).float().mean(), gap.max())


@pytest.mark.parametrize('k', range(4))
def test_each_change_of_colour_alone(k):
    x = torch.rand(40, 3, 9, 7, generator=make_generator(0))
    x[0], x[1], x[2] = 0, 1, x[2, :1]
    factor = torch.tensor([1., 1, 1, 0]).repeat(40, 1)
    factor[:, k] = torch.linspace(-.5, .5, 40) if k == 3 else torch.linspace(0, 2, 40)
    order = torch.stack([torch.randperm(4, generator=make_generator(i)) for i in range(40)])
    theirs = torch.stack([CHANGES[k](im, float(f)) for im, f in zip(x, factor[:, k])])
    assert (apply_jitter(x, order, factor) - theirs).abs().max() < 3e-4


def test_all_twenty_four_orders():
    from itertools import permutations
    order = torch.tensor(list(permutations(range(4))))
    x = torch.rand(1, 3, 6, 6, generator=make_generator(5)).repeat(24, 1, 1, 1)
    factor = torch.tensor([[1.4, .6, 1.3, .1]]).repeat(24, 1)
    ours = apply_jitter(x, order, factor)
    for i, row in enumerate(order.tolist()):
        image = x[i]
        for k in row: image = CHANGES[k](image, float(factor[i, k]))
        assert (ours[i] - image).abs().max() < 3e-4
    assert len({tuple(o.flatten().tolist()) for o in ours}) > 6, 'the order matters'


def test_hue_of_every_corner_and_edge_of_the_colour_cube():
    grid = torch.cartesian_prod(*[torch.tensor([0., .25, .5, 1.])]*3).view(-1, 3, 1, 1)
    for shift in (-.5, -.1, 0., .07, .5):
        theirs = torch.stack([tv.adjust_hue(c, shift) for c in grid])
        assert (turn_hue(grid, torch.full((len(grid),), shift)) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize('size', [(32, 32), (24, 40), (8, 8)])
def test_boxes_have_the_distribution_of_torchvision(size):
    "Two-sample Kolmogorov-Smirnov on side lengths, places, areas, ratios, 4,000 each; all p > 1e-3."
    n = 4000
    ours = draw_boxes(n, make_generator(7), size).double().numpy()
    torch.manual_seed(11)
    like = torch.zeros(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(like, (.08, 1.), (3/4, 4/3)) for _ in range(n)], float)
    for name, f in dict(top=lambda b: b[:, 0], left=lambda b: b[:, 1], height=lambda b: b[:, 2], width=lambda b: b[:, 3], area=lambda b: b[:, 2]*b[:, 3], ratio=lambda b: b[:, 3]/b[:, 2]).items():
        assert ks_2samp(f(ours), f(theirs)).pvalue > 1e-3, name


@pytest.mark.parametrize('size', [(4, 40), (40, 4), (1, 9), (20, 5), (5, 7)])
def test_the_box_in_the_middle_is_that_of_torchvision(size):
    ours = draw_boxes(3, make_generator(0), size, area=(1, 1), ratio=(2, 2.1))
    theirs = RandomResizedCrop.get_params(torch.zeros(3, *size), (50., 50.), (2, 2.1))  # an area that never fits
    assert {tuple(b) for b in ours.tolist()} == {tuple(theirs)}


@pytest.mark.parametrize('size', [(1, 1), (2, 2), (1, 5), (3, 17)])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_smallest_images(size, channels):
    x = some_images(50, channels, *size)
    out = apply_view(x, draw_view('strong', 50, make_generator(0), x.shape[1:]))
    assert out.shape == x.shape and out.isfinite().all() and out.min() >= 0 and out.max() <= 1


def test_nothing_from_outside_the_box():
    x = torch.zeros(200, 1, 16, 16)
    boxes = draw_boxes(200, make_generator(0), (16, 16))
    for im, (t, l, h, w) in zip(x, boxes.tolist()): im[:, t:t + h, l:l + w] = 1
    assert (apply_boxes(x, boxes) - 1).abs().max() < 1e-5


def test_shares_and_ranges():
    v = draw_strong(20000, make_generator(0), (3, 32, 32)).values
    jittered = (v['factor'] != torch.tensor([1., 1, 1, 0])).any(1)
    for share, wanted in ((v['flip'], .5), (jittered, .8), (v['grey'], .2)): assert abs(float(share.float().mean()) - wanted) < .015
    f = v['factor'][jittered]
    assert f[:, :3].min() >= .6 and f[:, :3].max() <= 1.4 and f[:, 3].abs().max() <= .1
    assert ks_2samp(f[:, 0].numpy(), np.random.default_rng(0).uniform(.6, 1.4, 20000)).pvalue > 1e-3
    assert ks_2samp(f[:, 3].numpy(), np.random.default_rng(0).uniform(-.1, .1, 20000)).pvalue > 1e-3
    seen = torch.unique(v['order'], dim=0, return_counts=True)[1]
    assert len(seen) == 24 and abs(seen/20000 - 1/24).max() < .01
    corr = np.corrcoef(torch.cat([f, v['boxes'][jittered, :1].float()], 1).T.numpy())
    assert abs(corr - np.eye(5)).max() < .03, 'independent numbers'


def test_the_same_seed_gives_the_same_views_in_any_batch_and_layout():
    x = some_images(40, 3, 16, 16)
    a, b = (draw_view('strong', 40, make_generator(3, 'view', 1), (3, 16, 16)) for _ in range(2))
    whole = apply_view(x, a)
    assert torch.equal(whole, apply_view(x, b))
    perm = torch.randperm(40, generator=make_generator(1))
    assert torch.equal(apply_view(x[perm], a[perm]), whole[perm])
    assert torch.equal(torch.cat([apply_view(x[i:i + 7], a[i:i + 7]) for i in range(0, 40, 7)]), whole)
    assert torch.equal(apply_view(x.to(memory_format=torch.channels_last), a), whole)
    assert not torch.equal(whole, apply_view(x, draw_view('strong', 40, make_generator(3, 'view', 2), (3, 16, 16))))
    state = torch.get_rng_state()
    draw_view('strong', 40, make_generator(0), (3, 16, 16))
    assert torch.equal(state, torch.get_rng_state())


def test_the_input_is_not_changed():
    for x in (some_images(9, 3, 8, 8), torch.rand(9, 3, 8, 8)):
        before = x.clone()
        for kind in ('plain', 'weak', 'strong'): apply_view(x, draw_view(kind, 9, make_generator(0), (3, 8, 8)))
        assert torch.equal(x, before)


def test_weak_views_are_the_known_augmentation():
    x, draws = some_images(300, 1, 4, 4), draw_view('weak', 300, make_generator(0), (1, 4, 4), pad=1)
    assert torch.equal(apply_view(x, draws), apply_augmentation(x, draws))
    one = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4).repeat(300, 1, 1, 1)
    assert len({tuple(im.flatten().tolist()) for im in apply_view(one, draws)}) == 18  # 9 places, 2 sides


@pytest.mark.parametrize('bad, message', [
    (dict(strength=(.4, .4)), 'strength must have 4 entries'), (dict(strength=(.4, .4, .4, .6)), r'strength must be in \[0, 0.5\]'), (dict(flip=2), 'flip must be'),
    (dict(area=(.5, .2)), 'largest area must be'), (dict(area=(.5, 2)), 'largest area must be'), (dict(ratio=(0, 1)), 'smallest ratio must be'), (dict(jitter=float('nan')), 'jitter must be')])
def test_bad_settings(bad, message):
    with pytest.raises(ValueError, match=message): draw_view('strong', 4, make_generator(0), (3, 8, 8), **bad)


def test_four_channels_are_refused():
    with pytest.raises(ValueError, match='in_shape must be'): draw_view('strong', 4, make_generator(0), (4, 8, 8))


@pytest.mark.gpu
def test_the_same_views_on_a_gpu():
    x, draws = some_images(40, 3, 32, 32), draw_view('strong', 40, make_generator(0), (3, 32, 32))
    assert (apply_view(x.cuda(), draws.to('cuda')).cpu() - apply_view(x, draws)).abs().max() < 1e-4
