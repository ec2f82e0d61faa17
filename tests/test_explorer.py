"The explorer: what goes in comes out, nothing breaks out of its text, and a reader with a keyboard finds, marks and exports the right rows."
import base64
import csv
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
import urllib.request
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from noisymem import explorer, own_scores
from noisymem.cli import main
from noisymem.explorer import WidgetView, explore, explore_html, explore_page, pick_rows, thumbnail
from noisymem.own_explorer import _influential, explore_folder
from noisymem.own_report import score_source
from noisymem.records import Records

BROWSER = next((b for b in ('chromium', 'chromium-browser', 'google-chrome') if shutil.which(b)), None)
NASTY = ['</script><script>window.hacked = 1</script>', '"quoted", \'both\'', 'Übergröße 猫 \u2028', '<img src=x onerror="window.hacked = 2">', '=1+1', '@DATA@', '']


def toy(n=40, seed=0):
    rng = np.random.default_rng(seed)
    given = rng.integers(0, 3, n)
    table = pd.DataFrame(dict(index=np.arange(n)*3 + 7, path=[f'a, b/{i}.png' for i in range(n)], given_label=given, suggested_label=np.where(rng.random(n) < .3, (given + 1) % 3, given),
        triage=pd.Categorical(rng.choice(['fine', 'memorized'], n), ['memorized', 'unsure', 'fine']), suspicion=rng.permutation(n)/n, loss=rng.normal(size=n)))
    return table, rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)


def parts(page): return dict(re.findall(r'<script type="[\w/]+" id="([\w-]+)">(.*?)</script>', page, re.S))


def column(page, name):
    "A column as the page's own script would read it."
    found = parts(page)
    about = json.loads(found['about'])['columns']
    i = next(i for i, c in enumerate(about) if c['name'] == name)
    inflate = lambda k: zlib.decompress(base64.b64decode(found[k]))
    values = np.frombuffer(inflate(f'column-{i}'), f"<{about[i]['type']}")
    return [json.loads(inflate(f'words-{i}'))[v] for v in values] if about[i]['kind'] == 'text' else values


