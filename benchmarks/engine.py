"The training loop: against the usual way, against the machine's peak, in scale and memory."
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from common import compare, side_by_side, write
from noisymem.core import pick_device, pick_precision
from noisymem.data import from_arrays
from noisymem.models import count_macs, make_model
from noisymem.plan import _measure_loop
from noisymem.runs import RunConfig
from noisymem.train import Recipe, get_recipe, to_device, train

DEVICE = pick_device('auto')


def images(n, seed=0):
    "Images of CIFAR's shape; what is in them does not change the speed."
    g = torch.Generator().manual_seed(seed)
    return from_arrays(torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8).numpy(), torch.randint(0, 10, (n,), generator=g).numpy())


class PictureSet:
    "A data set as training scripts commonly hold it: one PIL image and one transform at a time."
    def __init__(self, data):
        self.x, self.y = data.x.permute(0, 2, 3, 1).numpy(), data.given_label.tolist()
        self.transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self): return len(self.y)

    def __getitem__(self, i): return self.transform(Image.fromarray(self.x[i])), self.y[i], i


def usual_way(model, data, batch_size, workers):
    "One epoch as the five studies' scripts train: DataLoader, PIL transforms, float32, the loss read back after every batch."
    loader = DataLoader(PictureSet(data), batch_size=batch_size, shuffle=True, num_workers=workers)
    model.to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=.01, momentum=.9, weight_decay=5e-4)

    def epoch():
        model.train()
        total = 0.
        for x, y, _ in loader:
            loss = F.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total
    return epoch


def our_way(model, data, batch_size):
    "One epoch of `noisymem.train.train` with the same network, batch and augmentation."
    recipe = Recipe(epochs=1, batch_size=batch_size, lr=.01, schedule='constant', precision='auto')
    return lambda: train(model, data, recipe, device=DEVICE)


def measure_loop():
    "Images per second of our loop and of the usual way, augmentation (crop 4, flip) on, batch 64."
    rows = []
    for name, n in (('fast', 2560), ('fast_large', 1024), ('resnet18', 256), ('resnet34', 192)) if DEVICE.type == 'cpu' else (('fast', 50000), ('resnet18', 20000), ('resnet34', 20000)):
        data, make = images(n), lambda: make_model(name, 10, (3, 32, 32))
        ways = {f'usual way, {w} workers': usual_way(make(), data, 64, w) for w in (0, 2)}
        seconds = side_by_side(ways | {'noisymem': our_way(make(), data, 64)}, rounds=3)
        best = min(ways, key=lambda w: np.median(seconds[w]))
        rows += compare({best: seconds[best], 'noisymem': seconds['noisymem']}, n, 'images', network=name)
    write('loop', rows)


