"""The command before it serves anything: what it refuses, what it says, how it ends."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from annotate_site import Site, make_site

from segshift.annotate.beside import Beside
from segshift.annotate.folder import open_folder
from segshift.weak.store import WeakLabel
from workbench import SCREEN, segshift


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, 3)


def told(site: Site, *args: str, **changed: Any) -> str:
    """The message of a command that is refused; nothing is served."""
    command = site.command("--no-open", "--port", "0", *args)
    for option, value in changed.items():
        command[command.index(f"--{option}") + 1] = str(value)
    with mock.patch("uvicorn.Server.run", side_effect=AssertionError("it serves")):
        outcome = segshift(*command)
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    rows = outcome.message.splitlines()
    assert len(rows) <= SCREEN[0]
    return " ".join(rows)


def test_folders(site: Site, tmp_path: Path) -> None:
    assert "does not exist" in told(site, images=tmp_path / "image")
    assert "did you mean 'images'?" in told(site, images=tmp_path / "image")
    assert "is a file" in told(site, images=site.classes)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme.txt").write_text("no image")
    assert "no image in" in told(site, images=tmp_path / "none")


def test_two_images_of_one_name(site: Site) -> None:
    (site.images / "00.jpg").write_bytes(b"")
    assert "00.jpg" in told(site)


def test_links_that_lead_out(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").symlink_to(site.images / "00.png")
    message = told(site, images=other)
    assert "links that lead out of the folder" in message
    assert str(site.images) in message
    (other / "b.png").write_bytes((site.images / "00.png").read_bytes())
    with mock.patch("uvicorn.Server.run"):
        assert segshift(*site.command("--no-open", "--port", "0", "--images", str(other))).code == 0
    assert "left out 1 images that are links" in caplog.text


def test_names_that_no_label_can_have(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1:c.png", "a\\b.png"):
        (site.images / name).write_bytes((site.images / "00.png").read_bytes())
    assert open_folder(site.images).names == ("00.png", "01.jpg", "02.png")
    assert "left out 2 images that have names that are no text, or hold a backslash or a drive" in caplog.text
    assert "1:c.png" in caplog.text


def test_class_lists(site: Site, tmp_path: Path) -> None:
    assert "does not exist" in told(site, classes=tmp_path / "none.txt")
    assert "cannot be read" in told(site, classes=site.images / "00.png")
    site.classes.write_text("road\nroad\n")
    assert "listed twice" in told(site)


def test_places_for_labels(site: Site, tmp_path: Path) -> None:
    assert "mkdir -p" in told(site, out=tmp_path / "none" / "weak.jsonl")
    assert "is no folder" in told(site, out=site.classes / "weak.jsonl")
    assert "is a folder" in told(site, out=site.images)
    assert "--out /proc/weak.jsonl: cannot write /proc" in told(site, out="/proc/weak.jsonl")


def test_a_start_that_fails_leaves_nothing_behind(site: Site, tmp_path: Path) -> None:
    beside = tmp_path / "weak.jsonl.annotate"
    told(site, "--suggest", str(tmp_path / "run"))
    assert not beside.exists()
    site.out.write_text("rubbish\n")
    told(site)
    assert not beside.exists()
    # What a start before it has kept stays.
    beside.mkdir()
    (beside / "times.jsonl").write_text("")
    told(site)
    assert sorted(path.name for path in beside.iterdir()) == ["lock", "times.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(site: Site, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o500)
    assert "no permission" in told(site, out=tmp_path / "locked" / "weak.jsonl")


def test_files_of_labels(site: Site) -> None:
    site.out.write_text("rubbish\n")
    assert "weak.jsonl, line 1 is not JSON" in told(site)
    site.out.write_text('{"image": "00.png", "tags": ["tree"]}\n')
    assert "classes that the class list does not have: tree" in told(site)
    site.out.write_text('{"image": "00.png", "tags": []}\n{"image": "images/00.png", "tags": []}\n')
    assert "are both 00.png" in told(site)


def test_labels_of_images_that_are_gone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.store.append(WeakLabel("gone.png", ("sky",)))
    message = told(site)
    assert "labels of 1 images, and none of them is in" in message
    assert "gone.png" in message
    site.store.append(WeakLabel("00.png", ("sky",)))
    before = site.out.read_bytes()
    with mock.patch("uvicorn.Server.run"):
        outcome = segshift(*site.command("--no-open", "--port", "0"))
    assert outcome.code == 0
    assert "1 of 3 images are labelled" in outcome.out
    assert "labels of 1 images that are not in" in caplog.text
    assert "gone.png" in caplog.text
    assert site.out.read_bytes() == before


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.com", "", "127.0.0.1:80"])
def test_addresses_that_others_can_reach(site: Site, host: str) -> None:
    message = told(site, "--host", host)
    assert "is not an address of this computer alone" in message
    assert "ssh -L" in message


def test_ports(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = told(site, port=taken.getsockname()[1])
        assert "is in use" in message
        assert f"--port {taken.getsockname()[1] + 1}" in message
    assert "is no port" in told(site, port=99999)
    for port, other in ((80, 8765), (65535, 8765), (65534, 65535), (8765, 8766)):
        with mock.patch("socket.socket.bind", side_effect=OSError(errno.EADDRINUSE, "Address already in use")):
            assert f"or choose --port {other}" in told(site, port=port)


@pytest.mark.parametrize(("ssh", "says"), [("10.0.0.1 50000 10.0.0.2 22", True), ("", False)])
def test_over_ssh_it_says_how_the_link_is_reached(
    site: Site, monkeypatch: pytest.MonkeyPatch, ssh: str, says: bool
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", ssh)
    with mock.patch("uvicorn.Server.run"):
        outcome = segshift(*site.command("--port", "0"))
    (port,) = re.findall(r"open http://127\.0\.0\.1:(\d+)/", outcome.out)
    assert (f"ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}" in outcome.out) == says


def test_two_servers_on_one_file(site: Site) -> None:
    held = Beside(site.out)
    assert "is being labelled by another" in told(site)
    held.close()


def test_suggestions_of_no_run(site: Site, tmp_path: Path) -> None:
    assert "does not exist" in told(site, "--suggest", str(tmp_path / "run"))
    assert "holds no trained model" in told(site, "--suggest", str(site.images))


def test_without_the_packages(site: Site) -> None:
    for package in ("uvicorn", "starlette"):
        names = [name for name in sys.modules if name.split(".")[0] == package]
        gone: dict[str, Any] = dict.fromkeys([*names, package])
        ours = {f"segshift.annotate.{part}" for part in ("app", "guard")}
        kept = {name: module for name, module in sys.modules.items() if name not in ours}
        with mock.patch.dict(sys.modules, {**kept, **gone}, clear=True):
            outcome = segshift(*site.command("--no-open"))
        assert outcome.code == 2
        assert "pip install 'segshift[web]'" in outcome.message


def test_the_browser_is_opened_where_there_is_a_desktop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    for ssh, args, opens in (("", [], 1), ("here", [], 0), ("", ["--no-open"], 0)):
        monkeypatch.setenv("SSH_CONNECTION", ssh)
        with mock.patch("uvicorn.Server.run"), mock.patch("webbrowser.open") as opened:
            outcome = segshift(*site.command("--port", "0", *args))
        assert opened.call_count == opens
        found = re.search(r"open (http://127\.0\.0\.1:\d+/)([\w-]{32})/", outcome.out)
        assert found
        for call in opened.call_args_list:
            # Other users see the arguments of programs: the token is not among them.
            assert re.fullmatch(rf"{re.escape(found[1])}[\w-]{{32}}", call.args[0])
            assert found[2] not in call.args[0]


def test_it_ends_with_ctrl_c_and_says_what_was_done(site: Site) -> None:
    site.start()
    said = site.end()
    assert f"0 of 3 images are labelled: {site.out}" in said
    assert "Traceback" not in said
    token = (site.root / "weak.jsonl.annotate" / "token").read_text()
    # The same link again: a page that is open goes on.
    assert token in site.start()
    site.end()


def test_it_brings_no_torch() -> None:
    """It starts at once; torch belongs to the process that computes suggestions."""
    program = """
import sys
import segshift.cli, segshift.annotate.serve, segshift.annotate.app, segshift.annotate.suggestions
print(*sorted({m.partition(".")[0] for m in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "kornia", "matplotlib", "safetensors"} & set(done.stdout.split())