def pictures(page):
    found = parts(page)
    lengths, chunk = np.frombuffer(zlib.decompress(base64.b64decode(found['lengths'])), '<i4'), json.loads(found['about'])['pictures']['chunk']
    at = lambda i: sum(lengths[i//chunk*chunk:i])
    return [Image.open(io.BytesIO(base64.b64decode(found[f'pictures-{i//chunk}'][at(i):at(i) + n]))) if n else None for i, n in enumerate(lengths)]


def test_every_value_and_every_pixel_comes_back(monkeypatch):
    monkeypatch.setattr(explorer, 'CHUNK', 7)
    table, x = toy(23)
    table = table.assign(big=np.arange(23)*10**9, half=np.float16(.5), hole=pd.array([None, *range(22)], 'Int64'), odd=table.loss > 0, when=pd.date_range('2026-01-01', periods=23), endless=np.inf)
    table.loc[3, 'loss'] = np.nan
    page = explore_page(table, x, class_names=('cat', 'dog', 'eel'))
    for c in ('index', 'suspicion', 'loss', 'big', 'half', 'endless'): assert np.array_equal(column(page, c), table[c].to_numpy(column(page, c).dtype), equal_nan=True), c
    assert np.isnan(column(page, 'hole')[0]) and column(page, 'hole')[22] == 21
    assert column(page, 'given_label') == [('cat', 'dog', 'eel')[k] for k in table.given_label] and column(page, 'triage') == table.triage.tolist() and set(column(page, 'odd')) == {'yes', 'no'}
    assert column(page, 'when')[0].startswith('2026-01-01')
    assert all((np.asarray(p.convert('RGB')) == a.transpose(1, 2, 0)).all() for p, a in zip(pictures(page), x, strict=True))


@pytest.mark.parametrize('images, size', [
    (np.zeros((2, 20, 40)), (40, 20)), (np.zeros((2, 1, 20, 40), np.float32), (40, 20)), (np.zeros((2, 20, 40, 3), bool), (40, 20)), (torch.zeros(2, 3, 20, 40), (40, 20)),
    (np.full((2, 3, 200, 400), np.nan), (96, 48)), (np.zeros((2, 3, 20, 40), np.int64), (40, 20)), ([np.zeros((20, 40)), Image.new('CMYK', (40, 20))], (40, 20)), (np.zeros((2, 4, 20, 40), np.uint8), (40, 20))])
def test_pictures_of_every_kind(images, size):
    assert [p.size for p in pictures(explore_page(pd.DataFrame(dict(score=[1., 2.])), images))] == [size]*2


@pytest.mark.parametrize('low, high', [(0, 1), (0, 255), (-3, 5), (0, 1000)])
def test_floats_keep_their_contrast(low, high):
    x = np.linspace(low, high, 64).reshape(1, 8, 8)
    seen = np.asarray(pictures(explore_page(pd.DataFrame(dict(score=[1.])), x))[0].convert('L')).astype(int).ravel()
    assert seen[0] == 0 and seen[-1] == 255 and (np.diff(seen) > 0).all()


def test_files_that_are_gone_or_broken_leave_a_gap(tmp_path):
    Image.new('P', (30, 10)).save(tmp_path/'ok, 1.png'), (tmp_path/'bad.png').write_bytes(b'no picture')
    found = pictures(explore_page(pd.DataFrame(dict(score=[1., 2, 3])), [tmp_path/'ok, 1.png', str(tmp_path/'bad.png'), tmp_path/'gone.png']))
    assert [p and p.size for p in found] == [(30, 10), None, None]


def test_names_cannot_break_out():
    table = pd.DataFrame(dict(given_label=NASTY, path=NASTY[::-1], **{NASTY[0]: range(7)}))
    page = explore_page(table, title=NASTY[5] + NASTY[0] + NASTY[3])
    assert page.count('window.hacked = 1</script>') == 0 and page.count('<img src=x') == 0
    assert column(page, 'given_label') == NASTY and column(page, 'path') == NASTY[::-1] and json.loads(parts(page)['about'])['columns'][-1]['name'] == NASTY[0]
    assert explore_page(pd.DataFrame(dict(path=['\udcff.png'], score=[1])))


@pytest.mark.parametrize('n', [0, 1])
def test_none_and_one(n):
    table, x = toy(5)
    page = explore_page(table[:n], x[:n], class_names='abc', neighbours=np.full((n, 2), -1))
    assert len(column(page, 'suspicion')) == n and json.loads(parts(page)['about'])['n'] == n
    assert len(explore(table[:n], x[:n], class_names='abc').marked) == 0 and len(pick_rows(table[:n], 'suspicion')) == n


def test_refusals():
    table, x = toy(5)
    for options, message in [(dict(images=x[:4]), 'one per row of the table, 5, got 4'), (dict(sort='nothing'), "got 'nothing'"), (dict(class_names='ab'), 'must be in [0, 2)'), (dict(neighbours=np.zeros((4, 2), int)), 'shape (5, k)'),
                             (dict(neighbours=np.zeros((5, 2))), 'integers'), (dict(influence=(np.zeros((5, 1)), np.zeros((5, 2), int))), 'with values of shape (5, 2)'), (dict(influence=np.full((5, 1), 5)), 'rows of the table or -1'), (dict(side=1), 'side'), (dict(quality=0), 'quality')]:
        with pytest.raises(ValueError, match=re.escape(message)): explore_page(**dict(table=table, images=None) | options)
    with pytest.raises(ValueError, match='got 99'): explore(table).mark(99)
    with pytest.raises(ValueError, match='each column once'): explore_page(pd.DataFrame([[1, 2]], columns=['a', 'a']))
    with pytest.raises(ValueError, match='1, 3 or 4 channels'): thumbnail(np.zeros((2, 5, 5)))


def test_only_scores_and_a_named_index():
    page = explore_page(pd.DataFrame(dict(loss=[.1, np.nan]), index=['b', 'a']))
    assert column(page, 'index') == ['b', 'a'] and [c['name'] for c in json.loads(parts(page)['about'])['columns']] == ['index', 'loss']
    assert explore(pd.DataFrame(dict(loss=[.1]), index=['b'])).mark('b', 'why').marked.note.tolist() == ['why']


def test_marks_are_kept_by_what_is_shown():
    key = lambda t: json.loads(parts(explore_page(t))['about'])['key']
    table, _ = toy()
    assert key(table) == key(table.assign(loss=0.)) != key(table.assign(given_label=0))


# ---- in a notebook

def test_a_notebook_without_widgets_shows_the_page_of_the_first_rows(monkeypatch):
    monkeypatch.setattr(explorer, '_ipywidgets', lambda: None)
    table, x = toy()
    rows = np.arange(40)[:, None]
    shown = explore(table, x, n=5, neighbours=(rows[::-1]*1., rows[::-1]))._repr_mimebundle_()['text/html']
    page = html.unescape(re.search('srcdoc="(.*?)"', shown, re.S)[1])
    assert column(page, 'suspicion').tolist() == sorted(table.suspicion.astype('f4'), reverse=True)[:5] and 'ipywidgets' in shown


class Widget(types.SimpleNamespace):
    "What the explorer needs of ipywidgets: values that are observed, as traitlets do it."
    def __init__(self, children=(), **kw): self.__dict__.update(dict(value=None, description='', layout=types.SimpleNamespace(display=''), seen=[], pressed=[], children=children) | kw)
    def __setattr__(self, name, value):
        old, self.__dict__[name] = getattr(self, name, None), value
        if name == 'value' and old != value:
            for f in self.seen: f(dict(new=value))
    def observe(self, f, name): self.seen.append(f)
    def on_click(self, f): self.pressed.append(f)


def test_widgets_filter_sort_and_mark():
    "Against a stand-in for ipywidgets, which the tests do not need."
    table, x = toy()
    e = explore(table, x, class_names='abc', neighbours=np.arange(40)[::-1, None])
    view = WidgetView(e, types.SimpleNamespace(**{k: Widget for k in ('Dropdown', 'ToggleButton', 'Text', 'BoundedIntText', 'HTML', 'Image', 'Button', 'VBox', 'HBox')}, Layout=lambda **kw: types.SimpleNamespace(display='', **kw)), size=6)
    assert view.rows.tolist() == table.suspicion.sort_values(ascending=False).index.tolist() and view.page.max == 7
    view.page.value = 2
    view.buttons[1].value = True
    assert e.marked['index'].tolist() == [table['index'][view.rows[7]]] and view.buttons[1].description.startswith('✗')
    view.filters['given_label'].value, view.sort.value, view.down.value = 'b', 'loss', False
    wanted = table[table.given_label == 1].loss.sort_values().index.tolist()
    assert view.rows.tolist() == wanted and view.page.value == 1 and len(e.marked) == 1
    view.more[0].pressed[0](None)
    assert 'Most similar' in view.details.value and f'{table.loss[wanted[0]]:.4g}' in view.details.value
    view.text.value = 'no such text'
    assert len(view.rows) == 0 and all(t.layout.display == 'none' for t in view.tiles)


# ---- of reports and ensembles

def test_a_report_gets_its_explorer(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(own_scores.KINDS_OWN, 'features', ('mlp', dict(name='digits'), 2, 1))
    monkeypatch.setattr(own_scores, 'measure_speed', lambda *a: 1000.)
    rng, y = np.random.default_rng(0), np.arange(40) % 2
    np.savez(tmp_path/'mine.npz', x=(rng.normal(size=(40, 6)) + 4*np.eye(6)[y]), y=np.array(['NA', '1'])[y])
    table = score_source(tmp_path/'mine.npz', tmp_path/'o', n_models=4, say=lambda s: None)
    page = (tmp_path/'o'/'explorer.html').read_text()
    assert 'href="explorer.html"' in (tmp_path/'o'/'report.html').read_text()
    assert column(page, 'given_label') == table.given_label.tolist() and np.array_equal(column(page, 'rank'), table['rank']) and json.loads(parts(page)['about'])['links'][0]['width'] == 8
    assert main(['explore', str(tmp_path/'o'), '--to', str(tmp_path/'e.html')]) == 0 and (tmp_path/'e.html').read_text() == page
    assert main(['explore', str(tmp_path)]) == 2 and 'must be a report' in capsys.readouterr().err


def test_a_report_on_files_shows_the_files(tmp_path):
    "Pictures in their own shape and size, from where the files lie now."
    names, folder = ['a/1, x.png', 'b/ü.png'], tmp_path/'report'
    for i, n in enumerate(names): (tmp_path/'p'/n).parent.mkdir(parents=True), Image.new('RGB', (60, 30 + i)).save(tmp_path/'p'/n)
    folder.mkdir()
    pd.DataFrame(dict(index=[0, 1], path=names, given_label=['a', 'b'], suggested_label=['b', 'b'], triage=['memorized', 'fine'], rank=[1, 2], suspicion=[.9, np.nan])).to_csv(folder/'scores.csv', index=False)
    about = dict(status='done', source='p', plan=dict(model='fast'))
    for where, source in ((str(tmp_path/'p'), None), ('/nowhere', tmp_path/'p')):
        (folder/'noisymem.json').write_text(json.dumps(about | dict(where=where)))
        assert [p.size for p in pictures(explore_folder(folder, source).read_text())] == [(60, 30), (60, 31)]
    with pytest.raises(ValueError, match='where the pictures of this report lie'): explore_folder(folder)
    (folder/'noisymem.json').write_text(json.dumps(dict(status='running')))
    with pytest.raises(ValueError, match='finished report'): explore_folder(folder)


def test_the_influential_are_found_and_nobody_influences_himself():
    rng = np.random.default_rng(0)
    included = rng.random((200, 12)) < .5
    given = np.zeros(12, int)
    prediction = np.ones((200, 12), int)
    prediction[:, 4] = ~included[:, 9]  # right exactly with 9
    prediction[:, 5] = ~included[:, 5]  # right exactly with itself
    rec = Records(dict(seed=np.arange(200), included=included, prediction=prediction), dict(pool=np.arange(12), given_label=given), dict(key='k'))
    values, rows = _influential(rec)
    assert rows[4, 0] == 9 and values[4, 0] == 1 and 5 not in rows[5] and (rows != np.arange(12)[:, None]).all()
    assert _influential(Records({k: v[:9] for k, v in rec.rows.items()}, rec.shared, rec.meta)) is None


# ---- in a real browser

CODES = dict(Enter=13, Escape=27, ArrowLeft=37, ArrowUp=38, ArrowRight=39, ArrowDown=40, End=35, Home=36)


class Browser:
    "A headless Chromium and its devtools protocol: real keys, real downloads."
    def __init__(self, tmp):
        websocket = pytest.importorskip('websocket', reason='the devtools protocol needs websocket-client, which JupyterLab brings')
        if BROWSER is None: pytest.skip('no Chromium is installed')
        self.tmp, self.n, self.troubles, port = tmp, 0, [], tmp/'profile'/'DevToolsActivePort'
        flags = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', f'--user-data-dir={tmp}/profile', '--remote-debugging-port=0', '--remote-allow-origins=*', '--window-size=1300,900', 'about:blank']
        self.process = subprocess.Popen([BROWSER, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | dict(HOME=str(tmp)))
        end = time.time() + 60
        while time.time() < end and not (port.exists() and port.read_text().strip()): time.sleep(.05)
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port.read_text().split()[0]}/json', timeout=30))
        self.socket = websocket.create_connection(next(p['webSocketDebuggerUrl'] for p in pages if p['type'] == 'page'), timeout=60)
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self(f'{domain}.enable')
        self('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp))

    def __call__(self, method, **params):
        self.n += 1
        self.socket.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while (m := json.loads(self.socket.recv())).get('id') != self.n:
            url = m['params'].get('request', {}).get('url', 'data:')
            if m['method'] in ('Runtime.exceptionThrown', 'Log.entryAdded', 'Runtime.consoleAPICalled') or not url.startswith(('data:', 'file:', 'blob:')): self.troubles.append(m)
        assert 'error' not in m, m
        return m['result']

    def js(self, code):
        found = self('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def until(self, code, seconds=60):
        end = time.time() + seconds
        while not (found := self.js(code)):
            assert time.time() < end, f'never: {code}'
            time.sleep(.05)
        return found

    def open(self, path):
        self('Page.navigate', url=path.as_uri())
        self.until(f"location.href === {json.dumps(path.as_uri())} && document.documentElement?.dataset.ready === 'yes'")

    def keys(self, *keys):
        for k in keys:
            what = dict(key=k, windowsVirtualKeyCode=CODES.get(k) or (ord(k.upper()) if k.isalnum() else 0)) | (dict(text=k) if len(k) == 1 else dict(text='\r') if k == 'Enter' else {})
            self('Input.dispatchKeyEvent', type='keyDown', **what)
            self('Input.dispatchKeyEvent', type='keyUp', **{k: v for k, v in what.items() if k != 'text'})

    def shown(self): return self.js("Array.from(order, row => columns.get('index').values[row])")

    def choose(self, where, value): self.js(f"(() => {{ const e = $('{where}'); e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change')); }})()")

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    b = Browser(tmp_path_factory.mktemp('browser'))
    yield b
    b.close()


def test_sort_filter_mark_and_export(browser, tmp_path):
    table, x = toy()
    names = ('c a"t', 'dog</script>', 'Übel, <b>')
    table.loc[4, 'loss'] = np.nan
    rows = np.arange(40)[::-1, None]
    browser.open(explore_html(table, x, tmp_path/'a page.html', class_names=names, neighbours=np.where(rows % 5, rows, -1), influence=(rows/40, rows)))
    first = table.sort_values('suspicion', ascending=False)['index'].tolist()
    assert browser.shown() == first and browser.js("document.activeElement.id") == 'grid'
    assert browser.until("[...document.images].filter(i => i.src && i.offsetParent).every(i => i.complete) && [...document.images].filter(i => i.naturalWidth === 8).length") >= 30

    browser.choose('sort', 'loss')
    assert browser.shown() == table.sort_values('loss', ascending=False)['index'].tolist()  # NaN last
    browser.js("$('direction').click()")
    assert browser.shown() == table.sort_values('loss')['index'].tolist()
    browser.choose('sort', 'given_label')
    assert sorted(browser.shown()) == sorted(first) and [names.index(v) for v in browser.js("Array.from(order, r => value('given_label', r))")] == sorted(table.given_label)

    browser.choose('sort', 'suspicion')
    browser.js("$('given').value = [...$('given').options].find(o => o.text.startsWith('dog</script>')).value")
    browser.js("$('suggested').value = [...$('suggested').options].find(o => o.text.startsWith('Übel')).value")
    browser.choose('triage', '')
    pair = table[(table.given_label == 1) & (table.suggested_label == 2)].sort_values('suspicion', ascending=False)
    assert browser.shown() == pair['index'].tolist() and len(pair)
    browser.js("$('reset').click(); $('low').value = '0.25'; $('high').value = '0.5'; choose()")
    assert set(browser.shown()) == set(table[table.suspicion.between(.25, .5)]['index'])
    browser.js("$('reset').click()")
    browser.keys('/', '/', '1', '2', '.', 'p')
    browser.until('order.length === 1')
    assert browser.shown() == [table['index'][12]] and browser.js("document.activeElement.id") == 'text'
    browser.keys('Escape')
    browser.js("$('reset').click()")

    assert browser.shown() == first and browser.js("document.activeElement.id") in ('grid', 'body', '')
    browser.js("grid.focus(); go(0)")
    browser.keys('ArrowRight', 'ArrowRight', 'ArrowDown', 'ArrowLeft', 'x', 'End', 'x', 'Home', 'x', 'u')
    cols = browser.js('cols')
    browser.keys('ArrowRight', 'Enter')
    assert browser.js("!$('detail').hidden && $('scores').rows.length") == 6 and str(first[1]) in browser.js("$('name').textContent")
    assert browser.js("document.querySelectorAll('.strip button').length") >= 1 and browser.until("$('large').naturalWidth === 8")
    browser.keys('ArrowRight', 'n', *'a,"b', 'Enter', 'Escape')
    assert browser.js("$('detail').hidden && document.activeElement.id") == 'grid'
    assert browser.js("document.querySelectorAll('.cell.wrong').length") >= 2 and browser.js("$('marks').textContent") == '3 marked as wrong'

    browser.js("$('export').click()")
    file, end = browser.tmp/'wrong-labels.csv', time.time() + 20
    while not file.exists() and time.time() < end: time.sleep(.05)
    with open(file, encoding='utf-8', newline='') as f: found = list(csv.DictReader(f))
    marked = {first[1 + cols]: '', first[-1]: '', first[2]: 'a,"b'}
    by_index = table.set_index('index')
    assert [list(r.values()) for r in found] == [[str(i), names[by_index.given_label[i]], names[by_index.suggested_label[i]], marked[i], by_index.path[i]] for i in sorted(marked)]
    assert explore(table, class_names=names).read_marks(file).marked.values.tolist() == [[i, names[by_index.given_label[i]], names[by_index.suggested_label[i]], marked[i], by_index.path[i]] for i in sorted(marked)]

    browser.open(tmp_path/'a page.html')  # marks are kept
    assert browser.js("$('marks').textContent") == '3 marked as wrong'
    browser.js("$('only').click()")
    assert set(browser.shown()) == set(marked)
    assert not browser.troubles


def test_names_do_no_harm_and_embeddings_have_cells(browser, tmp_path):
    browser.open(explore_html(pd.DataFrame(dict(given_label=NASTY, suggested_label=NASTY[::-1], path=NASTY, score=[np.nan, *range(6)])), None, tmp_path/'nasty.html', title=NASTY[0]))
    browser.keys('Enter')
    assert browser.js('window.hacked') is None and NASTY[0] in browser.js("document.querySelector('h1').textContent") and browser.js("$('sheet').textContent").count(NASTY[3]) == 1
    assert browser.js("document.querySelectorAll('.cell:not([hidden])').length") == 7
    for n in (0, 1):
        browser.open(explore_html(*(a[:n] for a in toy()), tmp_path/f'{n}.html', class_names='abc'))
        browser.keys('ArrowDown', 'Enter', 'x')
        assert browser.js('order.length') == n == browser.js('marks.size') and browser.js("$('empty').hidden") == bool(n)
    assert not browser.troubles


def test_everything_has_a_name_and_fits_a_phone(browser, tmp_path):
    browser('Emulation.setDeviceMetricsOverride', width=360, height=700, deviceScaleFactor=2, mobile=True)
    browser.open(explore_html(*toy(), tmp_path/'phone.html', class_names='abc', neighbours=np.arange(40)[::-1, None]))
    browser.js("$('filters').open = true")
    for _ in range(2):  # the grid, then one example
        assert browser.js('document.documentElement.scrollWidth') <= 360 and browser.js("[...document.querySelectorAll('button, select, input, #grid')].filter(e => e.offsetParent && e.getBoundingClientRect().right > 361).length") == 0
        browser.js("document.querySelector('.cell').click()")
    nameless = browser.js("[...document.querySelectorAll('button, select, input, [role=listbox], [role=option]')].filter(e => e.offsetParent && !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)")
    assert not nameless and browser.js("document.activeElement.id") == 'close'
    assert browser.js("[...document.images].filter(i => !i.hasAttribute('alt')).length") == 0
    browser('Emulation.clearDeviceMetricsOverride')


def test_fifty_thousand_keep_the_page_small(browser, tmp_path, monkeypatch, record_property):
    n, rng = 50_000, np.random.default_rng(0)
    few = [thumbnail(a) for a in np.kron(rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8), np.ones((1, 4, 4, 1), np.uint8))]  # of about the size of CIFAR's; encoding 50,000 takes a minute
    monkeypatch.setattr(explorer, 'thumbnail', lambda i, *_: few[i])
    table = pd.DataFrame(dict(given_label=rng.integers(0, 10, n), suggested_label=rng.integers(0, 10, n), **{f'score_{i}': rng.random(n, np.float32) for i in range(6)}))
    browser.open(explore_html(table, [int(i) for i in rng.integers(0, 8, n)], tmp_path/'many.html'))
    seen = browser.js("""(async () => { const steps = []; let most = 0;
      for (let i = 0; i < 40; i++) { grid.scrollTop = i % 2 ? grid.scrollTop + 3*height : Math.random()*grid.scrollHeight; const t = performance.now(); draw(); steps.push(performance.now() - t);
        await new Promise(requestAnimationFrame); most = Math.max(most, document.querySelectorAll('*').length); }
      return {most, step: steps.sort((a, b) => a - b)[20], last: steps[39]}; })()""")
    record_property('scroll', seen)
    print(f"{(tmp_path/'many.html').stat().st_size/1e6:.0f} MB, a scroll step {seen['step']:.1f} ms, at most {seen['last']:.1f} ms, {seen['most']} elements")
    assert seen['most'] < 2000
    browser.keys('End')
    assert browser.js("document.getElementById(grid.getAttribute('aria-activedescendant')).getAttribute('aria-posinset')") == '50000'
    assert browser.js("(() => { const c = document.querySelector('[aria-selected=true]').getBoundingClientRect(), g = grid.getBoundingClientRect(); return c.bottom <= g.bottom && c.top >= g.top; })()")
