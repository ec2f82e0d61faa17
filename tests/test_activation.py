"Activation maximisation against a slow loop."
import pytest
import torch
from torch import nn

from noisymem.activation import maximise_activation
from noisymem.augment import normalize
from noisymem.core import make_generator
from noisymem.data import load_dataset
from noisymem.models import make_model


@pytest.fixture(scope='module')
def data(): return load_dataset('digits')


@pytest.mark.parametrize('channel', [0, 3])
def test_against_a_slow_loop(data, channel):
    net = make_model('cnn64', 10, (1, 8, 8), width=.125, seed=1)
    images, values = maximise_activation(net, 'backbone.unit1', [2, channel], data, steps=4, lr=.2, weight_decay=1e-3, seed=5)
    noise = torch.rand(1, 8, 8, generator=make_generator(5, 'activation'))*30 + 150
    x = nn.Parameter(normalize(noise[None]/255, data.mean, data.std))
    net.eval()
    adam, slow = torch.optim.Adam([x], lr=.2, weight_decay=1e-3), []
    for step in range(5):
        answer = net.backbone.unit1(x)[0, channel].mean()
        slow.append(answer.item())
        if step == 4: break
        adam.zero_grad()
        (-answer).backward()
        adam.step()
    torch.testing.assert_close(values[:, 1], torch.tensor(slow))
    shown = (x.detach()*data.std[0] + data.mean[0])*255
    assert (images[1].float() - shown[0].clamp(0, 255)).abs().max() <= .51


def test_the_network_stays_as_it_was(data):
    net = make_model('cnn64', 10, (1, 8, 8), width=.125)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    maximise_activation(net, 'backbone.unit2', [0], data, steps=2)
    assert net.training and all(p.grad is None for p in net.parameters()) and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match='channels must be one of'): maximise_activation(net.eval(), 'backbone.unit1', [8], data)
    assert not net.training
