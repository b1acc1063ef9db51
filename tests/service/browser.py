"""A headless Chromium that tests drive, through pipes: its DevTools protocol, and nothing to install."""

import base64
import json
import os
import subprocess
import time
from pathlib import Path

_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe",
    "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


class Browser:
    """One page. What it complains of is in `complaints`."""

    def __init__(self, folder: Path, *, width: int = 1300, height: int = 1000, is_dark: bool = False) -> None:
        self.complaints: list[str] = []
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', "chromium", *_FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.requested: list[str] = []
        self._buffer, self._number, self._session = b"", 0, None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        )
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def eval(self, script: str):
        """What a script says, a promise awaited."""
        told = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, condition: str, timeout: float = 60) -> None:
        """Wait until a script says something true."""
        deadline = time.monotonic() + timeout
        while not self.eval(condition):
            assert time.monotonic() < deadline, (
                f"waited {timeout} s for {condition}; {self.eval('document.body.innerText')[:1500]}"
            )
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        self.eval(f"document.querySelector({json.dumps(selector)}).click()")

    def mouse_click(self, x: float, y: float) -> None:
        """A click as a mouse makes it, moved there first."""
        for kind, more in (
            ("mouseMoved", {}),
            ("mousePressed", {"button": "left", "clickCount": 1}),
            ("mouseReleased", {"button": "left", "clickCount": 1}),
        ):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def fill(self, selector: str, value: str) -> None:
        """Set a field as a user does, with the events that follow."""
        self.eval(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(value)};"
            "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def picture(self, path: Path) -> None:
        """The whole page, as far as it scrolls."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}
        data = self._call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._session = None
        try:
            self._call("Browser.close")
        except (OSError, EOFError):
            pass
        self._process.wait(timeout=20)
        os.close(self._read)
        os.close(self._write)

    def _call(self, method: str, **params):
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == number:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self._hear(told)

    def _hear(self, told) -> None:
        method, params = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(
                str(params["exceptionDetails"].get("exception", {}).get("description") or params["exceptionDetails"]["text"])
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])

    def _next(self):
        while b"\0" not in self._buffer:
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise EOFError("the browser has gone")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)
