"""The server of the page: what it answers, what it saves, and what it refuses (at the level of HTTP)."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from annotate_site import CLASSES, Client, Site, lines, make_site, name_of, point, serving, tag
from PIL import Image

from segshift.annotate.guard import LARGEST
from segshift.weak.store import Point

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!doctype html><script>alert(1)</script>"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """All tests of a worker share it: none may count on what another saved, or on nothing being saved."""
    site = make_site(root := tmp_path_factory.mktemp("site"), 4)
    (root / "secret.jpg").write_bytes((site.images / name_of(1)).read_bytes())
    (site.images / "out.jpg").symlink_to(root / "secret.jpg")
    (site.images / "deep").mkdir()
    shutil.copy(site.images / name_of(0), site.images / "deep" / "in.png")
    (site.images / "alias.png").symlink_to("deep/in.png")
    (site.images / "svg.jpg").write_bytes(SVG)
    (site.images / "html.jpg").write_bytes(HTML)
    # Kinds that Pillow could open, one of them by running a program.
    Image.new("RGB", (9, 9)).save(site.images / "pcx.jpg", "PCX")
    Image.new("RGB", (9, 9)).save(site.images / "eps.jpg", "EPS")
    (site.images / "cut.png").write_bytes((site.images / name_of(0)).read_bytes()[:200])
    return site


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[Client]:
    with serving(site, who="Ann") as client:
        yield client


# ---- what it answers


def test_session(client: Client) -> None:
    session = client.get("api/session").json
    assert [entry["name"] for entry in session["classes"]] == list(CLASSES)
    assert session["classes"][0]["colour"] == "#804080"
    others = ["alias.png", "cut.png", "deep/in.png", "eps.jpg", "html.jpg", "pcx.jpg", "svg.jpg"]
    assert session["images"] == [*map(name_of, range(4)), *others]
    assert len(session["done"]) == len(session["images"])
    assert session["suggest"] is None
    assert not session["ranked"]


def test_actions_are_saved_as_they_come(tmp_path: Path) -> None:
    site, name = make_site(tmp_path, 4), name_of(2)
    with serving(site, who="Ann") as client:
        assert client.act(name, tag("sky"), visit="a", seconds=2.0).status == 200
        assert lines(site.out)[-1] | {"when": ""} == {
            "image": name, "tags": ["sky"], "complete": False, "size": [1600, 900], "who": "Ann", "when": "",
        }  # fmt: skip
        # A point brings its tag; tags stand in the order of the class list.
        client.act(name, point("road", 10, 20))
        assert site.labels[name].tags == ("road", "sky")
        assert site.labels[name].points == (Point(10, 20, "road"),)
        done = client.act(name, {"kind": "complete", "value": True}, visit="a", seconds=6.0).json
        assert site.labels[name].complete
        assert done["label"]["complete"]
        assert (done["labelled"], done["complete"], done["median"]) == (1, 1, 6.0)
        # A tag that goes takes its points with it; what says nothing takes the label back.
        assert client.get("api/session").json["done"] == "0020"
        client.act(name, tag("road", False), tag("sky", False), {"kind": "complete", "value": False})
        assert site.labels[name].empty
        assert client.get("api/pulse").json["labelled"] == 0


def test_nothing_is_written_where_nothing_changes(site: Site, client: Client) -> None:
    client.act(name_of(0), tag("pole"))
    before = site.saved
    assert client.act(name_of(0), tag("pole"), tag("sky", False), point("sky", 3, 3, False)).status == 200
    assert site.saved == before


def test_a_stale_action_is_refused_with_the_present_state(site: Site, client: Client) -> None:
    name = name_of(1)
    old = client.label(name)["revision"]
    client.act(name, tag("fence"))
    before = site.saved
    late = client.act(name, tag("sign"), base=old)
    assert late.status == 409
    assert late.json["label"]["tags"] == ["fence"]
    assert site.saved == before
    assert client.act(name, tag("sign"), base=late.json["label"]["revision"]).json["label"]["tags"] == ["fence", "sign"]


@pytest.mark.parametrize(
    ("op", "why"),
    [
        (tag("tree"), "no class is called 'tree'"),
        (point("sky", 320, 5), "outside of the image"),
        (point("sky", -1, 5), "outside of the image"),
        (point("sky", 7, 7), "a point of road at this pixel already"),
    ],
)
def test_what_cannot_be_is_refused(site: Site, client: Client, op: dict[str, object], why: str) -> None:
    client.act(name_of(0), point("road", 7, 7))
    before = site.saved
    answer = client.act(name_of(0), tag("person"), op)
    assert answer.status == 422
    assert why in answer.json["found"]
    assert site.saved == before, "all operations of an action, or none"


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"[]", b"null", b"\xff", {"image": "a"}, {"image": 1, "base": "", "ops": []},
        {"image": "00.png", "base": "", "ops": [{"kind": "format disk"}]},
        {"image": "00.png", "base": "", "ops": [{**tag("sky"), "more": 1}]},
        {"image": "00.png", "base": "", "ops": [{**point("sky", 1, 1), "x": "1"}]},
        {"image": "00.png", "base": "", "ops": [point("sky", float("nan"), 1)]},
        {"image": "00.png", "base": "", "ops": [], "seconds": -1},
        {"image": "00.png", "base": "", "ops": [tag("sky")] * 1001},
    ],
)  # fmt: skip
def test_what_is_no_action_is_refused(client: Client, content: object) -> None:
    answer = client.post(content)
    assert answer.status == 400
    assert answer.json["found"].startswith("no action")


def test_pictures(site: Site, client: Client) -> None:
    for name, media in (("00.png", "image/png"), ("01.jpg", "image/jpeg")):
        answer = client.get(f"api/picture?image={name}")
        assert answer.headers["content-type"] == media
        assert answer.body == (site.images / name).read_bytes()
        again = client.get(f"api/picture?image={name}", If_None_Match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")
    # Links that stay inside are as good as files.
    assert client.get("api/picture?image=alias.png").status == 200
    assert client.get("api/picture?image=deep/in.png").status == 200


def test_a_damaged_image_says_so(client: Client) -> None:
    for question in ("picture", "label"):
        answer = client.get(f"api/{question}?image=cut.png")
        assert answer.status == 422
        assert "cut.png cannot be decoded (truncated)" in answer.json["found"]
    assert client.post({"image": "cut.png", "base": "", "ops": [tag("sky")]}).status in (409, 422)


def test_the_page_asks_nobody_else(client: Client) -> None:
    for file, media in (("", "text/html"), ("main.js", "text/javascript"), ("style.css", "text/css")):
        answer = client.get(file)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(media)
        text = answer.body.decode()
        assert "http://" not in text
        assert "https://" not in text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]


# ---- what it refuses

OUTSIDE = [
    "../secret.jpg", "..%2fsecret.jpg", "%2e%2e/secret.jpg", "images/../../secret.jpg", "deep/../../secret.jpg",
    "..\\secret.jpg", "./00.png", "//00.png", "00.png%00", "out.jpg", "", "deep", ".", "/etc/passwd",
    "file:///etc/passwd", "%252e%252e/secret.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("question", ["picture", "label"])
def test_nothing_outside_of_the_folder(site: Site, client: Client, name: str, question: str) -> None:
    for path in (name, quote(str(site.root / "secret.jpg"))):
        answer = client.get(f"api/{question}?image={path}")
        assert answer.status == 404
        assert answer.json["found"] == "no such image"


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "page/../app.py", "../app.py", "%2e%2e/app.py",
        "main.js/../../app.py", "main.js%00.png", "/etc/passwd", "api", "api/", "style.css/", ".", "..",
    ],
)  # fmt: skip
def test_no_file_of_the_server(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status == 404
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def test_a_link_that_is_turned_outwards_later(site: Site, client: Client) -> None:
    link = site.images / "alias.png"
    assert client.get("api/picture?image=alias.png").status == 200
    link.unlink()
    link.symlink_to(site.root / "secret.jpg")
    try:
        for question in ("picture", "label"):
            answer = client.get(f"api/{question}?image=alias.png")
            assert answer.status == 422
            assert "leads out of" in answer.json["found"]
    finally:
        link.unlink()
        link.symlink_to("deep/in.png")


@pytest.mark.parametrize("name", ["svg.jpg", "html.jpg", "pcx.jpg", "eps.jpg"])
def test_documents_that_call_themselves_images(client: Client, name: str) -> None:
    answer = client.get(f"api/picture?image={name}")
    assert answer.status == 422
    assert answer.headers["content-type"] == "application/json"
    assert b"<script" not in answer.body


def test_a_jpeg_that_is_a_page_too_stays_a_jpeg(site: Site, client: Client) -> None:
    """Both at once: shown as what it is declared to be, and nothing may guess."""
    jpeg = (site.images / name_of(3)).read_bytes()
    try:
        (site.images / name_of(3)).write_bytes(jpeg + HTML)
        answer = client.get(f"api/picture?image={name_of(3)}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    finally:
        (site.images / name_of(3)).write_bytes(jpeg)


@pytest.mark.parametrize("token", ["", "wrong", "%s.", "%s%%00", "x%s", "%%2f%s", "./%s", "TOKEN"])
def test_no_answer_without_the_token(client: Client, token: str) -> None:
    token = token.replace("%s", client.token).replace("%%", "%") if "%s" in token else token
    for path in ("", "main.js", "api/session", "api/picture?image=00.png"):
        answer = client.ask(f"/{token}/{path}" if token else f"/{path}")
        assert answer.status == 403
        assert client.token.encode() not in answer.body
    body = json.dumps({"image": "00.png", "base": client.label("00.png")["revision"], "ops": [tag("sky")]}).encode()
    headers = {"Origin": f"http://127.0.0.1:{client.port}", "Content-Type": "application/json"}
    assert client.ask(f"/{token}/api/act", "POST", body, headers).status == 403


def test_the_token_is_long_and_kept_from_others(site: Site, client: Client) -> None:
    assert len(client.token) >= 32
    kept = site.out.with_name("weak.jsonl.annotate") / "token"
    assert kept.read_text() == client.token
    assert os.stat(kept).st_mode & 0o077 == 0


def test_the_last_slash_of_the_link_may_be_missing(client: Client) -> None:
    answer = client.ask(f"/{client.token}")
    assert (answer.status, answer.headers["location"]) == (307, f"/{client.token}/")


def test_the_path_for_the_browser_leads_in_once(tmp_path: Path) -> None:
    with serving(make_site(tmp_path, 1), once="once-only") as client:
        assert client.ask("/once-only", "POST", b"{}").status == 403
        first = client.ask("/once-only")
        assert (first.status, first.headers["location"]) == (303, f"/{client.token}/")
        assert client.ask("/once-only").status == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "", "http://evil.example", "http://127.0.0.1", "https://127.0.0.1:{port}",
               "http://localhost:{port}", "http://127.0.0.1:{port}.evil.example", "http://127.0.0.1:1"],
)  # fmt: skip
def test_posts_of_other_origins(site: Site, client: Client, origin: str | None) -> None:
    before = site.saved
    base = client.label("00.png")["revision"]
    content = {"image": "00.png", "base": base, "ops": [tag("bicyclist")]}
    answer = client.post(content, Origin=origin.format(port=client.port) if origin else origin)
    assert answer.status == 403
    assert site.saved == before


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_posts_that_a_form_could_send(client: Client, kind: str | None) -> None:
    """A browser sends these to any site without asking it first."""
    assert client.post({"image": "00.png", "base": "", "ops": []}, Content_Type=kind).status == 415


@pytest.mark.parametrize("site_of", ["cross-site", "same-site"])
def test_requests_of_other_sites(client: Client, site_of: str) -> None:
    """`same-site`: another port of this computer is the same site for a browser, but another program."""
    for path in ("", "main.js", "api/session", "api/picture?image=00.png"):
        assert client.get(path, Sec_Fetch_Site=site_of, Sec_Fetch_Mode="no-cors").status == 403
    # A link that a person follows from a chat or a notebook opens the page, and only that.
    assert client.get("", Sec_Fetch_Site=site_of, Sec_Fetch_Mode="navigate").status == 200
    assert client.get("api/session", Sec_Fetch_Site=site_of, Sec_Fetch_Mode="navigate").status == 403


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example",
             "127.0.0.1@evil.example", "192.168.0.1", "0.0.0.0", "[::2]", "127.0.0.1:x", "evil.example#127.0.0.1"],
)  # fmt: skip
def test_names_that_are_pointed_here(client: Client, host: str | None) -> None:
    """DNS rebinding: the page of evil.example asks for its own name, which by now means 127.0.0.1."""
    for path in (f"/{client.token}/", f"/{client.token}/api/session"):
        assert client.ask(path, headers={"Host": host}).status in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:8765", "127.0.0.1:9", "[::1]:8765", "LOCALHOST:80"])
def test_own_names(client: Client, host: str) -> None:
    """Also the other end of an ssh tunnel, at a port of its own."""
    assert client.ask(f"/{client.token}/api/pulse", headers={"Host": host}).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods(client: Client, method: str) -> None:
    answer = client.ask(f"/{client.token}/api/act", method)
    assert answer.status == 405
    assert "access-control-allow-origin" not in answer.headers


def test_a_long_post_by_its_declared_length(site: Site, client: Client) -> None:
    """100 MB are announced: the answer comes before any of them is read."""
    before = site.saved
    answer = client.post(b"", Content_Length=str(100 * 2**20))
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    assert client.post(b"{}", Content_Length=str(LARGEST + 1)).status == 413
    assert site.saved == before


def test_a_long_post_without_a_length(client: Client) -> None:
    """100 MB in pieces: the server hangs up early, and does not hold them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with socket.create_connection(("127.0.0.1", client.port), timeout=90) as wire:
        wire.sendall(
            f"POST /{client.token}/api/act HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n"
            f"Origin: http://127.0.0.1:{client.port}\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece, sent, said = b"10000\r\n" + b"x" * 65536 + b"\r\n", 0, b""
        try:
            while sent < 100 * 2**20:
                wire.sendall(piece)
                sent += 65536
        except OSError:
            pass
        try:
            said = wire.recv(4096)
        except ConnectionResetError:
            said = b"HTTP/1.1 413"  # it hung up so early that its answer was thrown away here
    assert said.startswith(b"HTTP/1.1 413")
    assert sent < 20 * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
    assert client.get("api/pulse").status == 200


def test_errors_show_nothing_of_the_inside(client: Client) -> None:
    for answer in (client.get("nothing"), client.post(b"\x00"), client.ask("/"), client.get("api/label")):
        assert b"Traceback" not in answer.body
        assert b"/src/" not in answer.body


def test_kinds_of_images(site: Site, tmp_path: Path) -> None:
    """What browsers do not show, or would show otherwise than segshift reads it, is written anew."""
    from segshift.annotate.pictures import header, picture
    from segshift.data.images import open_image

    upright = Image.open(site.images / name_of(0)).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6

    def save_turned(path: Path) -> None:
        upright.save(path, exif=turned)

    made: dict[str, Callable[[Path], None]] = {
        "turned.jpg": save_turned, "turned.png": save_turned, "turned.tif": save_turned, "a.tif": upright.save,
        "a.bmp": upright.save, "a.webp": upright.save, "a.ppm": upright.save, "grey.png": upright.convert("L").save,
        "alpha.png": upright.convert("RGBA").save, "cmyk.jpg": upright.convert("CMYK").save,
        "sixteen.png": upright.convert("I;16").save, "gif.jpg": lambda path: upright.save(path, "GIF"),
    }  # fmt: skip
    plain = {"grey.png": "image/png"}
    for name, save in made.items():
        path = tmp_path / name
        save(path)
        about, read = header(path), open_image(path)
        content, media = picture(path)
        assert about.turned == (name in ("turned.jpg", "turned.png")), name
        assert about.size == read.size, name
        assert media == plain.get(name, "image/jpeg"), name
        (tmp_path / "shown").write_bytes(content)
        shown = Image.open(tmp_path / "shown")
        assert shown.size == read.size, name
        assert shown.getexif().get(0x0112, 1) == 1, name
        difference = [abs(a - b) for a, b in zip(shown.convert("RGB").tobytes(), read.tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 4, name
