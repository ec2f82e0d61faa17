"The probe: the original's numbers, and a run that does not notice it."
import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from noisymem.augment import normalize
from noisymem.models import MODELS, make_model
from noisymem.signals import susceptibility as S
from noisymem.train import Recipe, train


def everything(model, optimizer, *others):
    "All that a probe may not change."
    return copy.deepcopy([model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()], [m.training for m in model.modules()], [{k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in vars(m).items() if k in ('calls', 'hidden', 'late', 'seen')} for m in model.modules()],
                          torch.get_rng_state(), list(np.random.get_state()[1:]), random.getstate(), *others])


def assert_same(a, b):
    if isinstance(a, torch.Tensor) and a.is_sparse: a, b = a.to_dense(), b.to_dense()
    if isinstance(a, (torch.Tensor, np.ndarray)): assert a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a: assert_same(a[k], b[k])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b): assert_same(x, y)
    else: assert a == b


def seed_all(seed):
    torch.manual_seed(seed); np.random.seed(seed); random.seed(seed)


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
    with torch.no_grad(): g = torch.tensor(a['w_fc.weight'] - a['wtilde_fc.weight']), torch.tensor(a['w_fc.bias'] - a['wtilde_fc.bias'])
    loss = nn.functional.cross_entropy(net(torch.tensor(a['x'])), torch.tensor(a['y']))
    foretold = sum(float((d*w).sum()) for d, w in zip(torch.autograd.grad(loss, net.parameters()), g))
    before, after = S.probe(net, optimizer, torch.tensor(a['x']), torch.tensor(a['y']), step='first order same', mode='train')
    assert before - after == pytest.approx(foretold, rel=1e-4), "the oracle's own way from w to w~, along its gradient"


def test_oracle_running_average(oracle):
    a = oracle('susceptibility/running_average.npz')
    np.testing.assert_allclose(S.susceptibility(a['phi_before'], a['phi_after'], compat='notebook').zeta, a['notebook_zeta'], atol=1e-7)
    np.testing.assert_allclose(S.susceptibility(a['phi_before'], a['phi_after']).zeta, a['cummean_skip_first'], atol=1e-7)
    np.testing.assert_allclose(S.susceptibility(a['phi_before'], a['phi_after'], with_first=True).zeta, a['paper_zeta_cummean_from_first'], atol=1e-7)


# --- everything is put back -------------------------------------------------------------------------------------------

class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(12, 4), nn.Parameter(torch.ones(3))
    def forward(self, x): return self.used(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.b.weight = self.a.weight
    def forward(self, x): return self.head(self.b(self.a(x).relu()))


class Stateful(nn.Module):
    "Buffers that are replaced, first filled, or None; a counter, a hidden state, noise of NumPy and Python."
    def __init__(self):
        super().__init__()
        self.fc, self.calls, self.hidden, self.seen = nn.Linear(12, 4), 0, torch.zeros(12), None
        self.register_buffer('mean', torch.zeros(12))
        self.register_buffer('first', None)
        self.register_buffer('never', None)
    def forward(self, x):
        self.mean, self.calls = .9*self.mean + .1*x.detach().mean(0), self.calls + 1
        self.hidden.add_(x.detach()[0])
        if self.first is None: self.first = x.detach()[0].clone()
        if not hasattr(self, 'late'): self.late = x.detach()[1].clone()
        return self.fc(x - self.mean - self.first + .01*self.hidden)*(1 + .1*np.random.rand() + .1*random.random() + .01*self.calls)


class Sparse(nn.Module):
    "Tokens, and gradients that are sparse."
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(20, 6, sparse=True), nn.Linear(6, 4)
    def forward(self, x): return self.head(self.words((x.abs()*5).long().clamp(max=19)))


NETS = {
    'dropout and batch norm': lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Dropout(.4), nn.Linear(9, 4)),
    'a frozen layer': lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9).requires_grad_(False), nn.ReLU(), nn.Linear(9, 4)),
    'an unused parameter': Unused, 'tied weights': Tied, 'state of its own': Stateful, 'sparse gradients': Sparse,
    'spectral norm': lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(12, 9)), nn.utils.parametrizations.weight_norm(nn.Linear(9, 4)))}


OPTIMIZERS = {'sgd': lambda p: torch.optim.SGD(p, lr=.1), 'momentum': lambda p: torch.optim.SGD(p, lr=.1, momentum=.9, nesterov=True, weight_decay=1e-3), 'adam': lambda p: torch.optim.Adam(p, lr=.01, amsgrad=True),
              'fused': lambda p: torch.optim.SGD(p, lr=.1, momentum=.9, fused=True), 'rmsprop': lambda p: torch.optim.RMSprop(p, lr=torch.tensor(.01), capturable=False), 'asgd': lambda p: torch.optim.ASGD(p, lr=.01)}


def some_steps(net, optimizer, x, y, n):
    for _ in range(n):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def a_case(net, optimizer, steps_before):
    if net == 'sparse gradients' and optimizer not in ('sgd', 'momentum'): pytest.skip('this optimizer takes no sparse gradients')
    if net == 'sparse gradients' and optimizer == 'momentum': OPT = lambda p: torch.optim.SGD(p, lr=.1, momentum=.9)
    else: OPT = OPTIMIZERS[optimizer]
    seed_all(0)
    net, x, y = NETS[net](), torch.randn(16, 12), torch.randint(4, (16,))
    optimizer = OPT([p for p in net.parameters() if p.requires_grad])
    some_steps(net, optimizer, x, y, steps_before)
    if isinstance(net, nn.Sequential): net[0].eval()
    return net, optimizer, x


