"""The report in a real browser: it loads, its pictures are there, hover and keys work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from reported import EVIL

from selfsame.report import write_report


@pytest.fixture(scope="module")
def single(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([run], photos, out=tmp_path_factory.mktemp("single") / "report.html")


@pytest.fixture(scope="module")
def several(run: Path, vit_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen runs: two of them, and copies whose recipes differ in a key."""
    folder = tmp_path_factory.mktemp("several")
    runs = [run, vit_run]
    for i in range(12):
        copy = folder / f"copy{i}"
        shutil.copytree(run, copy)
        recipe = (copy / "recipe.toml").read_text()
        (copy / "recipe.toml").write_text(recipe.replace("seed = 0", f"seed = {i + 1}"))
        runs.append(copy)
    return write_report(runs, out=folder / "all.html", images=12)


def check_loads(browser: Any, page: Path, **window: Any) -> None:
    browser.open(page, **window)
    assert browser.errors == []
    assert browser.requests, "the page itself is a request"
    assert all(url.startswith(("file:", "data:")) for url in browser.requests)
    # nothing is wider than the window but what scrolls by itself
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_report_loads_with_all_its_pictures(browser: Any, single: Path) -> None:
    check_loads(browser, single)
    count, broken = browser.run(
        "Promise.all([...document.images].map(i => i.decode().then("
        "  () => i.naturalWidth > 0 && (!i.offsetParent || i.clientWidth > 0), () => false)))"
        ".then(all => [all.length, all.filter(ok => !ok).length])"
    )
    assert broken == 0
    assert count > 40
    assert browser.run("[...document.images].every(i => i.hasAttribute('alt'))")
    assert browser.run("document.querySelector('.s-verdict .state').textContent") == (
        "Still improving"
    )


def test_names_stay_text(browser: Any, single: Path) -> None:
    browser.open(single)
    assert browser.run("document.scripts.length") == browser.run(
        "[...document.scripts].filter(s => s.type === 'application/json').length + 1"
    )
    assert browser.run("document.querySelectorAll('main b b, main i i').length") == 0
    assert browser.run(f"document.body.textContent.includes({json.dumps(EVIL)})")
    assert browser.run("document.body.textContent.includes('<i>bad.jpg')")


def test_curves_read_out_under_the_pointer_and_by_keys(browser: Any, single: Path) -> None:
    browser.open(single)
    assert browser.run("document.querySelector('.chart .tip').hidden")
    browser.hover(".chart .plot", 0.5, 0.5)
    said = browser.run("document.querySelector('.chart .tip').textContent")
    losses = browser.run("JSON.parse(document.querySelector('.chart script').textContent).lines[0]")
    step, loss = losses["points"][1]
    assert step == 2
    assert said.startswith("step 2")
    assert float(said.removeprefix("step 2")) == pytest.approx(loss, rel=1e-3)
    browser.run("document.querySelector('.chart .plot').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('.chart .tip').textContent").startswith("step 3")
    browser.press("Escape")
    assert browser.run("document.querySelector('.chart .tip').hidden")


