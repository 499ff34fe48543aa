"""The report's page in headless Chromium: desktop and phone, light and dark.

The browser is driven by the DevTools protocol over a pipe, which needs no driver and no package. To keep the
screenshots, name a folder in REPORT_SCREENSHOTS.
"""

import base64
import contextlib
import json
import os
import pathlib
import runpy
import select
import shutil
import subprocess
import time

import pytest

from lagrangian_jax import report

pytestmark = pytest.mark.slow
fake = runpy.run_path(str(pathlib.Path(__file__).with_name("report_workdir.py")))["fake"]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]


class Browser:
    """DevTools messages are JSON, each ended by a zero byte: written to the browser's descriptor 3, read from its 4."""

    def __init__(self, program: str, profile: pathlib.Path):
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        script = f'exec "$@" 3<&{read} 4>&{write}'
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", script, "bash", program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self.buffer, self.count, self.session = b"", 0, None
        self.events: list[dict] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters):
        """Sends a command and returns its result; events that arrive meanwhile are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        return self._until(lambda answer: answer.get("id") == self.count, method)["result"]

    def wait(self, event: str):
        self._until(lambda message: message.get("method") == event, event)

    def evaluate(self, expression: str):
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _until(self, wanted, what: str, seconds: float = 60):
        end = time.monotonic() + seconds
        while True:
            while b"\0" in self.buffer:
                text, self.buffer = self.buffer.split(b"\0", 1)
                message = json.loads(text)
                if "method" in message:
                    self.events.append(message)
                if wanted(message):
                    assert "error" not in message, (what, message["error"])
                    return message
            if not select.select([self.read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no answer to {what} within {seconds} s")
            received = os.read(self.read, 1 << 20)
            if not received:
                raise ConnectionError(f"the browser ended during {what}, exit status {self.process.wait()}")
            self.buffer += received

    def close(self):
        with contextlib.suppress(OSError, ConnectionError, TimeoutError):
            self.session = None
            self("Browser.close")
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def _full(folder):
    return fake(folder, failures=["attack lpa: out of device memory, batch halved to 64"])


def _hostile(folder):
    """Long words that cannot be broken, markup in names, 100 settings, one grey picture row, counts of millions."""
    word = "unbreakable_" * 20 + "<script>alert(1)</script>"
    fake(folder, ["none", "pgd_linf"], channels=1, epochs=1, class_names=[word] * 10, failures=[word, "short"])
    config = json.loads((folder / "config.json").read_text())
    config |= {word: word, "many": {f"field_{i}": word if i % 9 == 0 else i for i in range(100)}}
    (folder / "config.json").write_text(json.dumps(config))
    results = json.loads((folder / "results.json").read_text())
    results["network"]["name"] = results["data"]["name"] = results["data"]["remark"] = word
    results["attacks"][1] |= {"label": word, "correct": 4_381_234, "total": 10_000_000, "parameters": {word: word}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def _training_only(folder):
    fake(folder, epochs=1)
    (folder / "results.json").unlink()
    return folder


LAYOUT = r"""
(() => {
  const name = e => e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + (e.className ? '.' + e.className : '') +
    ' "' + (e.textContent || '').trim().slice(0, 30) + '"';
  const problems = [];
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) problems.push('the page scrolls sideways');
  for (const image of document.images)
    if (!image.complete || image.naturalWidth === 0) problems.push('not loaded: ' + image.alt);
  const scrolled = e => { const s = e.parentElement.closest('.scroll, pre'); return s !== null; };
  const all = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('[aria-hidden]'));
  for (const e of all) {
    const box = e.getBoundingClientRect();
    const style = getComputedStyle(e);
    if (!scrolled(e) && (box.right > width + 0.5 || box.left < -0.5)) problems.push('outside the page: ' + name(e));
    const may_scroll = ['auto', 'scroll'].includes(style.overflowX);
    if (!may_scroll && style.display !== 'inline' && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
      problems.push('content wider than its box: ' + name(e));
    if (!may_scroll && style.overflow !== 'visible' && e.scrollHeight > e.clientHeight + 1)
      problems.push('clipped: ' + name(e));
    if (e.children.length === 0 && e.textContent.trim() && parseFloat(style.fontSize) < 9)
      problems.push('too small to read: ' + name(e));
  }
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5;
  for (const parent of new Set(all.map(e => e.parentElement))) {
    const boxes = [...parent.children].filter(e => all.includes(e) && getComputedStyle(e).display !== 'inline')
      .map(e => [e, e.getBoundingClientRect()]);
    for (let i = 0; i < boxes.length; i++)
      for (let j = i + 1; j < boxes.length; j++)
        if (overlap(boxes[i][1], boxes[j][1]))
          problems.push('overlap: ' + name(boxes[i][0]) + ' and ' + name(boxes[j][0]));
  }
  return problems;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 360])
@pytest.mark.parametrize("kind", ["full", "hostile", "training_only"])
def test_page_in_a_browser(browser, tmp_path, kind, width, scheme):
    folder = {"full": _full, "hostile": _hostile, "training_only": _training_only}[kind](tmp_path / "run")
    report.write(folder)
    browser("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700)
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    browser("Page.navigate", url=(folder / "report.html").as_uri())
    browser.wait("Page.loadEventFired")
    browser.evaluate("Promise.all([...document.images].map(image => image.decode().catch(() => null)))")
    browser.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")

    problems = browser.evaluate(LAYOUT)
    if screenshots := os.environ.get("REPORT_SCREENSHOTS"):
        browser.evaluate("document.querySelectorAll('details').forEach(e => { e.open = false; })")
        picture = browser("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        pathlib.Path(screenshots).mkdir(parents=True, exist_ok=True)
        pathlib.Path(screenshots, f"{kind}-{width}-{scheme}.png").write_bytes(base64.b64decode(picture))
    assert problems == []

    methods = [event["method"] for event in browser.events]
    assert "Runtime.exceptionThrown" not in methods
    said = [
        event["params"] for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled")
    ]
    assert said == []
    sent = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert {url.split(":")[0] for url in sent} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in sent) == 1

    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    shown = browser.evaluate("[...document.querySelectorAll('.panels img')].map(image => image.currentSrc)")
    darks = {f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
             for path in (folder / "figures").glob("*-dark.svg")}  # fmt: skip
    assert len(shown) == 6
    assert all((source in darks) == (scheme == "dark") for source in shown)


def test_the_layout_check_finds_faults(browser, tmp_path):
    """The check itself: an element pushed out of the page, one on top of another, a clipped one, a lost image."""
    report.write(_full(tmp_path / "run"))
    browser("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    faults = {
        "outside the page": "document.querySelector('h1').style.cssText = 'position: relative; left: 99vw'",
        "overlap": "document.querySelector('#training').style.marginTop = '-300px'",
        "clipped": "document.querySelector('.lead').style.cssText = 'height: 10px; overflow: hidden'",
        "not loaded": "document.querySelector('.pictures img').src = 'data:image/png;base64,AAAA'; "
        "new Promise(done => setTimeout(done, 300))",
    }
    for problem, fault in faults.items():
        browser.events.clear()
        browser("Page.navigate", url=(tmp_path / "run" / "report.html").as_uri())
        browser.wait("Page.loadEventFired")
        browser.evaluate(fault)
        assert any(problem in found for found in browser.evaluate(LAYOUT)), problem
