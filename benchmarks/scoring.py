"Scoring at scale against dense numpy."
import numpy as np

from common import compare, side_by_side, write
from noisymem.scores.heldout import influence


def dense(test_correct, included):
    "Influence as two dense float64 products of numpy."
    b, m = test_correct.astype(np.float64), included.astype(np.float64)
    n_in, n_out = m.sum(0), (1 - m).sum(0)
    return b.T @ m/n_in - b.T @ (1 - m)/n_out


def measure_influence():
    "Influence of 2,000 training on 1,000 test examples from 1,500 models."
    rng = np.random.default_rng(0)
    correct, included = rng.random((1500, 1000)) < .8, rng.random((1500, 2000)) < .7
    assert np.allclose(influence(correct, included), dense(correct, included), atol=1e-5)
    seconds = side_by_side({'dense numpy': lambda: dense(correct, included), 'noisymem': lambda: influence(correct, included)})
    write('influence', compare(seconds, 2000*1000/1e6, 'million pairs'))
