"A look during training beside one after every epoch: what the cheaper one changes."
import numpy as np
import pandas as pd
from scipy import stats

from common import write
from noisymem.core import pick_device
from noisymem.data import load_dataset, sample
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.recorder import Recorder, watched
from noisymem.stopping import extract_signal, find_stop, judge_stop, make_rule
from noisymem.stopping_runs import hold_out
from noisymem.train import Recipe, train

SIGNALS = ('prediction_changes', 'train_accuracy', 'train_loss', 'memorized', 'polluted_accuracy', 'cnd:histogram', 'cnd:debiased', 'cnd:gaussian', 'activation_frequency', 'local_intrinsic_dimension')
STOPS = {'prediction_changes': 'prediction changes', 'polluted_accuracy': 'polluted accuracy', 'cnd:histogram': 'divergence', 'cnd:debiased': 'divergence, de-biased', 'cnd:gaussian': 'divergence, Gaussian', 'train_loss': 'plateau of the training loss'}
CONSTANT = Recipe(epochs=30, batch_size=128, lr=.02, schedule='constant', nesterov=True, weight_decay=1e-4, augment=())


def record(data, model, width, recipe, seed):
    "Histories of both looks at one run."
    more, parts, positions = hold_out(data, .1, seed=seed)
    both = {look: Recorder([s for s in SIGNALS if s.startswith(('cnd', 'act', 'loc'))], parts=parts, seed=seed, look=look) for look in ('evaluation', 'training')}
    train(make_model(model, data.n_classes, tuple(data.x.shape[1:]), width=width, seed=seed), more, recipe, seed, positions, watched(both['training']), list(both.values()), pick_device('auto'))
    return both


def compare(both, **about):
    "A row per signal: how alike the curves are, how each goes with the test accuracy, and where each stops."
    test, rows = both['evaluation'].history['test_accuracy'], []
    for s in SIGNALS:
        a, b = (extract_signal(r.history, s, r.layout) for r in both.values())
        known = ~(np.isnan(a) | np.isnan(b))
        def tau(x): return stats.kendalltau(x[known], test[known]).statistic
        row = about | dict(signal=s, pearson=np.corrcoef(a[known], b[known])[0, 1], kendall=stats.kendalltau(a[known], b[known]).statistic, kendall_with_test_evaluation=tau(a), kendall_with_test_training=tau(b))
        if s in STOPS:
            rule = make_rule(s, 'plateau' if s == 'train_loss' else 'first_extremum', window=3, patience=5)
            judged = [judge_stop(test, find_stop(r.history, rule, r.layout)) for r in both.values()]
            row |= dict(stop_evaluation=judged[0]['epoch'], stop_training=judged[1]['epoch'], apart=abs(judged[0]['epoch'] - judged[1]['epoch']), same=judged[0]['epoch'] == judged[1]['epoch'], regret_evaluation=judged[0]['regret'], regret_training=judged[1]['regret'], gap=judged[0]['gap'])
        rows.append(row)
    return rows


def measure_looks(seeds=3):
    "Signals seen while training and in a pass after every epoch of the same runs: correlation of the curves, of each with the test accuracy (Kendall), stopping epochs and regret; digits, and 3,000 images of CIFAR-10N 'worst' without and with augmentation (epochs 30, window 3, patience 5)."
    digits, rows = add_noise(load_dataset('digits'), 'symmetric', .4), []
    studies = [('digits', 'none', digits, 'fast', .35, CONSTANT)]
    try: cifar = sample(add_noise(load_dataset('cifar10', download=False), 'worst'), 3000, 0)
    except (ValueError, FileNotFoundError) as e: print(f'without CIFAR-10N: {e}')
    else: studies += [('cifar10 worst', 'none', cifar, 'fast', .35, CONSTANT), ('cifar10 worst', 'crop, flip', cifar, 'fast', .35, Recipe(**{**vars(CONSTANT), 'epochs': 60, 'augment': (('crop', 4), ('flip', True))}))]
    for name, augment, data, model, width, recipe in studies:
        for seed in range(seeds): rows += compare(record(data, model, width, recipe, seed), data=name, augment=augment, epochs=recipe.epochs, seed=seed)
    table = pd.DataFrame(rows)
    write('looks', table.drop(columns='seed').groupby(['data', 'augment', 'epochs', 'signal'], sort=False).mean().reset_index().assign(seeds=seeds).to_dict('records'))
    return table
