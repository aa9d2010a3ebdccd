"""CNN features of photos on disk, computed once per photo and encoder.

Layout of a cache folder::

    <fingerprint of the encoder>/<hash of the content>.safetensors
        keys      [n, 32] uint8    SHA-256 of what the features were computed from
        features  [n, F]  float32
        crc       [n]     uint32   CRC-32 of each row of keys and features, joined

Shards are written under a temporary name and renamed, never changed afterwards, and named by their content,
so that any number of processes may write at once, and a kill loses at most the shard being written. A
damaged shard is noticed (unreadable, or a row that does not fit its checksum), removed with a warning, and
what it held is computed again.
"""

import hashlib
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lrcn_fast._files import write_atomic

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_arrays
    from safetensors.numpy import save as dump_arrays
    from torch import Tensor
except ImportError as error:
    raise ImportError(
        "lrcn_fast.data.features needs torch and safetensors: pip install 'lrcn_fast[torch]'"
    ) from error

Path_ = str | os.PathLike[str]


def file_key(path: Path_, tag: str = "") -> bytes:
    """Return the cache key of a photo: SHA-256 of its content (not of its name or time) and of a tag.

    Args:
        path: the file.
        tag: tells apart several features of one photo, such as random crops.
    """
    digest = hashlib.sha256(Path(path).read_bytes())
    if tag:
        digest.update(b"\0" + tag.encode())
    return digest.digest()


class FeatureCache:
    """The features of one encoder in a folder that may hold those of many.

    Args:
        folder: where to keep them; made if needed.
        fingerprint: identifies the encoder, its weights and its preprocessing: ``encoder.fingerprint()``.
        feature_dim: features per photo, F.

    Example:
        >>> cache = FeatureCache("cache", encoder.fingerprint(), encoder.feature_dim)  # doctest: +SKIP
        >>> features, found = cache.get([file_key("photo.jpg")])  # doctest: +SKIP
    """

    def __init__(self, folder: Path_, fingerprint: str, feature_dim: int) -> None:
        if not fingerprint or not fingerprint.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"FeatureCache: fingerprint must be letters, digits, - and _ only, got {fingerprint!r}"
            )
        if feature_dim < 1:
            raise ValueError(f"FeatureCache: feature_dim must be at least 1, got {feature_dim}")
        self.folder = Path(folder) / fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        self.feature_dim = feature_dim
        # Rows by key; shards are read when their folder entry is first seen.
        self._rows: dict[bytes, npt.NDArray[np.float32]] = {}
        self._seen: set[str] = set()

    def __len__(self) -> int:
        self._refresh()
        return len(self._rows)

    def _refresh(self) -> None:
        """Read the shards that appeared since the last look."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                keys, features = self._read(path)
            except FileNotFoundError:  # removed by another process meanwhile
                continue
            except ValueError as error:
                warnings.warn(
                    f"FeatureCache: {path} is damaged ({error}); removed, its features are computed again",
                    stacklevel=4,
                )
                path.unlink(missing_ok=True)
                self._seen.discard(path.name)
                continue
            self._rows.update(zip(keys, features, strict=True))

    def _read(self, path: Path) -> tuple[list[bytes], npt.NDArray[np.float32]]:
        try:
            arrays = load_arrays(path.read_bytes())
            keys, features, crc = (arrays[name] for name in ("keys", "features", "crc"))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(str(error).splitlines()[0]) from error
        n = len(keys)
        expected = {"keys": (n, 32), "features": (n, self.feature_dim), "crc": (n,)}
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, got {list(arrays[name].shape)}")
        names = [row.tobytes() for row in keys]
        if [_checksum(name, row) for name, row in zip(names, features, strict=True)] != crc.tolist():
            raise ValueError("a row does not fit its checksum")
        return names, features

    def get(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Look features up.

        Args:
            keys: N keys from :func:`file_key`.

        Returns:
            A tuple:

            - **features** [N, F] float32, 0 where there are none.
            - **found** [N] bool.
        """
        if any(key not in self._rows for key in keys):
            self._refresh()
        features = np.zeros((len(keys), self.feature_dim), np.float32)
        found = np.zeros(len(keys), np.bool_)
        for n, key in enumerate(keys):
            row = self._rows.get(key)
            if row is not None:
                features[n], found[n] = row, True
        return features, found

    def put(self, keys: Sequence[bytes], features: npt.NDArray[np.float32]) -> None:
        """Write one shard.

        Args:
            keys: N keys from :func:`file_key`.
            features: [N, F], finite.

        Raises:
            ValueError: another shape, or NaN or infinite features.
        """
        features = np.ascontiguousarray(features, np.float32)
        if features.shape != (len(keys), self.feature_dim):
            raise ValueError(
                f"FeatureCache.put: features must be [N, F] = [{len(keys)}, {self.feature_dim}], got "
                f"{list(features.shape)}"
            )
        if not np.isfinite(features).all():
            raise ValueError("FeatureCache.put: features must be finite, got NaN or infinity")
        if not keys:
            return
        crc = [_checksum(key, row) for key, row in zip(keys, features, strict=True)]
        content = dump_arrays(
            {
                "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32),
                "features": features,
                "crc": np.asarray(crc, np.uint32),
            }
        )
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
        write_atomic(self.folder / name, content)
        self._seen.add(name)
        self._rows.update(zip(keys, features, strict=True))