@pytest.mark.parametrize('steps_before', [0, 2])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('net', NETS)
def test_everything_is_put_back(net, optimizer, steps_before):
    net, optimizer, x = a_case(net, optimizer, steps_before)
    kept, tensors = everything(net, optimizer), [(t, t.data_ptr()) for t in net.state_dict(keep_vars=True).values()]
    state = {id(v) for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)}
    for step in S.STEPS:
        for mode in S.MODES:
            before, after = S.probe(net, optimizer, x, seed=5, step=step, mode=mode)
            assert_same(kept, everything(net, optimizer))
            assert all(t is u and address == u.data_ptr() for (t, address), u in zip(tensors, net.state_dict(keep_vars=True).values()))
            assert {id(v) for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)} == state
            assert np.isfinite([before, after]).all()
            assert (before, after) == S.probe(net, optimizer, x, seed=5, step=step, mode=mode), 'the same seed, the same numbers'


class Wrapper(torch.optim.Optimizer):
    "An optimizer around another, with a counter, a buffer and options that change, and steps that replace the storage."
    def __init__(self, params):
        super().__init__(params, dict(lr=.1, d=1.))
        self.inner, self.count, self.flat = torch.optim.SGD(self.param_groups, lr=.1, momentum=.9), 0, torch.zeros(2)
    def step(self, closure=None):
        self.inner.step()
        self.count, self.flat = self.count + 1, self.flat.add_(1)
        for g in self.param_groups:
            g['d'] *= 2
            for p in g['params']: p.data = p.data - .01*g['d']*p.grad
        self.state['global'] = dict(steps=[self.count])


def test_optimizers_that_keep_things_elsewhere():
    seed_all(0)
    net, x, y = nn.Linear(12, 4), torch.randn(16, 12), torch.randint(4, (16,))
    for optimizer in (Wrapper(net.parameters()), torch.optim.LBFGS(net.parameters())):
        if isinstance(optimizer, torch.optim.LBFGS):
            def closure():
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(x), y)
                loss.backward()
                return loss
            optimizer.step(closure)
        else: some_steps(net, optimizer, x, y, 2)
        look = lambda: everything(net, optimizer, [{k: v for k, v in vars(o).items() if k in ('count', 'flat')} | o.state_dict() for o in S._optimizers(optimizer)])
        kept, address = look(), net.weight.data_ptr()
        for step in S.STEPS:
            if step.endswith('same') and isinstance(optimizer, torch.optim.LBFGS):
                with pytest.raises(ValueError, match='LBFGS, which wants a closure'): S.probe(net, optimizer, x, step=step)
            else: S.probe(net, optimizer, x, step=step)
            assert_same(kept, look())
            assert address == net.weight.data_ptr()


def test_parameters_that_only_the_optimizer_holds_stay():
    "A learned temperature of the loss, say, with the gradient of the last training step."
    net, extra, x = nn.Linear(12, 4), nn.Parameter(torch.ones(2)), torch.randn(16, 12)
    optimizer = torch.optim.SGD([*net.parameters(), extra], lr=.1, momentum=.9)
    extra.grad = gradient = torch.ones(2)
    for step in S.STEPS: S.probe(net, optimizer, x, step=step)
    assert extra.tolist() == [1, 1] and extra.grad is gradient and not optimizer.state


def test_hooks_and_schedules_see_no_step():
    net, x, seen = nn.Linear(12, 4), torch.randn(16, 12), []
    optimizer = torch.optim.SGD(net.parameters(), lr=.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    S.probe(net, optimizer, x, step='same')
    assert not seen
    with pytest.warns(UserWarning, match='before `optimizer.step'): schedule.step()
    optimizer.step()
    assert seen == [1]


def test_other_generators_are_not_seeded(monkeypatch):
    "torch.manual_seed would seed the GPUs of the machine, and on a machine whose GPU is not yet awake all that follows."
    net, optimizer = nn.Linear(12, 4), torch.optim.SGD
    for name in ('torch.cuda.manual_seed_all', 'torch.cuda.manual_seed', 'torch.manual_seed'): monkeypatch.setattr(name, lambda *_: pytest.fail('another generator was seeded'))
    S.probe(net, optimizer(net.parameters(), lr=.1), torch.randn(16, 12))


def test_between_forward_and_backward():
    seed_all(0)
    net, x, y = NETS['dropout and batch norm'](), torch.randn(16, 12), torch.randint(4, (16,))
    def gradients(probing):
        torch.manual_seed(1)
        loss = nn.functional.cross_entropy(net(x), y)
        if probing: S.probe(net, torch.optim.SGD(net.parameters(), lr=.1), x)
        return torch.autograd.grad(loss, net.parameters())
    assert_same(gradients(False), gradients(True))


# --- what goes wrong --------------------------------------------------------------------------------------------------

class Refuse(torch.autograd.Function):
    "Backward fails."
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, grad): raise Faulty.error('in backward')


class Faulty(nn.Module):
    error = RuntimeError
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.drop, self.head, self.calls, self.fault = nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Dropout(.3), nn.Linear(9, 4), 0, ''
    def forward(self, x):
        h, out = self.drop(self.norm(self.body(x)))*(1 + .1*np.random.rand() + .1*random.random()), None
        self.calls += 1
        if self.fault == f'forward {self.calls}': raise self.error('in forward')
        if self.fault == f'NaN {self.calls}': h = h*float('nan')
        if self.fault == 'backward': h = Refuse.apply(h)
        return self.head(h)[:, :1 if self.fault == 'shape' else None]


class HalfStep(torch.optim.SGD):
    fault = ''
    def step(self, closure=None):
        if self.fault != 'step': return super().step(closure)
        self.state['junk'] = dict(a=1)
        self.param_groups[0]['lr'] = 9.
        self.param_groups[0]['params'][0].data.zero_()
        raise Faulty.error('in step')


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize('fault', ['forward 1', 'forward 2', 'backward', 'step', 'labels', 'shape', 'NaN 1', 'NaN 2', 'x', 'device'])
def test_what_fails_leaves_everything_as_it_was(fault, error, monkeypatch):
    monkeypatch.setattr(Faulty, 'error', error)
    seed_all(0)
    net, x, y = Faulty(), torch.randn(16, 12), torch.randint(4, (16,))
    optimizer = HalfStep(net.parameters(), lr=.1, momentum=.9)
    some_steps(net, optimizer, x, y, 2)
    net.calls, net.fault, optimizer.fault = 0, fault, fault
    net.drop.eval()
    kept, grads = everything(net, optimizer), [p.grad for p in net.parameters()]
    expected = {'labels': ValueError, 'shape': ValueError, 'NaN 1': ValueError, 'NaN 2': ValueError, 'x': RuntimeError, 'device': RuntimeError}.get(fault, error)
    match = {'labels': r'labels must be in \[0, 4\)', 'shape': 'must give logits', 'NaN 1': 'got nan before the step', 'NaN 2': 'got nan after the step'}.get(fault)
    bad = {'x': x[:, :5], 'device': x.to('meta')}.get(fault, x)
    with pytest.raises(expected, match=match): S.probe(net, optimizer, bad, torch.full((16,), 9) if fault == 'labels' else None, step='same')
    assert_same(kept, everything(net, optimizer))
    assert all(p.grad is g for p, g in zip(net.parameters(), grads))


