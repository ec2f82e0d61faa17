"The regulariser between representations: oracles, slow loops, derivatives, degenerate batches, memory."
import math
import subprocess
import sys

import pytest
import torch

from noisymem.methods import representation as R
from noisymem.methods.representation import distance_agreement, effective_rank, expected_error, linear_cka, pair_distances, rep_reg, rep_reg_angle, spread_ratio


@pytest.fixture(scope='module')
def ref(oracle): return {k: torch.from_numpy(v) for k, v in oracle('representation/regularizer.npz').items()}


def batch(b, k, d, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return 3*torch.randn(b, k, generator=g, dtype=dtype), torch.randn(b, d, generator=g, dtype=dtype)


def test_distances_against_the_oracle(ref):
    torch.testing.assert_close(pair_distances(ref['feats'], 2.), ref['pdist_sq_feats'], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(pair_distances(ref['logits'].softmax(1)), ref['pdist_softmax_logits'], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pair_distances(ref['dup_feats']), ref['pdist_dup_feats'], rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize('most', [2**22, 100])
@pytest.mark.parametrize('kind, f', [('dis', rep_reg), ('angle', rep_reg_angle)])
@pytest.mark.parametrize('case, logits, feats', [('', 'logits', 'feats'), ('100', 'logits100', 'feats'), ('_dup', 'dup_logits', 'dup_feats')])
def test_regulariser_against_the_oracle(ref, monkeypatch, most, kind, f, case, logits, feats):
    monkeypatch.setattr(R._row_blocks, '__defaults__', (most,))
    s, t = (ref[k].clone().requires_grad_() for k in (logits, feats))
    loss = f(s, t)
    loss.backward()
    key = f'rkd_{kind}{case}'
    torch.testing.assert_close(loss, ref[f'{key}_loss'].to(loss.dtype), rtol=1e-5, atol=1e-6)
    for got, name in ((s.grad, 'logits'), (t.grad, 'feats')): torch.testing.assert_close(got, ref[f'{key}_grad_{name}'], rtol=1e-3, atol=3e-7)


def slow(s, t, w_s, w_t, softmax, penalty, every):
    if softmax: s = [[math.exp(v - max(r))/sum(math.exp(u - max(r)) for u in r) for v in r] for r in s]
    n = len(s)
    tables = [[[math.dist(a, b)**w for b in x] for a in x] for x, w in ((s, w_s), (t, w_t))]
    means = [sum(map(sum, x))/(n*(n - 1)) for x in tables]
    d = [abs(tables[0][i][j]/means[0] - tables[1][i][j]/means[1]) for i in range(n) for j in range(n)]
    h = dict(l1=lambda v: v, l2=lambda v: v*v, smooth_l1=lambda v: v*v/2 if v < 1 else v - .5)[penalty]
    return sum(map(h, d))/(n*n if every else n*(n - 1))


@pytest.mark.parametrize('w_s, w_t, softmax, penalty, reduce', [(1., 2., True, 'smooth_l1', 'all'), (2., 1., False, 'l1', 'offdiag'), (.5, 3., True, 'l2', 'all'), (1., 1., False, 'smooth_l1', 'offdiag')])
def test_every_variant_against_loops(w_s, w_t, softmax, penalty, reduce):
    for seed, b in enumerate((2, 3, 9)):
        s, t = batch(b, 4, 6, seed)
        got = rep_reg(s, t, power_sup=w_s, power_ssl=w_t, sup_softmax=softmax, distance=penalty, reduce=reduce)
        assert got.item() == pytest.approx(slow(s.tolist(), t.tolist(), w_s, w_t, softmax, penalty, reduce == 'all'), rel=1e-6, abs=1e-9)


def slow_angle(s, t):
    def cosine(x, i, j, k):
        a, b = [u - v for u, v in zip(x[j], x[i])], [u - v for u, v in zip(x[k], x[i])]
        size = math.hypot(*a)*math.hypot(*b)
        return sum(u*v for u, v in zip(a, b))/size if size else 0.
    h = lambda v: v*v/2 if abs(v) < 1 else abs(v) - .5
    n = range(len(s))
    return sum(h(cosine(s, i, j, k) - cosine(t, i, j, k)) for i in n for j in n for k in n)/len(s)**3


def test_angles_against_loops():
    for seed, b in enumerate((2, 3, 8)):
        s, t = batch(b, 4, 6, seed)
        if b == 8: s[3] = s[5]
        assert rep_reg_angle(s, t).item() == pytest.approx(slow_angle(s.tolist(), t.tolist()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('f', [rep_reg, rep_reg_angle])
@pytest.mark.parametrize('most', [2**22, 12])
def test_it_can_be_differentiated_twice(monkeypatch, f, most):
    monkeypatch.setattr(R._row_blocks, '__defaults__', (most,))
    s, t = (x.requires_grad_() for x in batch(5, 3, 4))
    assert torch.autograd.gradcheck(f, (s, t)) and torch.autograd.gradgradcheck(f, (s, t), atol=1e-4)


@pytest.mark.parametrize('f', [rep_reg, rep_reg_angle])
def test_blocks_change_nothing(monkeypatch, f):
    answers = []
    for most in (2**22, 500, 1):
        monkeypatch.setattr(R._row_blocks, '__defaults__', (most,))
        s, t = (x.requires_grad_() for x in batch(30, 10, 20, dtype=torch.float32))
        loss = f(s, t)
        answers.append([loss.detach(), *torch.autograd.grad(loss, (s, t))])
    for other in answers[1:]: torch.testing.assert_close(other, answers[0], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize('f', [rep_reg, rep_reg_angle])
@pytest.mark.parametrize('case', ['far', 'twins', 'all alike', 'two', 'two classes', 'half precision'])
def test_degenerate_batches_have_finite_gradients(f, case):
    s, t = batch(2 if case == 'two' else 12, 2 if case == 'two classes' else 10, 128, dtype=torch.bfloat16 if case == 'half precision' else torch.float32)
    if case == 'far': s = s.sign()*60
    if case == 'twins': s[5], t[5] = s[3], t[3]
    if case == 'all alike': s, t = s[:1].repeat(12, 1), t[:1].repeat(12, 1)
    s, t = s.requires_grad_(), t.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=case == 'half precision'): loss = f(s, t)
    first = torch.autograd.grad(loss, (s, t), create_graph=True)
    second = torch.autograd.grad(sum(g.float().square().sum() for g in first), (s, t), allow_unused=True)
    assert loss.isfinite() and loss >= 0 and loss.dtype == torch.float32
    assert all(g is None or g.isfinite().all() for g in (*first, *second))


@pytest.mark.parametrize('softmax', [True, False])
def test_features_far_from_the_origin_keep_their_distances(softmax):
    s, t = batch(64, 10, 128)
    s, t = s + 3000*(not softmax), (t + 3000).requires_grad_()
    def of(s, t): return (loss := rep_reg(s, t, sup_softmax=softmax)), torch.autograd.grad(loss, t)[0]
    loss, gradient = of(s, t)
    true, direction = of(s.double(), t.double())
    torch.testing.assert_close(loss.double(), true, rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient.double(), direction.double(), rtol=1e-2, atol=1e-3*float(direction.abs().max()))


def test_detached_features_get_no_gradient():
    for f in (rep_reg, rep_reg_angle):
        s, t = (x.requires_grad_() for x in batch(6, 3, 4))
        both = torch.autograd.grad(f(s, t), s)[0]
        alone = torch.autograd.grad(f(s, t, detach_ssl=True), (s, t), allow_unused=True)
        assert torch.equal(alone[0], both) and alone[1] is None


MEMORY = '''
import re, torch
from noisymem.methods.representation import rep_reg
s, t = torch.randn(4096, 100, requires_grad=True), torch.randn(4096, 128, requires_grad=True)
most = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])  # KiB; `ru_maxrss` remembers the parent
before = most()
rep_reg(s, t).backward()
print((most() - before)//1024)
'''


def test_a_batch_of_4096_stays_under_two_gigabytes():
    took = int(subprocess.run([sys.executable, '-c', MEMORY], capture_output=True, text=True, check=True).stdout)
    assert 10 < took < 2048, f'{took} MiB'


@pytest.mark.parametrize('f', [rep_reg, rep_reg_angle])
def test_bad_input(f):
    s, t = batch(6, 3, 4)
    for a, b, word in [(s, t[:5], r'got \(6, 3\) and \(5, 4\)'), (s[0], t, 'must be'), (s[:1], t[:1], 'at least 2'), (s[:0], t[:0], 'at least 2')]:
        with pytest.raises(ValueError, match=word): f(a, b)
    with pytest.raises(TypeError, match='must be tensors, got ndarray'): f(s.numpy(), t)
    with pytest.raises(ValueError, match='lam must be'): f(s, t, lam=-1)
    with pytest.raises(ValueError, match='distance must be one of'): f(s, t, distance='cosine')


def test_bad_powers():
    s, t = batch(6, 3, 4)
    for w in (0, -1, math.nan):
        with pytest.raises(ValueError, match='power must be'): rep_reg(s, t, power_ssl=w)
    with pytest.raises(ValueError, match="reduce must be one of 'all', 'offdiag'"): rep_reg(s, t, reduce='mean')


def test_alignment_of_spaces():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 8, generator=g), torch.randn(60, 5, generator=g)
    assert abs(distance_agreement(x, y)) < .2 and linear_cka(x, y) < .4
    gram = lambda m: (h := torch.eye(60) - 1/60) @ (m @ m.t()) @ h
    a, b = gram(x), gram(y)
    assert linear_cka(x, y) == pytest.approx(((a*b).sum()/(a.norm()*b.norm())).item(), rel=1e-4)
    assert 4 < effective_rank(y) <= 5 and effective_rank(y[:, :1].repeat(1, 7)) == pytest.approx(1, abs=1e-4)
    assert all(math.isnan(v) for v in (effective_rank(torch.ones(4, 3)), linear_cka(torch.ones(4, 3), y[:4]), distance_agreement(torch.ones(4, 3), y[:4])))


def test_spread_against_a_loop():
    g = torch.Generator().manual_seed(2)
    y = torch.tensor([0]*9 + [1]*5 + [2]*7 + [3])
    x = torch.randn(22, 4, generator=g) + y[:, None]
    got = spread_ratio(x, y, 5)
    for i in range(5):
        for j in range(5):
            a, b = x[y == i].double(), x[y == j].double()
            if i == j or min(len(a), len(b)) < 2: assert got[i, j].isnan()
            else:
                pooled = ((a - a.mean(0)).square().sum() + (b - b.mean(0)).square().sum())/(len(a) + len(b) - 2)
                assert got[i, j].item() == pytest.approx((8*pooled/(a.mean(0) - b.mean(0)).square().sum()).item())
    assert expected_error(.3, torch.tensor([0., 2.])).tolist() == pytest.approx([0, .075])


@pytest.mark.gpu
@pytest.mark.parametrize('f', [rep_reg, rep_reg_angle])
def test_cpu_equals_gpu(f):
    s, t = batch(32, 10, 64, dtype=torch.float32)
    torch.testing.assert_close(f(s.cuda(), t.cuda()).cpu(), f(s, t), rtol=1e-4, atol=1e-6)
