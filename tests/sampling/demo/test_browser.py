"""The page as a person sees it, in headless Chromium, and as programs reach it. The network is out of reach."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser
import extras
import numpy as np
import pytest
from PIL import Image

from sampling.demo import actions
from sampling.demo.models import open_models
from sampling.pipeline import TwoStagePipeline
from tessera.parameters import load

pytestmark = pytest.mark.slow

# Runs the demo, and ends it with status 3 where it asks anything of another machine, or listens to one.
RUN = """
import os, runpy, sys
def watch(event, values):
    address = values[1] if event in ("socket.connect", "socket.bind") else values[:1]
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo") and isinstance(address, tuple):
        if address[0] not in ("127.0.0.1", "localhost", "::1", None):
            print("asked", event, address, file=sys.stderr, flush=True)
            os._exit(3)
sys.addaudithook(watch)
sys.argv = ["sampling.demo", "models", "--port", sys.argv[1]]
runpy.run_module("sampling.demo", run_name="__main__", alter_sys=True)
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def served(repository: Path, place: Path) -> Iterator[str]:
    """The address of the demo of models/, in a process of its own. Its files lie in a folder of `place`."""
    extras.require("gradio")
    temporary = place / "temporary"
    temporary.mkdir()
    environment = os.environ | {"PYTHONPATH": str(repository), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(free_port())]
    with (place / "said").open("w") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
    try:
        yield browser.wait(lambda: opened(process, place / "said"), "the address of the page")
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(browser.PATIENCE)
    text = (place / "said").read_text()
    assert status == 128 + signal.SIGTERM and "Traceback" not in text and "UserWarning" not in text, text
    assert not list(temporary.glob("tessera-demo-*")), "uploads and pictures are deleted at the end"


def opened(process: subprocess.Popen, said: Path) -> str | None:
    text = said.read_text()
    assert process.poll() is None, text
    found = re.search(r"open (http://127\.0\.0\.1:\d+/?) in a browser", text)
    return found and found[1].rstrip("/")


def answered(address: str, name: str, values: list[Any]) -> tuple[str, Any]:
    """What the page answers to a program: "complete" with data, or "error"."""
    asked = urllib.request.Request(
        f"{address}/gradio_api/call/{name}",
        json.dumps({"data": values}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=browser.PATIENCE) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/{name}/{event}", timeout=browser.PATIENCE) as stream:
        text = stream.read().decode()
    kind, data = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
    return kind, json.loads(data)


def fetched(place: str) -> np.ndarray:
    """The picture at an address."""
    with urllib.request.urlopen(place, timeout=browser.PATIENCE) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())))


def labels_of_controls(address: str) -> set[str]:
    with urllib.request.urlopen(f"{address}/config", timeout=browser.PATIENCE) as answer:
        return {part["props"].get("label") for part in json.load(answer)["components"]}


def test_a_person_samples_completes_measures_and_changes_codes(
    tiny_run: Callable[..., Path], repository: Path, tmp_path: Path
) -> None:
    tiny_run(shape=(1, 16, 16), strides=[4])
    pipeline, beginning = open_models("models", None, load(Path("params.yaml")).sampling)
    expected = actions.sample(pipeline, 1, 4, 8, **beginning.settings)
    bomb, text = Path("bomb.png").absolute(), Path("words.png").absolute()
    Image.new("1", (9000, 9000)).save(bomb)
    text.write_text("not a picture")
    with served(repository, tmp_path) as address, browser.chromium() as page:
        page.get(address)
        browser.click(page, "#draw")
        browser.wait(lambda: len(browser.images(page, "#samples")) == 12, "four samples of each of three classes")
        browser.choose(page, "#class", "class 1")
        browser.click(page, "#draw")
        browser.wait(lambda: len(browser.images(page, "#samples")) == 4, "four samples of one class")
        shown = [fetched(place) for place in browser.images(page, "#samples")]
        assert np.array_equal(np.stack(shown)[..., 0], expected.images[:, 0])

        browser.click(page, "#use")
        browser.wait(lambda: browser.images(page, "#picture"), "the picture")
        browser.click(page, "#measure")
        said = browser.wait(lambda: "in all" in (text := browser.part(page, "#likelihood").text) and text, "bits")
        assert re.search(r"in all \d+\.\d{3}", said) and "given the class" in said

        for file, message in ((bomb, "9000x9000 pixels"), (text, "not an image in a known format")):
            browser.upload(page, "#upload", file)
            browser.wait(lambda said=message: said in browser.messages(page), message)

        browser.tab(page, "Complete")
        browser.click(page, "#finish")
        browser.wait(lambda: "nothing is painted" in browser.messages(page), "what to do first")
        browser.paint(page, "#paint canvas", [(-40, 40, 80, 0), (-40, 70, 80, 0)])
        browser.click(page, "#finish")
        browser.wait(lambda: len(browser.images(page, "#completions")) == 4, "four completions")

        browser.tab(page, "Codes")
        browser.wait(lambda: browser.images(page, "#before"), "the reconstruction")
        browser.click(page, "#before img")
        browser.wait(lambda: "Row 3, column 3" in browser.part(page, "#said").text, "the code in the middle")
        code = int(re.search(r"code (\d+)", browser.part(page, "#said").text)[1])
        browser.write(page, "#code input", str((code + 1) % 8))
        browser.click(page, "#put")
        browser.wait(lambda: "1 of 16 codes changed" in browser.part(page, "#said").text, "another code")
        assert browser.outside(page) == [] and browser.errors(page) == []


def test_ten_requests_at_once_get_each_its_own_samples(
    tiny_run: Callable[..., Path], repository: Path, tmp_path: Path
) -> None:
    tiny_run()
    pipeline = TwoStagePipeline.load("models", "cpu")

    def drawn(address: str, seed: int) -> np.ndarray:
        # class, images, seed, temperature, guidance scale and schedule, top_k, top_p, min_p
        kind, data = answered(address, "sample", [1, 3, seed, 1.0, 2.0, "constant", 0, 1, 0])
        assert kind == "complete"
        return fetched((data[1].get("value") or data[1])["url"])

    with served(repository, tmp_path) as address:
        assert "Class" in labels_of_controls(address)
        with ThreadPoolExecutor(10) as people:
            found = list(people.map(lambda seed: drawn(address, seed), range(10)))
        assert answered(address, "sample", [1, 0, 0, 1.0, 2.0, "constant", 0, 1, 0])[0] == "error"
    for seed, picture in enumerate(found):
        expected = actions.sample(pipeline, 1, 3, 8, temperature=1.0, guidance_scale=2.0, seed=seed)
        assert np.array_equal(picture, expected.picture)


def test_without_classes_the_page_has_no_control_for_one(
    tiny_run: Callable[..., Path], repository: Path, tmp_path: Path
) -> None:
    tiny_run(shape=(3, 8, 8), classes=0)
    with served(repository, tmp_path) as address:
        labels = labels_of_controls(address)
        assert {"Seed", "Temperature", "Top-k"} <= labels and not {"Class", "Guidance scale"} & labels
        kind, data = answered(address, "sample", [2, 5, 1.0, 0, 1, 0])
        assert kind == "complete"
    images = data[0].get("value") if isinstance(data[0], dict) else data[0]
    assert len(images) == 2
