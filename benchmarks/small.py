"Many perceptrons: stacked, in a lean loop, in the usual loop."
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from common import write
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


def measure_stacked():
    "1,000 perceptrons 64-256-128-10, 20 epochs, batch 128, on digits: seconds, against a lean loop on resident tensors and the usual loop with DataLoader."
    device, data = pick_device('auto'), load_dataset('digits')
    recipe, rows = get_recipe(dict(name='digits', epochs=EPOCHS, batch_size=BATCH)), []
    x = normalize(data.x, data.mean, data.std)
    loader = DataLoader(TensorDataset(x, data.given_label), batch_size=BATCH, shuffle=True)

    def lean(epoch):
        order = torch.randperm(data.n)
        return [(x[p], data.given_label[p]) for p in order.split(BATCH)]

    def add(way, precision, seconds, n, acc): rows.append(dict(way=way, precision=precision, models_measured=n, seconds_for_1000=seconds/n*1000, accuracy=np.mean(acc), accuracy_sd=np.std(acc)))
    for precision in ('bf16', 'fp32'):
        if precision == 'bf16' and pick_precision('auto', device) != 'bf16': continue
        mine = get_recipe(dict(name='digits', epochs=EPOCHS, batch_size=BATCH, precision=precision))
        list(train_stacked([build(data, s) for s in range(2)], data, mine, device=device))
        n = N_STACKED if precision == 'bf16' else 256
        models = [build(data, s) for s in range(n)]
        start = time.perf_counter()
        runs = list(train_stacked(models, data, mine, device=device))
        add('stacked', precision, time.perf_counter() - start, n, [float((r.test_logits.argmax(1).cpu() == data.y_test).float().mean()) for r in runs])
        for way, batches, read_back, n in (('lean loop on resident tensors', lean, False, 8), ('loop with DataLoader', lambda epoch: loader, True, 4)):
            plain(build(data, 0), batches, recipe, precision, read_back)
            start = time.perf_counter()
            done = [plain(build(data, s), batches, recipe, precision, read_back) for s in range(n)]
            add(way, precision, time.perf_counter() - start, n, [accuracy(m, data) for m in done])
    best = rows[0]['seconds_for_1000']
    write('stacked', [r | dict(ratio_to_stacked=r['seconds_for_1000']/best) for r in rows])
