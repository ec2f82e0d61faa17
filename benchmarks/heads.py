"What strong views cost beside the usual loop over PIL images, and many heads beside one."
import time

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from common import side_by_side, write
from engine import DEVICE, images
from noisymem.core import make_generator, pick_precision
from noisymem.data import from_arrays
from noisymem.methods.linear_probe import HEADS, FeatureBank, Task, train_heads
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
    "Training of 64 linear heads at once beside that of one on the same bank: 10,000 examples, two epochs, batch 256, 10 classes, 128 and 512 features; all with cross-entropy, or half of them with another loss."
    rows, g = [], make_generator(0)
    recipe = HEADS | dict(epochs=2)
    for n_features in (128, 512):
        x = torch.randn(n, n_features, generator=g)
        data = from_arrays(x[:, :2], torch.arange(n) % 10, torch.arange(n) % 10)
        bank = FeatureBank(x[None].half(), x.half(), x[:0].half())
        tasks = [Task(torch.randint(10, (n,), generator=g), seed=s) for s in range(N_HEADS)]
        other = lambda loss: [Task(t.given_label, loss if t.seed % 2 else 'ce', t.seed) for t in tasks]
        ways = {'one head': tasks[:1], '64 heads, cross-entropy': tasks, '64 heads, half generalised cross-entropy': other('gce'), '64 heads, half symmetric cross-entropy': other('sce')}
        seconds = side_by_side({way: lambda t=t: train_heads(bank, data, t, recipe=recipe, device=str(DEVICE)) for way, t in ways.items()}, rounds, CLOCK)
        for way, s in seconds.items():
            ratio = s/seconds['one head']
            rows.append(dict(way=way, features=n_features, precision=pick_precision('auto', DEVICE), seconds=np.median(s), times_one_head=np.median(ratio), low=ratio.min(), high=ratio.max(), rounds=rounds))
    write('heads', rows)
