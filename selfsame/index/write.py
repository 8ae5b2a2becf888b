"""Write an index: embeddings of any number of images as one Parquet file.

The work is cut into *parts* of consecutive images, each a Parquet file in a hidden folder beside
the output, complete or absent. So memory does not grow with the data, what is done survives a kill,
and processes share the parts without talking. At the end one of them puts the parts together; the
file does not depend on how many there were, nor on where the work stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from selfsame import dist
from selfsame.console import Console
from selfsame.data import open_source
from selfsame.data.arrays import ArraySource
from selfsame.data.pack import PackSource
from selfsame.data.place import absolute
from selfsame.encoder import Encoder, load
from selfsame.errors import DataError, RunError, UsageError, unknown
from selfsame.evals.subject import batch_size as fitting_batch
from selfsame.files import atomic, check_output, output, reason, refused, remove
from selfsame.index.read import FORMAT, KEY
from selfsame.lock import locked
from selfsame.types import Batch, Source

DTYPES = ("float32", "float16")
PART = 1024  # images of a part at the most, rounded up to whole batches
PARTS = 64  # of a smaller data set, at least, as far as batches go
ROW_GROUP = 16_384  # images, about, that a reader of the file takes at once
LISTED = 1000  # unreadable images that the file names, with the reason
CHECKED = {"write_page_checksum": True}  # so that a reader notices what has decayed
PLAN = "plan.json"
PLAN_FORMAT = 1

T = TypeVar("T")


@dist.launched()
def embed(
    model: str | Path | nn.Module,
    data: Any,
    out: str | Path,
    *,
    dtype: str = "float32",
    device: str | None = None,
    batch_size: int | None = None,
    quiet: bool = True,
) -> dict[str, int]:
    """Write the embeddings of images to a Parquet file, which the other verbs call an index.

    Columns: ``id`` (position in the data), ``path``, ``sha256`` (of the file's bytes; of an array,
    of its pixels, see `digest`) and ``vector``. The metadata says which model and which data. Under
    torchrun the processes share the images; they must see one file system. What was stopped goes on
    when it is called again with the same arguments.

    Args:
        model: what ``selfsame.load`` takes.
        data: what ``pretrain`` takes.
        out: the file to write; complete or absent.
        dtype: of the vectors, "float32" or "float16".
        device: where to compute.
        batch_size: images a forward pass; by default 256, or what bounds the memory of large ones.
        quiet: say nothing on the terminal.

    Returns:
        ``images`` written, ``refused`` because they cannot be read (left out of the file), and
        ``dim``, the width of a vector.

    Raises:
        UsageError: a value that cannot be used, an output that cannot be written, or an unfinished
            one of another model, other data or other settings.
        DataError: no images, or none that can be read.
        RunError: features that are not finite, or a disk that is full.
    """
    out = Path(out)
    console = Console(quiet=quiet)
    with ExitStack() as stack:
        with dist.agreed():
            if dtype not in DTYPES:
                raise unknown("dtype", dtype, DTYPES)
            if batch_size is not None and batch_size < 1:
                raise UsageError(f"batch size {batch_size} is not positive", tip="use 1 or more")
            check_output(out)  # before hours of work
            encoder = load(model, device=device)
            source = open_source(data)
            work = Work(out, encoder, source, dtype, batch_size)
            work.facts["model"]["name"] = _named(model)
            work.facts["data"]["paths"] = absolute(data)
        with dist.agreed():
            if dist.is_main():
                work.begin(stack)
        done = dist.on_main(work.complete)
        if done:
            console.say(f"continues  {len(done):,} of {work.parts:,} parts were there already")
        own = [k for k in range(work.parts) if k not in done][dist.rank() :: dist.world_size()]
        with dist.agreed():
            work.fill(own, console)
        return dist.on_main(work.assemble)


class Work:
    """The parts of one output.

    Args:
        out: the file that they become.
        encoder: what embeds.
        source: of which images.
        dtype: of the vectors.
        batch_size: images a forward pass, None for what fits.
    """

    def __init__(
        self, out: Path, encoder: Encoder, source: Source, dtype: str, batch_size: int | None
    ) -> None:
        self.out, self.encoder, self.source, self.dtype = out, encoder, source, dtype
        self.folder = out.with_name(f".{out.name}.parts")
        self.batch_size = batch_size or fitting_batch(encoder.image_size)
        batches = min(-(-PART // self.batch_size), len(source) // (PARTS * self.batch_size))
        self.part = self.batch_size * max(1, batches)  # images: of what the data is, not the ranks
        self.parts = -(-len(source) // self.part)
        card = {key: value for key, value in encoder.card.items() if key != "evaluation"}
        self.facts: dict[str, Any] = {
            "format": FORMAT,
            "model": {"fingerprint": encoder.fingerprint(), "card": card},
            "data": {"fingerprint": source.fingerprint(), "images": len(source)},
            "dim": encoder.dim,
            "image_size": encoder.image_size,
            "channels": encoder.channels,
            "dtype": dtype,
            "batch_size": self.batch_size,
        }

    def begin(self, stack: ExitStack) -> None:
        """Make the folder, or look whether it is of this work; lock it until the end."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write {self.out}: {error.strerror or error}",
                tip="name a file in a folder that exists and that you may write to",
            ) from None
        stack.enter_context(locked(self.folder / "lock", str(self.out)))
        plan = {
            "format": PLAN_FORMAT,
            "model": self.facts["model"]["fingerprint"],
            "data": self.facts["data"]["fingerprint"],
            "images": len(self.source),
            "dtype": self.dtype,
            "batch size": self.batch_size,
            "part": self.part,
        }
        file = self.folder / PLAN
        if file.exists():
            self._compare(file, plan)
            return
        with atomic(file) as temporary:
            temporary.write_text(json.dumps(plan), "utf-8")

    def _compare(self, file: Path, plan: dict[str, Any]) -> None:
        """Refuse to go on with what something else began."""
        try:
            was = json.loads(file.read_text("utf-8"))
            other = [key for key in plan if was.get(key) != plan[key]]
        except (ValueError, AttributeError):
            other = ["plan that cannot be read"]
        if other:
            raise UsageError(
                f"{self.out} was begun with another {other[0]}, and is not finished",
                tip="finish it with the same command, name another file with -o, or delete "
                f"{self.folder}",
            )

    def file(self, k: int) -> Path:
        """Where part ``k`` is."""
        return self.folder / f"part-{k:06d}.parquet"

    def complete(self) -> set[int]:
        """The parts that are there and can be read; others are removed."""
        import pyarrow.parquet as pq

        done = set()
        for k in range(self.parts):
            if self.file(k).exists():
                try:
                    pq.read_metadata(self.file(k))
                    done.add(k)
                except Exception:  # written to a disk that lost it
                    self.file(k).unlink()
        return done

    def fill(self, parts: list[int], console: Console) -> None:
        """Embed some parts; each is written when it is complete."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        ranges = [(k * self.part, min((k + 1) * self.part, len(self.source))) for k in parts]
        total = sum(last - first for first, last in ranges)
        whose = "images" if dist.world_size() == 1 else "images of this process"
        hashed = Hashed(self.source)
        done = shown = 0
        with self.encoder.open(hashed.source, cache_bytes=0) as images:
            for k, (first, last) in zip(parts, ranges, strict=True):
                rows = []
                for batch in ahead(images.readable(self.batch_size, first, last)):
                    rows.append(self._rows(batch, hashed))
                    shown = done + int(batch.index[-1]) + 1 - first
                    console.count(shown, total, whose)
                bad = {b.index: [b.name, b.reason] for b in images.bad if first <= b.index < last}
                note = {KEY: json.dumps(bad)}
                table = pa.Table.from_batches(rows, self._schema().with_metadata(note))
                try:
                    with atomic(self.file(k)) as temporary:
                        pq.write_table(table, temporary, compression="none", **CHECKED)
                except OSError as error:
                    raise refused(str(self.file(k)), error, "give the same command") from error
                done += last - first
                if shown < done:  # the last ones cannot be read
                    shown = done
                    console.count(shown, total, whose)

    def _rows(self, batch: Batch, hashed: Hashed) -> Any:
        """A batch with its embeddings as rows of the file."""
        import pyarrow as pa

        ids = batch.index.tolist()
        features = self.encoder.features(batch.images, batch.sizes).cpu()
        with np.errstate(over="ignore"):  # told below, by name
            vectors = features.numpy().astype(self.dtype)
        self._check(features, vectors, ids)
        columns = [
            pa.array(ids, pa.int64()),
            pa.array([_text(self.source.name(i)) for i in ids], pa.string()),
            pa.array([hashed.digest(i) for i in ids], pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.encoder.dim),
        ]
        return pa.record_batch(columns, schema=self._schema())

    def _check(self, features: Tensor, vectors: np.ndarray, ids: list[int]) -> None:
        finite = np.isfinite(vectors).all(1)
        if finite.all():
            return
        name = self.source.name(ids[int(finite.argmin())])
        if features.isfinite().all():
            raise RunError(
                f"the features of {name} are too large for {self.dtype}", tip="use --dtype float32"
            )
        raise RunError(
            f"the features of {name} are not finite",
            tip="the encoder has diverged: embed with an earlier one",
        )

    def _schema(self) -> Any:
        import pyarrow as pa

        number = pa.float32() if self.dtype == "float32" else pa.float16()
        return pa.schema(
            [
                ("id", pa.int64()),
                ("path", pa.string()),
                ("sha256", pa.string()),
                ("vector", pa.list_(number, self.encoder.dim)),
            ]
        )

    def assemble(self) -> dict[str, int]:
        """Put the parts together, one group of them in memory at a time, and remove them."""
        import pyarrow.parquet as pq

        bad: dict[str, list[str]] = {}
        for k in range(self.parts):
            bad |= json.loads(pq.read_schema(self.file(k)).metadata[KEY])
        written = len(self.source) - len(bad)
        if not written:
            raise DataError(
                f"none of the {len(self.source)} images is readable",
                tip="open one of them in an image viewer; are they whole, and in a known format?",
            )
        self.facts["images"] = written
        self.facts["refused"] = {
            "images": len(bad),
            "first": [[name, why] for name, why in list(bad.values())[:LISTED]],
        }
        schema = self._schema().with_metadata({KEY: json.dumps(self.facts)})
        together = max(1, ROW_GROUP // self.part)
        with (
            output(self.out) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd", **CHECKED) as writer,
        ):
            for first in range(0, self.parts, together):
                writer.write_table(self._read(range(first, min(first + together, self.parts))))
        remove(self.folder)
        return {"images": written, "refused": len(bad), "dim": self.encoder.dim}

    def _read(self, parts: range) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for k in parts:
            try:
                table = pq.read_table(self.file(k), page_checksum_verification=True)
            except Exception as error:
                self.file(k).unlink(missing_ok=True)
                raise RunError(
                    f"{self.file(k)} is damaged: {reason(error)}",
                    tip="it is removed; give the same command again",
                ) from error
            tables.append(table.replace_schema_metadata(None))
        return pa.concat_tables(tables).combine_chunks()


class Hashed:
    """The hash of each image that is read, taken on the way so that nothing is read twice.

    Args:
        source: the images; ``self.source`` reads the same.
    """

    def __init__(self, source: Source) -> None:
        self.original = source
        self.found: dict[int, str] = {}
        # arrays have a quicker way in, which does not read image by image
        plain = isinstance(source, ArraySource | PackSource)
        self.source: Source = source if plain else _Listening(source, self.found)

    def digest(self, i: int) -> str:
        """The hash of image ``i``, asked for once."""
        return self.found.pop(i, None) or digest(self.original.read(i))


class _Listening:
    """A source that notes the hash of what it reads."""

    def __init__(self, source: Source, found: dict[int, str]) -> None:
        self.original, self.found = source, found
        self.labels, self.classes = source.labels, source.classes
        self.name, self.fingerprint = source.name, source.fingerprint

    def __len__(self) -> int:
        return len(self.original)

    def read(self, i: int) -> bytes | np.ndarray:
        """Image ``i``."""
        data = self.original.read(i)
        self.found[i] = digest(data)
        return data


def digest(data: bytes | np.ndarray) -> str:
    """SHA-256 of an image file, as ``sha256sum`` prints it; of pixels, of their type and shape too.

    >>> digest(b"")[:8]
    'e3b0c442'
    """
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    found = hashlib.sha256(f"{data.dtype.str} {data.shape}".encode())
    found.update(np.ascontiguousarray(data).tobytes())
    return found.hexdigest()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made while one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="selfsame-ahead") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _named(model: str | Path | nn.Module) -> str | None:
    """By what the model can be loaded again; None for a module."""
    if isinstance(model, nn.Module):
        return None
    return os.path.abspath(model) if Path(model).exists() else str(model)


def _text(name: str) -> str:
    """A name as valid Unicode: names of files need not be."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
