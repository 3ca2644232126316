"""Golden inputs: synthetic network inputs generated from a seed, on which every exported graph is checked. numpy only.

They hold no patient data. A bundle stores the seed and the digests instead of the arrays, and every machine reproduces
the same bytes: only integer samples, +, -, *, / and minimum/maximum are used, which IEEE 754 defines to the last bit.
The samples are the raw output of PCG64, which numpy keeps stable across versions, unlike its distributions.

B cases, D H W voxels, T tokens, F folds, R = 1781 radiomic features. Each case covers other extremes:

    case 0  anatomy with noise            a text of medium length  random radiomics
    case 1  a constant volume (no signal) the shortest text        all radiomics zero (no information)
    case 2  another anatomy               the longest text         radiomics at the limits, -1 or 1
    case 3+ like case 0, other samples
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import Manifest
from tmi.toolkit.config.schema import N_RADIOMICS, Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.models.registry import active_modalities

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

MIN_TEXT_TOKENS = 3
"""Length of the shortest golden text: start token, one token, end token."""
LARGE_VOLUME = 2**22
"""Number of voxels from which a golden set has two cases instead of four, because one case takes many seconds."""
EXTREME_FACTOR = 64.0
"""Distance of the extreme case's voxels from the scale range, as a multiple of the width of the range."""


@dataclass(frozen=True, kw_only=True)
class GoldenText:
    """Token ids of one text graph, padded on the right with 0 to the longest text."""

    input_ids_BT: Int64[NDArray[np.int64], "B T"]
    """Ids within the tokenizer's vocabulary."""
    attention_mask_BT: Int64[NDArray[np.int64], "B T"]
    """1 for tokens, 0 for padding."""


@dataclass(frozen=True, kw_only=True)
class GoldenInputs:
    """Inputs of the complete pipeline, one row for each case."""

    seed: int
    """Seed from which they were generated."""
    ct_B1DHW: Float32[NDArray[np.float32], "B 1 D H W"]
    """Volumes after preprocessing; of size 0 if the network does not use the image."""
    texts: Mapping[str, GoldenText]
    """Name of a text graph -> its tokens."""
    radiomics_BFR: Float32[NDArray[np.float32], "B F R"]
    """Scaled radiomics; values differ between folds because each fold has its own scaler."""

    @property
    def count(self) -> int:
        """Number of cases."""
        return int(self.ct_B1DHW.shape[0])

    def rows(self, index: list[int]) -> GoldenInputs:
        """The cases of `index`, in that order."""
        return GoldenInputs(
            seed=self.seed,
            ct_B1DHW=self.ct_B1DHW[index],
            texts={
                name: GoldenText(input_ids_BT=t.input_ids_BT[index], attention_mask_BT=t.attention_mask_BT[index])
                for name, t in self.texts.items()
            },
            radiomics_BFR=self.radiomics_BFR[index],
        )

    def digests(self) -> dict[str, str]:
        """SHA-256 of each input's little-endian bytes, by name."""
        arrays: dict[str, NDArray[np.generic]] = {"ct": self.ct_B1DHW, "radiomics": self.radiomics_BFR}
        for name, text in self.texts.items():
            arrays[f"{name}.input_ids"] = text.input_ids_BT
            arrays[f"{name}.attention_mask"] = text.attention_mask_BT
        return {name: _digest(array) for name, array in arrays.items()}


def golden_count(config: Config) -> int:
    """Number of golden cases of a configuration: 4, or 2 for large volumes."""
    depth, height, width = config.ct.shape_DHW
    return 2 if depth * height * width >= LARGE_VOLUME else 4


def make_golden(config: Config, *, seed: int, count: int, folds: int, vocabularies: Mapping[str, int]) -> GoldenInputs:
    """Generate golden inputs for a network.

    Args:
        config: configuration; gives the volume's shape and scale range and the maximum text length.
        seed: a non-negative integer.
        count: number of cases, at least 2, so that a batch holds more than one case.
        folds: number of folds of the fusion graph.
        vocabularies: name of a text graph -> size of its tokenizer's vocabulary.

    Raises:
        ValueError: fewer than 2 cases or no fold.
    """
    if count < 2 or folds < 1:
        raise ValueError(f"golden inputs need 2 cases and 1 fold, not {count} and {folds}")
    ct = np.stack([_volume_if_used(config, seed=seed, case=case) for case in range(count)])
    return GoldenInputs(
        seed=seed,
        ct_B1DHW=ct[:, None],
        texts=_texts(config, seed=seed, count=count, vocabularies=vocabularies),
        radiomics_BFR=np.stack([_radiomics(folds, seed=seed, case=case) for case in range(count)]),
    )


def largest_batch(config: Config) -> int:
    """The largest batch on which engines are checked: 8, or the golden set itself for large volumes."""
    return max(8 if golden_count(config) == 4 else 0, golden_count(config))


