"""The page's server: its files, the images, the state of each, and one place to send actions to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segshift.annotate.folder import NoSuchImage
from segshift.annotate.guard import Guard
from segshift.annotate.operations import Action
from segshift.annotate.pictures import picture
from segshift.annotate.suggestions import Suggestions
from segshift.annotate.work import NotSaved, Stale, Work
from segshift.errors import UserError

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class _Answers:
    """What the routes answer; each in a thread of its own, `Work` lets one at a time change something."""

    def __init__(self, work: Work, suggestions: Suggestions | None) -> None:
        self._work, self._suggestions = work, suggestions

    def session(self, request: Request) -> Response:
        """The classes, and all images in the order in which to label them."""
        ranked = self._suggestions.ranked() if self._suggestions else None
        names, done = ranked or self._work.folder.names, self._work.done()
        classes = self._work.classes
        return JSONResponse(
            {
                "classes": [
                    {"name": name, "colour": "#%02x%02x%02x" % colour}  # noqa: UP031
                    for name, colour in zip(classes.names, classes.palette, strict=True)
                ],
                "images": list(names),
                "done": "".join(str(done.get(name, 0)) for name in names),
                "ranked": ranked is not None,
                "who": self._work.who,
                "folder": str(self._work.folder.home),
                **self._standing(),
            }
        )

    def label(self, request: Request) -> Response:
        """The label of an image, or what keeps it from being labelled."""
        return JSONResponse(self._label(request.query_params.get("image", "")))

    def pulse(self, request: Request) -> Response:
        """That the server is there, and whether anything has changed."""
        return JSONResponse(self._standing())

    def picture(self, request: Request) -> Response:
        """The picture of an image."""
        name = request.query_params.get("image", "")
        tag = f'"{self._work.version(name)}"'
        # A browser asks each time, and gets the bytes only where the file has changed.
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        content, media = picture(self._work.folder.file(name))
        return Response(content, media_type=media, headers=headers)

    def act(self, action: Action) -> Response:
        """Apply and save an action."""
        try:
            self._work.act(action)
        except Stale:
            return JSONResponse({"stale": True, "label": self._label(action.image), **self._standing()}, 409)
        return JSONResponse({"label": self._label(action.image), **self._standing()})

    def _standing(self) -> dict[str, Any]:
        progress = self._work.progress()
        suggestions = self._suggestions
        return {
            "total": progress.total,
            "labelled": progress.labelled,
            "complete": progress.complete,
            "median": progress.median,
            "stamp": progress.stamp,
            "suggest": suggestions and suggestions.standing(),
        }

    def _label(self, name: str) -> dict[str, Any]:
        state = self._work.state(name)
        about = self._work.header(name)
        suggested = self._suggestions.of(name) if self._suggestions else None
        return {
            "image": name,
            "file": self._work.version(name),
            "revision": state.revision,
            "tags": list(state.tags),
            "points": [[x, y, c] for x, y, c in state.points],
            "complete": state.complete,
            "dismissed": list(state.dismissed),
            "suggested": suggested and list(suggested),
            "size": list(about.size),
            "turned": about.turned,
            "note": self._work.note(name),
        }


def _wrong(error: UserError, status: int) -> Response:
    return JSONResponse({"found": error.found, "wanted": error.wanted, "remedy": error.remedy}, status)


def _told(answer: Callable[[Any], Response], about: Request | Action) -> Response:
    """An answer; errors are answers too. 503: it may go well later, 422: it will not."""
    try:
        return answer(about)
    except NotSaved as error:
        return _wrong(error, 503)
    except NoSuchImage as error:
        return _wrong(error, 404)
    except UserError as error:
        return _wrong(error, 422)
    except OSError as error:
        return _wrong(UserError(f"the file cannot be read: {error.strerror}"), 422)


def _file(content: bytes, media: str, request: Request) -> Response:
    return Response(content, media_type=media, headers={"Cache-Control": "no-cache"})


def build_app(work: Work, token: str, suggestions: Suggestions | None = None, *, once: str | None = None) -> Guard:
    """The whole application (ASGI), all of it behind the token.

    Args:
        work: the labels and images.
        token: first part of every path.
        suggestions: tags that a model predicts; None: no model was named.
        once: see `Guard`.
    """
    answers = _Answers(work, suggestions)
    asked: Mapping[str, Callable[[Request], Response]] = {
        "/api/session": answers.session,
        "/api/label": answers.label,
        "/api/pulse": answers.pulse,
        "/api/picture": answers.picture,
    }
    routes = [Route(path, partial(_told, answer), methods=["GET"]) for path, answer in asked.items()]

    async def act(request: Request) -> Response:
        try:
            action = Action.model_validate_json(await request.body())
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            return _wrong(UserError(f"no action: {where} {error.errors()[0]['msg']}", "", "reload the page"), 400)
        return await run_in_threadpool(_told, answers.act, action)

    routes.append(Route("/api/act", act, methods=["POST"]))
    for file in sorted(PAGE.iterdir()):
        path = "/" if file.name == "index.html" else f"/{file.name}"
        routes.append(Route(path, partial(_file, file.read_bytes(), TYPES[file.suffix]), methods=["GET"]))
    application = Starlette(routes=routes)
    # It would send the browser to a path without the token.
    application.router.redirect_slashes = False
    return Guard(application, token, once)
