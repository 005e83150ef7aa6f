"""Videos: frames in, overlays with their sound and labels without loss out.

A video is what PyAV (FFmpeg) decodes, a camera, or a picture of several frames (animated GIF, TIFF
stack), which Pillow reads. `CATSeg.stream` takes the frames like any other pictures.

H, W pixels of a frame, T classes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cat_seg import images
from cat_seg.drawing import OPACITY
from cat_seg.errors import CATSegError, MissingPackageError
from cat_seg.segmentation import Segmentation
from cat_seg.utils.files import atomic_write

if TYPE_CHECKING:
    from cat_seg.model import CATSeg
    from cat_seg.vocabulary import Vocabulary, Words

VIDEOS = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)
ANIMATED = frozenset(".apng .gif .png .tif .tiff .webp".split())  # that may hold several frames
ENCODERS = {  # of what is written, by suffix
    ".mp4": ("libx264", {"crf": "18", "preset": "veryfast"}),
    ".mkv": ("libx264", {"crf": "18", "preset": "veryfast"}),
    ".mov": ("libx264", {"crf": "18", "preset": "veryfast"}),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"}),
}
# A file may say that it goes on in other files or addresses (playlists); those are not followed.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,mpegvideo,h264,hevc,ogg,asf,ivf,gif"
)
_LOCAL = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
_CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}
_ADDRESSES = ("http://", "https://", "rtsp://", "rtmp://", "udp://", "srt://")
_BT709 = 1  # the colours of HD video, in FFmpeg's numbers
_GIF_MILLISECONDS = 100  # of a frame that does not say
_QUEUE = 8  # results that wait for being written


class Frame(NamedTuple):
    """A frame and when it is shown."""

    pixels: np.ndarray  # (H, W, 3) uint8, RGB, upright
    time: int  # in units of the reader's time_base


def is_video(source: str | Path) -> bool:
    """Tell whether a path is a video, an animated picture or a stack, from its name and frames."""
    path = Path(source)
    if path.suffix.lower() in VIDEOS:
        return True
    if path.suffix.lower() not in ANIMATED or not path.is_file():
        return False
    with contextlib.suppress(CATSegError), images.open_image(path) as image:
        return getattr(image, "n_frames", 1) > 1
    return False


def frames(source: str | Path) -> Iterator[np.ndarray]:
    """Decode a video or what else `open_video` takes: (H, W, 3) uint8 RGB, one after the other.

    Raises:
        CATSegError: see `open_video`.
    """
    with open_video(source) as video:
        for frame in video:
            yield frame.pixels


@contextlib.contextmanager
def open_video(source: str | Path, *, allow_url: bool = False) -> Iterator[Video]:
    """Open a video.

    Args:
        source: a file; the number of a camera ("0"); an address (RTSP, HTTP, ...) if `allow_url`.
        allow_url: whether an address may be opened.

    Raises:
        CATSegError: if it is missing, damaged or no video; also for what is found while it is
            decoded in the block.
        MissingPackageError: PyAV is not installed.
    """
    name = str(source)
    if Path(source).suffix.lower() in ANIMATED:
        with images.open_image(source) as image:
            yield _Pictures(name, image)
        return
    av = _av()
    if camera := name.isascii() and name.isdigit():
        place, kind = _CAMERAS.get(sys.platform, ("video={}", "dshow"))
        options: dict[str, Any] = {"file": place.format(name), "format": kind}
    elif name.lower().startswith(_ADDRESSES):
        if not allow_url:
            raise CATSegError(f"{name} is an address; expected a file. Pass allow_url=True.")
        options = {"file": name, "timeout": (10.0, 10.0)}
    else:
        if not Path(source).is_file():
            raise CATSegError(f"{name} is no file; expected a video.")
        options = {"file": f"file:{name}", "options": _LOCAL}
    try:
        container = av.open(**options)
    except (av.FFmpegError, OSError, ValueError) as error:
        what = f"Camera {name} ({options['file']})" if camera else name
        raise CATSegError(
            f"{what} cannot be opened as a video ({getattr(error, 'strerror', None) or error})."
        ) from error
    with container:
        if not container.streams.video:
            raise CATSegError(f"{name} has no pictures in it; expected a video.")
        try:
            yield _Decoded(name, container, live="options" not in options)
        except av.FFmpegError as error:
            raise CATSegError(f"{name}: {error.strerror or error}.") from error


class Video:
    """The frames of something, opened by `open_video`.

    Attributes:
        name: as the user gave it.
        time_base: seconds of a unit of time.
        rate: frames a second, about; None where unknown.
        live: whether it has no end of its own.
        sound: PyAV's stream; None if it is silent.
        packets: of the sound, encoded as they came, up to the last frame that was taken.
        left_out: frames that could not be decoded.
    """

    name: str
    time_base: Fraction
    rate: Fraction | None = None
    live = False
    sound: Any = None
    packets: deque[Any]
    left_out = 0

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError


class _Pictures(Video):
    """The frames of an animated picture or stack."""

    def __init__(self, name: str, image: Any) -> None:
        self.name = name
        self.image = image
        self.time_base = Fraction(1, 1000)
        self.packets = deque()

    def __iter__(self) -> Iterator[Frame]:
        time, size = 0, None
        for number in range(getattr(self.image, "n_frames", 1)):
            self.image.seek(number)
            pixels = images.read(self.image)
            size = size or pixels.shape
            if pixels.shape != size:
                raise CATSegError(
                    f"{self.name}: frame {number} has {pixels.shape[1]} x {pixels.shape[0]} "
                    f"pixels, the first {size[1]} x {size[0]}; expected frames of one size."
                )
            yield Frame(pixels, time)
            time += max(1, round(self.image.info.get("duration") or _GIF_MILLISECONDS))


class _Decoded(Video):
    """What FFmpeg decodes."""

    def __init__(self, name: str, container: Any, live: bool) -> None:
        self.name = name
        self.live = live
        self.container = container
        self.stream = container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.sound = next(iter(container.streams.audio), None)
        self.time_base = self.stream.time_base or Fraction(1, 1000)
        self.rate = self.stream.average_rate or self.stream.guessed_rate
        self.packets = deque()

    def __iter__(self) -> Iterator[Frame]:
        last, size = -1, None
        for packet in self.container.demux([s for s in (self.stream, self.sound) if s]):
            if packet.stream is not self.stream:
                if packet.dts is not None:
                    self.packets.append(packet)
                continue
            for frame in self._decode(packet):
                size = size or (frame.width, frame.height)
                images.check_size((frame.width, frame.height), f"{self.name}: a frame")
                pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
                turns = round(getattr(frame, "rotation", 0) / 90)
                last = max(last + 1, frame.pts if frame.pts is not None else last + 1)
                yield Frame(np.ascontiguousarray(np.rot90(pixels, turns)), last)
        if size is None:
            raise CATSegError(f"{self.name} has no frame that can be decoded; is it damaged?")

    def _decode(self, packet: Any) -> Sequence[Any]:
        try:
            decoded: Sequence[Any] = packet.decode()
        except _av().error.InvalidDataError:
            self.left_out += 1
            return ()
        return decoded


# ---- over time ----


def smooth_majority(results: Iterable[Segmentation], window: int) -> Iterator[Segmentation]:
    """Give each pixel the label that most frames around it have, so that labels flicker less.

    The frame's own label stays where no other is more frequent. A score is the mean of the frames
    that have the label.

    Args:
        results: of successive frames of one size and the same words.
        window: frames that vote, odd; the frame is the middle one. At either end there are fewer.

    Raises:
        CATSegError: if the window is no odd number of frames.
    """
    if window < 1 or window % 2 == 0:
        raise CATSegError(f"{window} frames cannot vote; expected an odd number, such as 5.")
    near: deque[tuple[Segmentation, np.ndarray, np.ndarray]] = deque(maxlen=window)
    after = window // 2
    for result in results:
        near.append((result, result.labels, result.scores))
        if len(near) > after:
            yield _voted([*near], len(near) - 1 - after)
    for middle in range(max(0, len(near) - after), len(near)):
        yield _voted([*near][max(0, middle - after) :], min(middle, after))


def _voted(
    near: Sequence[tuple[Segmentation, np.ndarray, np.ndarray]], middle: int
) -> Segmentation:
    """Return the middle result with the labels that most of its neighbours have."""
    result, labels, scores = near[middle]
    most = np.zeros(labels.shape, np.int32)
    for _, candidate, _ in (near[middle], *near):
        same = np.stack([other == candidate for _, other, _ in near])
        votes = same.sum(axis=0, dtype=np.int32)
        mean = (same * np.stack([one for _, _, one in near])).sum(axis=0) / votes
        better = votes > most
        most = np.where(better, votes, most)
        labels = np.where(better, candidate, labels)
        scores = np.where(better, mean, scores)
    result.labels, result.scores = labels, scores
    return result


# ---- out ----


@dataclass
class Summary:
    """What became of a video."""

    video: Path
    labels: Path | None
    frames: int
    left_out: int
    areas: dict[str, float]  # mean share of the frames, largest first
    unlabelled: float
    notes: tuple[str, ...]


def segment_video(
    model: CATSeg,
    source: str | Path,
    output: str | Path,
    words: Words | None = None,
    *,
    threshold: float | None = None,
    background: Words = (),
    smooth: int = 1,
    opacity: float = OPACITY,
    labels: bool = True,
    sound: bool = True,
    most_frames: int | None = None,
    batch_size: int = 4,
    allow_url: bool = False,
    on_frame: Callable[[], None] | None = None,
) -> Summary:
    """Segment a video, and write it with the classes drawn over it.

    Beside OUTPUT, the labels are written without loss as OUTPUT_labels.mkv (FFV1, grey, 8 or 16
    bit; its largest value is where there is no class) with their names in OUTPUT_labels.json;
    `read_labels` reads them. Times of frames are kept, and sound is copied as it is.

    Args:
        model: the model.
        source: a video, a picture of several frames, the number of a camera, or an address.
        output: ends in .mp4, .mkv, .mov or .webm.
        words, threshold, background: see `CATSeg.predict`.
        smooth: frames that vote on a label, see `smooth_majority`; 1 leaves labels as they are.
        opacity: of the colours, 0 to 1.
        labels: whether labels are written.
        sound: whether sound is kept.
        most_frames: to stop after; None for all. A camera is also stopped by an interrupt.
        batch_size: frames that are read together.
        allow_url: whether `source` may be an address.
        on_frame: called after each frame.

    Raises:
        CATSegError: if something cannot be read or written.
    """
    output = Path(output)
    if output.suffix.lower() not in ENCODERS:
        raise CATSegError(f"{output}: expected a name that ends in {', '.join(ENCODERS)}.")
    vocabulary = model.vocabulary(
        words if words is not None else list(model.default_words), background=background
    )
    label_file = output.with_name(f"{output.stem}_labels.mkv")
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(open_video(source, allow_url=allow_url))
        part = stack.enter_context(atomic_write(output))
        label_part = stack.enter_context(atomic_write(label_file)) if labels else None
        writer = stack.enter_context(
            _Writer(output, part, label_part, video, vocabulary, sound=sound, opacity=opacity)
        )
        stream = model.stream(
            writer.timed(video, most_frames),
            vocabulary,
            batch_size=1 if video.live else batch_size,
            threshold=threshold,
        )
        try:
            for result in smooth_majority(stream, smooth) if smooth != 1 else stream:
                writer.write(result)
                if on_frame is not None:
                    on_frame()
        except KeyboardInterrupt:
            if not video.live or not writer.frames:
                raise
    if labels:
        with atomic_write(label_file.with_suffix(".json")) as part:
            part.write_text(
                json.dumps(writer.about(), indent=2, ensure_ascii=False) + "\n", "utf-8"
            )
    return Summary(
        video=output,
        labels=label_file if labels else None,
        frames=writer.frames,
        left_out=video.left_out,
        areas=writer.areas(),
        unlabelled=1 - sum(writer.areas().values()),
        notes=writer.notes,
    )


def read_labels(path: str | Path) -> Iterator[np.ndarray]:
    """Read the labels that `segment_video` wrote: (H, W) int32 a frame, -1 where none is.

    Raises:
        CATSegError: if it is no such file.
    """
    with open_video(path) as video:
        formats = {"gray": np.iinfo(np.uint8).max, "gray16le": np.iinfo(np.uint16).max}
        assert isinstance(video, _Decoded)
        for frame in video.container.decode(video=0):
            if frame.format.name not in formats:
                raise CATSegError(f"{path}: not the labels of a video; give NAME_labels.mkv.")
            stored = frame.to_ndarray()
            labels = stored.astype(np.int32)
            labels[stored == formats[frame.format.name]] = -1
            yield labels


class _Writer:
    """Encodes results in a thread of its own, so that the model need not wait."""

    def __init__(
        self,
        output: Path,
        part: Path,
        label_part: Path | None,
        video: Video,
        vocabulary: Vocabulary,
        *,
        sound: bool,
        opacity: float,
    ) -> None:
        self.output = output
        self.video = video
        self.classes = (*vocabulary.names, *vocabulary.background)
        self.synonyms = vocabulary.classes
        self.background = vocabulary.background
        self.opacity = opacity
        self.frames = 0
        self.notes: tuple[str, ...] = ()
        self.threshold = 0.0
        self._deep = len(self.classes) > np.iinfo(np.uint8).max
        if len(self.classes) > np.iinfo(np.uint16).max:
            raise CATSegError(f"{len(self.classes)} words; a video's labels have room for 65535.")
        self._sums: dict[str, float] = {}
        self._size = (0, 0)
        self._times: deque[int] = deque()
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._stack = contextlib.ExitStack()
        av = _av()
        self._container = self._stack.enter_context(av.open(str(part), "w"))
        codec, options = ENCODERS[output.suffix.lower()]
        rate = video.rate or Fraction(1000, _GIF_MILLISECONDS)
        self._pictures = self._container.add_stream(codec, rate=rate, options=options)
        self._sound = None
        if sound and video.sound is not None:
            try:
                self._sound = self._container.add_stream_from_template(video.sound)
            except ValueError as error:
                self._stack.close()
                raise CATSegError(
                    f"{output}: {error}, which the sound is in; expected a name in .mkv, or no "
                    "sound."
                ) from error
        self._labels: Any = None
        if label_part is not None:
            self._label_container = self._stack.enter_context(av.open(str(label_part), "w"))
            self._labels = self._label_container.add_stream("ffv1", rate=rate)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        """Write what waits, and close the files; after an error, only close them."""
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
            with self._told(), self._stack:
                if kind is None and self.frames:
                    self._flush()

    def timed(self, video: Video, most: int | None) -> Iterator[np.ndarray]:
        """Yield the pixels of frames, and keep their times for `write`."""
        for count, frame in enumerate(video):
            if count == most:
                return
            self._times.append(frame.time)
            yield frame.pixels

    def write(self, result: Segmentation) -> None:
        """Encode a result when its turn comes."""
        self.frames += 1
        self.notes = result.notes if self.frames == 1 else self.notes
        self.threshold = result.threshold
        for name, share in result.areas().items():
            self._sums[name] = self._sums.get(name, 0.0) + share
        packets = [self.video.packets.popleft() for _ in range(len(self.video.packets))]
        time = self._times.popleft()
        self._waiting.append(self._pool.submit(self._encode, result, time, packets))
        while len(self._waiting) > _QUEUE:
            self._waiting.popleft().result()

    def areas(self) -> dict[str, float]:
        """Return the mean share of each class, largest first."""
        shares = {name: total / self.frames for name, total in self._sums.items()}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def about(self) -> dict[str, Any]:
        """Return what the JSON beside the labels tells."""
        return {
            "video": self.output.name,
            "frames": self.frames,
            "height": self._size[0],
            "width": self._size[1],
            "unlabelled": np.iinfo(np.uint16 if self._deep else np.uint8).max,
            "classes": list(self.classes),
            "synonyms": [list(names) for names in self.synonyms],
            "background": list(self.background),
            "threshold": self.threshold,
            "areas": {name: round(share, 6) for name, share in self.areas().items()},
            "notes": list(self.notes),
        }

    def _encode(self, result: Segmentation, time: int, packets: Sequence[Any]) -> None:
        with self._told():
            overlay = np.asarray(result.plot(opacity=self.opacity, legend=False, steady=True))
            # Half the colours' resolution needs even sides.
            height, width = overlay.shape[:2]
            overlay = np.pad(overlay, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
            if not self._size[0]:
                self._size = result.labels.shape
                self._set_up(self._pictures, overlay.shape, "yuv420p")
                for name in ("colorspace", "color_primaries", "color_trc"):
                    setattr(self._pictures.codec_context, name, _BT709)
                if self._labels is not None:
                    kind = "gray16le" if self._deep else "gray"
                    self._set_up(self._labels, result.labels.shape, kind)
            frame = _av().VideoFrame.from_ndarray(overlay, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            self._mux(self._container, self._pictures, frame, time)
            for packet in packets if self._sound is not None else ():
                packet.stream = self._sound
                self._container.mux(packet)
            if self._labels is not None:
                dtype = np.uint16 if self._deep else np.uint8
                stored = result.labels.astype(dtype)  # -1 becomes the largest value
                kind = "gray16le" if self._deep else "gray"
                label_frame = _av().VideoFrame.from_ndarray(stored, format=kind)
                self._mux(self._label_container, self._labels, label_frame, time)

    def _set_up(self, stream: Any, shape: tuple[int, ...], kind: str) -> None:
        stream.height, stream.width = shape[:2]
        stream.pix_fmt = kind
        stream.codec_context.time_base = self.video.time_base

    def _mux(self, container: Any, stream: Any, frame: Any, time: int) -> None:
        frame.pts, frame.time_base = time, self.video.time_base
        container.mux(stream.encode(frame))

    def _flush(self) -> None:
        while self.video.packets and self._sound is not None:
            packet = self.video.packets.popleft()
            packet.stream = self._sound
            self._container.mux(packet)
        self._container.mux(self._pictures.encode(None))
        if self._labels is not None:
            self._label_container.mux(self._labels.encode(None))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn FFmpeg's refusals into a sentence."""
        try:
            yield
        except _av().FFmpegError as error:
            sound = self.video.sound
            codec = f", or leave out its sound ({sound.codec_context.name})" if sound else ""
            raise CATSegError(
                f"{self.output} cannot be written ({error.strerror or error}); try another "
                f"container, such as .mkv{codec}."
            ) from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackageError.of_extra("Videos", "PyAV", "video") from error
    return av