def extract_features(
    encoder: Any,
    photos: Sequence[Path_],
    *,
    cache: FeatureCache | Path_ | None = None,
    preprocess: Callable[[Path_], Tensor] | None = None,
    tag: str = "",
    batch_size: int = 32,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Compute the features of photos, or read them from a cache.

    The photos of a batch are decoded by threads while the batch before is in the network. Features found in
    the cache are equal, bit for bit, to those first computed.

    Args:
        encoder: what :func:`lrcn_fast.models.create_encoder` returns; runs on the device it is on, in
            evaluation mode.
        photos: N files.
        cache: a cache, a folder for one, or None.
        preprocess: from a file to pixels [3, S, S]; default ``encoder.preprocess``.
        tag: names ``preprocess`` in the cache where it is not the default.
        batch_size: photos per forward pass.
        threads: decoding threads; default: the CPUs, at most 8.
        progress: called with (photos done, photos) after each batch.

    Returns:
        Features [N, F] float32, on the CPU.

    Raises:
        FileNotFoundError: a photo is not there.
        ValueError: a broken photo, or ``preprocess`` with a cache but without a tag.
    """
    if batch_size < 1:
        raise ValueError(f"extract_features: batch_size must be at least 1, got {batch_size}")
    if preprocess is not None and cache is not None and not tag:
        raise ValueError("extract_features: tag must name preprocess where a cache is used, got none")
    if cache is not None and not isinstance(cache, FeatureCache):
        cache = FeatureCache(cache, encoder.fingerprint(), encoder.feature_dim)
    read = preprocess or encoder.preprocess
    features = np.zeros((len(photos), encoder.feature_dim), np.float32)
    todo = list(range(len(photos)))
    keys: list[bytes] = []
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        if cache is not None:
            keys = list(pool.map(lambda photo: file_key(photo, tag), photos))
            features, found = cache.get(keys)
            todo = [n for n in todo if not found[n]]
        batches = [todo[at : at + batch_size] for at in range(0, len(todo), batch_size)]
        done = len(photos) - len(todo)
        if progress is not None and done:
            progress(done, len(photos))
        unsaved: list[int] = []

        def start(batch: list[int]) -> list[Any]:
            return [pool.submit(read, photos[n]) for n in batch]

        pending: list[Any] = []
        training = encoder.training
        device = next((tensor.device for tensor in encoder.parameters()), torch.device("cpu"))
        encoder.eval()
        try:
            pending = start(batches[0]) if batches else []
            for number, batch in enumerate(batches):
                pixels = torch.stack([future.result() for future in pending])
                pending = start(batches[number + 1]) if number + 1 < len(batches) else []
                with torch.inference_mode():
                    features[batch] = encoder(pixels.to(device)).float().cpu().numpy()
                unsaved += batch
                if cache is not None and (len(unsaved) >= _SHARD_ROWS or number + 1 == len(batches)):
                    cache.put([keys[n] for n in unsaved], features[unsaved])
                    unsaved = []
                done += len(batch)
                if progress is not None:
                    progress(done, len(photos))
        finally:
            for future in pending:
                future.cancel()
            encoder.train(training)
    return torch.from_numpy(features)


_SHARD_ROWS = 512


def _checksum(key: bytes, row: npt.NDArray[np.float32]) -> int:
    return zlib.crc32(row.tobytes(), zlib.crc32(key))
