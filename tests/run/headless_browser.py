"""Chromium without a window, driven through chromedriver's plain HTTP interface; no network."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--window-size=1280,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]


class Browser:
    """One page in a headless Chromium."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, url: str) -> None:
        self._call("url", {"url": url})

    def run(self, script: str) -> object:
        """The value that `script` returns."""
        return self._call("execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str, seconds: float) -> bool:
        """Whether `script` returned something true within `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.run(script):
                return True
            time.sleep(0.25)
        return False

    def screenshot(self) -> bytes:
        return base64.b64decode(_request(f"{self._session}/screenshot")["value"])

    def console(self) -> list[str]:
        """Warnings and errors since the last call."""
        return [f"{entry['level']} {entry['message']}" for entry in self._call("se/log", {"type": "browser"})]

    def requested(self) -> list[str]:
        """Every address that the page asked for since the last call, data: and blob: left out."""
        entries = [json.loads(entry["message"])["message"] for entry in self._call("se/log", {"type": "performance"})]
        urls = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def _call(self, command: str, body: dict):
        return _request(f"{self._session}/{command}", body)["value"]


@contextmanager
def headless_browser() -> Iterator[Browser]:
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    session = None
    try:
        for line in driver.stdout:
            if started := re.search(r"started successfully on port (\d+)", line):
                break
        address = f"http://127.0.0.1:{started.group(1)}/session"
        options = {"binary": CHROMIUM, "args": ARGUMENTS}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        created = _request(address, {"capabilities": {"alwaysMatch": wanted}})["value"]
        session = f"{address}/{created['sessionId']}"
        yield Browser(session)
    finally:
        if session is not None:
            _request(session, method="DELETE")
        driver.terminate()
        driver.wait(10)
        driver.stdout.close()


def _request(url: str, body: dict | None = None, method: str | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
