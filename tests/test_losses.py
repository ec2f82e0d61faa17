"Losses: against slow loops in float64, identities, extreme logits, precision and layout."
import math

import pytest
import torch

from noisymem.losses import (LOSSES, EarlyLearning, bootstrapping, check_transition, confidence_regularized, confidence_weight, cross_entropy, determinant_loss, forward_corrected,
                             generalized_cross_entropy, label_probability, margin, mean_absolute_error, peer_loss, stable_cross_entropy, symmetric_cross_entropy, truncated_cross_entropy)


def batch(b, k, seed=0, scale=3., dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (scale*torch.randn(b, k, generator=g)).to(dtype), torch.randint(k, (b,), generator=g)


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v/sum(e) for v in e]


def drift(k):
    "Each class loses a third to the next and a fifth to the one after, evenly shared where they are the same."
    return [[(i == j)*7/15 + ((i + 1) % k == j)/3 + ((i + 2) % k == j)/5 for j in range(k)] for i in range(k)]


SLOW = {
    'ce': lambda z, y: -math.log(softmax(z)[y]),
    'smooth': lambda z, y: sum(-(.9*(k == y) + .1/len(z))*math.log(p) for k, p in enumerate(softmax(z))),
    'mae': lambda z, y: sum(abs(p - (k == y)) for k, p in enumerate(softmax(z))),
    'gce': lambda z, y: (1 - softmax(z)[y]**.7)/.7,
    'truncated_gce': lambda z, y: (1 - max(softmax(z)[y], .5)**.7)/.7,
    'sce': lambda z, y: -6*math.log(softmax(z)[y]) - sum(max(p, 1e-7)*math.log(1e-4) for k, p in enumerate(softmax(z)) if k != y),
    'bootstrap': lambda z, y: -.8*math.log(softmax(z)[y]) - .2*math.log(max(softmax(z))),
    'soft_bootstrap': lambda z, y: -.6*math.log(softmax(z)[y]) - .4*sum(p*math.log(p) for p in softmax(z)),
    'stable_ce': lambda z, y: -math.log(softmax(z)[y] + 1e-5),
    'cores': lambda z, y: -math.log(softmax(z)[y]) + 2*sum(math.log(p + 1e-8) for p in softmax(z))/len(z),
    'forward': lambda z, y: -math.log(sum(p*drift(len(z))[k][y] for k, p in enumerate(softmax(z)))),
    'margin': lambda z, y: z[y] - max(v for k, v in enumerate(z) if k != y),
    'probability': lambda z, y: softmax(z)[y]}
FAST = {**LOSSES, 'smooth': lambda z, y, reduction: cross_entropy(z, y, reduction, label_smoothing=.1),
        'soft_bootstrap': lambda z, y, reduction: bootstrapping(z, y, reduction, beta=.6, kind='soft'),
        'forward': lambda z, y, reduction: forward_corrected(z, y, reduction, torch.tensor(drift(z.shape[-1]), dtype=torch.float64)),
        'margin': lambda z, y, reduction: margin(z, y), 'probability': lambda z, y, reduction: label_probability(z, y)}


