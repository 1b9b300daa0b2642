"""Serves the page on this machine alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tessera.errors import UserError

if TYPE_CHECKING:
    from sampling.demo.models import Beginning
    from sampling.pipeline import TwoStagePipeline

HERE = "127.0.0.1"
WAITING = 100  # requests that may wait for an answer
LARGEST_FILE = "200mb"
# gradio sends usage figures, and asks for its newest version, unless this says otherwise before it is imported.
SILENT = {"GRADIO_ANALYTICS_ENABLED": "False"}


def require_gradio() -> None:
    """Raises a UserError where gradio is not installed."""
    if find_spec("gradio") is None:
        raise UserError('the demo needs gradio, which is not installed: `pip install -e ".[demo]"` brings it')


@contextmanager
def serving(pipeline: TwoStagePipeline, beginning: Beginning, port: int | None = None) -> Iterator[str]:
    """Serve the page until the context ends, and yield its address.

    Uploads and pictures lie in a temporary folder, which is deleted at the end.

    Args:
        beginning: the values with which the page's controls begin.
        port: the port; None for a free one, from 7860 on.

    Raises:
        UserError: the port is taken.
    """
    with TemporaryDirectory(prefix="tessera-demo-") as folder:
        os.environ.update(SILENT | {"GRADIO_TEMP_DIR": folder})
        import gradio as gr

        from sampling.demo.answers import Answers
        from sampling.demo.page import CSS, page

        blocks = page(pipeline, beginning, Answers(Path(folder))).queue(max_size=WAITING, default_concurrency_limit=1)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from outside
        off = {"share": False, "ssr_mode": False, "pwa": False, "mcp_server": False, "enable_monitoring": False}
        try:
            _, address, _ = blocks.launch(
                server_name=HERE,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                max_file_size=LARGEST_FILE,
                theme=gr.themes.Default(**fonts),
                css=CSS,
                **off,
            )
        except OSError as error:
            taken = f"port {port} is taken" if port else "no port from 7860 to 7959 is free"
            raise UserError(f"--port: {taken}; give another one") from error
        try:
            yield address
        finally:
            blocks.close(verbose=False)


def wait() -> None:
    """Waits until Ctrl+C, or until the process is ended."""
    threading.Event().wait()
