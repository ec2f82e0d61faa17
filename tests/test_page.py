"Gallery pages in a real browser: whole on a phone, readable in the dark, nothing fetched from elsewhere."
import html
import json
import os
import re
import shutil
import subprocess

import pandas as pd
import pytest

from noisymem.gallery import STYLE, _claim_rows, _html_table, claims_markdown

BROWSER = next((b for b in ('chromium', 'chromium-browser', 'google-chrome') if shutil.which(b)), None)
LOOK = '''<script>addEventListener('load', () => {
  const images = [...document.images], wide = [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll'));
  const seen = {width: innerWidth, scroll: document.documentElement.scrollWidth, images: images.length, broken: images.filter(i => !i.naturalWidth).length, wide: wide.map(e => e.tagName + ' ' + e.textContent.slice(0, 40)),
    background: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color, anchors: [...document.querySelectorAll('a[href^="#"]')].filter(a => !document.getElementById(a.getAttribute('href').slice(1))).length,
    cells: [...document.querySelectorAll('td')].map(e => [e.getBoundingClientRect().left, e.getBoundingClientRect().right]), labelled: [...document.querySelectorAll('td')].filter(e => !/^no/.test(getComputedStyle(e, '::before').content)).length,
    fetched: performance.getEntriesByType('resource').map(r => r.name).filter(n => !n.startsWith('data:'))};
  parent.document.title = JSON.stringify(seen)})</script>'''


@pytest.fixture(params=['laptop'])
def page(request, root): return (root/'papermill_runs'/'gallery'/request.param/'index.html').read_text(encoding='utf-8')


def look(page, tmp_path, width, *flags):
    "What a browser makes of a page in a frame of this width."
    if BROWSER is None: pytest.skip('no Chromium is installed')
    frame = tmp_path/'frame.html'
    frame.write_text(f'<!doctype html><meta name="color-scheme" content="light dark"><iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page + LOOK)}"></iframe>', encoding='utf-8')
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', f'--user-data-dir={tmp_path}/profile', '--virtual-time-budget=20000', '--window-size=1400,1000', *flags, '--dump-dom', frame.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | dict(HOME=str(tmp_path))).stdout
    return json.loads(html.unescape(re.search('<title>(.*?)</title>', dom, re.S)[1]))


CLAIMS = pd.DataFrame([dict(figure='fig_x', claim='wrong labels are found better than by chance, whichever network looks at them (AUROC)', ours=.98765, relation='~', than=.9, tolerance=.1, paper=.986, n=50000, holds=h, tells=h) for h in (True, False)])


@pytest.mark.parametrize('width', [360, 1200])
def test_every_column_of_the_claims_is_seen_without_scrolling(tmp_path, width):
    page = f'<!doctype html><html><style>{STYLE}</style><body>{_html_table(_claim_rows(CLAIMS))}</body></html>'
    seen = look(page, tmp_path, width)
    assert len(seen['cells']) == 12 and max(c[1] for c in seen['cells']) <= width and seen['labelled'] == (10 if width == 360 else 0)


@pytest.mark.parametrize('width', [360, 1200])
def test_nothing_sticks_out_and_every_picture_is_there(page, tmp_path, width):
    seen = look(page, tmp_path, width)
    assert seen['width'] == width and seen['scroll'] <= width and not seen['wide']
    assert seen['images'] >= 10 and not seen['broken'] and not seen['anchors'] and not seen['fetched']


def brightness(colour): return sum(map(int, re.findall(r'\d+', colour)[:3]))/3


def test_light_and_dark(page, tmp_path):
    light, dark = look(page, tmp_path, 800), look(page, tmp_path, 800, '--force-dark-mode')
    assert brightness(light['ink']) < 60 and brightness(dark['ink']) > 200
    assert brightness(dark['background']) < 60, 'dark behind bright letters'


def test_the_page_stands_alone(page, root):
    "It needs nothing else to be seen; its links lead to places in it and to the executed notebooks and tables beside it."
    assert not re.findall(r'src="(?!data:)', page)
    links = re.findall(r'href="(?!data:|#)([^"]+)"', page)
    assert links and all(l.endswith(('.ipynb', '.csv')) and (root/'papermill_runs'/'gallery'/'laptop'/l).exists() for l in links)


def test_the_index_for_the_forge_links_to_what_is_there(root):
    folder = root/'papermill_runs'/'gallery'/'laptop'
    links = re.findall(r'\]\(([^)#]+)\)', (folder/'README.md').read_text(encoding='utf-8'))
    assert len(links) > 20 and not [l for l in links if not (folder/l).exists()]


def test_the_claims_in_the_readme_are_those_of_the_committed_run(root):
    claims = pd.read_csv(root/'papermill_runs'/'gallery'/'laptop'/'claims.csv')
    shown = claims[claims.paper.notna() | (claims.tells & ~claims.holds)]
    assert claims_markdown(shown.assign(claim=shown.figure + ': ' + shown.claim)) in (root/'README.md').read_text(encoding='utf-8'), 'run the cells of nbs/index.ipynb, then tools/make_readme.py'