def golden_from_manifest(manifest: Manifest) -> GoldenInputs:
    """Regenerate the golden inputs of a bundle from its manifest and compare them with the recorded digests.

    Raises:
        DamagedError: their bytes differ from those of the export.
    """
    record = manifest.golden
    golden = make_golden(
        manifest.config,
        seed=record.seed,
        count=record.count,
        folds=len(manifest.folds),
        vocabularies=record.vocabularies,
    )
    differing = sorted(name for name, digest in golden.digests().items() if record.digests.get(name) != digest)
    if differing:
        raise DamagedError(
            f"bundle: golden input {differing[0]} has other bytes here than at the export",
            fix="export the bundle again",
        )
    return golden


def first_golden_input(manifest: Manifest) -> GoldenInputs:
    """Case 0 of `golden_from_manifest`, with its text trimmed; the volumes of the other cases are not generated.

    Its bytes are not compared with the digests, which cover all cases. Inputs that differed would change the outputs
    and fail the parity checks.
    """
    config, seed = manifest.config, manifest.golden.seed
    texts = _texts(config, seed=seed, count=manifest.golden.count, vocabularies=manifest.golden.vocabularies)
    return trimmed(
        GoldenInputs(
            seed=seed,
            ct_B1DHW=_volume_if_used(config, seed=seed, case=0)[None, None],
            texts={
                name: GoldenText(input_ids_BT=t.input_ids_BT[:1], attention_mask_BT=t.attention_mask_BT[:1])
                for name, t in texts.items()
            },
            radiomics_BFR=_radiomics(len(manifest.folds), seed=seed, case=0)[None],
        )
    )


