"Signals of a run, beside the epoch that they watch: ResNet-18, 50,000 images."
import time

import numpy as np
import torch

from common import side_by_side, write
from noisymem.augment import normalize
from noisymem.core import keep_memory, pick_device, pick_precision
from noisymem.data import from_arrays
from noisymem.losses import cross_entropy
from noisymem.models import make_model
from noisymem.recorder import MEASURES, Look, _pass, find_points, watch
from noisymem.signals.divergence import histogram_divergence
from noisymem.signals.network import GradientSums
from noisymem.signals.predictions import prediction_signals
from noisymem.train import to_device

N, N_TEST, BATCH, K = 50_000, 10_000, 128, 10


def slow_histogram(x, y, n_classes, bins=40):
    "The divergence by comparing every value with every bin, as published."
    low, high = x.aminmax(dim=0)
    edges = torch.arange(bins + 1)[None]*((high - low)/bins)[:, None] + low[:, None]
    p = []
    for c in range(n_classes):
        own = x[y == c].T[:, :, None]
        inside = (own >= edges[:, None, :-1]) & (own < edges[:, None, 1:])
        p.append(inside.sum(1)/inside.sum((1, 2))[:, None])
    def entropy(q): return -(q.clamp_min(1e-10)*q.clamp_min(1e-10).log2()).sum(-1)
    p = torch.stack(p)
    return entropy(p.mean(0)) - entropy(p).mean(0)


def measure_divergence(rounds=5):
    "The divergence of 960 neurons by 10,000 examples of ten classes: one pass, and every value against every bin; seconds of the processor, over all threads."
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(10_000, 960, generator=g), torch.randint(K, (10_000,), generator=g)
    few = x[:, :64]
    np.testing.assert_allclose(histogram_divergence(few, y, K, compat='original'), slow_histogram(few, y, K), atol=1e-5)
    ways = {'one pass': lambda: histogram_divergence(x, y, K), 'one pass, published edges': lambda: histogram_divergence(x, y, K, compat='original'), 'every value with every bin': lambda: slow_histogram(few, y, K)}
    seconds = side_by_side(ways, rounds, time.process_time)
    seconds['every value with every bin'] *= 960/64
    write('divergence', [dict(way=k, seconds=np.median(s), fastest=s.min(), slowest=s.max(), rounds=rounds, threads=torch.get_num_threads()) for k, s in seconds.items()])


def measure_signals(rounds=3):
    "Each signal as a share of a training epoch of ResNet-18 on 50,000 images, of all rows and of a sample; forward passes are timed on a part and scaled up."
    device = pick_device('auto')
    if device.type == 'cpu': keep_memory()
    clock, part = (time.perf_counter, 5000) if device.type == 'cuda' else (time.process_time, 256)
    rng, precision = np.random.default_rng(0), pick_precision('auto', device)
    data = to_device(from_arrays(rng.integers(0, 256, (N, 3, 32, 32), np.uint8), rng.integers(0, K, N), layout='NCHW'), device)
    net = make_model('resnet18', K, (3, 32, 32)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=.01, momentum=.9, fused=True)

    def step(sums=None):
        net.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == 'bf16'): loss = cross_entropy(net(normalize(data.x[:BATCH], data.mean, data.std)).float(), data.given_label[:BATCH])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if sums is not None: sums.add([p.grad for p in net.parameters()])

    def look(n):
        with watch(net, find_points(net)): return _pass(net, data.x[:n], data.mean, data.std, precision)
    step()
    sums, grads = GradientSums(), [p.grad.clone() for p in net.parameters()]
    base = side_by_side({'step': step, 'sums': lambda: sums.add(grads), 'pass': lambda: look(part)}, rounds, clock)
    n_steps = -(-N//BATCH)
    epoch, per_image = np.median(base['step'])*n_steps, np.median(base['pass'])/part
    rows = [dict(signal='training epoch', rows=N, seconds=epoch), dict(signal='test set, 10,000 images (to judge, no signal)', rows=N_TEST, seconds=per_image*N_TEST), dict(signal='gradient', rows=N, seconds=np.median(base['sums'])*n_steps)]
    for n in (N, 2500):
        values = {p: torch.randn(n, w, device=device) for p, w in zip(find_points(net), (64, 128, 256, 512))}
        view = Look(net, data.x[:n], data.mean, data.std, data.given_label[:n], torch.randn(n, K, device=device), values)
        ways = {'predictions': lambda: prediction_signals(view.logits, view.given_label, view.given_label, view.logits.argmax(1))}
        ways |= {s: lambda s=s: MEASURES[s][0](view) for s in ('cnd:histogram', 'cnd:debiased', 'cnd:gaussian', 'activation_frequency', 'loss_sensitivity', 'critical_sample_ratio', 'weight_norm')}
        rows.append(dict(signal='evaluation pass', rows=n, seconds=per_image*n))
        rows += [dict(signal=k, rows=n, seconds=np.median(s)) for k, s in side_by_side(ways, 1 if device.type == 'cpu' else rounds, clock).items()]
    for r in rows: r['share'] = r['seconds']/epoch
    own = {n: sum(r['share'] for r in rows if r['rows'] == n and r['signal'] not in ('training epoch', 'evaluation pass', 'gradient')) for n in (N, 2500)}
    gradient = next(r['share'] for r in rows if r['signal'] == 'gradient')
    passes = {n: per_image*n/epoch for n in own}
    for n, every in ((N, 1), (N, 5), (2500, 1), (2500, 5)):
        rows.append(dict(signal=f'all signals without the pass, sample={n if n < N else 0}, every={every}', rows=n, share=own[n]/every + gradient))
        rows.append(dict(signal=f'all signals with the pass, sample={n if n < N else 0}, every={every}', rows=n, share=own[n]/every + gradient + passes[n]))
    write('signals', [dict(network='resnet18', precision=precision) | r for r in rows])