@pytest.mark.parametrize('options, match', [(dict(step='x'), 'step must be one of'), (dict(mode='x'), 'mode must be one of'), (dict(lr=-1), 'lr must be in'), (dict(lr=0), 'lr must be in'), (dict(lr=float('nan')), 'lr must be in'), (dict(labels=torch.zeros(3, dtype=torch.long)), 'must have 5 entries, got 3'), (dict(labels=torch.zeros(5)), 'must be integers'), (dict(labels=torch.full((5,), 3)), r'in \[0, 3\)'), (dict(labels=-torch.ones(5).long()), r'in \[0, 3\)')])
def test_bad_options(options, match):
    net = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=match): S.probe(net, torch.optim.SGD(net.parameters(), lr=.1), torch.randn(5, 4), **options)


def test_bad_models_and_batches():
    def go(net, x, **kwargs): return S.probe(net, torch.optim.SGD(net.parameters(), lr=.1), x, **kwargs)
    norm = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    for mode in ('frozen', 'train'):
        with pytest.raises(ValueError, match='at least 2 inputs for a model with batch norm, got 1'): go(norm, torch.randn(1, 1, 6, 6), mode=mode)
    go(norm, torch.randn(1, 1, 6, 6), mode='eval')
    norm[1].eval()
    go(norm, torch.randn(1, 1, 6, 6))   # the run holds this layer in evaluation mode
    norm.eval()
    with pytest.raises(ValueError, match='batch norm'): go(norm, torch.randn(1, 1, 6, 6))
    with pytest.raises(ValueError, match='at least one input'): go(nn.Linear(4, 3), torch.randn(0, 4))
    with pytest.raises(ValueError, match=r'logits \(5, K\) with K >= 2, got \(5, 1\)'): go(nn.Linear(4, 1), torch.randn(5, 4))
    with pytest.raises(ValueError, match='lazy layers'): S.probe(nn.LazyLinear(3), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=.1), torch.randn(5, 4))
    with pytest.raises(ValueError, match='must be a tensor of inputs, got dict; for a model of several inputs give their positions'): go(nn.Linear(4, 3), dict(a=1))
    a, b, two = torch.randn(9, 4), torch.randn(9, 2), nn.Bilinear(4, 2, 3)
    watch = S.Susceptibility(n_batches=2, forward=lambda model, i: model(a[i], b[i]))
    assert watch(two, torch.optim.SGD(two.parameters(), lr=.1), torch.arange(9)) > 0
    before, after = go(nn.LSTM(4, 3, batch_first=True), torch.randn(5, 2, 4), forward=lambda model, x: model(x)[0][:, -1])
    assert after < before


# --- the options ------------------------------------------------------------------------------------------------------

def masks(net, x, **options):
    "Dropout masks of the two passes."
    seen = []
    handle = [m for m in net.modules() if isinstance(m, nn.Dropout)][0].register_forward_hook(lambda m, a, out: seen.append(out != 0))
    losses = S.probe(net, torch.optim.SGD(net.parameters(), lr=1e-7), x, **options)
    handle.remove()
    return seen, losses


def test_a_frozen_mask_is_one_mask():
    torch.manual_seed(0)
    net, x = NETS['dropout and batch norm'](), torch.randn(64, 12)
    (one, two), losses = masks(net, x, mode='frozen')
    assert torch.equal(one, two) and 0 < one.float().mean() < 1 and abs(np.subtract(*losses)) < 1e-5
    (one, two), losses = masks(net, x, mode='train')
    assert not torch.equal(one, two) and abs(np.subtract(*losses)) > 1e-3
    (one, two), losses = masks(net, x, mode='eval')
    assert one.all() and two.all() and abs(np.subtract(*losses)) < 1e-5
    noisy = Stateful()
    optimizer = torch.optim.SGD(noisy.parameters(), lr=1e-9)
    def gap(mode): return abs(np.subtract(*S.probe(noisy, optimizer, x[:16], mode=mode)))
    assert gap('frozen') < gap('train'), 'noise of NumPy and Python is held as well'


