"What the susceptibility probe costs beside an epoch of training."
import numpy as np

from common import side_by_side, write
from engine import DEVICE, images, our_way
from noisymem.models import make_model
from noisymem.signals.susceptibility import Susceptibility

FULL = 50_000
PROBES = {'one batch, plain descent': dict(n_batches=1), "one batch, the run's own step (original)": dict(compat='original'), 'one batch, first order': dict(n_batches=1, step='first order'), 'four batches, plain descent (default)': {}}


def measure_probe(rounds=3):
    "Seconds of a susceptibility probe (batches of 128) beside those of an epoch of training (batch 128, crop 4, flip), and its share of an epoch of 50,000 images."
    rows = []
    for name, n in (('fast', FULL), ('resnet18', 5_120)) if DEVICE.type == 'cpu' else (('fast', FULL), ('resnet18', FULL)):
        data, model = images(n), make_model(name, 10, (3, 32, 32))
        epoch = our_way(model, data, 128)
        state = epoch()
        watches = {way: Susceptibility(**options) for way, options in PROBES.items()}
        seconds = side_by_side({'epoch': epoch} | {way: lambda w=w: w.before_epoch(state) for way, w in watches.items()}, rounds)
        whole = seconds.pop('epoch')
        for way, s in seconds.items():
            share = s/(whole*FULL/n)
            rows.append(dict(network=name, precision=state.precision, epoch_images=n, epoch_seconds=np.median(whole), epoch_low=whole.min(), epoch_high=whole.max(), probe=way, probe_seconds=np.median(s), probe_low=s.min(), probe_high=s.max(), share_of_this_epoch=np.median(s/whole), share_of_50000=np.median(share), share_low=share.min(), share_high=share.max(), epoch_of_50000='measured' if n == FULL else f'extrapolated from {n}', rounds=rounds))
    write('probe', rows)
