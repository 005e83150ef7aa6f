"""Ask a service of this machine much at once: how long answers take, and whether they are right.

    python docs/tools/load_test.py --clients 32 --requests 8 --json out.json

Starts `cat-seg serve`. Each client has a picture of the small model's world and words of its own,
and asks again and again; every answer is compared with what the model gives alone. In the end all
ask once more, and the service gets SIGTERM while they wait.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from cat_seg.model import CATSeg
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import SEEN_NAMES
from cat_seg.utils.files import atomic_write

WORDS = 5  # of each client
SIZE = 192  # of a picture, pixels
TIMEOUT = 120.0  # seconds
SEED = 41  # of scenes that no other figure uses


def form(picture: bytes, **fields: Any) -> tuple[bytes, str]:
    """Return the body and type of a form with a picture."""
    border = secrets.token_hex(16)
    parts = [
        f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = 'Content-Disposition: form-data; name="image"; filename="picture"\r\n\r\n'
    parts += [f"--{border}\r\n{head}".encode(), picture, f"\r\n--{border}--\r\n".encode()]
    return b"".join(parts), f"multipart/form-data; boundary={border}"


def masks_of(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return where each class of an answer in JSON is, (H, W) bool."""
    return {one["name"]: coco.decode(one["rle"]).astype(bool) for one in answer["segments"]}


class Client:
    """Asks for one picture and words, and knows the answer."""

    def __init__(self, number: int, model: CATSeg) -> None:
        scene = split_scene("val", number, seed=SEED, size=SIZE).image
        buffer = BytesIO()
        Image.fromarray(scene).save(buffer, "PNG")
        chosen = np.random.default_rng(number).permutation(SEEN_NAMES)[:WORDS]
        words = [*map(str, chosen), f"thing {number}"]  # so that no two ask for the same
        result = model.predict(scene, words)
        self.expected = {name: result.mask(name) for name in result.areas()}
        self.body, self.kind = form(buffer.getvalue(), words=", ".join(words))
        self.seconds: list[float] = []
        self.wrong = self.failed = 0

    def ask(self, address: str) -> None:
        """Ask once."""
        start = time.perf_counter()
        request = urllib.request.Request(
            f"{address}/segment", self.body, {"Content-Type": self.kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                found = masks_of(json.load(answer))
        except OSError:
            self.failed += 1
            return
        self.seconds.append(time.perf_counter() - start)
        same = found.keys() == self.expected.keys() and all(
            (found[name] == self.expected[name]).all() for name in found
        )
        self.wrong += not same


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit code is 1 if an answer was wrong or missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=8, help="of each client")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    model = CATSeg.from_pretrained("synthetic", "cpu")
    clients = [Client(number, model) for number in range(args.clients)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "cat_seg", "serve", "--device", "cpu", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait(address, process)
        clients[0].ask(address)  # warms up
        clients[0].seconds.clear()
        start = time.perf_counter()
        _all_ask(clients, address, args.requests)
        seconds = time.perf_counter() - start
        figures = urllib.request.urlopen(f"{address}/metrics", timeout=TIMEOUT).read().decode()
        times = [one for client in clients for one in client.seconds]
        failed = sum(client.failed for client in clients)
        for client in clients:
            client.seconds, client.failed = [], 0
        end = threading.Timer(0.3, process.send_signal, [signal.SIGTERM])
        end.start()
        _all_ask(clients, address, 1)
        code = process.wait(TIMEOUT)
    finally:
        process.kill()
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    told = {
        "answers": len(times),
        "wrong": sum(client.wrong for client in clients),
        "failed": failed,
        "p50": round(percentiles[49], 3),
        "p95": round(percentiles[94], 3),
        "a_second": round(len(times) / seconds, 2),
        "pictures_a_batch": round(
            _figure(figures, "batch_pictures_sum") / _figure(figures, "batch_pictures_count"), 2
        ),
        "model_busy": round(_figure(figures, "model_seconds_total") / seconds, 3),
        "answered_at_the_end": sum(len(client.seconds) for client in clients),
        "unanswered_at_the_end": sum(client.failed for client in clients),
        "exit_code": code,
    }
    print(json.dumps(told, indent=1))
    if args.json:
        with atomic_write(args.json) as part:
            part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return int(bool(told["wrong"] or failed or told["unanswered_at_the_end"] or code))


def _all_ask(clients: Sequence[Client], address: str, requests: int) -> None:
    with ThreadPoolExecutor(len(clients)) as threads:
        for one in [threads.submit(_asks, client, address, requests) for client in clients]:
            one.result()


def _asks(client: Client, address: str, requests: int) -> None:
    for _ in range(requests):
        client.ask(address)


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the service answers."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=TIMEOUT)
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise RuntimeError("the service does not answer")


def _figure(text: str, name: str) -> float:
    found = re.search(rf"^catseg_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


if __name__ == "__main__":
    sys.exit(main())
