"The training loop: against the usual way, against the machine's peak, compiled or not."
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
from noisymem.models import capture, count_macs, count_parameters, layer_names, make_model
from noisymem.train import Recipe, train

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


def our_way(model, data, batch_size, **kwargs):
    "One epoch of `noisymem.train.train` with the same network, batch and augmentation."
    recipe = Recipe(epochs=1, batch_size=batch_size, lr=.01, schedule='constant', precision='auto')
    return lambda: train(model, data, recipe, device=DEVICE, **kwargs)


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


MANY = 1 if DEVICE.type == 'cpu' else 50  # calls per look at the clock, which costs a GPU as much as a small product


def many(call):
    "A function that calls MANY times."
    def calls():
        for _ in range(MANY): call()
    return calls


def conv_rate(channels, size, batch, dtype):
    "FLOP/s of a 3x3 convolution, forward and backward, channels last."
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(DEVICE, dtype, memory_format=torch.channels_last)
    x = torch.randn(batch, channels, size, size, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()

    def step():
        y = conv(x)
        y.backward(y.detach())
    seconds = np.median(side_by_side({'conv': many(step)}, rounds=7)['conv'])/MANY
    return 3*2*batch*channels**2*9*size**2/seconds


def copy_rate(mib=256):
    "Bytes per second that a copy reads and writes."
    a, b = (torch.empty(mib*2**20, dtype=torch.uint8, device=DEVICE).fill_(1) for _ in range(2))
    return 2*mib*2**20/np.median(side_by_side({'copy': lambda: b.copy_(a)}, rounds=7)['copy'])


def step_bytes(model, batch):
    "Bytes that a training step cannot do without: every layer's output written and read once, forward and backward, in two bytes; weight, gradient and momentum in float32."
    with torch.no_grad(), capture(model.eval(), layer_names(model)) as seen: model(torch.zeros(1, 3, 32, 32))
    return 2*4*batch*sum(t.numel() for t in seen.values()) + 20*count_parameters(model)


def measure_peak():
    "Share of the measured peak of bf16 (else float32) matrix products and 3x3 convolutions that training reaches; a step's time beside its two floors, operations and bytes."
    precision = pick_precision('auto', DEVICE)
    dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
    a = torch.randn(2048, 2048, device=DEVICE, dtype=dtype)
    shapes = ((64, 16, 128), (128, 8, 128), (128, 16, 64), (256, 8, 128))
    peak = lambda: (MANY*2*2048**3/np.median(side_by_side({'mm': many(lambda: a @ a)}, rounds=7)['mm']), max(conv_rate(*s, dtype) for s in shapes))
    bandwidth, rows, batch = copy_rate(), [], 128
    for name, n in (('fast', 5120), ('fast_large', 1024), ('whitened', 1024), ('resnet18', 384)) if DEVICE.type == 'cpu' else (('fast', 50000), ('fast_large', 50000), ('whitened', 50000), ('resnet18', 50000), ('resnet34', 50000)):
        model = make_model(name, 10, (3, 32, 32))
        flop, moved = 6*count_macs(model, (3, 32, 32))*batch, step_bytes(model, batch)
        before = peak()
        step = np.median(side_by_side({'ours': our_way(model, images(n), batch)}, rounds=3)['ours'])/(n/batch)
        product, conv = np.mean([before, peak()], axis=0)
        rows.append(dict(network=name, batch=batch, gflop_s=flop/step/1e9, matrix_product_gflop_s=product/1e9, convolution_gflop_s=conv/1e9, share_of_product=flop/step/product, share_of_conv=flop/step/conv, step_ms=1e3*step, floor_operations_ms=1e3*flop/conv, floor_bytes_ms=1e3*moved/bandwidth))
    write('peak', rows)


def measure_compiled():
    "The step as it is and through `torch.compile` ('reduce-overhead' captures CUDA graphs), with the largest difference of an epoch's logits; compilation is not in the seconds."
    rows, modes = [], ('', 'default', 'reduce-overhead') if DEVICE.type == 'cuda' else ('', 'default')
    for name, n in (('fast', 2560), ('resnet18', 256)) if DEVICE.type == 'cpu' else (('fast', 50000), ('whitened', 50000), ('resnet18', 20000)):
        data = images(n)
        torch._dynamo.reset()  # it gives up after eight versions of one function
        seconds = side_by_side({mode or 'eager': our_way(make_model(name, 10, (3, 32, 32)), data, 64, compiled=mode) for mode in modes}, rounds=3)
        logits = [our_way(make_model(name, 10, (3, 32, 32)), images(640), 64, compiled=mode)().evaluation.logits for mode in modes]
        rows += [r | dict(logits_differ=float((z - logits[0]).abs().max())) for r, z in zip(compare(seconds, n, 'images', network=name), logits)]
    write('compiled', rows)
