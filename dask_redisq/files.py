"""Files that a client uploads, for the workers of a queue to import; those that join later too.

They are in the server. A job knows which state of them it is to see, and a slot that is given a
task of it gets what it lacks before that.
"""

from __future__ import annotations

import importlib
import secrets
import sys
import zipfile
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
#: What slots run on, besides Python's own modules.
OURS = {"__main__", "cloudpickle", "dask", "dask_redisq", "msgpack", "redis", "tblib"}
#: What Python imports from.
ARCHIVES = {".zip", ".egg", ".whl"}


def upload(link: Link, keys: Keys, path: Path, signer: Signer) -> None:
    """Store a file under its name.

    Raises
    ------
    ValueTooLarge
        If no value of the server may be that long.
    SyntaxError, ValueError
        If it is a Python file that no slot could import, or would.
    """
    _check_name(path)
    content = path.read_bytes()
    payload = pack([path.name, content])
    data = signer.seal(keys.queue, FILES).sign(FILE, b"", 0, payload)
    if len(data) > (most := most_bytes(link, len(data))):
        raise ValueTooLarge(
            f"{path} takes {len(data):,} bytes, and the server holds {most:,} in one"
        )
    if path.suffix == ".py":
        _check_source(path, content)
    seconds, micros = map(int, link.command("TIME"))
    link.call("upload", keys, name=path.name, data=data, at=1_000_000 * seconds + micros)


def _check_name(path: Path) -> None:
    # Were it taken: some slots have imported their own `random`, and go on with it; some have not,
    # and what they import of Python's own later finds this one.
    if path.suffix == ".py" and path.stem in sys.stdlib_module_names | OURS:
        raise ValueError(
            f"{path} was not uploaded: workers run on a module {path.stem!r} of their own, which "
            "they may have imported already, and which is not replaced. Give the file another name"
        )


def _check_source(path: Path, content: bytes) -> None:
    try:
        compile(content, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # ValueError: Python 3.11's word for a null byte
        error.add_note(f"dask-redisq: {path} was not uploaded")
        raise


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
        #: What the files are imported as, in packages the outermost.
        self._modules: set[str] = set()
        #: What the slot itself runs on. Were it imported anew, classes would be two.
        self._needed = sys.stdlib_module_names | {_outermost(name) for name in sys.modules}

    def __repr__(self) -> str:
        return f"<SlotFiles {self.directory}, {len(self._contents)} files>"

    def sync(self, link: Link, keys: Keys, number: int, job: str) -> None:
        """Get what is new in state `number` of a queue's files, for a job that is to see it."""
        if self._seen == (keys.queue, number):
            return
        seal = self.signer.seal(keys.queue, FILES)
        changed = False
        for signed in link.command("HVALS", keys("files")):
            try:
                name, content = unpack(seal.open(FILE, b"", 0, signed))
            except BadSignature:
                who = secrets.token_hex(8)
                link.call("refuse", keys, job=job, who=who, total=1)
                continue
            if self._contents.get(name.decode()) != content:
                self._take(name.decode(), content)
                changed = True
        if changed:
            self._forget_modules()
        self._seen = (keys.queue, number)  # files of two queues may have one name

    def _take(self, name: str, content: bytes) -> None:
        """Write a file where it is imported from."""
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
        sys.path_importer_cache.pop(place, None)
        zipimport._zip_directory_cache.pop(place, None)  # type: ignore[attr-defined]  # noqa: SLF001
        self._modules |= _modules_of(path) - self._needed

    def _forget_modules(self) -> None:
        """Have all that was uploaded imported anew."""
        # All, as one may have done `from edited import VALUE`. And by name: the slot may have
        # imported a module of this name from elsewhere, before there was an upload.
        importlib.invalidate_caches()
        for module in list(sys.modules):
            if _outermost(module) in self._modules:
                del sys.modules[module]


def _modules_of(path: Path) -> set[str]:
    """Return the names under which Python may import what is in a file."""
    names = [path.name]
    if path.suffix in ARCHIVES and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    return {_outermost(name.partition("/")[0]) for name in names}


def _outermost(name: str) -> str:
    """Return what is before the first dot: the outermost package, or the module of a file."""
    return name.partition(".")[0]