def conv_rate(channels, size, batch, dtype):
    "FLOP/s of a 3x3 convolution, forward and backward, channels last."
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(DEVICE, dtype, memory_format=torch.channels_last)
    x = torch.randn(batch, channels, size, size, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()

    def step():
        y = conv(x)
        y.backward(y.detach())
    seconds = np.median(side_by_side({'conv': step}, rounds=7)['conv'])
    return 3*2*batch*channels**2*9*size**2/seconds


def measure_peak():
    "Share of the measured peak of bf16 (else float32) matrix products and 3x3 convolutions that training reaches."
    precision = pick_precision('auto', DEVICE)
    dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
    a = torch.randn(2048, 2048, device=DEVICE, dtype=dtype)
    product = 2*2048**3/np.median(side_by_side({'mm': lambda: a @ a}, rounds=7)['mm'])
    conv = max(conv_rate(c, s, b, dtype) for c, s, b in ((64, 16, 128), (128, 8, 128), (128, 16, 64), (256, 8, 128)))
    rows = [dict(what='matrix product 2048', gflop_s=product/1e9, share_of_product=1., share_of_conv=product/conv), dict(what='3x3 convolution, best of four', gflop_s=conv/1e9, share_of_product=conv/product, share_of_conv=1.)]
    for name, n in (('fast', 5120), ('fast_large', 1024), ('resnet18', 384)) if DEVICE.type == 'cpu' else (('fast', 50000), ('fast_large', 50000), ('resnet18', 50000), ('resnet34', 50000)):
        model = make_model(name, 10, (3, 32, 32))
        macs = count_macs(model, (3, 32, 32))
        seconds = np.median(side_by_side({'ours': our_way(model, images(n), 128)}, rounds=3)['ours'])
        rate = 6*macs*n/seconds
        rows.append(dict(what=f'training {name}, batch 128, crop and flip', gflop_s=rate/1e9, share_of_product=rate/product, share_of_conv=rate/conv))
    write('peak', rows)


WORKER = '''
import sys, torch
sys.path.insert(0, {here!r})
torch.set_num_threads(1)
from engine import images
from noisymem.ensemble import make_design, run_ensemble
data = images(1500)
run_ensemble(data, make_design(None, 'uniform', n=data.n), {seeds!r}, {folder!r}, model='fast', recipe={{'name': 'cpu', 'epochs': 2}})
'''


def run_workers(n_workers, n_models=8):
    "Seconds in which processes of one thread each train an ensemble on one folder."
    with tempfile.TemporaryDirectory() as folder:
        code = WORKER.format(here=str(Path(__file__).parent), seeds=n_models, folder=folder)
        start = time.perf_counter()
        workers = [subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL) for _ in range(n_workers)]
        if any(w.wait() for w in workers): raise RuntimeError('a worker failed')
        return time.perf_counter() - start


def measure_scaling():
    "Seconds against images, epochs, models, and processes; ratio = seconds per unit of work relative to the first row of its kind."
    rows, base = [], {}

    def add(kind, size, seconds, units):
        each = seconds/units
        rows.append(dict(kind=kind, size=size, seconds=seconds, seconds_per_unit=each, ratio=each/base.setdefault(kind, each)))

    def once(n, epochs):
        data, net = images(n), make_model('fast', 10, (3, 32, 32))
        start = time.perf_counter()
        train(net, data, {'name': 'cpu', 'epochs': epochs}, device=DEVICE)
        return time.perf_counter() - start
    once(1000, 1)
    for n in (1000, 2000, 4000, 8000): add('images', n, once(n, 1), n)
    for e in (1, 2, 4): add('epochs', e, once(2000, e), e)
    if DEVICE.type == 'cpu':
        for m in (2, 4, 8): add('models (one process, start-up included)', m, run_workers(1, m), m)
        for w in (1, 2): add('processes (8 models)', w, run_workers(w), 1/w)
    write('scaling', rows)


def measure_jobs():
    "Models per hour of the memorization job on CIFAR-10N, training and judging included; extrapolated from measured steps."
    rows = []
    for model, recipe, n in (('fast', 'cpu', 20000), ('fast', 'cpu', 50000), ('fast_large', 'cpu', 50000), ('resnet34', 'paper', 50000)):
        recipe, cfg = get_recipe(recipe), RunConfig(model=model)
        step, look = _measure_loop(to_device(images(20000), DEVICE), cfg, recipe, DEVICE, seconds=6.)
        seconds = step*recipe.epochs*.9*n/recipe.batch_size + look*(n + 10000)
        rows.append(dict(network=model, images=n, epochs=recipe.epochs, seconds_per_model=seconds, models_per_hour=3600/seconds, hours_for_60=60*seconds/3600))
    write('jobs', rows)


def measure_memory():
    "Peak memory of a process that trains one network on 50,000 images."
    rows = []
    for model in ('fast', 'fast_large', 'resnet18'):
        code = f"""
import sys, resource; sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from engine import DEVICE, images
from noisymem.models import make_model
from noisymem.train import train
data = images(50000)
train(make_model({model!r}, 10, (3, 32, 32)), data, {{'name': 'cpu', 'epochs': 1}}, positions=torch.arange(512), device=DEVICE)
print(torch.cuda.max_memory_allocated() if DEVICE.type == 'cuda' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024)
"""
        peak = int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1])
        rows.append(dict(network=model, images=50000, batch=128, peak_mib=peak/2**20))
    write('memory', rows)
