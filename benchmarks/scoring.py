"Scoring at scale against dense numpy."
import numpy as np
from sklearn.neighbors import NearestNeighbors

from common import compare, side_by_side, write
from noisymem.scores.heldout import influence
from noisymem.scores.neighbours import nearest


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


def dense_neighbours(queries, keys, k):
    "Neighbours, sorted, from one dense float32 product of numpy."
    distance = (queries**2).sum(1)[:, None] + (keys**2).sum(1) - 2*queries @ keys.T
    index = np.argpartition(distance, k - 1, axis=1)[:, :k]
    return np.take_along_axis(index, np.take_along_axis(distance, index, 1).argsort(1), 1)


def measure_neighbours(n=10_000, width=128, k=10):
    "The 10 nearest of 10,000 points to each of 10,000 others in 128 dimensions, float32."
    rng = np.random.default_rng(0)
    queries, keys = (rng.standard_normal((n, width), np.float32) for _ in range(2))
    brute = NearestNeighbors(n_neighbors=k, algorithm='brute').fit(keys)
    assert (nearest(queries, keys, k)[1].cpu().numpy() == dense_neighbours(queries, keys, k)).mean() > .999
    seconds = side_by_side({'dense numpy': lambda: dense_neighbours(queries, keys, k), 'scikit-learn, brute': lambda: brute.kneighbors(queries), 'noisymem': lambda: nearest(queries, keys, k)}, rounds=3)
    write('neighbours', compare(seconds, n*n/1e6, 'million pairs', n=n, width=width, k=k))
