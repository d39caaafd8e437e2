"""The page of a real node, in a real browser."""

import signal

import pytest

from tests.support.browser import chromium, connected, installed
from tests.support.nodes import MODEL, paced, running

pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium is installed")


async def test_a_page_shows_a_node_chats_with_it_and_sees_it_go(tmp_path):
    with running(tmp_path, paced(fixed_us=20.0)) as node, chromium() as address:
        async with connected(address) as browser:
            tab = await browser.tab()
            await tab.look(390, 844)
            await tab.open(f"{node.url}/")
            await tab.until("document.querySelector('#up')?.dataset.tone === 'good'")
            assert await tab.text(".model h3") == MODEL
            assert (await tab.text(".instance")).split() == ["test", "serving", "idle"]
            assert "p0 paced" in await tab.text("#nodes")
            await tab.click("[data-shows=chat]")
            await tab.ask("document.querySelector('#most').value = 32")
            await tab.ask("document.querySelector('#words').focus()")
            await tab.type("What is the capital of France?")
            await tab.press("Enter", 13, "\r")
            await tab.until("document.querySelector('.assistant .text')?.innerText.length > 20")
            await tab.until("document.querySelector('#stop').hidden")
            note = await tab.text(".assistant .note")
            assert "32 tokens" in note
            assert f"by {MODEL}@test/p0" in note
            node.workers()
            node.signal(signal.SIGTERM)
            await tab.until("document.querySelector('#up').dataset.tone === 'bad'")
            assert tab.errors == [] or all("ERR_CONNECTION" in each for each in tab.errors)
        assert node.end() == 0
