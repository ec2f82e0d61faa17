"Many perceptrons: stacked, in a lean loop, in the usual loop."
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

from common import side_by_side, write
from noisymem.augment import normalize
from noisymem.core import pick_device, pick_precision
from noisymem.data import load_dataset
from noisymem.models import make_model
from noisymem.stacked import train_stacked
from noisymem.train import get_recipe, learning_rate

N_STACKED = 1000
EPOCHS, BATCH = 20, 128


def build(data, seed): return make_model('mlp', 10, data.x.shape[1:], width=.5, seed=seed)


def plain(model, batches, recipe, precision, read_back):
    "A loop over batches; `read_back` fetches the loss each time."
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay)
    step = 0
    for epoch in range(recipe.epochs):
        parts = list(batches(epoch)) if not read_back else batches(epoch)
        for x, y in parts:
            for g in optimizer.param_groups: g['lr'] = learning_rate(recipe, step, 12)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == 'bf16'): logits = model(x)
            loss = F.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if read_back: loss.item()
            step += 1
    return model.eval()


def accuracy(model, data): return float((model(normalize(data.x_test, data.mean, data.std)).argmax(1) == data.y_test).float().mean())


class DigitPictures:
    "Digits as the usual scripts hold images: PIL, ToTensor, Normalize, one at a time."
    def __init__(self, data):
        self.x, self.y = data.x[:, 0].numpy(), data.given_label.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self): return len(self.y)

    def __getitem__(self, i): return self.transform(Image.fromarray(self.x[i])), self.y[i]


def measure_stacked(rounds=2):
    "Perceptrons 64-256-128-10, 20 epochs, batch 128, on digits: stacked, in a lean loop on resident tensors, in the usual loop with a DataLoader over tensors and over images; then 1,000 at once."
    device, data = pick_device('auto'), load_dataset('digits')
    x, rows = normalize(data.x, data.mean, data.std), []

    def lean(epoch):
        order = torch.randperm(data.n)
        return [(x[p], data.given_label[p]) for p in order.split(BATCH)]
    tensors, pictures = (DataLoader(d, batch_size=BATCH, shuffle=True) for d in (TensorDataset(x, data.given_label), DigitPictures(data)))
    for precision in ('bf16', 'fp32'):
        if precision == 'bf16' and pick_precision('auto', device) != 'bf16': continue
        recipe, right = get_recipe(dict(name='digits', epochs=EPOCHS, batch_size=BATCH, precision=precision)), {}

        def stack(n): right['stacked'] = [float((r.test_logits.argmax(1).cpu() == data.y_test).float().mean()) for r in train_stacked([build(data, s) for s in range(n)], data, recipe, device=device)]

        def loop(way, batches, read_back, n): right[way] = [accuracy(plain(build(data, s), batches, recipe, precision, read_back), data) for s in range(n)]
        ways = {'stacked': (256, lambda n: stack(n))} | {way: (n, lambda n, way=way, batches=batches, read_back=read_back: loop(way, batches, read_back, n)) for way, batches, read_back, n in (
            ('lean loop on resident tensors', lean, False, 8), ('DataLoader over tensors', lambda epoch: tensors, True, 4), ('DataLoader over images', lambda epoch: pictures, True, 2))}
        seconds = side_by_side({way: lambda n=n, go=go: go(n) for way, (n, go) in ways.items()}, rounds)
        each = {way: s/ways[way][0] for way, s in seconds.items()}
        for way, s in each.items():
            ratio = s/each['stacked']
            rows.append(dict(way=way, precision=precision, models=ways[way][0], seconds_for_1000=1000*np.median(s), times_stacked=np.median(ratio), times_low=ratio.min(), times_high=ratio.max(), accuracy=np.mean(right[way]), accuracy_sd=np.std(right[way]), rounds=rounds))
        start = time.perf_counter()
        stack(N_STACKED)
        rows.append(dict(way='stacked, all at once', precision=precision, models=N_STACKED, seconds_for_1000=time.perf_counter() - start, accuracy=np.mean(right['stacked']), accuracy_sd=np.std(right['stacked']), rounds=1))
    write('stacked', rows)
