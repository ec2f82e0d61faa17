"The probe: the original's numbers, and a run that does not notice it."
import copy

import numpy as np
import pytest
import torch
from torch import nn

from noisymem.models import make_model
from noisymem.signals import susceptibility as S
from noisymem.train import Recipe, train


def state_of(model, optimizer): return copy.deepcopy([model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()], [m.training for m in model.modules()], torch.get_rng_state()])


def assert_same(a, b):
    if isinstance(a, torch.Tensor): assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a: assert_same(a[k], b[k])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b): assert_same(x, y)
    else: assert a == b


def linear(oracle):
    a = oracle('susceptibility/step_linear_nomom.npz')
    net = nn.Linear(6, 3)
    with torch.no_grad(): net.weight.copy_(torch.tensor(a['w_fc.weight'])); net.bias.copy_(torch.tensor(a['w_fc.bias']))
    return a, net, torch.optim.SGD(net.parameters(), lr=float(a['lr']), momentum=float(a['momentum']), weight_decay=float(a['weight_decay']))


def test_oracle_step(oracle):
    a, net, optimizer = linear(oracle)
    before, after = S.probe(net, optimizer, torch.tensor(a['x']), torch.tensor(a['y']), step='same', mode='train')
    assert before == pytest.approx(float(a['phi_before']), abs=1e-6) and after == pytest.approx(float(a['phi_after']), abs=1e-6)
    assert torch.equal(net.weight, torch.tensor(a['w_fc.weight'])) and not optimizer.state


def test_oracle_running_average(oracle):
    a = oracle('susceptibility/running_average.npz')
    np.testing.assert_allclose(S.susceptibility(a['phi_before'], a['phi_after'], compat='notebook').zeta, a['notebook_zeta'], atol=1e-7)
    np.testing.assert_allclose(S.susceptibility(a['phi_before'], a['phi_after']).zeta, a['cummean_skip_first'], atol=1e-7)
    np.testing.assert_allclose(S.susceptibility(a['phi_before'], a['phi_after'], with_first=True).zeta, a['paper_zeta_cummean_from_first'], atol=1e-7)


NETS = {
    'dropout and batch norm': lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Dropout(.4), nn.Linear(9, 4)),
    'a frozen layer': lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9).requires_grad_(False), nn.ReLU(), nn.Linear(9, 4)),
    'an unused parameter': lambda: Unused()}


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(12, 4), nn.Parameter(torch.ones(3))
    def forward(self, x): return self.used(x)


OPTIMIZERS = {'sgd': lambda p: torch.optim.SGD(p, lr=.1), 'momentum': lambda p: torch.optim.SGD(p, lr=.1, momentum=.9, nesterov=True, weight_decay=1e-3), 'adam': lambda p: torch.optim.Adam(p, lr=.01, amsgrad=True), 'fused': lambda p: torch.optim.SGD(p, lr=.1, momentum=.9, fused=True), 'rmsprop': lambda p: torch.optim.RMSprop(p, lr=.01)}


@pytest.mark.parametrize('steps_before', [0, 2])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('step', S.STEPS)
@pytest.mark.parametrize('mode', S.MODES)
def test_everything_is_put_back(net, optimizer, step, mode, steps_before):
    torch.manual_seed(0)
    net, x, y = NETS[net](), torch.randn(16, 12), torch.randint(4, (16,))
    optimizer = OPTIMIZERS[optimizer]([p for p in net.parameters() if p.requires_grad])
    for _ in range(steps_before):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net[0].eval() if isinstance(net, nn.Sequential) else None
    kept, addresses = state_of(net, optimizer), [p.data_ptr() for p in net.parameters()]
    before, after = S.probe(net, optimizer, x, seed=5, step=step, mode=mode)
    assert_same(kept, state_of(net, optimizer))
    assert addresses == [p.data_ptr() for p in net.parameters()]
    assert np.isfinite([before, after]).all()
    assert (before, after) == S.probe(net, optimizer, x, seed=5, step=step, mode=mode), 'the same seed, the same numbers'


def test_a_step_that_fails_leaves_everything_as_it_was():
    net = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
    x = torch.randn(5, 4)
    kept = state_of(net, optimizer)
    with pytest.raises((ValueError, IndexError)): S.probe(net, optimizer, x, torch.tensor([9, 0, 0, 0, 0]))
    assert_same(kept, state_of(net, optimizer))


