"Colour jitter against torchvision, image by image."
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from noisymem.core import make_generator
from noisymem.jitter import jitter
from noisymem.views import turn_hue


@pytest.mark.parametrize('seed', range(3))
def test_against_torchvision(seed):
    torch.manual_seed(seed)
    x, amount = torch.rand(6, 3, 7, 5), torch.tensor([.4, .3, .5, .2])
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, .5  # black, grey
    draw = (2*torch.rand(4, 6, 1, 1, 1, generator=make_generator(seed, 'jitter')) - 1)[..., 0, 0, 0]*amount[:, None]
    slow = []
    for image, (b, c, s, h) in zip(x, draw.T.tolist()): slow.append(V.adjust_hue(V.adjust_saturation(V.adjust_contrast(V.adjust_brightness(image, 1 + b), 1 + c), 1 + s), h))
    torch.testing.assert_close(jitter(x, tuple(amount.tolist()), seed), torch.stack(slow), atol=2e-4, rtol=0)


def test_amounts_are_of_each_image_and_in_range():
    x = torch.full((400, 3, 2, 2), .5)
    out = jitter(x, (.4, 0, 0, 0), 0)[:, 0, 0, 0]
    assert out.unique().numel() > 300 and out.min() >= .3 - 1e-6 and out.max() <= .7 + 1e-6 and abs(out.mean() - .5) < .02
    assert torch.equal(turn_hue(x, torch.rand(400)), x), 'grey has no hue'
