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
from noisymem.recorder import MEASURES, Look, Recorder, _as_logits, _pass, _recall, _reduced, find_points, watch
from noisymem.signals.divergence import histogram_divergence
from noisymem.signals.network import GradientSums
from noisymem.signals.predictions import prediction_signals
from noisymem.signals.susceptibility import Susceptibility
from noisymem.train import Recipe, State, to_device

N, N_TEST, SAMPLE, BATCH, K, WIDTHS = 50_000, 10_000, 2500, 128, 10, (64, 128, 256, 512)
OTHER = ('cnd:adaptive', 'cnd:top', 'cnd:mean', 'cnd:knn', 'cnd:kde')  # further estimators of one signal; `ecf`, minutes for a look, is not timed
BEYOND = ('susceptibility', 'class_graph_entropy', 'local_intrinsic_dimension', 'frozen_gradient')  # not among the default signals of a recorder
FIXED = ('susceptibility', 'loss_sensitivity', 'critical_sample_ratio', 'class_graph_entropy', 'weight_norm', 'local_intrinsic_dimension', 'frozen_gradient')  # look at some inputs, however many rows there are


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


def _state(device):
    "ResNet-18 and 50,000 images in the middle of a run."
    rng = np.random.default_rng(0)
    data = to_device(from_arrays(rng.integers(0, 256, (N, 3, 32, 32), np.uint8), rng.integers(0, K, N), layout='NCHW'), device)
    net = make_model('resnet18', K, (3, 32, 32)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=.01, momentum=.9, fused=True)
    return State(net, optimizer, data, Recipe(epochs=1, batch_size=BATCH, augment=()), 0, pick_precision('auto', device))


def _step(state):
    "One step of training."
    rows = slice(0, BATCH)
    state.model.train()
    with torch.autocast(state.data.x.device.type, torch.bfloat16, enabled=state.precision == 'bf16'):
        loss = cross_entropy(state.model(normalize(state.data.x[rows], state.data.mean, state.data.std)).float(), state.data.given_label[rows])
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()


def _hooks(state):
    "What a training look adds to a step: maps of a batch, as the network makes them, and logits are reduced and kept."
    maps = []
    with watch(state.model, find_points(state.model), lambda t: maps.append(t) or t.flatten(1)[:, :1]), torch.no_grad(), torch.autocast(state.data.x.device.type, torch.bfloat16, enabled=state.precision == 'bf16'):
        logits = state.model(normalize(state.data.x[:BATCH], state.data.mean, state.data.std))
    return lambda: [_reduced(t, 'max') for t in maps] + [_as_logits(logits).detach().clone()]


def _recalled(state):
    "A training look that has seen an epoch, to be asked for its logits and values."
    recorder, device, points = Recorder(look='training'), state.data.x.device, find_points(state.model)
    for rows in torch.randperm(N, device=device).split(BATCH):
        recorder.stream.rows.append(rows)
        recorder.stream.logits.append(torch.randn(len(rows), K, device=device))
        for p, w in zip(points, WIDTHS): recorder.stream.values.setdefault(p, []).append(torch.randn(len(rows), w, device=device))
    return lambda: _recall(recorder.stream, state.model, state.data, torch.arange(N, device=device), points, 'max', state.precision)


def _of_the_rows(state, n):
    "What is measured on n rows once they were looked at, by name."
    data, device = state.data, state.data.x.device
    values = {p: torch.randn(n, w, device=device) for p, w in zip(find_points(state.model), WIDTHS)}
    view = Look(state.model, data.x[:n], data.mean, data.std, data.given_label[:n], torch.randn(n, K, device=device), values, 0, state.precision)
    probe = Susceptibility(augment=False)
    ways = {'predictions': lambda: prediction_signals(view.logits, view.given_label, view.given_label, view.logits.argmax(1)), 'susceptibility': lambda: probe.before_epoch(state)}
    return ways | {s: lambda s=s: MEASURES[s][0](view) for s in MEASURES if s not in ('gradient', 'cnd:ecf')}


def measure_signals(rounds=5):
    "Each signal as a share of a training epoch of ResNet-18 on 50,000 images, of all rows and of a sample; steps and forward passes are timed on a part and scaled up."
    device = pick_device('auto')
    if device.type == 'cpu': keep_memory()
    clock, part, n_steps = (time.perf_counter, 5000, -(-N//BATCH)) if device.type == 'cuda' else (time.process_time, 256, -(-N//BATCH))
    state = _state(device)
    sums = GradientSums()
    def look():
        with watch(state.model, find_points(state.model)): return _pass(state.model, state.data.x[:part], state.data.mean, state.data.std, state.precision)
    _step(state)
    grads = [p.grad.clone() for p in state.model.parameters()]
    base = {k: np.median(s) for k, s in side_by_side({'step': lambda: _step(state), 'hooks': _hooks(state), 'sums': lambda: sums.add(grads), 'pass': look, 'recall': _recalled(state)}, rounds, clock).items()}
    epoch, image = base['step']*n_steps, base['pass']/part
    row = lambda name, n, seconds: dict(signal=name, rows=n, seconds=seconds, share=seconds/epoch)
    looks = {'evaluation': row('evaluation look: pass', N, image*N), 'sample': row('evaluation look: pass', SAMPLE, image*SAMPLE)}
    training = [row('training look: reductions in every step', N, base['hooks']*n_steps), row('training look: into the order of the data', N, base['recall']), row('training look: pass over 5 % held out', N//20, image*N/20)]
    rows = [row('training epoch', N, epoch), row('test set, 10,000 images (to judge, no signal)', N_TEST, image*N_TEST), *looks.values(), *training, gradient := row('gradient', N, base['sums']*n_steps)]
    timed = (lambda ways: {k: side_by_side({k: w}, 1, clock, warm=False)[k] for k, w in ways.items()}) if device.type == 'cpu' else (lambda ways: side_by_side(ways, rounds, clock))  # seconds long on a CPU: once is enough
    own = {N: [row(k, N, np.median(s)) for k, s in timed(_of_the_rows(state, N)).items()]}
    few = timed({k: w for k, w in _of_the_rows(state, SAMPLE).items() if k not in FIXED})
    own[SAMPLE] = [row(k, SAMPLE, np.median(s)) for k, s in few.items()] + [r for r in own[N] if r['signal'] in FIXED]
    rows += own[N] + [r for r in own[SAMPLE] if r['rows'] == SAMPLE]
    for every in (1, 2, 5):
        for name, n, cost in (('without looking', N, []), ("look='evaluation'", N, [looks['evaluation']]), (f"look='evaluation', sample={SAMPLE}", SAMPLE, [looks['sample']]), ("look='training'", N, training)):
            for words, left_out in (('default signals', (*OTHER, *BEYOND)), ('all signals but frozen_gradient', (*OTHER, 'frozen_gradient')), ('all signals', OTHER)):
                rows.append(row(f'{words}, {name}, every={every}', n, sum(r['seconds']/(1 if r['signal'] == 'susceptibility' else every) for r in own[n] if r['signal'] not in left_out) + sum(r['seconds'] for r in [gradient, *cost])))
    write('signals', [dict(network='resnet18', precision=state.precision) | r for r in rows])
