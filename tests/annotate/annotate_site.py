"""A folder of small images to label, and servers of its page: one in this process, and real ones that can be killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from PIL import Image

from segshift.annotate.app import build_app
from segshift.annotate.beside import Beside
from segshift.annotate.folder import open_folder
from segshift.annotate.work import Work
from segshift.data.classes import make_classes
from segshift.weak.store import WeakLabel, WeakStore
from workbench import environment

CLASSES = (
    "road", "sidewalk", "building", "fence", "pole", "sign", "vegetation", "sky", "person", "vehicle", "bicyclist",
)  # fmt: skip
MARKER = (0, 255, 0)
"""Colour of the square that marks a pixel; no class has it, the rest of the images is grey."""

COUNT = 20


def marked(width: int, height: int, column: int, row: int, seed: int = 0) -> np.ndarray:
    """A grey image, (height, width, 3), with a square of `MARKER` around one pixel; large images get a large one."""
    grey = np.random.default_rng(seed).integers(70, 190, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    image = np.repeat(np.kron(grey, np.ones((8, 8), np.uint8))[:height, :width, None], 3, axis=2)
    half = max(width, height) // 320 + 1
    image[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1] = MARKER
    return image


def marker(i: int) -> tuple[int, int, int, int]:
    """Width and height of image i, and column and row of its marker: never far from where a mouse would not go."""
    rng = np.random.default_rng(100 + i)
    width, height = ((320, 240), (480, 360), (1600, 900), (300, 500))[i % 4]
    return width, height, int(rng.integers(20, width - 20)), int(rng.integers(20, height - 20))


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Site:
    """Images in root/images, the class list in root/classes.txt, labels in root/weak.jsonl."""

    root: Path
    process: subprocess.Popen[str] | None = None
    link: str = ""
    port: int = 0
    args: list[str] = field(default_factory=list)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def out(self) -> Path:
        return self.root / "weak.jsonl"

    @property
    def saved(self) -> bytes:
        """Of the file of labels; before the first label there is none."""
        return self.out.read_bytes() if self.out.exists() else b""

    @property
    def classes(self) -> Path:
        return self.root / "classes.txt"

    @property
    def store(self) -> WeakStore:
        return WeakStore(self.out)

    @property
    def labels(self) -> dict[str, WeakLabel]:
        return self.store.read() if self.out.exists() else {}

    def command(self, *args: str) -> list[str]:
        """What a person types."""
        return ["annotate", "--images", str(self.images), "--classes", str(self.classes), "--out", str(self.out), *args]

    # ---- a process of its own

    def start(self, *args: str) -> str:
        """Start the command as a process, at the port of the time before; returns the link that it prints."""
        self.args, self.port = list(args) or self.args, self.port or free_port()
        command = [sys.executable, "-m", "segshift", *self.command("--no-open", "--port", str(self.port), *self.args)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        said = ""
        for line in self.process.stdout or ():
            said += line
            found = re.search(r"open (http://[\d.]+:(\d+)/\S+)", line)
            if found:
                self.link, self.port = found[1], int(found[2])
                return self.link
        raise AssertionError(f"no server: {said}")

    def kill(self) -> None:
        """kill -9."""
        self.end(signal.SIGKILL)

    def end(self, with_signal: signal.Signals = signal.SIGINT) -> str:
        """Stop the process; returns what it printed since its link."""
        if self.process is None:
            return ""
        self.process.send_signal(with_signal)
        said, _ = self.process.communicate(timeout=90)
        self.process = None
        return said


def free_port() -> int:
    """A port that nobody has, of those that no system gives away: while a killed server is away from one of the others,
    the next connection of any program may take it."""
    for port in random.sample(range(20_000, 32_000), 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("50 ports are in use")


def make_site(root: Path, count: int = COUNT) -> Site:
    """A folder with images 00.png, 01.jpg, 02.png … each with its marker."""
    site = Site(root)
    site.images.mkdir(parents=True)
    site.classes.write_text("\n".join(CLASSES))
    for i in range(count):
        Image.fromarray(marked(*marker(i), seed=i)).save(site.images / name_of(i), quality=95, subsampling=0)
    return site


def name_of(i: int) -> str:
    """File name of image i; every second one is a JPEG."""
    return f"{i:02}.{'jpg' if i % 2 else 'png'}"


@dataclass
class Client:
    """Requests to a server, exactly as they are given: nothing is tidied up on the way."""

    port: int
    token: str

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str | None] | None = None
    ) -> Reply:
        """A request; a header that is None is not sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        with contextlib.closing(connection):
            sent = {"Host": f"127.0.0.1:{self.port}", **(headers or {})}
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if body is not None and "Content-Length" not in sent:
                sent["Content-Length"] = str(len(body))
            for key, value in sent.items():
                if value is not None:
                    connection.putheader(key, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def get(self, path: str, **headers: str | None) -> Reply:
        """A request behind the token."""
        return self.ask(f"/{self.token}/{path}", headers={k.replace("_", "-"): v for k, v in headers.items()})

    def post(self, content: Any, **headers: str | None) -> Reply:
        """An action, as the page sends it."""
        own: dict[str, str | None] = {
            "Origin": f"http://127.0.0.1:{self.port}",
            "Content-Type": "application/json",
        }
        own |= {key.replace("_", "-"): value for key, value in headers.items()}
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.ask(f"/{self.token}/api/act", "POST", body, own)

    def label(self, image: str) -> Any:
        return self.get(f"api/label?image={image}").json

    def act(self, image: str, *ops: Mapping[str, Any], base: str | None = None, **more: Any) -> Reply:
        """Send operations, by default meant for the present state."""
        base = base or self.label(image)["revision"]
        return self.post({"image": image, "base": base, "ops": list(ops), **more})


def tag(name: str, present: bool = True) -> dict[str, Any]:
    return {"kind": "tag", "name": name, "present": present}


def point(name: str, x: float, y: float, present: bool = True) -> dict[str, Any]:
    return {"kind": "point", "name": name, "x": x, "y": y, "present": present}


@contextlib.contextmanager
def serving(site: Site, who: str | None = None, suggestions: Any = None, once: str | None = None) -> Iterator[Client]:
    """The application on a real socket, in a thread of this process."""
    beside = Beside(site.out)
    work = Work(open_folder(site.images), make_classes(CLASSES), site.store, beside, who)
    token = beside.token()
    app = build_app(work, token, suggestions, once=once)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None))
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Client(listening.getsockname()[1], token)
        finally:
            server.should_exit = True
            thread.join(90)
            beside.close()


def until(met: Any, seconds: float = 90.0) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def lines(out: Path) -> Sequence[dict[str, Any]]:
    """The lines of a labels' file as they are."""
    return [json.loads(line) for line in out.read_text().splitlines()]
