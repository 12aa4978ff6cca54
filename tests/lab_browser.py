"""A notebook in JupyterLab in headless Chromium, driven through the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=120, suppress_origin=True)
        self._numbers = itertools.count(1)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression; what a promise resolves to."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 240.0) -> Any:
        """The first true value."""
        end = time.monotonic() + seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"{expression} stays false: {self.value('document.body.innerText')[-2000:]}"
            time.sleep(0.5)
        return value

    def picture(self, box: dict[str, float]) -> np.ndarray:
        """Pixels (height, width, 3), from 0 to 1, of a part of the page."""
        data = self.send("Page.captureScreenshot", format="png", clip={**box, "scale": 1})["data"]
        return np.asarray(matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))[..., :3])


@contextlib.contextmanager
def lab_page(notebook: Path) -> Iterator[Page]:
    """A tab of JupyterLab that shows a notebook; server and browser end with the context."""
    assert CHROMIUM is not None
    folder = notebook.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    words = ["--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={token}"]
    words += [f"--notebook-dir={folder}"]
    words += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    profile = folder / "profile"
    browser_words = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    browser_words += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--window-size=1200,900"]
    with contextlib.ExitStack() as stack:
        _start(stack, [sys.executable, "-m", "jupyterlab", *words], os.environ | own)
        _until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).read())
        _start(stack, [CHROMIUM, *browser_words, "about:blank"], dict(os.environ))
        debugging = _until(lambda: (profile / "DevToolsActivePort").read_text().splitlines()[0])
        tabs = _until(
            lambda: json.loads(urllib.request.urlopen(f"http://127.0.0.1:{debugging}/json/list", timeout=5).read())
        )
        page = Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
        page.send("Page.enable")
        page.send("Page.navigate", url=f"http://127.0.0.1:{port}/lab/tree/{notebook.name}?token={token}")
        page.wait_for("!!(window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell'))")
        yield page


def _start(stack: contextlib.ExitStack, words: list[str], environment: dict[str, str]) -> None:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    stack.callback(process.wait, timeout=30)
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with what it started: the group is its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _until(call: Any, seconds: float = 120.0) -> Any:
    """What a call returns as soon as it returns something."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, IndexError, ValueError):
            if found := call():
                return found
        assert time.monotonic() < end, "the server or the browser did not start"
        time.sleep(0.3)
