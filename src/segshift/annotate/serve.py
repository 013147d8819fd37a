"""`segshift annotate`: everything is checked first, then the page is served on this computer until Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import importlib
import ipaddress
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

from segshift.annotate.beside import TOKEN_BYTES, Beside
from segshift.annotate.folder import open_folder
from segshift.annotate.suggestions import Suggestions
from segshift.annotate.work import Work
from segshift.data.classes import read_classes
from segshift.errors import UserError
from segshift.weak.store import WeakStore

DEFAULT_PORT = 8765

MISSING = UserError(
    "labelling in the browser needs the packages starlette and uvicorn",
    remedy="pip install 'segshift[web]', from a checkout: pip install -c constraints.txt -e '.[web]'",
)


def annotate(
    images: Path,
    classes: Path,
    out: Path,
    *,
    suggest: Path | None = None,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    who: str | None = None,
    browse: bool = True,
    device: str = "auto",
    say: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        images: folder of images.
        classes: file with the class list.
        out: file of labels; what it holds is gone on with.
        suggest: a run, one of its stages, or a model's folder, whose predicted tags are shown as suggestions.
        host: a loopback address.
        port: 0 takes any free one.
        who: is labelling; written into each label.
        browse: open the page in the browser, if there is a desktop.
        device: for `suggest`.
        say: prints a line.

    Raises:
        UserError: before anything is served: a folder, file, port or model cannot be used.
    """
    try:
        importlib.import_module("uvicorn")
        importlib.import_module("starlette")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "starlette"):
            raise
        raise MISSING from error
    listed, folder = read_classes(classes), open_folder(images)
    _check_out(out)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_listening(host, port))
        beside = Beside(out)
        stack.callback(beside.close)
        work = Work(folder, listed, WeakStore(out), beside, who)
        suggestions = None
        if suggest is not None:
            say(f"loading {suggest} for suggestions")
            first = set(folder.names) - set(work.done())
            suggestions = Suggestions(suggest, folder, listed, beside.folder, first, device)
            stack.callback(suggestions.stop)
        standing = work.progress()
        say(f"{standing.labelled} of {standing.total} images are labelled in {out}")
        _serve(work, suggestions, beside.token(), listening, f"http://{_shown(host)}", browse, say)
        standing = work.progress()
        say(f"{standing.labelled} of {standing.total} images are labelled: {out.resolve()}")


def _serve(
    work: Work, suggestions: Suggestions | None, token: str, listening: socket.socket, scheme: str, browse: bool,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Answer requests until Ctrl-C."""
    import uvicorn

    from segshift.annotate.app import build_app

    once = secrets.token_urlsafe(TOKEN_BYTES)
    config = uvicorn.Config(
        build_app(work, token, suggestions, once=once),
        http="h11", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    address = f"{scheme}:{listening.getsockname()[1]}"
    with contextlib.suppress(KeyboardInterrupt):
        say(f"open {address}/{token}/")
        if os.environ.get("SSH_CONNECTION"):
            own, end = listening.getsockname()[1], scheme.removeprefix("http://")
            say(f"from the computer that you sit at: first ssh -L {own}:{end}:{own} {socket.gethostname()}")
        say("stop with Ctrl-C; every action is saved at once. The same command goes on, with the same link")
        if browse and _has_desktop():
            webbrowser.open(f"{address}/{once}")
        uvicorn.Server(config).run(sockets=[listening])


def _check_out(out: Path) -> None:
    """Refuse a file that could not be written later."""
    parent = out.absolute().parent
    if not parent.is_dir():
        what = "is no folder" if parent.exists() else "does not exist"
        raise UserError(
            f"--out {out}: the folder {parent} {what}", "a file in a folder that exists", f"mkdir -p {parent}"
        )
    if out.is_dir():
        raise UserError(f"--out {out} is a folder", "a file", f"--out {out / 'weak.jsonl'}")
    if not os.access(out if out.exists() else parent, os.W_OK) or not os.access(parent, os.W_OK):
        raise UserError(
            f"--out {out}: no permission to write there", "a writable file in a writable folder", "choose another --out"
        )


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that already accepts connections.

    Raises:
        UserError: the address is not this computer's own, or the port is taken.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise UserError(
            f"--host {host} is not an address of this computer alone",
            "127.0.0.1, ::1 or localhost: whoever has the link can read the images and change the labels",
            f"to label from another computer, run there: ssh -L {port}:127.0.0.1:{port} THIS_COMPUTER",
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as listening:
        # After a crash the port is free at once; two servers on one port are still refused.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((str(address), port))
            listening.listen(128)
        except OverflowError as error:
            raise UserError(f"--port {port} is no port", "0 to 65535") from error
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise UserError(
                f"--port {port} {'is in use' if taken else 'cannot be used'}: {error.strerror}",
                "a free port",
                f"stop the program that uses it (another `segshift annotate`?), or choose --port {_other(port)}",
            ) from error
        yield listening


def _other(port: int) -> int:
    """A port to try instead: not one that only an administrator may use, nor one beyond the last."""
    return port + 1 if 1024 <= port < 65535 else DEFAULT_PORT


def _shown(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def _has_desktop() -> bool:
    """Whether a browser can be opened: on a server the text browsers that may be there would take the terminal."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