def test_fresh_sgd_is_descent_by_hand():
    "No momentum, no weight decay, every parameter at the rate of its own group, nothing else moves."
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Linear(9, 4), nn.Linear(4, 4)), torch.randn(32, 12), torch.randint(4, (32,))
    optimizer = torch.optim.SGD([dict(params=net[0].parameters(), lr=.3), dict(params=[*net[1].parameters(), *net[2].parameters()])], lr=.1, momentum=.9, weight_decay=.1)
    some_steps(net, optimizer, x, y, 2)
    for lr, rates in ((None, [.3, .1, .1, 0]), (.5, [.5, .5, .5, 0])):
        for mode in ('frozen', 'eval'):
            other = copy.deepcopy(net).train(mode != 'eval')
            loss = nn.functional.cross_entropy(other(x), y)
            gradient = torch.autograd.grad(loss, other.parameters())
            rate = [r for r, m in zip(rates, other) for _ in m.parameters()]
            with torch.no_grad():
                for p, g, r in zip(other.parameters(), gradient, rate): p -= r*g
                after = nn.functional.cross_entropy(other(x), y)
            got = S.probe(net, optimizer, x, y, lr=lr, mode=mode)
            assert got == pytest.approx((loss.item(), after.item()), rel=1e-5)
            assert got[0] - S.probe(net, optimizer, x, y, lr=lr, mode=mode, step='first order')[1] == pytest.approx(sum(r*g.square().sum().item() for r, g in zip(rate, gradient)), rel=1e-4)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_same_step_is_the_optimizers(name):
    "With its state, and with one rate for all where it is given."
    seed_all(0)
    net, x, y = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)), torch.randn(32, 12), torch.randint(4, (32,))
    optimizer = OPTIMIZERS[name]([dict(params=[p]) for p in net.parameters()])
    some_steps(net, optimizer, x, y, 2)
    for lr in (None, .003):
        other, theirs = copy.deepcopy((net, optimizer))
        for g in theirs.param_groups if lr else (): g['lr'] = torch.tensor(lr) if isinstance(g['lr'], torch.Tensor) else lr
        before = nn.functional.cross_entropy(other(x), y).item()
        some_steps(other, theirs, x, y, 1)
        assert S.probe(net, optimizer, x, y, step='same', lr=lr) == pytest.approx((before, nn.functional.cross_entropy(other(x), y).item()), rel=1e-6)


def random_case(rng):
    "A random network in double precision, its optimizer with momentum in it, inputs and labels."
    width, depth, k = int(rng.integers(3, 9)), int(rng.integers(1, 4)), int(rng.integers(2, 5))
    mods = [m for i in range(depth) for m in (nn.Linear(6 if not i else width, width), *([nn.BatchNorm1d(width)] if rng.random() < .5 else []), nn.Tanh(), *([nn.Dropout(.3)] if rng.random() < .5 else []))]
    net = nn.Sequential(*mods, nn.Linear(width, k)).double()
    kind = rng.choice(['sgd', 'sgd', 'sgd', 'adam', 'adamw', 'rmsprop'])
    groups = [dict(params=[p], lr=float(rng.choice([.5, 1., 2.]))) for p in net.parameters()]
    nesterov = bool(rng.random() < .3)
    if kind == 'sgd': optimizer = torch.optim.SGD(groups, lr=1., momentum=.9 if nesterov else float(rng.choice([0, .5, .9])), dampening=0 if nesterov else float(rng.choice([0, .3])), weight_decay=float(rng.choice([0, .1])), nesterov=nesterov, maximize=bool(rng.random() < .2))
    else: optimizer = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW, 'rmsprop': torch.optim.RMSprop}[kind](groups, lr=1., weight_decay=.1, eps=1e-3)
    for g in optimizer.param_groups: g['scale'] = g['lr']
    x, y = torch.randn(24, 6).double(), torch.randint(k, (24,))
    rate(optimizer, .01)
    some_steps(net, optimizer, x, y, int(rng.integers(0, 3)))
    return net, optimizer, x, y


def rate(optimizer, lr):
    for g in optimizer.param_groups: g['lr'] = lr*g['scale']


@pytest.mark.parametrize('step', ['sgd', 'same'])
def test_the_foretold_drop_errs_by_the_square_of_the_rate(step):
    rng, orders = np.random.default_rng(0), []
    torch.manual_seed(0)
    for _ in range(25):
        net, optimizer, x, y = random_case(rng)
        errors = []
        for lr in (2e-3, 1e-3):
            rate(optimizer, lr)
            (before, after), (again, foretold) = (S.probe(net, optimizer, x, y, step=s) for s in (step, 'first order' + ' same'*(step == 'same')))
            assert before == again
            errors.append(abs(after - foretold))
        orders.append(np.log2(errors[0]/errors[1]))
    assert np.median(orders) == pytest.approx(2, abs=.02) and np.mean(np.abs(np.array(orders) - 2) < .2) > .85, orders


def test_the_first_order_of_sgd_touches_no_weight(monkeypatch):
    net, x, calls = nn.Linear(12, 4), torch.randn(16, 12), []
    optimizer = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
    some_steps(net, optimizer, x, torch.zeros(16).long(), 1)
    net.register_forward_hook(lambda *_: calls.append(net.weight._version))
    monkeypatch.setattr(torch.optim.SGD, 'step', lambda *_: pytest.fail('a step was taken'))
    for step in ('first order', 'first order same'): S.probe(net, optimizer, x, step=step)
    assert len(calls) == 2, 'one pass each'


def test_a_clipping_hook_is_part_of_the_step():
    torch.manual_seed(0)
    net, x, y = nn.Linear(12, 4).double(), torch.randn(16, 12).double(), torch.zeros(16).long()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    free = np.subtract(*S.probe(net, optimizer, x, y, step='same'))
    optimizer.register_step_pre_hook(lambda o, *_: [nn.utils.clip_grad_norm_(net.parameters(), 1e-2)][1:].clear())
    exact, foretold = (np.subtract(*S.probe(net, optimizer, x, y, step=s)) for s in ('same', 'first order same'))
    assert exact < .1*free and foretold == pytest.approx(exact, rel=1e-3)


def test_a_layer_held_in_evaluation_mode_is_held():
    net, x, seen = nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)), torch.randn(16, 12), []
    net[1].register_forward_hook(lambda m, *_: seen.append(m.training))
    optimizer = torch.optim.SGD(net.parameters(), lr=.1)
    net[1].eval(); S.probe(net, optimizer, x)
    net.eval(); S.probe(net, optimizer, x)
    assert seen == [False, False, True, True] and not net.training


def test_a_warm_up_from_zero():
    net, x = nn.Linear(12, 4), torch.randn(16, 12)
    for step in S.STEPS:
        before, after = S.probe(net, torch.optim.SGD(net.parameters(), lr=0.), x, step=step)
        assert before == after


