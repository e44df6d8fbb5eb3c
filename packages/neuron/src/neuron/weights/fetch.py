"""Downloads one model into the hub cache: a program, `python -m neuron.weights.fetch`.

It is a process of its own because huggingface_hub can be told neither to stop nor to keep what
it has so far, and because hashing and TLS would take the interpreter from the event loop. It
speaks lines of JSON (`neuron.weights.lines`) and ends when its standard input does, which is
when the daemon ends.

The library asks, authenticates, follows redirects, and goes on after a cut; the names and sums
of the files are the hub's, the layout of the cache is the library's. Ours are the files that an
interrupted download leaves (`blobs/NAME.incomplete`), what is checked, and the order: the files
get their names in `snapshots` when all are there, `config.json` the last, so that half a model
is never taken for a whole one.
"""

import os
import pathlib
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from cortex_core.errors import InvalidRequestError
from neuron.weights.files import cache_home
from neuron.weights.library import ChecksumError, failure_of, library
from neuron.weights.lines import Ended, Job, Line, Planned, Problem, Progressed
from neuron.weights.partial import Partial, RemoteFile
from neuron.weights.safety import choose_files

_ANSWER_S = 5.0
"""Time that the hub gets to take the connection, and then to answer."""

_TRIES = 4
"""How often a hub that has too much to do is asked."""

_MAX_PAUSE_S = 30.0

_FILES_AT_ONCE = 4
"""One connection rarely fills a line; more than a few only make the disk seek."""

_NEWS_S = 0.25

_RECEIVED_BYTES = 1 << 20

_SUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""SHA-1 or SHA-256."""

_PARENT_IS_GONE = 70
"""`EX_SOFTWARE` of sysexits.h."""


class Fetch:
    """One download.

    Args:
        job: what is to be done.
        tell: sends a line.
        wait: waits for the daemon's line.
    """

    def __init__(self, job: Job, tell: Callable[[Line], None], wait: Callable[[], None]) -> None:
        self._job = job
        self._tell = tell
        self._wait = wait
        self._home = cache_home(pathlib.Path(job.cache), job.model)
        self._lock = threading.Lock()
        self._done_bytes = 0

    def run(self) -> pathlib.Path:
        """Download what is missing, and return the model's folder."""
        commit, files = self._resolve()
        chosen = set(
            choose_files(
                (file.path for file in files),
                is_pickle=self._job.is_pickle,
                is_code=self._job.is_code,
            )
        )
        wanted = [file for file in files if file.path in chosen]
        blobs = {file.blob: file for file in wanted}
        self._done_bytes = sum(self._here_bytes(file) for file in blobs.values())
        total = sum(file.size for file in blobs.values())
        self._tell(Planned(done_bytes=self._done_bytes, total_bytes=total))
        self._wait()
        (self._home / "blobs").mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._report, daemon=True).start()
        # Not a context: what is wrong with one file is told before the others are done.
        threads = ThreadPoolExecutor(_FILES_AT_ONCE)
        for _ in threads.map(lambda file: self._fetch(file, commit), blobs.values()):
            pass
        self._tell(Progressed(done_bytes=self._done_bytes))
        return self._publish(commit, wanted)

    def _resolve(self) -> tuple[str, list[RemoteFile]]:
        """Ask the hub for the commit and its files."""
        info = self._ask()
        if not _SUM.fullmatch(info.sha or ""):
            raise InvalidRequestError("the hub does not say which commit it is")
        return info.sha, [_remote_file(sibling) for sibling in info.siblings or ()]

    def _ask(self) -> Any:
        api = library().HfApi(token=self._job.token or False)
        tried = 1
        while True:
            try:
                return api.model_info(
                    self._job.model,
                    revision=self._job.revision,
                    files_metadata=True,
                    timeout=_ANSWER_S,
                )
            except library("errors").HfHubHTTPError as error:
                if error.response.status_code != 429 or tried == _TRIES:
                    raise
                time.sleep(_pause_s(error.response.headers.get("retry-after"), tried))
                tried += 1

    def _here_bytes(self, file: RemoteFile) -> int:
        blob = self._home / "blobs" / file.blob
        if blob.is_file():
            return file.size
        partial = _partial(blob)
        size = partial.stat().st_size if partial.is_file() else 0
        return size if size <= file.size else 0

    def _fetch(self, file: RemoteFile, commit: str) -> None:
        """Have one file among the blobs."""
        blob = self._home / "blobs" / file.blob
        locks = pathlib.Path(self._job.cache) / ".locks" / self._home.name
        locks.mkdir(parents=True, exist_ok=True)
        # The library's own lock: other programs may share the cache.
        with library("utils").WeakFileLock(locks / f"{file.blob}.lock"):
            if blob.is_file():
                return
            partial = _partial(blob)
            if partial.is_file() and partial.stat().st_size > file.size:
                partial.unlink()
            with Partial(partial, file, self._count) as sink:
                was_begun = sink.size > 0
                self._get(file, commit, sink)
                if not sink.finish():
                    sink.restart()
                    if not was_begun:
                        raise ChecksumError(file.path)
                    # It may be the part of an earlier attempt that is wrong.
                    self._get(file, commit, sink)
                    if not sink.finish():
                        raise ChecksumError(file.path)
            partial.replace(blob)

    def _get(self, file: RemoteFile, commit: str, sink: Partial) -> None:
        if sink.size == file.size:
            return
        if file.size > library("constants").MAX_HTTP_DOWNLOAD_SIZE:
            raise InvalidRequestError(
                f"{file.path} is larger than what the hub gives by HTTP; download the model with "
                "the hub's own tool, into this cache or a folder of model_dirs"
            )
        library("file_download").http_get(
            library().hf_hub_url(self._job.model, file.path, revision=commit),
            sink,
            resume_size=sink.size,
            headers=library("utils").build_hf_headers(token=self._job.token or False),
            expected_size=file.size,
        )

    def _count(self, size: int) -> None:
        with self._lock:
            self._done_bytes += size

    def _report(self) -> None:
        told = -1
        while True:
            time.sleep(_NEWS_S)
            if told != self._done_bytes:
                told = self._done_bytes
                self._tell(Progressed(done_bytes=told))

    def _publish(self, commit: str, files: list[RemoteFile]) -> pathlib.Path:
        """Give the blobs their names, the last of them the one that makes a model whole."""
        folder = self._home / "snapshots" / commit
        for file in sorted(files, key=lambda file: (file.path == "config.json", file.path)):
            pointer = folder / file.path
            pointer.parent.mkdir(parents=True, exist_ok=True)
            if not pointer.is_file():
                pointer.unlink(missing_ok=True)
                target = self._home / "blobs" / file.blob
                pointer.symlink_to(os.path.relpath(target, pointer.parent))
        if self._job.revision != commit:
            ref = self._home / "refs" / self._job.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            aside = ref.with_name(f"{ref.name}.{os.getpid()}.new")
            aside.write_text(commit)
            aside.replace(ref)
        os.utime(folder)
        return folder


