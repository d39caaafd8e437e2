"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--no-default-browser-check", "--no-proxy-server", "--mute-audio",
    "--renderer-process-limit=1", "--remote-debugging-port=0",
)  # fmt: skip

PATIENCE_S = 30.0
POLL_S = 0.03


def installed() -> str | None:
    """Return where a Chromium is installed, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page. `errors` are what its scripts threw and what its policies blocked."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session
        self.errors: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._browser.call(method, params, self._session)

    def take(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", details["text"])
            self.errors.append(str(thrown))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Have a screen of that size, a phone's where it is narrow."""
        phone = width < 600
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def ask(self, expression: str) -> Any:
        """Evaluate an expression in the page; promises are waited for."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def text(self, selector: str) -> str:
        """Return what an element shows, empty where there is none."""
        return str(
            await self.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        )

    async def until(self, expression: str) -> None:
        """Wait for an expression to be true."""
        deadline = time.monotonic() + PATIENCE_S
        while not await self.ask(f"Boolean({expression})"):
            shown = await self.ask("document.body?.innerText")
            assert time.monotonic() < deadline, f"never {expression}; {self.errors}\n{shown}"
            await asyncio.sleep(POLL_S)

    async def click(self, selector: str) -> None:
        await self.ask(f"document.querySelector({json.dumps(selector)}).click()")

    async def type(self, text: str) -> None:
        """Insert text where the focus is."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key, as a keyboard does."""
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        for event in (down, {"type": "keyUp"}):
            await self.call(
                "Input.dispatchKeyEvent", key=key, code=key, windowsVirtualKeyCode=code, **event
            )

    async def shot(self, file: Path) -> None:
        """Write a picture of what is seen."""
        told = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(told["data"]))

    async def close(self) -> None:
        self._browser.tabs.pop(self._session)
        await self._browser.call("Target.closeTarget", {"targetId": self._target})


class Browser:
    """A running Chromium. Each tab has a context of its own, so that none sees another's keys."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.tabs: dict[str, Tab] = {}

    async def call(
        self, method: str, params: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        return await asyncio.wait_for(answer, PATIENCE_S)

    async def read(self) -> None:
        """Take what comes until the end."""
        async for message in self._socket:
            told = json.loads(message.data)
            answer = self._answers.pop(told.get("id"), None)
            if answer is not None and not answer.done():
                if "error" in told:
                    answer.set_exception(RuntimeError(told["error"]["message"]))
                else:
                    answer.set_result(told["result"])
            elif tab := self.tabs.get(told.get("sessionId")):
                tab.take(told["method"], told["params"])

    async def tab(self) -> Tab:
        """Open an empty page."""
        context = await self.call("Target.createBrowserContext", {})
        made = await self.call(
            "Target.createTarget",
            {"url": "about:blank", "browserContextId": context["browserContextId"]},
        )
        target = made["targetId"]
        session = await self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        tab = self.tabs[session["sessionId"]] = Tab(self, target, session["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        return tab


@contextlib.contextmanager
def chromium() -> Iterator[str]:
    """Run a Chromium, and leave nothing of it; yield where it listens."""
    path = installed()
    assert path is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()
        process = subprocess.Popen(
            [path, *OPTIONS, *root, f"--user-data-dir={folder}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield _address(Path(folder) / "DevToolsActivePort", process)
        finally:
            process.terminate()  # its children end with it
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Browser]:
    """Drive a Chromium that listens there; its tabs are closed at the end."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address, max_msg_size=0) as socket,
    ):
        found = Browser(socket)
        reading = asyncio.get_running_loop().create_task(found.read())
        try:
            yield found
            for tab in list(found.tabs.values()):
                await tab.close()
        finally:
            await socket.close()
            await reading


def _address(file: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the WebSocket that Chromium says it listens at."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and len(lines := file.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(POLL_S)
    raise TimeoutError(f"Chromium did not start: {process.poll()}")
