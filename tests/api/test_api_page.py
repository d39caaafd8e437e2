"""The page at `/`: its files, their headers, and who gets them."""

import re
import tomllib
from pathlib import Path

import pytest

from blitzgw.api import assets as module
from blitzgw.api.admin import AdminGuard
from blitzgw.api.assets import FOLDER, assets
from blitzgw.config import HttpConfig
from tests.api.view_kit import FakeCluster

PATHS = sorted(assets())
PUBLIC = frozenset(HttpConfig().public_routes)
LINK = re.compile(r'(?:src=|href=|from )"([^"]*)"')


@pytest.fixture
async def world(make_world):
    return await make_world(cluster=FakeCluster())


async def test_each_file_is_served_as_what_it_is(world):
    kinds = {"/": "text/html; charset=utf-8", "css": "text/css; charset=utf-8",
             "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}  # fmt: skip
    assert {path.rpartition(".")[2] for path in PATHS} == set(kinds)
    for path in PATHS:
        status, headers, body = await world.get(path)
        assert (status, headers["Content-Type"]) == (200, kinds[path.rpartition(".")[2]])
        name = "index.html" if path == "/" else path.rpartition("/")[2]
        assert body == (FOLDER / name).read_bytes()
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-cache"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        async with world.http.head(world.url(path)) as response:
            assert (response.status, await response.read()) == (200, b"")
    assert (await world.post("/", {}))[0] == 405


async def test_what_a_browser_has_already_is_not_sent_again(world):
    _, headers, _ = await world.get("/")
    tag = headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        status, headers, body = await world.get("/", headers={"If-None-Match": known})
        assert (status, body, headers["ETag"]) == (304, b"", tag)
        assert "Content-Security-Policy" in headers
    for other in ('"other"', "nonsense", ""):
        assert (await world.get("/", headers={"If-None-Match": other}))[0] == 200
    tags = {(await world.get(path))[1]["ETag"] for path in PATHS}
    assert len(tags) == len(PATHS)


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/index.html", "/page/../auth.py", "/page/%2e%2e/auth.py",
     "/page/page.py", "/index.html"],
)  # fmt: skip
async def test_nothing_else_is_served(world, path):
    answer = await world.raw(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 404 ")


async def test_without_a_cluster_there_is_no_page(make_world):
    world = await make_world()
    assert {(await world.get(path))[0] for path in PATHS} == {404}


async def test_it_needs_no_key_unless_an_operator_wants_it_to(make_world):
    world = await make_world(cluster=FakeCluster(), api_keys=["secret"], public_paths=PUBLIC)
    assert {(await world.get(path))[0] for path in PATHS} == {200}
    closed = await make_world(
        cluster=FakeCluster(), api_keys=["secret"], public_paths=PUBLIC - {"/"}
    )
    assert {(await closed.get(path))[0] for path in PATHS} == {401}


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/cluster/watch"])
async def test_other_names_and_other_pages_are_kept_away_where_no_key_does_it(make_world, path):
    """Else a page that binds its name to this address could read all of it, and chat."""
    guard = AdminGuard(["k"], ["gateway.lan"])
    world = await make_world(cluster=FakeCluster(), admin=guard)
    keyed = await make_world(
        cluster=FakeCluster(), admin=guard, api_keys=["s"], public_paths=PUBLIC
    )
    cases = [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "http://evil.example"}, 403),
        ({"Host": "gateway.lan:8000"}, 200),
        ({"Host": "[::1]:8000", "Origin": "http://[::1]:8000"}, 200),
        ({"Host": "localhost"}, 200),
    ]
    for headers, expected in cases:
        async with world.http.get(world.url(path), headers=headers) as response:
            assert response.status == expected, headers
        key = {"Authorization": "Bearer s"}
        async with keyed.http.get(keyed.url(path), headers=headers | key) as response:
            assert response.status == 200, "who has a key may come by any name"


async def test_a_page_that_bound_its_name_to_this_address_cannot_chat_where_there_is_no_key(
    make_world,
):
    world = await make_world(admin=AdminGuard(["k"], ["gateway.lan"]))
    keyed = await make_world(admin=AdminGuard(["k"]), api_keys=["s"])
    foreign = {"Host": "evil.example", "Origin": "http://evil.example"}
    cases = [
        (world, foreign, 403),
        (world, {"Host": "localhost", "Origin": "http://localhost"}, 404),
        (world, {"Host": "127.0.0.1", "Origin": "chrome-extension://abc"}, 404),
        (world, {"Host": "balancer.example"}, 404),
        (keyed, foreign | {"Authorization": "Bearer s"}, 404),
    ]
    for asked, headers, expected in cases:
        body = {"model": "nobody", "messages": [{"role": "user", "content": "x"}]}
        status, _, told = await asked.post("/v1/chat/completions", body, headers=headers)
        assert status == expected, (headers, told)


def test_everything_a_file_refers_to_is_there_and_ours():
    files = {file.name: file.read_text() for file in FOLDER.iterdir()}
    for name, text in files.items():
        for target in LINK.findall(text):
            assert target.removeprefix("page/").removeprefix("./") in files, (name, target)
    assert not re.search(r"<script(?![^>]*src)|<style|\son\w+=|\sstyle=", files["index.html"])
    preloaded = set(re.findall(r'modulepreload" href="page/([^"]*)"', files["index.html"]))
    scripts = {name for name in files if name.endswith(".js")}
    assert preloaded == scripts - {"page.js"}, "or they would be fetched one after the other"


def test_what_is_told_gets_in_as_text_only():
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|setHTML"
    for file in FOLDER.glob("*.js"):
        assert not re.search(banned, file.read_text()), file.name


def test_the_page_stays_small():
    sizes = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert sum(sizes.values()) < 64_000
    assert all(len(file.read_text().splitlines()) <= 300 for file in FOLDER.iterdir())


def test_a_wheel_has_it():
    root = Path(module.__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = data["tool"]["setuptools"]["package-data"]["blitzgw"]
    packaged = {file for pattern in patterns for file in (root / "blitzgw").glob(pattern)}
    assert set(FOLDER.iterdir()) <= packaged


SCHEMES = {"light": 0, "dark": 1}
TEXTS = ("ink", "soft", "good", "busy", "warn", "bad")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_stand_out_from_what_they_stand_on(scheme):
    """4.5 : 1, as WCAG 2.2 wants of texts of this size."""
    css = (FOLDER / "page.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", css.split("@media")[SCHEMES[scheme]]))
    for text in TEXTS:
        for ground in ("sheet", "ground"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["on-main"], colours["main"]) >= 4.5


def contrast(one, other):
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