def test_the_map_shows_the_image_under_the_pointer(browser: Any, single: Path) -> None:
    browser.open(single)
    browser.run("document.querySelector('.plane svg').focus()")
    browser.press("ArrowRight")
    names = browser.run("JSON.parse(document.querySelector('.plane script').textContent).names")
    assert names[0] in browser.run("document.querySelector('.plane .tip').textContent")
    browser.press("Escape")
    dots = browser.run(
        "[...document.querySelectorAll('.plane circle')].map("
        "c => [c.cx.baseVal.value / 1000, c.cy.baseVal.value / 1000])"
    )
    x, y = dots[7]
    browser.hover(".plane svg", x, y)
    at = browser.run(
        "[...document.querySelectorAll('.plane circle')].findIndex(c => c.classList.contains('on'))"
    )
    assert dots[at] == pytest.approx([x, y], abs=0.01)  # several may lie there
    assert names[at] in browser.run("document.querySelector('.plane .tip').textContent")
    away = browser.run(
        "(() => { const of = s => document.querySelector(s).getBoundingClientRect();"
        " const d = of('.plane .on'), t = of('.plane .tip');"
        " const beside = Math.max(t.left - d.right, d.left - t.right);"
        " return [beside, t.top - d.bottom, d.top - t.bottom]; })()"
    )
    assert max(away) < 40  # pixels between the dot and what is said of it
    place = browser.run(
        "(() => { const t = document.querySelector('.plane .thumb'), i = t.firstChild;"
        " return [i.offsetLeft / t.clientWidth, i.offsetTop / t.clientHeight]; })()"
    )
    columns = browser.run("JSON.parse(document.querySelector('.plane script').textContent).columns")
    assert place == pytest.approx([-(at % columns), -(at // columns)], abs=0.02)


def test_the_keyboard_reaches_everything(browser: Any, single: Path) -> None:
    browser.open(single)
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left >= 0")
    browser.press("Enter")
    assert browser.run("location.hash") == "#verdict"
    browser.open(single)
    seen, outlined = [], []
    for _ in range(60):
        browser.press("Tab")
        seen.append(
            browser.run("document.activeElement.tagName + document.activeElement.className")
        )
        outlined.append(browser.run("getComputedStyle(document.activeElement).outlineStyle"))
        if seen[-1].startswith("BODY"):
            break
    assert {"A", "DIVplot", "SUMMARY", "DIVscroll", "svg[object SVGAnimatedString]"} <= set(seen)
    kept = [line for what, line in zip(seen, outlined, strict=True) if not what.startswith("BODY")]
    assert set(kept) <= {"solid", "auto"}
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('details').open")


def test_fourteen_runs_on_a_phone_and_in_the_dark(browser: Any, several: Path) -> None:
    check_loads(browser, several, width=390, height=844)
    check_loads(browser, several, dark=True)
    assert browser.run("document.querySelectorAll('.cards .card').length") == 14
    shades = browser.run(
        "[...document.querySelectorAll('.chart')[0].querySelectorAll('path')].map(p =>"
        " getComputedStyle(p).stroke + getComputedStyle(p).strokeDasharray)"
    )
    assert len(set(shades)) == 14
    browser.hover(".chart .plot", 0.5, 0.5)
    assert browser.run("document.querySelectorAll('.chart .tip .entry').length") == 14
    browser.run("document.querySelector('.legend button').click()")
    browser.hover(".chart .plot", 0.6, 0.5)
    assert browser.run("document.querySelectorAll('.chart .tip .entry').length") == 13
    browser.run("document.querySelector('#images [role=tab]').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement.getAttribute('aria-selected')") == "true"
    assert browser.run(
        "!document.getElementById(document.activeElement.getAttribute('aria-controls')).hidden"
    )
    marked = browser.run("document.querySelectorAll('.differences .differs').length")
    assert marked >= 13


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser: Any, single: Path, dark: bool) -> None:
    """WCAG's ratio of 4.5 for text, 3 for lines and dots, in both colour schemes."""
    browser.open(single, dark=dark)
    ratio = (
        "(name, ground) => { const value = n => getComputedStyle(document.documentElement)"
        ".getPropertyValue(n).trim(); const light = c => { const h = c.length === 4 ?"
        " [...c.slice(1)].map(x => x + x) : c.slice(1).match(/../g); const [r, g, b] = h.map(x => {"
        " x = parseInt(x, 16) / 255;"
        " return x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; });"
        " return .2126 * r + .7152 * g + .0722 * b; };"
        " const [a, b] = [light(value(name)), light(value(ground))].sort((x, y) => y - x);"
        " return (a + .05) / (b + .05); }"
    )
    for name in ("--ink", "--muted", "--accent", "--trouble"):
        for ground in ("--page", "--raised", "--wash") if name == "--ink" else ("--page",):
            assert browser.run(f"({ratio})('{name}', '{ground}')") >= 4.5, (name, ground)
    for i in range(10):
        for ground in ("--page", "--raised"):
            assert browser.run(f"({ratio})('--c{i}', '{ground}')") >= 3, i
