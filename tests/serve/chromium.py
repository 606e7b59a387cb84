"""A real Chromium, for the page's tests."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextlib.asynccontextmanager
async def chromium(flags: Sequence[str] = (), **options: Any) -> AsyncIterator[Any]:
    """A page of a fresh Chromium, in which nothing may go wrong unseen."""
    from playwright.async_api import async_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.fail("There is no Chromium: install it (on Debian: apt-get install chromium).")
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=path, args=["--no-sandbox", *flags])
        context = await browser.new_context(accept_downloads=True, **options)
        page = await context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda sent: faults.append(sent.url) if "127.0.0.1" not in sent.url else None)
        page.set_default_timeout(30_000)
        yield page
        assert not [fault for fault in faults if not fault.startswith("blob:")]
        await browser.close()


def at(server: Any) -> str:
    return f"http://127.0.0.1:{server.server.web.port}/"


async def until(page: Any, condition: str) -> None:
    """Waits for an expression to be true; the page's own rules forbid Playwright's way, which is `eval`."""
    async with asyncio.timeout(30):
        while not await page.evaluate(condition):
            await asyncio.sleep(0.05)
