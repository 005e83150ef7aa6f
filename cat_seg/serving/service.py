"""What is asked over HTTP, and what is answered.

FastAPI reads the annotations of endpoints where they are made, so this file keeps them as objects.
"""

import asyncio
import contextlib
import html
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from cat_seg import __version__, images
from cat_seg.errors import CATSegError, MissingPackageError
from cat_seg.model import CATSeg
from cat_seg.segmentation import Segmentation, encode_mask, save_label_map
from cat_seg.serving.batching import Batcher, Full
from cat_seg.utils.signals import ENDING, give_signals_back, take_signals
from cat_seg.vocabulary import Vocabulary

THREADS = 4  # that read pictures, encode words and write answers
_PAGE = Path(__file__).parent / "page.html"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)  # bounds of a histogram
_CHARACTERS = 100  # of a word, on average

Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        bytes: of its body.
        pixels: of its picture.
        words: names and synonyms, those of the background included.
        waiting: requests that may wait for the model; more are told to come later.
        batch: pictures that are encoded together, at most.
    """

    bytes: int = 50_000_000
    pixels: int = 50_000_000
    words: int = 1000
    waiting: int = 64
    batch: int = 8


def build(model: CATSeg, limits: Limits = Limits()) -> Any:
    """Build the service.

    Args:
        model: in evaluation mode; it is used by one thread at a time.
        limits: of each request.

    Returns:
        a `fastapi.FastAPI`, for `serve` or any ASGI server, as one process.

    Raises:
        MissingPackageError: a package of the extra is not installed.
    """
    _check_packages()
    import prometheus_client
    from fastapi import FastAPI, File, Form, HTTPException, UploadFile
    from fastapi.responses import HTMLResponse, Response

    measures = _Measures()
    batcher = Batcher(
        model, batch=limits.batch, waiting=limits.waiting, on_batch=measures.batch_done
    )
    measures.waiting.set_function(lambda: batcher.waiting)
    threads = ThreadPoolExecutor(THREADS, "cat-seg-request")

    @contextlib.asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        yield
        batcher.close()
        threads.shutdown()

    app = FastAPI(
        title="CAT-Seg",
        version=__version__,
        description="Segments a picture by any list of words.",
        docs_url=None,  # those that FastAPI has load scripts from elsewhere
        redoc_url=None,
        lifespan=life,
    )
    app.add_middleware(_Guard, most_bytes=limits.bytes, measures=measures)

    async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    def prepare(content: bytes, words: str | None, background: str) -> Any:
        vocabulary = _parse(model, words, background, limits)
        pixels = images.read(content, max_pixels=limits.pixels)
        return pixels, model.vocabulary(vocabulary)

    Text = Form(max_length=limits.words * _CHARACTERS)

    @app.post(
        "/segment",
        summary="Segment a picture by words",
        responses={
            200: {"content": {"image/png": {}}, "description": "JSON, or a picture"},
            413: {"description": "The body is too large"},
            422: {"description": "The picture or the words cannot be understood"},
            503: {"description": "Too many requests wait; try again"},
        },
    )
    async def segment(
        image: Annotated[UploadFile, File(description="a picture file")],
        words: Annotated[str | None, Text] = None,
        background: Annotated[str, Text] = "",
        threshold: Annotated[float | None, Form(ge=0, le=1)] = None,
        format: Annotated[Literal["json", "png", "overlay"], Form()] = "json",
    ) -> Any:
        """Segment `image` by `words`: classes separated by commas, synonyms by `|`.

        Without words, the model's own are taken. Words of `background` compete and are reported
        as background; pixels whose best class is less probable than `threshold` get none.
        `format`: `json` (masks in COCO's run-length encoding), `png` (a label map that holds the
        names), `overlay` (the classes drawn over the picture).
        """
        try:
            pixels, vocabulary = await in_thread(prepare, await image.read(), words, background)
            future = batcher.submit(pixels, vocabulary, threshold)
            result = await asyncio.wrap_future(future)
            content, kind = await in_thread(_answer, result, format)
        except CATSegError as error:
            raise HTTPException(422, str(error)) from error
        except Full:
            after = {"Retry-After": "1"}
            raise HTTPException(503, "Too many requests wait.", after) from None
        return content if kind is None else Response(content, media_type=kind)

    @app.get("/health", summary="Whether it is there, and with which model")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "model": model.card["name"],
            "photographs": model.card["photographs"],
            "device": str(model.device),
            "version": __version__,
            "waiting": batcher.waiting,
        }

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Any:
        text = prometheus_client.generate_latest(measures.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def page() -> Any:
        name = html.escape(str(model.card["name"] or "a model"))
        return HTMLResponse(_PAGE.read_text(encoding="utf-8").replace("MODEL", name))

    return app


def serve(app: Any, *, host: str = "127.0.0.1", port: int = 8000, grace: int = 30) -> None:
    """Serve until a signal asks for the end; what runs and waits is finished first.

    Args:
        app: of `build`.
        host: where to listen; 127.0.0.1 is this machine alone.
        port: 0 for any that is free.
        grace: seconds after which what is not finished is given up.
    """
    _check_packages()
    import uvicorn

    config = uvicorn.Config(
        app, host, port, timeout_graceful_shutdown=grace, server_header=False, log_level="warning"
    )
    before = take_signals(lambda *_: None, ENDING)  # uvicorn passes on what it has taken
    try:
        uvicorn.Server(config).run()
    finally:
        give_signals_back(before)


class _Measures:
    """What /metrics tells."""

    def __init__(self) -> None:
        import prometheus_client as prometheus

        self.registry = registry = prometheus.CollectorRegistry()
        make: dict[str, Any] = {"registry": registry, "namespace": "catseg"}
        self.requests = prometheus.Counter(
            "requests", "Requests of /segment by status.", ["status"], **make
        )
        self.seconds = prometheus.Histogram(
            "request_seconds", "Seconds of a request of /segment.", buckets=_SECONDS, **make
        )
        self.waiting = prometheus.Gauge("waiting", "Requests that wait for the model.", **make)
        self.pictures = prometheus.Histogram(
            "batch_pictures", "Pictures of a batch.", buckets=(1, 2, 4, 8, 16, 32), **make
        )
        self.busy = prometheus.Counter("model_seconds", "Seconds that the model worked.", **make)

    def batch_done(self, pictures: int, seconds: float) -> None:
        self.pictures.observe(pictures)
        self.busy.inc(seconds)


class _Guard:
    """Refuse bodies that are too large before they are read, and count what is answered."""

    def __init__(self, app: Any, most_bytes: int, measures: _Measures) -> None:
        self.app = app
        self.most_bytes = most_bytes
        self.measures = measures

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http" or scope["path"] != "/segment":
            await self.app(scope, receive, send)
            return
        from fastapi import HTTPException
        from fastapi.responses import JSONResponse

        too_large = HTTPException(413, f"At most {self.most_bytes} bytes are taken.")
        start, got, status = time.perf_counter(), 0, 500

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most_bytes:
                raise too_large
            return message

        async def told(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if length.isdigit() and int(length) > self.most_bytes:
                answer = JSONResponse({"detail": too_large.detail}, 413)
                await answer(scope, receive, told)
            else:
                await self.app(scope, counted, told)
        finally:
            self.measures.requests.labels(status).inc()
            self.measures.seconds.observe(time.perf_counter() - start)


def _parse(model: CATSeg, words: str | None, background: str, limits: Limits) -> Vocabulary:
    """Understand words as the command line does.

    Raises:
        CATSegError: if they cannot be understood, or are too many.
    """
    behind = Vocabulary.from_text(background).strings if background.strip() else ()
    if words is not None and words.strip():
        parsed = Vocabulary.from_text(words, background=behind)
    elif model.default_words:
        parsed = Vocabulary.parse(list(model.default_words), background=behind)
    else:
        raise CATSegError("This model brings no words; name those to look for.")
    names = sum(map(len, parsed.classes)) + sum(len(one.split(", ")) for one in parsed.background)
    if names > limits.words:
        raise CATSegError(f"{names} words and synonyms; this service takes {limits.words} at most.")
    return parsed


def _answer(result: Segmentation, format: str) -> tuple[Any, str | None]:
    """Return what is sent, and its media type; None for JSON."""
    if format == "overlay":
        buffer = BytesIO()
        result.plot().save(buffer, "PNG")
        return buffer.getvalue(), "image/png"
    if format == "png":
        with tempfile.TemporaryDirectory(prefix="cat-seg-") as folder:
            path, _ = save_label_map(Path(folder) / "labels.png", result.labels, result.classes)
            return path.read_bytes(), "image/png"
    height, width = result.labels.shape
    masks = {name: result.mask(name) for name in result.areas()}
    segments = [
        {
            "name": name,
            "share": round(float(mask.mean()), 6),
            "score": round(float(np.mean(result.scores, where=mask)), 4),
            "rle": encode_mask(mask),
        }
        for name, mask in masks.items()
    ]
    about = {
        "width": width,
        "height": height,
        "unlabelled": round(result.unlabelled, 6),
        "threshold": result.threshold,
        "notes": list(result.notes),
        "segments": segments,
    }
    return about, None


def _check_packages() -> None:
    """Import what a service needs; FastAPI reads forms by the last."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        missing = error.name or "fastapi"
        raise MissingPackageError.of_extra("Services", missing, "serve") from error