def test_under_autocast_and_without_gradients():
    "Autocast keeps casts of the weights: after the step they are stale."
    torch.manual_seed(0)
    net, x, y = nn.Linear(12, 4), torch.randn(64, 12), torch.zeros(64).long()
    optimizer = torch.optim.SGD(net.parameters(), lr=.5)
    plain = S.probe(net, optimizer, x, y)
    with torch.autocast('cpu', torch.bfloat16):
        out = net(x)
        assert S.probe(net, optimizer, x, y) == pytest.approx(plain, rel=.02)
        assert torch.equal(net(x), out)
    with torch.no_grad(): assert S.probe(net, optimizer, x, y) == plain
    with torch.inference_mode(): assert S.probe(net, optimizer, x*1, y) == plain


# --- the watch --------------------------------------------------------------------------------------------------------

ARCHITECTURES = sorted({n for n in MODELS} - {'resnet34', 'resnet101', 'resnet152', 'preact_resnet34', 'preact_resnet50', 'preact_resnet101', 'preact_resnet152', 'news_words', 'resnet9_tied'})  # the last two ask for numbers of words, and of examples
WIDTH = {'cnn': 2, 'shufflenetv2_original': .5}


def plain_loop(net, make, x, y, watch=None):
    "Two epochs of a loop that reads the global generators, and all that is left of it."
    seed_all(1)
    optimizer = make(net.parameters())
    for _ in range(2):
        if watch: watch(net, optimizer, x)
        net.train()
        order = torch.from_numpy(np.random.permutation(len(x)))[:8 + random.randrange(3)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[order]), y[order]).backward()
        optimizer.step()
    return everything(net, optimizer)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_a_watched_run_is_the_run_itself_for_every_network(name):
    "Momentum, Adam, batch norm, dropout; weights, buffers, optimizer, generators: bit for bit."
    side = 64 if name == 'imagenet_alexnet' else 8
    x, y = torch.randn(12, 3, side, side, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    watches = [S.Susceptibility(n_batches=2, batch_size=6, step='same', mode='train'), S.Susceptibility(n_batches=1, batch_size=8)]
    for watch, make in zip(watches, (lambda p: torch.optim.SGD(p, lr=.05, momentum=.9, weight_decay=5e-4, nesterov=True), lambda p: torch.optim.Adam(p, lr=.001))):
        build = lambda: make_model(name, 3, (3, side, side), width=WIDTH.get(name, 1/16), seed=0)
        assert_same(plain_loop(build(), make, x, y), plain_loop(build(), make, x, y, watch))
        assert len(watch.rows) == 2 and np.isfinite(watch.rows).all()


@pytest.mark.parametrize('compat', [None, 'original'])
@pytest.mark.parametrize('model', ['mlp', 'fast', 'whitened', 'resnet18'])
def test_an_observed_run_is_the_run_itself(images, model, compat):
    recipe = Recipe(epochs=3, batch_size=20, lr=.05, precision='fp32')
    def weights(observers):
        state = train(make_model(model, 3, (3, 12, 12), width=.1 if model != 'resnet18' else 1/16, seed=0), images, recipe, observers=observers, device='cpu')
        return torch.cat([t.double().flatten() for t in state.model.state_dict().values()])
    watch = S.Susceptibility(batch_size=30, n_batches=2, compat=compat)
    assert torch.equal(weights([]), weights([watch]))
    assert len(watch.rows) == 3 and watch.rows[0].shape == ((1 if compat else 2), 3)


@pytest.mark.parametrize('form', ['wrapped', 'in place', 'a part'])
def test_a_compiled_network(form):
    "Nothing is compiled for the probe: what is compiled anew may round otherwise."
    compiled = []
    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward
    def build():
        torch._dynamo.reset()
        torch.manual_seed(0)
        net = NETS['dropout and batch norm']()
        if form == 'wrapped': return torch.compile(net, backend=backend)
        (net if form == 'in place' else net[1]).compile(backend=backend)
        return net
    x, y, make = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4, OPTIMIZERS['momentum']
    watch, plain = (S.Susceptibility(n_batches=2, batch_size=6) for _ in range(2))
    want, n = plain_loop(build(), make, x, y), len(compiled)
    assert_same(want, plain_loop(build(), make, x, y, watch))
    assert n > 0 and len(compiled) == 2*n
    torch.manual_seed(0)
    plain_loop(NETS['dropout and batch norm'](), make, x, y, plain)
    np.testing.assert_allclose(watch.rows, plain.rows, rtol=1e-5)


@pytest.mark.parametrize('net', NETS)
def test_a_loop_of_ones_own(net):
    x, y = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
    def build():
        seed_all(0)
        return NETS[net]()
    watch = S.Susceptibility(n_batches=2, batch_size=6)
    assert_same(plain_loop(build(), OPTIMIZERS['sgd'], x, y), plain_loop(build(), OPTIMIZERS['sgd'], x, y, watch))
    curve = watch.curve()
    assert curve.epoch.tolist() == [1] and np.isfinite(curve.zeta_low).all()
    np.testing.assert_allclose(watch.curve(per_rate=True).zeta, curve.zeta/.1, rtol=1e-6)


def spied(monkeypatch):
    "The batches and labels that are probed."
    seen, real = [], S.probe
    monkeypatch.setattr(S, 'probe', lambda model, optimizer, x, labels, **kwargs: seen.append((x.clone(), labels.clone(), kwargs)) or real(model, optimizer, x, labels, **kwargs))
    return seen


def run_watched(watch, data, epochs=3, **recipe):
    train(make_model('linear', data.n_classes, tuple(data.x.shape[1:])), data, Recipe(epochs=epochs, batch_size=50, **recipe), observers=[watch], device='cpu')
    return watch


def rows_of(x, pool): return [int((pool.flatten(1) == row).all(1).nonzero()[0]) for row in x.flatten(1)]


def test_batches_and_labels(digits, monkeypatch):
    "Batches are of one size, disjoint within an epoch, new every epoch; an image keeps its random label, which has nothing to do with the given one."
    seen = spied(monkeypatch)
    run_watched(S.Susceptibility(n_batches=4, batch_size=128), digits, epochs=5, augment=())
    pool = normalize(digits.x, digits.mean, digits.std)
    places = [rows_of(x, pool) for x, _, _ in seen]
    assert [len(p) for p in places] == [37]*20, '150 inputs, four batches'
    assert all(len({i for p in places[4*e:4*e + 4] for i in p}) == 148 for e in range(5))
    assert len({tuple(p) for p in places}) == 20
    label = {}
    for p, (_, y, _) in zip(places, seen):
        for i, l in zip(p, y.tolist()): assert label.setdefault(i, l) == l
    agree = np.mean([l == digits.given_label[i] for i, l in label.items()])
    assert .02 < agree < .2 and len(set(label.values())) == 10
    assert len({k['seed'] for *_, k in seen}) == 20


def test_inputs_that_are_not_the_training_inputs(digits, monkeypatch):
    seen, other = spied(monkeypatch), torch.randint(0, 256, (90, 1, 8, 8), dtype=torch.uint8)
    watch = run_watched(S.Susceptibility(inputs=other, batch_size=45, n_batches=2), digits, augment=())
    pool = normalize(other, digits.mean, digits.std)
    assert sorted(rows_of(torch.cat([x for x, *_ in seen[:2]]), pool)) == list(range(90))
    assert watch.records(digits)['before'].shape == (3, 2)
    with pytest.raises(ValueError, match=r'inputs must have the shape of the training inputs, \(1, 8, 8\), got \(3, 8, 8\)'): run_watched(S.Susceptibility(inputs=torch.zeros(9, 3, 8, 8)), digits)
    with pytest.raises(ValueError, match='at least 2 for each of 4 batches, got 7'): run_watched(S.Susceptibility(inputs=other[:7]), digits)


def test_fixed_batches_stay_to_the_pixel(images, monkeypatch):
    "Alternating flips go by the epoch; a fixed set does not."
    seen = spied(monkeypatch)
    spec = dict(augment=(('crop_reflect', 2), ('flip', 'alternating')))
    run_watched(S.Susceptibility(fixed=True, batch_size=20, n_batches=2), images, **spec)
    for i in (2, 3, 4, 5): assert_same(list(seen[i][:2]), list(seen[i % 2][:2]))
    moving = seen[:]
    seen.clear()
    run_watched(S.Susceptibility(fixed=True, augment=False, batch_size=20, n_batches=2), images, **spec)
    pool = normalize(images.x, images.mean, images.std)
    assert len(rows_of(seen[0][0], pool)) == 20 and not torch.equal(seen[0][0], moving[0][0])


def test_alternating_flips_are_those_of_the_run(images, monkeypatch):
    "A run flips an example in every other epoch, by its place in the data; so does the probe."
    from noisymem.augment import alternating_flip
    seen = spied(monkeypatch)
    run_watched(S.Susceptibility(batch_size=60, n_batches=1), images, augment=(('flip', 'alternating'),))
    pool = normalize(images.x, images.mean, images.std)
    for epoch, (x, *_) in enumerate(seen, 1):
        back = [(i, flipped) for row in x for flipped in (False, True) for i in [int(j) for j in (pool.flatten(1) == (row.flip(2) if flipped else row).flatten()).all(1).nonzero()]]
        want = alternating_flip(torch.arange(60), epoch)
        assert len(back) == 60 and all(bool(want[i]) == flipped for i, flipped in back)


def test_the_original_procedure(digits, monkeypatch):
    seen = spied(monkeypatch)
    watch = run_watched(S.Susceptibility(n_batches=7, batch_size=30, step='first order', mode='eval', lr=3., fixed=True, compat='original'), digits, lr=.2)
    assert [len(r) for r in watch.rows] == [1]*3 and all((k['step'], k['mode'], k['lr']) == ('same', 'train', None) for *_, k in seen)


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


@pytest.mark.parametrize('options, match', [(dict(n_batches=0), 'n_batches'), (dict(batch_size=1), 'batch_size'), (dict(step='x'), 'step must be'), (dict(mode='x'), 'mode must be'), (dict(compat='x'), 'compat must be')])
def test_bad_watch(options, match):
    with pytest.raises(ValueError, match=match): S.Susceptibility(**options)


# --- the record of an epoch -------------------------------------------------------------------------------------------

def tiny_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(20, 4))


