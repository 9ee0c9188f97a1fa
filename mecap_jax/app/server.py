"""Starts the page's server on this machine, and stops it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from mecap_jax.app.guard import UPLOADS_KEPT, Guard, delete_old
from mecap_jax.app.site import Site
from mecap_jax.config import ConfigError
from mecap_jax.data.importers import MAX_CLIP_BYTES

LOOPBACK = "127.0.0.1"


def check_port(host: str, port: int) -> None:
    """Says whether a server could listen there, before anything is loaded.

    Raises:
      ConfigError: somebody else does, or the host is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port: {port} of {host} is in use by another program; name another port") from error
        raise ConfigError(f"--host={host} --port={port}: {error.strerror or error}") from error


def own_names(host: str) -> frozenset[str]:
    """The names and addresses of a server that listens on `host`, in small letters."""
    names = {host, LOOPBACK, "localhost", "::1"}
    if host not in (LOOPBACK, "localhost", "::1"):
        names |= {socket.gethostname(), socket.getfqdn()}
        with contextlib.suppress(OSError):
            names |= {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
    return frozenset(name.lower() for name in names)


@contextlib.contextmanager
def serving(site: Site, host: str = LOOPBACK, port: int = 7860) -> Iterator[str]:
    """Serves the page for as long as the context lasts; gives its address. Uploads are deleted at its end.

    Raises:
      ConfigError: Gradio is not installed, or the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="mecap-uploads-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        try:
            from mecap_jax.app.page import build, launch_options
        except ImportError as error:
            raise ConfigError(f"the page needs Gradio: pip install -e '.[app]' ({error})") from error
        check_port(host, port)
        from starlette.middleware import Middleware  # Gradio's

        guard = Middleware(Guard, uploads=Path(uploads), hosts=own_names(host))
        page = build(site, Path(uploads))
        ended = threading.Event()
        threading.Thread(target=_sweep, args=(Path(uploads), ended), daemon=True).start()
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                max_file_size=MAX_CLIP_BYTES,
                app_kwargs={"middleware": [guard]},
                **launch_options(),
            )
            yield address
        finally:
            ended.set()
            page.close()


def _sweep(uploads: Path, ended: threading.Event) -> None:
    """Deletes what broken uploads leave, which Gradio does not know of: it lies in the directory itself."""
    every, seconds = UPLOADS_KEPT
    while not ended.wait(every):
        delete_old(uploads, seconds)
