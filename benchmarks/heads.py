"What strong views cost beside the usual loop over PIL images, many heads beside one, and a step of the solver of transition matrices."
import time

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from common import side_by_side, write
from engine import DEVICE, images
from noisymem.core import make_generator, pick_precision
from noisymem.data import from_arrays
from noisymem.losses import LOSSES
from noisymem.methods.linear_probe import HEADS, FeatureBank, Task, train_heads
from noisymem.methods.transition import consensus_tables, fit_transition
from noisymem.views import apply_view, draw_view

N_HEADS = 64
CLOCK = time.perf_counter if DEVICE.type == 'cuda' else time.process_time  # seconds of the processor on a CPU


def measure_views(rounds=3, n=1024):
    "Strong SimCLR views of 32x32 colour images a second: drawn and made in batches of 512 on the device, and one PIL image after the other in one process."
    data = images(n)
    x = data.x.to(DEVICE)
    pictures = [Image.fromarray(im) for im in data.x.permute(0, 2, 3, 1).numpy()]
    usual = transforms.Compose([transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip(), transforms.RandomApply([transforms.ColorJitter(.4, .4, .4, .1)], p=.8), transforms.RandomGrayscale(.2), transforms.ToTensor()])

    def ours():
        draws = draw_view('strong', n, make_generator(0), (3, 32, 32)).to(DEVICE)
        for rows in torch.arange(n, device=DEVICE).split(512): apply_view(x[rows], draws[rows])
    seconds = side_by_side({'batches on the device': ours, 'PIL, image by image': lambda: [usual(p) for p in pictures]}, rounds, CLOCK)
    ratio = seconds['PIL, image by image']/seconds['batches on the device']
    write('views', [dict(way=way, views_per_second=n/np.median(s), times_as_long=np.median(ratio) if 'PIL' in way else 1., low=ratio.min() if 'PIL' in way else 1., high=ratio.max() if 'PIL' in way else 1., rounds=rounds) for way, s in seconds.items()])


def measure_heads(rounds=3, n=10_000):
    "Training of 64 linear heads at once beside that of one with the same loss on the same bank: 10,000 examples, ten epochs and a look at all examples, batch 256, 10 classes, 128 and 512 features; every loss, for all heads and for every other one beside cross-entropy."
    rows, g = [], make_generator(0)
    recipe = HEADS | dict(epochs=10)
    for n_features in (128, 512):
        x = torch.randn(n, n_features, generator=g)
        data = from_arrays(x[:, :2], torch.arange(n) % 10, torch.arange(n) % 10)
        bank = FeatureBank(x[None].half(), x.half(), x[:0].half())
        labels = [torch.randint(10, (n,), generator=g) for _ in range(N_HEADS)]
        for loss in LOSSES:
            ways = {'one head': [Task(labels[0], loss)], f'{N_HEADS} heads': [Task(y, loss, s) for s, y in enumerate(labels)]}
            if loss != 'ce': ways |= {f'{N_HEADS} heads, half of them cross-entropy': [Task(y, loss if s % 2 else 'ce', s) for s, y in enumerate(labels)]}
            seconds = side_by_side({way: lambda t=t: train_heads(bank, data, t, recipe=recipe, device=str(DEVICE)) for way, t in ways.items()}, rounds, CLOCK)
            for way, s in seconds.items():
                ratio = s/seconds['one head']
                rows.append(dict(loss=loss, way=way, features=n_features, precision=pick_precision('auto', DEVICE), seconds=np.median(s), times_one_head=np.median(ratio), low=ratio.min(), high=ratio.max(), rounds=rounds))
    write('heads', rows)


def measure_transition(rounds=3):
    "The solver of transition matrices from tables of neighbours: milliseconds a step of Adam and the largest error of an entry after 1,500 steps on exact tables, 10 and 100 classes."
    rows = []
    for k in (10, 100):
        rng = np.random.default_rng(k)
        true, prior = (torch.from_numpy(t) for t in (.6*np.eye(k) + .4*rng.dirichlet(np.ones(k), k), rng.dirichlet(5*np.ones(k))))
        tables = [t.to(DEVICE) for t in consensus_tables(true, prior)]
        off = (fit_transition(*tables).transition.cpu() - true).abs().max().item() if k == 10 else None
        steps = 1500 if k == 10 else 100
        seconds = side_by_side({'step': lambda: fit_transition(*tables, steps=steps)}, rounds, CLOCK)['step']
        rows.append(dict(classes=k, ms_per_step=1e3*np.median(seconds)/steps, low=1e3*seconds.min()/steps, high=1e3*seconds.max()/steps, largest_error=off, rounds=rounds))
    write('transition', rows)