def tiny_data():
    rng = torch.Generator().manual_seed(1)
    x, true, x_test, y_test = torch.randn(90, 3, 8, 8, generator=rng), torch.randint(4, (90,), generator=rng), torch.randn(40, 3, 8, 8, generator=rng), torch.randint(4, (40,), generator=rng)
    given = torch.where(torch.rand(90, generator=rng) < .5, torch.randint(4, (90,), generator=rng), true)
    return x, true, given, x_test, y_test, torch.randint(4, (90,), generator=rng)


def as_published(epochs):
    "Spec, sections 2.2 and 2.3, written out: one row of eleven numbers per epoch, example by example."
    (x, true, given, x_test, y_test, y_rand), net, rows = tiny_data(), tiny_net(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    ce = nn.functional.cross_entropy
    for epoch in range(epochs):
        kept = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
        net.train()
        batch = slice(16*epoch, 16*epoch + 16)
        optimizer.zero_grad()
        before = ce(net(x[batch]), y_rand[batch])
        before.backward()
        optimizer.step()
        after = ce(net(x[batch]), y_rand[batch]).item()
        net.load_state_dict(kept[0]); optimizer.load_state_dict(kept[1])
        sums, losses = {k: [0., 0, 0] for k in ('all', True, False)}, []
        for i in range(0, 90, 16):
            out, y = net(x[i:i+16]), given[i:i+16]
            optimizer.zero_grad()
            loss = ce(out, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            for j in range(len(y)):
                for k in ('all', bool(y[j] == true[i + j])): sums[k] = [a + b for a, b in zip(sums[k], (ce(out[j], y[j]).item(), int(out[j].argmax() == y[j]), 1))]
        net.eval()
        with torch.no_grad(): parts = [(ce(net(x_test[i:i+16]), y_test[i:i+16]).item(), int((net(x_test[i:i+16]).argmax(1) == y_test[i:i+16]).sum())) for i in range(0, 40, 16)]
        schedule.step()
        right, wrong = ([sums[k][0]/sums[k][2], 100*sums[k][1]/sums[k][2]] for k in (True, False))
        rows.append([epoch, before.item(), after, np.mean(losses), 100*sums['all'][1]/90, *right, *wrong, np.mean([p[0] for p in parts]), 100*sum(p[1] for p in parts)/40])
    return np.array(rows)


def test_the_record_of_the_original():
    "Six epochs of it, all eleven columns: the probe in its `same` step and `train` mode, and the logits of the training passes."
    (x, true, given, x_test, y_test, y_rand), net, rows = tiny_data(), tiny_net(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for epoch in range(5):
        batch, logits = slice(16*epoch, 16*epoch + 16), []
        drop = S.probe(net, optimizer, x[batch], y_rand[batch], step='same', mode='train')
        net.train()
        for i in range(0, 90, 16):
            logits.append(net(x[i:i+16]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits[-1], given[i:i+16]).backward()
            optimizer.step()
        schedule.step()
        row = S.epoch_record(torch.cat(logits), given, given != true, net.eval()(x_test), y_test, compat='original', batch_size=16)
        rows.append([epoch, *drop, *row.values()])
    np.testing.assert_allclose(rows, as_published(5), rtol=1e-5, atol=1e-5)


def test_the_record_by_default():
    "Means over examples, fractions, NaN where there is nothing to average."
    torch.manual_seed(0)
    logits, given, wrong = torch.randn(50, 3, requires_grad=True), torch.randint(3, (50,)), torch.rand(50) < .4
    row = S.epoch_record(logits, given, wrong, logits[:20], given[:20])
    assert list(row) == ['train_loss', 'train_accuracy', 'correct_loss', 'correct_fitted', 'wrong_loss', 'wrong_fitted', 'test_loss', 'test_accuracy']
    for name, of in (('train_loss', given >= 0), ('correct_loss', ~wrong), ('wrong_loss', wrong)): assert row[name] == pytest.approx(np.mean([nn.functional.cross_entropy(l, y).item() for l, y in zip(logits[of], given[of])]), rel=1e-6)
    assert row['wrong_fitted'] == pytest.approx(np.mean([int(l.argmax() == y) for l, y in zip(logits[wrong], given[wrong])]))
    nothing = S.epoch_record(logits, given)
    assert np.isnan([nothing[k] for k in ('correct_loss', 'wrong_fitted', 'test_loss', 'test_accuracy')]).all() and nothing['train_loss'] == row['train_loss']
    none_wrong = torch.zeros(50, dtype=torch.bool)
    assert np.isnan(S.epoch_record(logits, given, none_wrong)['wrong_loss']) and S.epoch_record(logits, given, none_wrong, compat='original')['wrong_loss'] == 0


@pytest.mark.parametrize('change, match', [(dict(given_label=torch.zeros(4).long()), 'given_label must have 5 entries, got 4'), (dict(given_label=torch.full((5,), 3)), r'given_label must be in \[0, 3\)'), (dict(is_noisy=torch.zeros(4).bool()), 'is_noisy must be \\(5,\\) bool'), (dict(is_noisy=torch.zeros(5)), 'is_noisy must be'), (dict(logits=torch.zeros(5)), r'logits must be \(N, K\)'), (dict(test_logits=torch.zeros(2, 3)), 'test_logits and test_label'), (dict(compat='x'), 'compat must be'), (dict(batch_size=0), 'batch_size')])
def test_bad_records(change, match):
    with pytest.raises(ValueError, match=match): S.epoch_record(**dict(logits=torch.zeros(5, 3), given_label=torch.zeros(5).long()) | change)


# --- the curve --------------------------------------------------------------------------------------------------------

def simulate(k, epochs, fixed=False, batch_effect=0., trend=True, skewed=False, n=1000, level=.9):
    "How often the band of the last epoch holds the true running mean."
    rng, hits = np.random.default_rng(0), 0
    sd = np.linspace(.5, 2, epochs + 1)[:, None]
    truth = np.linspace(.1, 1, epochs + 1) if trend else np.full(epochs + 1, .3)
    for _ in range(n):
        noise = rng.exponential(1, (epochs + 1, k)) - 1 if skewed else rng.normal(0, 1, (epochs + 1, k))
        drop = truth[:, None] + sd*noise + batch_effect*rng.normal(0, 1, k)
        last = S.susceptibility(drop, np.zeros_like(drop), level=level, fixed=fixed).iloc[-1]
        hits += last.zeta_low <= truth[1:].mean() <= last.zeta_high
    return hits/n


@pytest.mark.parametrize('epochs', [1, 3, 20])
@pytest.mark.parametrize('k', [2, 4, 8])
def test_the_band_covers(k, epochs):
    "Drops with a trend and a growing spread; with two batches an epoch the band is wide rather than narrow."
    assert .87 < simulate(k, epochs) < (.97 if k == 2 else .94)


def test_the_band_covers_skewed_drops(): assert simulate(4, 10, skewed=True) > .84


def test_fixed_batches_err_alike():
    "Batches with an effect of their own: as if they were new every epoch the band is far too narrow."
    assert simulate(4, 20, batch_effect=1.) < .6
    assert .87 < simulate(4, 20, fixed=True, batch_effect=1.) < .94
    assert .87 < simulate(3, 5, fixed=True, batch_effect=.3) < .94


def test_the_band_covers_drops_of_a_network():
    "Bands of one epoch from four batches each, against the mean over very many batches."
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)), torch.randn(4000, 12)
    optimizer = torch.optim.SGD(net.parameters(), lr=.5)
    watch = S.Susceptibility(n_batches=4, batch_size=16)
    for seed in range(250):
        watch.seed = seed
        watch(net, optimizer, x)
    rows = np.array(watch.rows)
    truth, hits = (rows[..., 0] - rows[..., 1]).mean(), []
    for r in rows:
        first = S.susceptibility(r[None, :, 0], r[None, :, 1], with_first=True, level=.9).iloc[0]
        hits.append(first.zeta_low <= truth <= first.zeta_high)
    assert .85 < np.mean(hits) < .96


def test_against_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        t, k, first = int(rng.integers(2, 7)), int(rng.integers(1, 4)), bool(rng.integers(2))
        before, after, lr = rng.random((t, k)), rng.random((t, k)), rng.random(t) + .1
        table = S.susceptibility(before if k > 1 else before[:, 0], after if k > 1 else after[:, 0], lr=lr, with_first=first)
        start = 0 if first else 1
        for i, row in enumerate(table.itertuples()):
            drops = [np.mean([(before[e, b] - after[e, b])/lr[e] for b in range(k)]) for e in range(start, start + i + 1)]
            assert row.epoch == start + i and row.drop == pytest.approx(drops[-1]) and row.zeta == pytest.approx(np.mean(drops))
            assert np.isnan(row.zeta_low) == (k == 1)


def test_units_of_the_curve():
    rng = np.random.default_rng(0)
    a, b = rng.random((6, 3)), rng.random((6, 3))
    one, ten = S.susceptibility(a, b), S.susceptibility(10*a, 10*b)
    np.testing.assert_allclose(10*one[['zeta', 'zeta_low', 'zeta_high', 'drop_se']], ten[['zeta', 'zeta_low', 'zeta_high', 'drop_se']])
    equal = S.susceptibility(np.ones((3, 2)), np.zeros((3, 2)))
    assert (equal[['zeta', 'zeta_low', 'zeta_high']] == 1).all(axis=None), 'batches that agree leave no doubt'


@pytest.mark.parametrize('before, after, options, match', [
    (np.ones(5), np.zeros((5, 2)), {}, 'one shape'), (np.ones(1), np.ones(1), {}, 'at least 2 epochs'), ([], [], dict(with_first=True), 'at least 1 epochs'), (np.ones((2, 2, 2)), np.ones((2, 2, 2)), {}, 'one shape'),
    ([1, np.nan, 1.], [0, 0, 0.], {}, 'must be finite'), (np.ones(5), np.zeros(5), dict(lr=[1, 2]), 'lr must be 5 rates'), (np.ones(3), np.zeros(3), dict(lr=[1, 0, 1]), 'least 0.0'), (np.ones(3), np.zeros(3), dict(level=1), 'level'), (np.ones(3), np.zeros(3), dict(compat='x'), 'compat')])
def test_bad_curves(before, after, options, match):
    with pytest.raises(ValueError, match=match): S.susceptibility(before, after, **options)


def test_a_first_drop_that_does_not_count_may_have_no_rate():
    assert S.susceptibility([1., 1, 1], [.5, .5, .5], lr=[0, .5, .5]).zeta.tolist() == [1, 1]


# --- example by example -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('net', ['dropout and batch norm', 'a frozen layer', 'an unused parameter', 'tied weights'])
def test_each_example_is_a_probe_of_its_own(net):
    torch.manual_seed(0)
    net, x, labels = NETS[net](), torch.randn(7, 12), torch.randint(4, (7, 3))
    some_steps(net, torch.optim.SGD(net.parameters(), lr=.1), torch.randn(16, 12), torch.randint(4, (16,)), 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=.2)
    kept = everything(net, optimizer)
    def slow(i, label, step): return np.subtract(*S.probe(net, optimizer, x[i:i+1], torch.tensor([label]), step=step, mode='eval'))
    for exact, step in ((True, 'sgd'), (False, 'first order')):
        for chosen in (labels[:, 0], labels, None):
            which = torch.arange(4).expand(7, 4) if chosen is None else chosen.view(7, -1)
            want = [np.mean([slow(i, int(l), step) for l in which[i]]) for i in range(7)]
            for chunk in (1, 5, 100): np.testing.assert_allclose(S.example_susceptibility(net, x, .2, chosen, exact, chunk), want, rtol=1e-3, atol=1e-6)
    assert_same(kept, everything(net, optimizer))


@pytest.mark.parametrize('name', ['cnn', 'resnet18', 'mobilenetv2', 'efficientnet', 'whitened'])
def test_each_example_of_a_convolutional_network(name):
    net, x, y = make_model(name, 3, (3, 8, 8), width=WIDTH.get(name, 1/16)), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD(net.parameters(), lr=.05)
    want = [np.subtract(*S.probe(net, optimizer, x[i:i+1], y[i:i+1], mode='eval')) for i in range(4)]
    np.testing.assert_allclose(S.example_susceptibility(net, x, .05, y), want, rtol=2e-3, atol=1e-5)


def test_bad_examples():
    net, x = nn.Linear(12, 4), torch.randn(5, 12)
    for options, match in ((dict(lr=0), 'lr must be'), (dict(lr=.1, labels=torch.full((5,), 4)), r'in \[0, 4\)'), (dict(lr=.1, labels=torch.zeros(5)), 'must be integers')):
        with pytest.raises(ValueError, match=match): S.example_susceptibility(net, x, **options)


@pytest.mark.gpu
def test_same_on_gpu():
    net, x, y = nn.Linear(12, 4), torch.randn(64, 12), torch.randint(4, (64,))
    answers = [S.probe(m := copy.deepcopy(net).to(d), torch.optim.SGD(m.parameters(), lr=.1), x.to(d), y.to(d)) for d in ('cpu', 'cuda')]
    assert answers[0] == pytest.approx(answers[1], rel=1e-4)


@pytest.mark.gpu
def test_generators_of_the_gpu_are_put_back():
    net, x = NETS['dropout and batch norm']().cuda(), torch.randn(16, 12, device='cuda')
    optimizer = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
    torch.cuda.manual_seed_all(3)
    kept = everything(net, optimizer, torch.cuda.get_rng_state_all())
    answers = [S.probe(net, optimizer, x, seed=5, mode=mode) for mode in S.MODES for _ in range(2)]
    assert_same(kept, everything(net, optimizer, torch.cuda.get_rng_state_all()))
    assert answers[0] == answers[1] and answers[2] == answers[3]
