"20 Newsgroups: every source of messages, words, vectors, inputs; the oracles of the early-stopping study; what is broken."
import gzip
import hashlib
import io
import json
import lzma
import pickle
import re
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils import Bunch
from torch.nn import functional as F

from noisymem import news
from noisymem.data import load_dataset, sample, take
from noisymem.models import make_model
from noisymem.noise import add_noise
from noisymem.stopping_nets import news_backbone, news_words_backbone
from noisymem.train import predict, train


@pytest.fixture(scope='module', autouse=True)
def own_results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('NOISYMEM_RESULTS', str(tmp_path_factory.mktemp('results')))
        yield


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('news')
    news.mini_news(folder, np.random.default_rng(0), per_class=4)
    return folder


@pytest.fixture
def copy(drawn, tmp_path):
    news.mini_news(tmp_path/'n', np.random.default_rng(0), per_class=1)
    return tmp_path/'n'


@pytest.fixture(scope='module')
def genuine(shared, tmp_path_factory):
    "The genuine messages as an archive."
    dest = tmp_path_factory.mktemp('20news')
    with lzma.open(shared/'data'/'20news_bydate.jsonl.xz', 'rt', encoding='utf-8') as f, tarfile.open(dest/'20news-bydate.tar.gz', 'w') as t:
        for m in map(json.loads, f):
            blob = m['text'].encode('latin-1')
            info = tarfile.TarInfo(f"20news-bydate-{m['split']}/{m['group']}/{m['id']}")
            info.size = len(blob)
            t.addfile(info, io.BytesIO(blob))
    return dest


def one(folder): return sorted((folder/'20news-bydate-train'/'sci.med').iterdir())[0]


# sources

def as_archive(folder, path):
    with tarfile.open(path, 'w:gz') as t:
        for part in ('20news-bydate-test', '20news-bydate-train'): t.add(folder/part, part)


def as_cache(folder, path):
    def part(name):
        files = sorted((folder/f'20news-bydate-{name}').rglob('*/*'), key=lambda f: hashlib.md5(str(f).encode()).hexdigest())
        return Bunch(data=[f.read_bytes().decode('latin1') for f in files], filenames=np.array([str(f) for f in files]), target_names=sorted({f.parent.name for f in files}), target=np.arange(len(files)), DESCR='')
    path.write_bytes(zlib.compress(pickle.dumps(dict(train=part('train'), test=part('test')))))


@pytest.mark.parametrize('name, write', [('20news-bydate.tar.gz', as_archive), ('20news-bydate_py3.pkz', as_cache)])
def test_the_same_messages_from_every_source(drawn, tmp_path, name, write):
    write(drawn, tmp_path/name)
    ours, theirs = news.read_messages(drawn), news.read_messages(tmp_path)
    assert ours[:2] == theirs[:2] and theirs[2] is None
    assert news.load_news(tmp_path, dim=5).fingerprint == news.load_news(drawn, dim=5).fingerprint


def test_messages_come_group_by_group_and_by_number(drawn):
    train, _, _ = news.read_messages(drawn)
    assert [m.path for m in train[4:8]] == [f'comp.graphics/{1000 + i}' for i in range(4)]
    assert [m.group for m in train] == sorted(m.group for m in train)


def test_line_ends_and_encodings(copy):
    f = one(copy)
    f.write_bytes(b'From: a\r\nSubject: b\r\n\r\nNa\xefve caf\xe9, \x93quoted\x94\r\nend\rlast')
    text = next(m.text for m in news.read_messages(copy)[0] if m.path == f'sci.med/{f.name}')
    assert '\r' not in text and news.split_words(news.strip_message(text)) == ['naïve', 'café', 'quoted', 'end', 'last']


def test_empty_messages_stay_as_padding(copy):
    one(copy).write_bytes(b'')
    (copy/'20news-bydate-train'/'sci.med'/'99999').write_bytes(b'From: x\n\n...\n')
    for view in news.VIEWS:
        ds = news.load_news(copy, view=view, dim=5, min_count=1)
        row = [i for i, p in enumerate(ds.paths) if p.startswith('sci.med')]
        assert len(row) == 2 and ds.x[row].isfinite().all() and (view == 'mean' or (ds.x[row] == 0).all())


@pytest.mark.parametrize('name, blob, message', [
    ('20news-bydate.tar.gz', b'nothing', 'is damaged'), ('20news-bydate_py3.pkz', b'nothing', "is not scikit-learn's cache"),
    ('20news-bydate_py3.pkz', zlib.compress(pickle.dumps([1])), 'must hold data and filenames'), ('20news-bydate_py3.pkz', zlib.compress(pickle.dumps(dict(train=Path('x')))), 'asks for pathlib')])