def extreme_case(golden: GoldenInputs, config: Config) -> GoldenInputs:
    """One case with values far outside the range of prepared cases, used as a neighbour of golden cases in a batch.

    The volume is a checkerboard that exceeds the scale range by `EXTREME_FACTOR` times its width on either side. Every
    text fills the whole width with the highest token id of the golden texts. The radiomics alternate between -100 and
    100.
    """
    low, high = config.ct.scale_to
    shape = golden.ct_B1DHW.shape[2:]
    odd = np.indices((2, 2, 2), dtype=np.int8).sum(0) % 2
    cell = np.where(odd, high + EXTREME_FACTOR * (high - low), low - EXTREME_FACTOR * (high - low)).astype(np.float32)
    # Tiling a 2 x 2 x 2 cell needs no index array of the size of the volume.
    ct = np.tile(cell, [-(-n // 2) for n in shape])[: shape[0], : shape[1], : shape[2]]
    radiomics = np.where(np.arange(golden.radiomics_BFR.shape[2]) % 2, np.float32(100), np.float32(-100))
    return GoldenInputs(
        seed=golden.seed,
        ct_B1DHW=np.ascontiguousarray(ct)[None, None],
        texts={
            name: GoldenText(
                input_ids_BT=np.full_like(t.input_ids_BT[:1], t.input_ids_BT.max()),
                attention_mask_BT=np.ones_like(t.attention_mask_BT[:1]),
            )
            for name, t in golden.texts.items()
        },
        radiomics_BFR=np.broadcast_to(radiomics, (1, *golden.radiomics_BFR.shape[1:])).copy(),
    )


def join(*parts: GoldenInputs) -> GoldenInputs:
    """Concatenate several sets to one batch; texts must be padded to the same length."""
    return GoldenInputs(
        seed=parts[0].seed,
        ct_B1DHW=np.concatenate([p.ct_B1DHW for p in parts]),
        texts={
            name: GoldenText(
                input_ids_BT=np.concatenate([p.texts[name].input_ids_BT for p in parts]),
                attention_mask_BT=np.concatenate([p.texts[name].attention_mask_BT for p in parts]),
            )
            for name in parts[0].texts
        },
        radiomics_BFR=np.concatenate([p.radiomics_BFR for p in parts]),
    )


def padded(golden: GoldenInputs, length: int) -> GoldenInputs:
    """The same cases with every text padded to `length` tokens."""
    return _with_width(golden, lambda text: length)


def trimmed(golden: GoldenInputs) -> GoldenInputs:
    """The same cases with padding removed up to the longest text."""
    return _with_width(golden, lambda text: int(text.attention_mask_BT.sum(axis=1).max()))


def _with_width(golden: GoldenInputs, width_of: Callable[[GoldenText], int]) -> GoldenInputs:
    texts = {}
    for name, text in golden.texts.items():
        width = width_of(text)
        rows, old = text.input_ids_BT.shape
        ids, mask = np.zeros((rows, width), np.int64), np.zeros((rows, width), np.int64)
        ids[:, :old] = text.input_ids_BT[:, :width]
        mask[:, :old] = text.attention_mask_BT[:, :width]
        texts[name] = GoldenText(input_ids_BT=ids, attention_mask_BT=mask)
    return replace(golden, texts=texts)


def _raw(seed: int, *purpose: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([seed, *purpose]))


def _uniform(stream: np.random.PCG64, count: int) -> NDArray[np.float32]:
    """`count` values in [-1, 1) on a grid of 2^-15, four from each 64-bit word.

    Every value is exact in float32, so no rounding mode or vector unit can change it.
    """
    words = stream.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
    return words.astype(np.float32) / np.float32(2**15) - np.float32(1)


def _volume_if_used(config: Config, *, seed: int, case: int) -> NDArray[np.float32]:
    """One volume [D,H,W]; of size 0 for a network that does not use the image."""
    return (
        _volume(config, seed=seed, case=case)
        if "image" in active_modalities(config)
        else np.zeros((0, 0, 0), np.float32)
    )


def _volume(config: Config, *, seed: int, case: int) -> NDArray[np.float32]:
    """One volume [D,H,W] within the scale range: soft ellipsoids in a body, plus noise; case 1 is constant."""
    shape = config.ct.shape_DHW
    low, high = (np.float32(end) for end in config.ct.scale_to)
    if case == 1:
        return np.full(shape, low, dtype=np.float32)
    stream = _raw(seed, 0, case)
    z, y, x = (_axis(n, axis) for axis, n in enumerate(shape))
    unit = _ellipsoid(z, y, x, np.zeros(3, np.float32), np.asarray([4.0, 0.8, 0.9], np.float32)) * np.float32(0.5)
    for _ in range(5):
        sample = _uniform(stream, 7)  # 3 for the centre, 3 for the radii, 1 for the weight
        centre, radius = sample[:3] * np.float32(0.6), (sample[3:6] + np.float32(1.5)) / np.float32(3)
        unit += sample[6] / np.float32(2) * _ellipsoid(z, y, x, centre, radius)
    unit += np.float32(0.05) * _uniform(stream, unit.size).reshape(shape)
    # In place: a volume of full size exists once.
    np.clip(unit, 0, 1, out=unit)
    unit *= high - low
    unit += low
    return unit


def _axis(count: int, axis: int) -> NDArray[np.float32]:
    """Voxel centres in (-1, 1) along one of three axes, shaped for broadcasting."""
    centres = (2 * np.arange(count, dtype=np.float32) + np.float32(1)) / np.float32(count) - np.float32(1)
    return centres.reshape([-1 if a == axis else 1 for a in range(3)])


def _ellipsoid(
    z: NDArray[np.float32],
    y: NDArray[np.float32],
    x: NDArray[np.float32],
    centre: NDArray[np.float32],
    radius: NDArray[np.float32],
) -> NDArray[np.float32]:
    """clip(2 - 2 r^2, 0, 1) with r^2 = sum over axes of ((axis - centre) / radius)^2: 1 for r^2 <= 1/2, 0 for r >= 1.

    Centre and radii are in units of half the volume's edges.
    """
    squares = []
    for axis, c, r in zip((z, y, x), centre, radius, strict=True):
        offset = (axis - c) / r
        squares.append(offset * offset)
    inside: NDArray[np.float32] = np.clip(2 - 2 * (squares[0] + squares[1] + squares[2]), 0, 1)
    return inside


def _texts(config: Config, *, seed: int, count: int, vocabularies: Mapping[str, int]) -> dict[str, GoldenText]:
    lengths = [_text_length(case, config.clinical.max_length) for case in range(count)]
    return {
        name: _tokens(lengths, vocabulary=size, stream=_raw(seed, 2, graph))
        for graph, (name, size) in enumerate(sorted(vocabularies.items()))
    }


def _text_length(case: int, longest: int) -> int:
    """Text length of a case in tokens: medium, shortest, longest, then others in between."""
    special = {0: longest // 3, 1: MIN_TEXT_TOKENS, 2: longest}
    return max(MIN_TEXT_TOKENS, special.get(case, longest // (2 + case)))


def _tokens(lengths: list[int], *, vocabulary: int, stream: np.random.PCG64) -> GoldenText:
    width = max(lengths)
    words = stream.random_raw(len(lengths) * width).reshape(len(lengths), width)
    mask = (np.arange(width) < np.asarray(lengths)[:, None]).astype(np.int64)
    # Ids from 1 on, because 0 is the padding; the mask sets padded positions back to 0.
    ids = (1 + words % np.uint64(max(vocabulary - 1, 1))).astype(np.int64) * mask
    return GoldenText(input_ids_BT=ids, attention_mask_BT=mask)


def _radiomics(folds: int, *, seed: int, case: int) -> NDArray[np.float32]:
    """[F,R] scaled features: zero in case 1, -1 or 1 in case 2, else uniform in [-1, 1)."""
    values = _uniform(_raw(seed, 1, case), folds * N_RADIOMICS).reshape(folds, N_RADIOMICS)
    if case == 1:
        return np.zeros_like(values)
    return np.where(values < 0, np.float32(-1), np.float32(1)) if case == 2 else values


def _digest(array: NDArray[np.generic]) -> str:
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.data).hexdigest()
