"""The service's HTTP side: POST /recommend, GET /health, /metrics and /items, and a page at / to try it."""

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from genrec_rl.data.store import Dataset
from genrec_rl.decoding.serving.batching import Batcher, Overloaded, QueueLimits
from genrec_rl.decoding.serving.cache import AnswerCache
from genrec_rl.decoding.serving.counters import Counters
from genrec_rl.decoding.serving.requests import Ask, BadRequest, RecommendBody, RequestReader
from genrec_rl.decoding.serving.service import Answer, SearchService

PAGE = Path(__file__).with_name("page.html")
MAX_BODY_BYTES = 1 << 20
PAGE_POLICY = "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


class RecommendService:
    """All that one answer needs: reader, cache, line and search.

    Args:
        search: the policy behind its beams.
        reader: of the same data.
        dataset: ids and titles of the rows.
        cache: of answers.
        limits: of the line.
        facts: what ``GET /health`` says besides.
    """

    def __init__(
        self,
        search: SearchService,
        reader: RequestReader,
        dataset: Dataset,
        *,
        cache: AnswerCache[Answer],
        limits: QueueLimits,
        facts: dict[str, Any],
    ) -> None:
        self.search, self.reader, self.cache, self.facts = search, reader, cache, facts
        self.retry_after_s = math.ceil(limits.retry_after_s)  # the header holds whole seconds
        self.counters = search.counters
        self.item_ids, self.titles = dataset.item_ids, dataset.titles
        self._folded = [title.casefold() for title in dataset.titles]
        self.batcher: Batcher[Ask, Answer] = Batcher(search.answer, limits)

    async def recommend(self, body: RecommendBody) -> dict[str, Any]:
        """Answer one request.

        Raises:
            BadRequest: when it cannot be answered.
            Overloaded: when there is no room for it.
        """
        begun = time.perf_counter()
        ask = self.reader.read(body)
        self.counters.add("requests")
        self.counters.add("unknown_items", ask.unknown_items)
        answer = self.cache.get(ask.key)
        is_cached = answer is not None
        if answer is None:
            answer = await self.batcher.submit(ask)
            self.cache.keep(ask.key, answer)
        else:
            self.counters.add("cache_hits")
        seconds = time.perf_counter() - begun
        self.counters.took(seconds)
        return {
            "items": [self.describe(row) | {"score": score} for row, score in answer.items],
            "history_items": len(ask.context.history),
            "unknown_items": ask.unknown_items,
            "width": answer.width,
            "cached": is_cached,
            "milliseconds": round(seconds * 1000, 3),
        }

    def describe(self, row: int) -> dict[str, Any]:
        """Return an item as clients see it."""
        return {"item_id": self.item_ids[row], "title": self.titles[row]}

    def find_titles(self, words: str, *, limit: int) -> list[dict[str, Any]]:
        """Return the first items whose title holds all words, in the catalogue's order."""
        wanted = words.casefold().split()
        rows = (row for row, title in enumerate(self._folded) if all(word in title for word in wanted))
        return [self.describe(row) for row in islice(rows, limit)]

    def metrics(self) -> dict[str, Any]:
        """Return counts, latencies, and how things stand."""
        state = {"queue_length": len(self.batcher), "width": self.search.width, "cache_size": len(self.cache)}
        return self.counters.snapshot() | state


def create_app(service: RecommendService) -> FastAPI:
    """Return the web application; the line is worked on from its start-up to its shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.batcher.close()

    app = FastAPI(title="genrec_rl", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, counters=service.counters)
    _answer_errors(app, service)
    page = PAGE.read_text(encoding="utf-8")

    @app.post("/recommend")
    async def recommend(body: RecommendBody) -> dict[str, Any]:
        return await service.recommend(body)

    @app.get("/health")
    async def health() -> JSONResponse:
        is_running = service.batcher.is_running
        facts = {"status": "ok" if is_running else "not searching", **service.facts, "max_k": service.reader.max_k}
        return JSONResponse(facts, status_code=200 if is_running else 503)

    @app.get("/metrics")
    async def metrics() -> dict[str, Any]:
        return service.metrics()

    @app.get("/items")
    async def items(
        q: Annotated[str, Query(max_length=200)] = "", limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> dict[str, Any]:
        return {"items": service.find_titles(q, limit=limit)}

    @app.get("/", response_class=HTMLResponse)
    async def try_it() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    return app


class BodyLimit:
    """Refuses a body before it is read, where it is too large or does not say how large it is."""

    def __init__(self, app: ASGIApp, *, counters: Counters) -> None:
        self.app, self.counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Go on with the request, or answer it here."""
        refusal = None
        if scope["type"] == "http" and scope["method"] == "POST":
            length = Headers(scope=scope).get("content-length", "")
            if not length.isdecimal():
                refusal = _error("send a Content-Length header with the body", 411)
            elif int(length) > MAX_BODY_BYTES:
                refusal = _error(f"the body has {length} bytes, at most {MAX_BODY_BYTES} are read", 413)
        if refusal is not None:
            self.counters.add("rejected")
        await (refusal or self.app)(scope, receive, send)


def _answer_errors(app: FastAPI, service: RecommendService) -> None:
    """Answer errors with ``{"error": one line}``: 4xx what the client can mend, 503 what time mends, 500 ours."""

    @app.exception_handler(RequestValidationError)
    async def not_understood(_: Request, error: RequestValidationError) -> JSONResponse:
        service.counters.add("rejected")
        return _error(describe_invalid(error), 422)

    @app.exception_handler(BadRequest)
    async def bad_request(_: Request, error: BadRequest) -> JSONResponse:
        service.counters.add("rejected")
        return _error(str(error), error.status)

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> JSONResponse:
        service.counters.add(f"refused_{error.reason}")
        retry_after = service.retry_after_s
        response = _error(f"{error}; ask again in {retry_after} s", 503)
        response.headers["Retry-After"] = str(retry_after)
        return response

    @app.exception_handler(HTTPException)
    async def no_such_place(request: Request, error: HTTPException) -> JSONResponse:
        service.counters.add("rejected")
        return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        """Say that it was us; the traceback goes on to the log."""
        service.counters.add("failed")
        return _error(f"the search failed ({type(error).__name__}); the service's log says more", 500)


def describe_invalid(error: RequestValidationError) -> str:
    """Return the first thing that is wrong with a body, in one line."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"][1:]]  # (the first says that it is the body, or the query)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where[-1]}'; known are {', '.join(RecommendBody.model_fields)}"
    if first["type"] == "json_invalid":
        return f"the body is no JSON ({first.get('ctx', {}).get('error', 'cannot be read')})"
    if not where:
        return 'send a JSON body (Content-Type: application/json), such as {"history": [1, 2], "k": 10}'
    if where[-1] in ("int", "str"):  # the two kinds of ItemId
        return f"{'.'.join(where[:-1])}: an id is an integer or a string"
    return f"{'.'.join(where)}: {first['msg']}"


def _error(message: str, status: int) -> JSONResponse:
    printable = message.encode(errors="backslashreplace").decode()  # a client may send half a surrogate pair
    return JSONResponse({"error": printable}, status_code=status)
