"""The page in a browser without a network: from a launch to the front to a downloaded model, with a token, and over odd names."""

import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from browser import Browser
from commands import STUDY, environment, run, wait_until
from served import ODD, serving

from study.service.settings import ServiceSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser, chromium"),
]
TOKEN = "a-token-of-this-test"


@pytest.fixture
def browser(tmp_path):
    found = Browser(tmp_path / "browser")
    yield found
    found.close()


def start_service(home, port="0"):
    given = environment(home) | {"STUDY_TOKEN": TOKEN}
    service = subprocess.Popen([*STUDY, "serve", "--port", port], env=given, stdout=subprocess.PIPE, text=True)
    return service, service.stdout.readline().split()[-1]


def test_a_study_is_launched_followed_extended_and_its_model_downloaded_though_the_service_is_killed(tmp_path, browser):
    home = tmp_path / "home"
    service, address = start_service(home)
    try:
        browser.open(address)
        browser.wait("!document.querySelector('#token-form').hidden")
        browser.fill("#token", "wrong-token-wrong")
        browser.click("#token-form button")
        browser.wait("document.querySelector('#told').textContent.includes('token')")
        browser.fill("#token", TOKEN)
        browser.click("#token-form button")
        browser.wait("document.querySelector('#launch select[name=space]').options.length > 5", 120)
        browser.complaints.clear()  # the browser tells of the 401
        browser.fill("#launch input[name=name]", "seen")
        browser.fill("#launch select[name=space]", "cmsp_curriculum:tiny")
        browser.fill("#launch input[name=trials]", "4")
        browser.click("#launch button")
        browser.wait("location.hash === '#seen' && document.querySelector('#study-name').textContent === 'seen'")
        browser.wait("['starting', 'running'].includes(document.querySelector('#study-state .badge')?.textContent)")
        service.send_signal(signal.SIGKILL)
        service.communicate(timeout=20)
        browser.wait("document.querySelector('#told').textContent.includes('does not answer')")
        service, _ = start_service(home, address.rsplit(":", 1)[1])
        browser.wait("document.querySelector('#study-state').textContent.includes('4 finished')", 240)
        browser.wait("document.querySelector('#told').hidden")
        browser.wait("document.querySelector('#study-state .badge').textContent === 'idle'", 120)
        browser.fill("#extend input", "5")
        browser.click("#extend button")
        browser.wait("document.querySelector('#study-state').textContent.includes('5 finished')", 240)
        browser.wait("document.querySelector('#study-state .badge').textContent === 'idle'", 120)
        browser.wait("document.querySelector('#front-plot').dataset.drawn > 0")
        download_and_verify(browser, home, tmp_path)
        assert all(TOKEN not in url and url.split("?")[0].startswith((address, "blob:", "data:")) for url in browser.requested)
        assert TOKEN not in browser.eval("location.href + document.documentElement.outerHTML")
        assert [
            told for told in browser.complaints if "ERR_CONNECTION_REFUSED" not in told and "Failed to fetch" not in told
        ] == []
    finally:
        service.kill()
        service.communicate(timeout=20)
        run("stop", "seen", home=home)


def download_and_verify(browser, home, folder):
    """Choose the knee by a click on its point, download it, and have the command check it."""
    place = browser.eval(
        "(() => { const plot = document.querySelector('#front-plot'); plot.scrollIntoView();"
        "const box = plot.getBoundingClientRect();"
        "const [knee] = plot.data[2].x.map((x, i) => [x, plot.data[2].y[i]]), {xaxis, yaxis} = plot._fullLayout;"
        "return [box.left + xaxis._offset + xaxis.d2p(knee[0]), box.top + yaxis._offset + yaxis.d2p(knee[1])]; })()"
    )
    browser.mouse_click(*place)
    browser.wait(
        "document.querySelector('#model-name').textContent.endsWith('the knee') && !document.querySelector('#model').hidden"
    )
    assert browser.eval("document.querySelector('#model-params').childElementCount") >= 4
    browser.click("#download")
    wait_until(lambda: list(browser.downloads.glob("*.zip")), "the model")
    wait_until(lambda: zipfile.is_zipfile(next(browser.downloads.glob("*.zip"))), "the whole of it")
    with zipfile.ZipFile(next(browser.downloads.glob("*.zip"))) as archive:
        assert archive.testzip() is None
        archive.extractall(folder / "model")
    (model,) = (folder / "model").iterdir()
    verified = run("verify", str(model), home=home)
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(("width", "is_dark"), [(1300, False), (420, True)])
def test_what_others_called_things_is_text_and_the_page_fits(made_home, tmp_path, width, is_dark):
    browser = Browser(tmp_path / "browser", width=width, is_dark=is_dark)
    try:
        with serving(ServiceSettings(home=made_home)) as client:
            browser.open(f"{client.base_url}#grown")
            browser.wait("document.querySelector('#front-plot').dataset.drawn > 0")
            browser.fill("#model-choice", "2.0")
            browser.wait("document.querySelector('#model-params').childElementCount > 0")
            assert ODD in browser.eval("document.querySelector('#model-params').textContent")
            assert ODD in browser.eval("document.querySelector('#failures').textContent")
            browser.eval("Plotly.Fx.hover('front-plot', [{curveNumber: 1, pointNumber: 0}])")
            assert "<img" in browser.eval("document.querySelector('#front-plot .hoverlayer').textContent")
            assert browser.eval("[document.title, document.querySelectorAll('img').length]") == ["grown: Narrow Study", 0]
            assert browser.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
            browser.fill("#axis-x", "trial")
            browser.wait("document.querySelector('#front-plot')._fullLayout.xaxis.title.text === 'trial number'")
            browser.fill("#trial-state", "failed")
            browser.wait("document.querySelector('#trials tbody').rows.length === 2")
            assert browser.complaints == []
    finally:
        browser.close()


def test_under_load_a_study_loses_nothing_and_a_flood_is_shed():
    script = Path(__file__).parents[1] / "benchmarks" / "service_load.py"
    command = [sys.executable, str(script), "--seconds", "4", "--trials", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
