"Looks at the first data while a network learns the second: cost, and what a share of the examples costs in AUROC."
import time
from dataclasses import replace

import numpy as np
import torch

from common import compare, side_by_side, write
from noisymem.augment import apply_augmentation, draw_augmentation, normalize
from noisymem.core import make_generator, pick_device, pick_precision
from noisymem.data import from_arrays, load_dataset, sample, take
from noisymem.methods.forgetting import Tracker, forget, memorize, score_forgetting
from noisymem.metrics import auroc
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.train import State, get_recipe, to_device


def forward_passes(state, n):
    "The forward passes of a training epoch over n of the examples: augmented, in batches of 128, training mode."
    state.model.train()
    drawn = draw_augmentation({'crop': 4, 'flip': True}, n, make_generator(0, 'augment'), state.data.x.shape[1:]).to(state.data.x.device)
    with torch.no_grad(), torch.autocast(state.data.x.device.type, torch.bfloat16, enabled=state.precision == 'bf16'):
        for rows in torch.randperm(n, generator=make_generator(0, 'order')).to(state.data.x.device).split(128):
            state.model(normalize(apply_augmentation(state.data.x[rows], drawn[rows]), state.data.mean, state.data.std))


def measure_tracking(n=50_000):
    "One look at 50,000 stored images, by parts, beside a tenth of the forward passes of an epoch over them; and what the parts cost in AUROC."
    rng, device = np.random.default_rng(0), pick_device('auto')
    data = to_device(from_arrays(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, 10, n), layout='NCHW'), device)
    for name, shares in (('fast', (.1, .05)), ) + ((('resnet18', (.1, .05)),) if device.type == 'cuda' else ()):
        net = make_model(name, 10, (3, 32, 32)).to(device, memory_format=torch.channels_last)
        state = State(net, None, data, get_recipe('cpu'), 0, pick_precision('auto', device))
        ways = {'a tenth of the forward passes of an epoch': lambda: forward_passes(state, n//10)}
        for share in shares: ways[f'look at {share:g}'] = lambda t=Tracker(data, share=share): t.look(state)
        ways[f'look at {shares[-1]:g} and at 20 neighbours'] = lambda t=Tracker(data, share=shares[-1], k=20): t.look(state)
        ways['look at all'] = lambda t=Tracker(data): t.look(state)
        rows = compare(side_by_side(ways, rounds=3, clock=time.perf_counter if device.type == 'cuda' else time.process_time), 1, 'looks', network=name, n=n)
        write(f'tracking-{name}', rows)
    write('tracking-auroc', [r for seed in range(5) for r in _areas(seed)])


def _areas(seed):
    "AUROC of forgotten digits when all, or a share, are looked at after each step."
    whole = add_noise(load_dataset('digits'), 'random_in-0.4', seed=seed)
    first = sample(whole, 1000, seed)
    rest = take(whole, ~torch.isin(whole.index, first.index))
    second = replace(rest, given_label=rest.true_label)
    memory, _ = memorize(first, 'mlp', {'name': 'digits', 'epochs': 60}, seed=seed)
    out = []
    for share in (1, .2, .1, .05):
        runs = [forget(memory, first, second, {'name': 'digits', 'epochs': 8, 'lr': .05, 'schedule': 'constant'}, seed=seed, share=share, keep=keep)[1] for keep in ('last', 'separation')]
        out.append(dict(seed=seed, share=share, memorized=auroc(runs[0]['first_loss'], first.is_noisy), last=auroc(runs[0]['chosen_loss'], first.is_noisy), mean=auroc(score_forgetting(runs[0], 'mean'), first.is_noisy), separation=auroc(runs[1]['chosen_loss'], first.is_noisy)))
    return out