@pytest.mark.parametrize('name', SLOW)
@pytest.mark.parametrize('b, k', [(1, 2), (7, 3), (64, 10), (16, 100)])
def test_against_loops(name, b, k):
    for seed in range(3):
        z, y = batch(b, k, seed)
        want = torch.tensor([SLOW[name](row, int(t)) for row, t in zip(z.double().tolist(), y)], dtype=torch.float64)
        torch.testing.assert_close(FAST[name](z, y, reduction='none').double(), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(FAST[name](z.double(), y, reduction='none'), want, rtol=1e-10, atol=1e-12)


LOSS = [k for k in FAST if k not in ('margin', 'probability')]


@pytest.mark.parametrize('name', LOSS)
def test_reductions_and_layouts(name):
    f, (z, y) = FAST[name], batch(9, 5)
    each = f(z, y, reduction='none')
    assert each.shape == (9,) and each.dtype == torch.float32
    torch.testing.assert_close(f(z, y, reduction='mean'), each.mean())
    torch.testing.assert_close(f(z, y, reduction='sum'), each.sum())
    strange = torch.zeros(18, 11)[::2, 1::2].copy_(z)
    assert not strange.is_contiguous() and torch.equal(f(strange, y.flip(0).flip(0), reduction='none'), each)
    torch.testing.assert_close(f(z.t().contiguous().t(), y, reduction='none'), each)
    perm = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(f(z[perm], y[perm], reduction='none'), each[perm])
    torch.testing.assert_close(f(z + 7, y, reduction='none'), each, rtol=1e-4, atol=1e-5)
    assert f(z[:0], y[:0], reduction='none').shape == (0,) and f(z[:0], y[:0], reduction='sum') == 0


@pytest.mark.parametrize('name', FAST)
def test_half_precision_logits_are_computed_in_float32(name):
    z, y = batch(32, 10, dtype=torch.bfloat16)
    got = FAST[name](z, y, reduction='none')
    assert got.dtype == torch.float32 and torch.equal(got, FAST[name](z.float(), y, reduction='none'))
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(FAST[name](z, y, reduction='none'), got)
    z = z.requires_grad_()
    FAST[name](z, y, reduction='none').sum().backward()
    assert z.grad.dtype == torch.bfloat16


@pytest.mark.parametrize('name', LOSS)
@pytest.mark.parametrize('size', [1e2, 1e4, 1e30])
def test_extreme_logits(name, size):
    z = torch.tensor([[size, -size, 0.], [-size, size, 0.], [0., 0., 0.], [-size, -size, -size]], requires_grad=True)
    for y in ([0, 0, 0, 0], [1, 2, 1, 2]):
        z.grad = None
        loss = FAST[name](z, torch.tensor(y), reduction='none')
        assert loss.isfinite().all() and ((loss >= -1.1e-5).all() or name == 'cores')
        loss.sum().backward()
        assert z.grad.isfinite().all() and z.grad.abs().max() < (7 if name == 'sce' else 2.1)


@pytest.mark.parametrize('name', LOSS)
def test_gradients(name):
    z, y = batch(4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: FAST[name](t, y, reduction='none'), z.requires_grad_())


def test_cross_entropy_gradient_is_softmax_minus_label():
    z, y = batch(6, 4)
    z.requires_grad_()
    cross_entropy(z, y, 'sum').backward()
    torch.testing.assert_close(z.grad, z.detach().softmax(1) - torch.nn.functional.one_hot(y, 4))


def test_generalized_cross_entropy_between_its_ends():
    z, y = batch(100, 10)
    ce, mae = cross_entropy(z, y, 'none'), mean_absolute_error(z, y, 'none')
    torch.testing.assert_close(generalized_cross_entropy(z, y, 'none', q=1e-7), ce, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(generalized_cross_entropy(z, y, 'none', q=1), mae/2, rtol=1e-5, atol=1e-6)
    values = torch.stack([generalized_cross_entropy(z, y, 'none', q=q) for q in (1e-3, .2, .5, .7, 1)])
    assert (values.diff(dim=0) <= 1e-6).all()


def test_against_the_representation_oracle(oracle):
    "Values and gradients of the original code; at underflow the original gradient is NaN, ours is finite."
    ref = {k: torch.from_numpy(v) for k, v in oracle('representation/losses.npz').items()}
    for f, key, z, y, q in [(cross_entropy, 'ce', 'z', 'y', {}), (generalized_cross_entropy, 'gce_q07_c100', 'z100', 'y100', {'q': .7}),
                            (generalized_cross_entropy, 'gce_q07_extreme', 'z', 'y', {'q': .7}), (generalized_cross_entropy, 'gce_q07', 'z', 'y', {'q': .7})]:
        z, want = ref[z].clone(), ref[f'{key}_grad']
        rows = slice(len(z) - len(want), None)      # some entries leave out the first, extreme row
        z, y = z[rows].requires_grad_(), ref[y][rows].long()
        loss = f(z, y, **q)
        loss.backward()
        torch.testing.assert_close(loss, ref[f'{key}_loss'].to(loss.dtype), rtol=1e-5, atol=1e-6)
        ok = want.isfinite()
        torch.testing.assert_close(z.grad[ok], want[ok].to(z.dtype), rtol=1e-4, atol=1e-7)
        assert z.grad.isfinite().all()


@pytest.mark.parametrize('key, f', [
    ('lq_q02_losspy', lambda z, y: generalized_cross_entropy(z, y, q=.2)), ('sce_c100_a6_b1', lambda z, y: symmetric_cross_entropy(z, y)),
    ('sce_losspy_epoch30', cross_entropy), ('sce_losspy_epoch31', lambda z, y: symmetric_cross_entropy(z, y, a=.1, b=1.)), ('bootstrap_hard_b08', bootstrapping), ('stable_ce', stable_cross_entropy),
    *((f'cores_losspy_epoch{e}', lambda z, y, e=e: confidence_regularized(z, y, weight=confidence_weight(e))) for e in (0, 10, 25, 39, 40, 100)),
    ('dmi_losspy', determinant_loss), ('forward_identity', lambda z, y: forward_corrected(z, y, transition=torch.eye(10)))])
def test_more_of_the_representation_oracle(oracle, key, f):
    ref = {k: torch.from_numpy(v) for k, v in oracle('representation/losses.npz').items()}
    want = ref[f'{key}_grad']
    z, y = (ref['z100'], ref['y100']) if want.shape[1] == 100 else (ref['z'], ref['y'])
    z, y = z[-len(want):].clone().requires_grad_(), y[-len(want):].long()
    loss = f(z, y)
    loss.backward()
    torch.testing.assert_close(loss, ref[f'{key}_loss'].to(loss.dtype), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z.grad, want.to(z.dtype), rtol=1e-3, atol=2e-6)


def test_losses_of_two_inputs_against_the_representation_oracle(oracle):
    ref = {k: torch.from_numpy(v) for k, v in oracle('representation/losses.npz').items()}
    z, peer, y = ref['z'].clone().requires_grad_(), ref['z_peer'].clone().requires_grad_(), ref['y'].long()
    loss = peer_loss(z, y, peer, ref['y_peer'].long())
    loss.backward()
    for got, key in ((loss, 'peer_loss'), (z.grad, 'peer_grad_z'), (peer.grad, 'peer_grad_z_peer')): torch.testing.assert_close(got, ref[key].to(got.dtype), rtol=1e-4, atol=1e-6)
    z = ref['z'].clone().requires_grad_()
    loss = forward_corrected(z, y, transition=ref['T'])
    loss.backward()
    torch.testing.assert_close(loss, ref['forward_T_loss'].to(loss.dtype), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z.grad, ref['forward_T_grad'], rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match='sums from 0.9 to 0.9'): forward_corrected(z, y, transition=.9*ref['T'])  # the original normalises in silence
    torch.testing.assert_close([confidence_weight(e) for e in range(200)], ref['f_beta'].tolist())
    torch.testing.assert_close(bootstrapping(ref['z100'], ref['y100'].long(), 'none'), ref['bootstrap_hard_b08_per_sample'])
    paper = truncated_cross_entropy(ref['z'], y, 'none')
    torch.testing.assert_close(paper.double(), ref['truncGCE_q07_k05_per_sample_PAPER_FORMULA'].double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(label_probability(ref['z'], y) > .5, ref['truncGCE_mask_PAPER_FORMULA'].bool())


def test_early_learning_against_the_representation_oracle(oracle):
    ref = {k: torch.from_numpy(v) for k, v in oracle('representation/losses.npz').items()}
    remember = EarlyLearning(40, 100)
    for s in range(3):
        part = {k: ref[f'elr_step{s}_{k}'] for k in ('index', 'z', 'y', 'loss', 'grad', 'buffer_after')}
        z = part['z'].clone().requires_grad_()
        loss = remember(z, part['y'].long(), part['index'].long())
        loss.backward()
        torch.testing.assert_close(loss, part['loss'].to(loss.dtype), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(z.grad, part['grad'], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(remember.memory, part['buffer_after'].to(remember.memory.dtype), rtol=1e-5, atol=1e-7)


def test_early_learning_is_saved_and_taken_up_again():
    (z, y), rows = batch(4, 3), torch.tensor([1, 5, 2, 0])
    one = EarlyLearning(6, 3)
    one(z, y, rows)
    two = EarlyLearning(6, 3)
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert torch.equal(one(z, y, rows, 'none'), two(z, y, rows, 'none')) and torch.equal(one.memory, two.memory)


def test_transition_matrices_are_checked():
    z, y = batch(3, 3)
    for bad, word in [(torch.eye(3)[:2], r'shape \(3, 3\), got torch.float32 \(2, 3\)'), (torch.eye(3, dtype=torch.int64), 'floats'), (2*torch.eye(3) - 1/3, 'a smallest entry of -0.3'),
                      (torch.full((3, 3), torch.nan), 'sums from nan'), (torch.eye(3) + 2e-4, 'sums from 1.001'), (None, 'got None')]:
        with pytest.raises(ValueError, match=word): forward_corrected(z, y, transition=bad)
    assert check_transition([[.5, .5], [0., 1.]]).shape == (2, 2)
    impossible = torch.tensor([[1., 0., 0.]]).expand(3, 3)
    z.requires_grad_()
    loss = forward_corrected(z, torch.tensor([0, 1, 2]), 'none', impossible)
    loss.sum().backward()
    assert loss[0] < 1e-6 and (loss[1:] > 9e3).all() and z.grad.isfinite().all(), 'a label that cannot occur costs much, not infinitely much'


def test_symmetric_loss_sums_to_a_constant():
    z, _ = batch(20, 6)
    total = sum(mean_absolute_error(z, torch.full((20,), k), 'none') for k in range(6))
    torch.testing.assert_close(total, torch.full((20,), 10.))


def test_margin_sign_is_correctness():
    z, y = batch(500, 10)
    m = margin(z, y)
    assert torch.equal(m > 0, z.argmax(1) == y)
    tie = torch.tensor([[2., 2., 1.]])
    assert margin(tie, torch.tensor([0])) == 0 and margin(tie, torch.tensor([2])) == -1
    assert margin(torch.tensor([[-torch.inf, 0.]]), torch.tensor([0])) == -torch.inf
    kept = z.clone()
    margin(z, y), label_probability(z, y)
    assert torch.equal(z, kept)
    p = label_probability(z, y)
    assert (p >= 0).all() and (p <= 1).all()


@pytest.mark.parametrize('name', FAST)
@pytest.mark.parametrize('z, y, word', [
    (torch.zeros(3), torch.zeros(3, dtype=torch.int64), 'logits'), (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), 'logits'),
    (torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.int64), 'logits'), (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 'labels'),
    (torch.zeros(2, 3), torch.zeros(2), 'labels'), (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), 'labels'),
    (torch.zeros(2, 3), torch.tensor([0, 3]), r'\[0, 3\)'), (torch.zeros(2, 3), torch.tensor([-1, 0]), r'\[0, 3\)'),
    (torch.zeros(2, 3), torch.tensor([-100, 0]), r'\[0, 3\)')])   # PyTorch would leave out -100 without a word
def test_bad_batches(name, z, y, word):
    with pytest.raises(ValueError, match=word): FAST[name](z, y, reduction='none')


def test_bad_settings():
    z, y = batch(3, 4)
    for f in LOSSES.values():
        with pytest.raises(ValueError, match="reduction must be one of 'none', 'mean', 'sum'"): f(z, y, reduction='max')
    for q in (0, -1, 1.1, float('nan'), '1'):
        with pytest.raises(ValueError, match='q must be'): generalized_cross_entropy(z, y, q=q)
    for eps in (-.1, 1, 1.5, float('nan'), None):
        with pytest.raises(ValueError, match='label_smoothing'): cross_entropy(z, y, label_smoothing=eps)
    with pytest.raises(ValueError, match='2 classes'): margin(z[:, :1], y*0)


@pytest.mark.gpu
@pytest.mark.parametrize('name', FAST)
def test_cpu_equals_gpu(name):
    z, y = batch(64, 10)
    torch.testing.assert_close(FAST[name](z.cuda(), y.cuda(), reduction='none').cpu(), FAST[name](z, y, reduction='none'))
