"""Files that a client uploads, for the workers of a queue to import; those that join later too.

They are in the server. A job knows which state of them it is to see, and a slot that is given a
task of it gets what it lacks before that.
"""

from __future__ import annotations

import importlib
import secrets
import sys
import zipimport
from importlib.util import cache_from_source
from pathlib import Path

from dask_redisq.codec import pack, unpack
from dask_redisq.errors import BadSignature, ValueTooLarge
from dask_redisq.keys import Keys
from dask_redisq.link import Link
from dask_redisq.server_check import most_bytes
from dask_redisq.trust import Signer

__all__ = ["SlotFiles", "upload"]

#: What is signed, in the words of `Seal`, and in place of a job.
FILE, FILES = "file", "files"
#: What Python imports from.
ARCHIVES = {".zip", ".egg", ".whl"}


def upload(link: Link, keys: Keys, path: Path, signer: Signer) -> None:
    """Store a file under its name.

    Raises
    ------
    ValueTooLarge
        If no value of the server may be that long.
    """
    payload = pack([path.name, path.read_bytes()])
    data = signer.seal(keys.queue, FILES).sign(FILE, b"", 0, payload)
    if len(data) > (most := most_bytes(link)):
        raise ValueTooLarge(
            f"{path} takes {len(data):,} bytes, and the server holds {most:,} in one"
        )
    seconds, micros = map(int, link.command("TIME"))
    link.call("upload", keys, name=path.name, data=data, at=1_000_000 * seconds + micros)


class SlotFiles:
    """The uploaded files of a slot's queues, in a directory that Python imports from.

    Parameters
    ----------
    directory : str
        Made with the first file; of this slot alone, as another may still import an older one.
    signer : Signer
        Checks what comes.
    """

    def __init__(self, directory: str, signer: Signer) -> None:
        self.directory = Path(directory)
        self.signer = signer
        self._seen = ("", 0)
        self._contents: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"<SlotFiles {self.directory}, {len(self._contents)} files>"

    def sync(self, link: Link, keys: Keys, number: int, job: str) -> None:
        """Get what is new in state `number` of a queue's files, for a job that is to see it."""
        if self._seen == (keys.queue, number):
            return
        seal = self.signer.seal(keys.queue, FILES)
        for signed in link.command("HVALS", keys("files")):
            try:
                name, content = unpack(seal.open(FILE, b"", 0, signed))
            except BadSignature:
                who = secrets.token_hex(8)
                link.call("refuse", keys, job=job, who=who, total=1)
                continue
            if self._contents.get(name.decode()) != content:
                self._take(name.decode(), content)
        self._seen = (keys.queue, number)  # files of two queues may have one name

    def _take(self, name: str, content: bytes) -> None:
        """Write a file, and have it imported anew."""
        self._contents[name] = content
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / Path(name).name
        path.write_bytes(content)
        # Python knows byte code by the size of its source and the second of it: of an edit within
        # a second it would not hear.
        Path(cache_from_source(str(path))).unlink(missing_ok=True)
        place = str(path if path.suffix in ARCHIVES else self.directory)
        if place not in sys.path:
            sys.path.insert(0, place)
        importlib.invalidate_caches()
        sys.path_importer_cache.pop(place, None)
        zipimport._zip_directory_cache.pop(place, None)  # type: ignore[attr-defined]  # noqa: SLF001
        for module, found in list(sys.modules.items()):
            if (getattr(found, "__file__", None) or "").startswith(str(path)):
                del sys.modules[module]