def main() -> None:
    """Do the job that standard input has."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    # What libraries print must not get between the lines.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    writing = threading.Lock()

    def tell(line: Line) -> None:
        with writing:
            out.write(msgspec.json.encode(line) + b"\n")

    def wait() -> None:
        if not sys.stdin.buffer.readline():
            os._exit(_PARENT_IS_GONE)
        threading.Thread(target=_end_with_input, daemon=True).start()

    try:
        # The library's 10 MB are what a cut loses, and minutes without news on a slow line.
        library("constants").DOWNLOAD_CHUNK_SIZE = _RECEIVED_BYTES
        tell(Ended(folder=str(Fetch(job, tell, wait).run())))
    except Exception as error:  # noqa: BLE001 - the edge: the daemon must hear of it
        told = failure_of(error, job)
        if told.problem is Problem.OTHER:
            traceback.print_exc()
        tell(told)
    # Connections of other threads are not waited for.
    sys.stderr.flush()
    os._exit(0)


def _end_with_input() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(_PARENT_IS_GONE)


def _remote_file(sibling: Any) -> RemoteFile:
    is_large = sibling.lfs is not None
    blob = sibling.lfs.sha256 if is_large else sibling.blob_id
    # It becomes the name of a file.
    if not _SUM.fullmatch(blob or ""):
        raise InvalidRequestError(f"the hub does not say the checksum of {sibling.rfilename!r}")
    return RemoteFile(
        path=sibling.rfilename,
        size=sibling.lfs.size if is_large else sibling.size,
        blob=blob,
        is_large=is_large,
    )


def _partial(blob: pathlib.Path) -> pathlib.Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _pause_s(advice: str | None, tried: int) -> float:
    try:
        wanted = float(advice or "")
    except ValueError:
        wanted = 2.0 ** (tried - 1)
    return min(max(wanted, 0.0), _MAX_PAUSE_S)


if __name__ == "__main__":
    main()