def test_a_frozen_mask_removes_the_noise_of_dropout():
    "Without a step (lr near 0) the two losses agree with one mask and differ with two."
    torch.manual_seed(0)
    net, x = NETS['dropout and batch norm'](), torch.randn(64, 12)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
    gap = {mode: abs(np.subtract(*S.probe(net, optimizer, x, mode=mode))) for mode in S.MODES}
    assert gap['frozen'] < 1e-6 and gap['eval'] < 1e-6 < 1e-3 < gap['train']


def test_the_first_order_foretells_small_steps():
    torch.manual_seed(0)
    net, x = nn.Linear(12, 4), torch.randn(64, 12)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    (b, a), (b1, a1) = S.probe(net, optimizer, x), S.probe(net, optimizer, x, step='first order')
    assert b == b1 and a1 == pytest.approx(a, abs=1e-6) and b - a == pytest.approx(b1 - a1, rel=.02) and a1 < a + 1e-12


@pytest.mark.parametrize('compat', [None, 'original'])
@pytest.mark.parametrize('model', ['mlp', 'fast', 'whitened', 'resnet18'])
def test_a_watched_run_is_the_run_itself(images, model, compat):
    recipe = Recipe(epochs=3, batch_size=20, lr=.05, precision='fp32')
    def weights(observers):
        state = train(make_model(model, 3, (3, 12, 12), width=.1 if model != 'resnet18' else 1/16, seed=0), images, recipe, observers=observers, device='cpu')
        return torch.cat([t.double().flatten() for t in state.model.state_dict().values()])
    watch = S.Susceptibility(batch_size=30, n_batches=2, compat=compat)
    assert torch.equal(weights([]), weights([watch]))
    assert len(watch.rows) == 3 and watch.rows[0].shape == ((1 if compat else 2), 3)


def test_the_rate_is_that_of_the_epoch_to_come(digits):
    watch = S.Susceptibility(batch_size=50, n_batches=1)
    train(make_model('mlp', 10, (1, 8, 8), width=.1), digits, Recipe(epochs=4, batch_size=50, lr=.2, milestones=(2,), augment=()), observers=[watch], device='cpu')
    np.testing.assert_allclose([r[0, 2] for r in watch.rows], [.2, .2, .02, .02])


def test_resume_keeps_the_curve(digits, tmp_path):
    def go(watch, **kwargs): return train(make_model('mlp', 10, (1, 8, 8), width=.1), digits, {'name': 'digits', 'epochs': 4}, observers=[watch], device='cpu', **kwargs)
    whole, first, second = (S.Susceptibility(batch_size=40, n_batches=2) for _ in range(3))
    go(whole)
    class Stop:
        def before_epoch(self, state):
            if state.epoch == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(make_model('mlp', 10, (1, 8, 8), width=.1), digits, {'name': 'digits', 'epochs': 4}, observers=[first, Stop()], device='cpu', checkpoint=tmp_path/'c')
    go(second, checkpoint=tmp_path/'c')
    np.testing.assert_array_equal(np.array(second.rows), np.array(whole.rows))


def test_fixed_batches_and_foreign_inputs(digits):
    other = torch.randint(0, 256, (90, 1, 8, 8), dtype=torch.uint8)
    watch = S.Susceptibility(inputs=other, fixed=True, batch_size=45, n_batches=2, lr=1e-9)
    train(make_model('mlp', 10, (1, 8, 8), width=.1), digits, {'name': 'digits', 'epochs': 2}, observers=[watch], device='cpu')
    assert len({len(r) for r in watch.rows}) == 1 and watch.records(digits)['before'].shape == (2, 2)


def test_the_band_covers(digits):
    "Drops with known mean and spread: the band holds the true running mean about as often as it says."
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        drop = rng.normal(.3, 1, (8, 12))
        last = S.susceptibility(drop, np.zeros_like(drop), level=.9).iloc[-1]
        hits += last.zeta_low <= .3 <= last.zeta_high
    assert .84 < hits/400 < .95


@pytest.mark.parametrize('options, match', [(dict(step='x'), 'step must be one of'), (dict(mode='x'), 'mode must be one of'), (dict(lr=-1), 'lr must be in')])
def test_bad_input(options, match):
    net = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=match): S.probe(net, torch.optim.SGD(net.parameters(), lr=.1), torch.randn(5, 4), **options)


@pytest.mark.gpu
def test_same_on_gpu():
    net, x, y = nn.Linear(12, 4), torch.randn(64, 12), torch.randint(4, (64,))
    answers = [S.probe(m := copy.deepcopy(net).to(d), torch.optim.SGD(m.parameters(), lr=.1), x.to(d), y.to(d)) for d in ('cpu', 'cuda')]
    assert answers[0] == pytest.approx(answers[1], rel=1e-4)