def test_damaged_sources(tmp_path, name, blob, message):
    (tmp_path/name).write_bytes(blob)
    with pytest.raises(ValueError, match=message): news.read_messages(tmp_path)


def test_a_truncated_archive(drawn, tmp_path):
    as_archive(drawn, tmp_path/'20news-bydate.tar.gz')
    blob = (tmp_path/'20news-bydate.tar.gz').read_bytes()
    (tmp_path/'20news-bydate.tar.gz').write_bytes(blob[:len(blob)//2])
    with pytest.raises(ValueError, match='is damaged'): news.read_messages(tmp_path)


def test_unknown_and_missing_groups(copy):
    (copy/'20news-bydate-test'/'alt.poetry').mkdir()
    (copy/'20news-bydate-test'/'alt.poetry'/'1').write_text('rose')
    with pytest.raises(ValueError, match="20news-bydate-test: group must be one of the 20 newsgroups, got 'alt.poetry'"): news.read_messages(copy)
    (copy/'20news-bydate-test'/'alt.poetry'/'1').unlink()
    one(copy).unlink()
    with pytest.raises(ValueError, match='none of sci.med'): news.read_messages(copy)


# words and vectors

def test_vocabulary_against_a_slow_count():
    rng = np.random.default_rng(0)
    texts = [[f'w{i}' for i in rng.zipf(1.5, 30)] for _ in range(20)]
    counts = Counter(sum(texts, []))
    v = news.make_vocabulary(texts, 12, 2)
    assert v[0] == '' and len(v) == 12 and list(v[1:]) == sorted(counts, key=lambda w: (-counts[w], w))[:11]
    tokens = news.encode(texts, v, 7)
    assert all(tokens[i, j] == (v.index(w) if w in v else 0) for i, t in enumerate(texts) for j, w in enumerate(t[:7]))


@pytest.mark.parametrize('call, message', [
    (lambda: news.make_vocabulary([['a']], 1), 'n_words must be'), (lambda: news.make_vocabulary([['a']]), 'got none of 1 words with min_count 2'), (lambda: news.make_vocabulary([[], []], min_count=1), 'got none of 0 words'),
    (lambda: news.encode([['a']], ('',)), 'at least one word beside the unknown one'), (lambda: news.encode([['a']], ('', 'a'), 0), 'max_length')])
def test_vocabularies_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_a_file_of_vectors_is_streamed(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path/'glove.txt'
    words = ['', 'the', 'cat', 'café', 'unseen']
    table = {w: rng.normal(size=8).round(3) for w in ('the', 'dog', 'café', '. . .', 'cat')}
    text = ''.join(f'{w} {" ".join(map(str, v))}\n' for w, v in table.items())
    path.write_text(text)
    v = news.read_vectors(path, words)
    assert np.allclose(v[1:4], [table[w] for w in words[1:4]]) and not v[[0, 4]].any()
    noisy = news.read_vectors(path, words, unknown_std=.6)
    assert np.allclose(noisy[1:4], v[1:4]) and noisy[[0, 4]].all() and (noisy == news.read_vectors(path, words, .6)).all()
    with gzip.open(tmp_path/'g.gz', 'wt') as f: f.write(text)
    assert (news.read_vectors(tmp_path/'g.gz', words) == v).all()
    path.write_text('5 8\n' + text)
    assert (news.read_vectors(path, words) == v).all()


@pytest.mark.parametrize('text, message', [
    ('the 1 2 3\ncat 1 2', 'line 2: must be a word and 3 numbers, got 2; the file is cut short'), ('the 1 2 3\ncat 1 2 3', 'line 2: the last line has no end'), ('the 1 2 3\nca', 'line 2: must be'), ('', 'must have vectors of the vocabulary'),
    ('the 1 2 3\ncat 1 x 3\n', 'line 2: must be a word and 3 numbers'), ('dog 1 2 3\n', 'got none of 2 words'), ('the\ncat\n', 'line 1: must be a word and its numbers'), ('the 1 2 nan\n', "finite numbers, got others for \\['the'\\]")])
def test_broken_files_of_vectors(tmp_path, text, message):
    (tmp_path/'v.txt').write_text(text)
    with pytest.raises(ValueError, match=message): news.read_vectors(tmp_path/'v.txt', ('', 'the', 'cat'))


def test_a_cut_published_file_is_told_by_its_lines(tmp_path):
    (tmp_path/'glove.6B.50d.txt').write_text('the 1 2 3\ncat 1 2 3\n')
    with pytest.raises(ValueError, match='400,000 lines of GloVe 6B, got 2'): news.read_vectors(tmp_path/'glove.6B.50d.txt', ('', 'the'))
    with gzip.open(tmp_path/'g.gz', 'wb') as f: f.write(b''.join(b'w%d 1 2 3\n' % i for i in range(5000)))
    blob = (tmp_path/'g.gz').read_bytes()
    (tmp_path/'g.gz').write_bytes(blob[:len(blob)//2])
    with pytest.raises(ValueError, match='cut short or damaged after line'): news.read_vectors(tmp_path/'g.gz', ('', 'w1'))
    with pytest.raises(FileNotFoundError, match='glove.6B.300d.txt'): news.read_vectors(tmp_path/'none.txt', ('', 'w1'))


def test_vectors_of_the_messages_are_the_singular_ones():
    tokens = np.random.default_rng(1).integers(0, 12, (40, 15))
    counts = np.stack([np.bincount(row, minlength=12) for row in tokens]).astype(float)
    counts[:, 0] = 0
    weight = np.log1p(counts)*np.log(40/np.maximum((counts > 0).sum(0), 1))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    _, s, vt = np.linalg.svd(weight)
    want = vt[:3].T*np.sqrt(s[:3])
    want *= .4/np.sqrt((want[1:]**2).mean())
    got = news.corpus_vectors(tokens, 12, 3)
    assert np.abs(np.abs(got) - np.abs(want)).max() < 1/400 and not got[0].any()
    assert (got == news.corpus_vectors(tokens, 12, 3)).all()


# inputs

@pytest.mark.parametrize('shape', [(3, 50, 6, 20), (2, 37, 5, 7), (4, 9, 3, 9), (2, 8, 3, 1)])
def test_pooling_is_adaptive_pooling(shape):
    n, length, dim, positions = shape
    rng = np.random.default_rng(0)
    tokens, table = rng.integers(0, 20, (n, length)), rng.normal(size=(20, dim)).astype(np.float32)
    dense = torch.from_numpy(table)[torch.from_numpy(tokens)]
    want = F.adaptive_avg_pool1d(dense.transpose(1, 2), positions).transpose(1, 2).flatten(1)
    assert np.allclose(news.pool_words(tokens, table, 'pooled', positions), want, atol=1e-6)
    assert np.allclose(news.pool_words(tokens, table, 'flat', positions), F.adaptive_avg_pool1d(dense.flatten(1)[:, None], positions*dim)[:, 0], atol=1e-6)
    mean = [np.mean([table[t] for t in row if t], axis=0) if row.any() else np.zeros(dim) for row in tokens]
    assert np.allclose(news.pool_words(tokens, table, 'mean'), mean, atol=1e-5)


def test_the_study_oracle(oracle):
    o = oracle('early_stopping/news_mlp.npz')
    assert o['regroup_20_to_7'].tolist() == list(news.TOPIC_OF)
    pooled = news.pool_words(o['tokens'], o['embedding'], 'pooled', 20)
    assert np.allclose(pooled, o['intermediates'][:, :120], atol=1e-6)
    assert np.allclose(news.pool_words(o['tokens'], o['embedding'], 'flat', 16), o['REF_yu19_pool_16x6'], atol=1e-6)
    for backbone, x in ((news_backbone((120,), sizes=(24, 6)), pooled), (news_words_backbone((50,), n_words=30, dim=6, vectors=o['embedding'], sizes=(24, 6)), o['tokens'])):
        backbone.load_state_dict({k: torch.tensor(o[f'sd_{k.replace(".", "_")}']) for k in backbone.state_dict() if not k.startswith('words')}, strict=False)
        seen = {}
        for name in ('pooled', 'fc1', 'fc2'): getattr(backbone, name).register_forward_hook(lambda m, a, out, name=name: seen.__setitem__(name, out))
        with torch.no_grad(): features = backbone.eval()(torch.tensor(x).float())
        assert np.allclose(torch.cat([seen[k] for k in ('pooled', 'fc1', 'fc2')], 1), o['intermediates'], atol=1e-5)
        assert np.allclose(features @ torch.tensor(o['sd_fc3_weight']).T + torch.tensor(o['sd_fc3_bias']), o['logits'], atol=1e-5)


def test_tokens_come_out_of_the_loop_as_they_went_in(drawn):
    ds = load_dataset('news:view=tokens,max_length=30', drawn)
    seen = []
    train(make_model('news_words', 7, (30,), width=.02), ds, dict(name='cpu', epochs=1, augment=()), objective=lambda m, b: seen.append((b.x, b.position)) or m(b.x).mean(), device='cpu')
    assert all(torch.equal(x, ds.x[p]) for x, p in seen) and isinstance(sample(ds, 20, 0), news.WordSet)


@pytest.mark.parametrize('view, kind', [(v, k) for v in ('pooled', 'tokens') for k in ('symmetric-0.4', 'pair-0.3', 'random_in-0.4', 'instance-0.3', 'cbn-0.3', 'simulated_human-0.3', 'hard:3+6', 'noise_images-0.2', 'appended_images-0.2', 'appended_copies-0.2', 'random')])
def test_every_noise_on_either_input(drawn, view, kind):
    ds = load_dataset(f'news:view={view},max_length=60,dim=8', drawn)
    noisy = add_noise(ds, kind, seed=1)
    assert noisy.noise_rate > .05 and noisy.x.isfinite().all() and type(noisy).__name__ in ('Dataset', 'WordSet', 'OpenSet')
    assert add_noise(ds, kind, seed=1).fingerprint == noisy.fingerprint != add_noise(ds, kind, seed=2).fingerprint or kind.startswith('hard') and len(noisy.class_names) == 5
    if view == 'tokens': assert (noisy.x == noisy.x.round()).all() and noisy.x.min() >= 0 and noisy.x.max() <= ds.x.max()


def test_the_look_of_words_tells_topics_apart(drawn):
    ds = load_dataset('news:view=tokens,max_length=100', drawn)
    look = ds.look
    alike = look @ look.T - torch.eye(ds.n)*9
    nearest = ds.given_label[alike.argmax(1)]
    assert (nearest == ds.given_label).float().mean() > .3 and torch.equal(take(ds, torch.arange(ds.n)).look, look)


@pytest.mark.parametrize('options, message', [
    (dict(classes=8), 'classes must be one of 7, 20'), (dict(view='image'), 'view must be'), (dict(split='random'), 'split must be'), (dict(remove='greetings'), 'remove must be'), (dict(max_length=0), 'max_length must be a positive integer'),
    (dict(positions=101, max_length=100), 'positions must be'), (dict(dim=0), 'dim must be'), (dict(min_count=10**6), 'vocabulary'), (dict(n_words=1), 'n_words must be')])
def test_options_that_cannot_be(drawn, options, message):
    with pytest.raises(ValueError, match=re.escape(message)): news.load_news(drawn, **options)


def test_splits_classes_and_names(drawn):
    a, b = news.load_news(drawn, dim=5), news.load_news(drawn, dim=5, split='70-30', classes=20)
    assert (a.n, len(a.x_test), b.n, len(b.x_test)) == (80, 20, 70, 30) and b.class_names == news.GROUPS and len(set(b.paths)) == 70
    assert load_dataset('news:dim=5,remove=headers+quotes', drawn).name == 'news:dim=5,remove=headers+quotes'
    assert load_dataset('news[0,3]', drawn).class_names == ('atheism', 'rec')
    with pytest.raises(FileNotFoundError, match='allow the download'): load_dataset('news', drawn/'none', download=False)


# genuine messages

def test_genuine_messages(genuine):
    train_, test, verified = news.read_messages(genuine, download=False)
    assert (len(train_), len(test), verified) == (11314, 7532, None) and len({m.path for m in train_ + test}) == 18846
    assert train_[0].path == 'alt.atheism/49960' and train_[0].text.startswith('From: mathew <mathew@mantis.co.uk>\nSubject: Alt.Atheism FAQ: Atheist Resources\n')
    assert np.bincount([news.TOPIC_OF[m.group] for m in train_]).tolist() == [480, 2936, 585, 2389, 2373, 599, 1952]
    assert not any('\r' in m.text for m in train_ + test)


def test_genuine_messages_are_learned(genuine):
    ds = add_noise(news.load_news(genuine, view='mean', max_length=100, n_words=5000, dim=30), 'symmetric', .4)
    assert ds.verified is None and tuple(ds.x.shape) == (11314, 30)
    run = train(make_model('fcn', 7, (30,)), ds, dict(name='cpu', epochs=3, lr=.05, schedule='constant', augment=(), label_smoothing=0.), device='cpu')
    accuracy = (predict(run.model, ds.x_test, ds.mean, ds.std).logits.argmax(1) == ds.y_test).float().mean()
    assert accuracy > .5
