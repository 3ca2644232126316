"""Golden inputs: what every exported graph is judged on, made from a seed at the prepared level. numpy only.

No patient is in them, so a bundle carries the seed and the digests instead of the arrays, and any machine makes the
same bytes again: only integer draws, +, -, *, / and minimum/maximum are used, which IEEE 754 fixes to the last bit,
and the draws are the raw output of PCG64, which numpy keeps stable where it does not promise so for its distributions.

B cases, D H W voxels, T tokens, F folds, R = 1781 radiomic features. Case by case, so that few cases show much:

    case 0  anatomy with noise            a middling text     random radiomics
    case 1  a constant volume (no signal) the shortest text   all radiomics zero (nothing known)
    case 2  another anatomy               the longest text    radiomics at the ends, -1 or 1
    case 3+ as case 0, other draws
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
"""Tokens of the shortest golden text: start, one token, end."""
LARGE_VOLUME = 2**22
"""Voxels from which a golden set has two cases instead of four, because one costs many seconds."""
EXTREME_FACTOR = 64.0
"""How far the extreme neighbour's volume leaves the scale range, as a multiple of the range's width."""


@dataclass(frozen=True, kw_only=True)
class GoldenText:
    """Token ids of one text graph, padded on the right with 0 to the longest."""

    input_ids_BT: Int64[NDArray[np.int64], "B T"]
    """Ids within the tokenizer's vocabulary."""
    attention_mask_BT: Int64[NDArray[np.int64], "B T"]
    """1 for tokens, 0 for padding."""


@dataclass(frozen=True, kw_only=True)
class GoldenInputs:
    """Inputs of the whole pipeline, one row a case."""

    seed: int
    """What they were made from."""
    ct_B1DHW: Float32[NDArray[np.float32], "B 1 D H W"]
    """Volumes after preprocessing; without a voxel where the network does not see the image."""
    texts: Mapping[str, GoldenText]
    """Tokens by name of the text graph."""
    radiomics_BFR: Float32[NDArray[np.float32], "B F R"]
    """Scaled radiomics; each fold has its own values, as each fold has its own scaler."""

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
    """How many golden cases a configuration gets: 4, or 2 where one volume is large."""
    depth, height, width = config.ct.shape_DHW
    return 2 if depth * height * width >= LARGE_VOLUME else 4


def make_golden(config: Config, *, seed: int, count: int, folds: int, vocabularies: Mapping[str, int]) -> GoldenInputs:
    """Golden inputs for a network of `config`.

    Args:
        config: gives the volume's shape and scale range and the longest text.
        seed: any integer from 0.
        count: cases, at least 2, so that a batch has neighbours.
        folds: folds of the fusion graph.
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
    """The largest batch that engines are tried with: 8, or the golden set itself where one volume is large."""
    return max(8 if golden_count(config) == 4 else 0, golden_count(config))


def golden_from_manifest(manifest: Manifest) -> GoldenInputs:
    """The golden inputs that a bundle was judged on, made again from its manifest.

    Raises:
        DamagedError: the manifest does not describe them, or they come out with other bytes than at the export.
    """
    record = manifest.golden
    again = "export the bundle again"
    try:
        golden = make_golden(
            manifest.parsed_config(),
            seed=int(record["seed"]),
            count=int(record["count"]),
            folds=len(manifest.folds),
            vocabularies={str(name): int(size) for name, size in record["vocabularies"].items()},
        )
        recorded = dict(record["digests"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError("bundle: the manifest does not describe its golden inputs", fix=again) from error
    differing = sorted(name for name, digest in golden.digests().items() if recorded.get(name) != digest)
    if differing:
        raise DamagedError(f"bundle: golden input {differing[0]} comes out with other bytes here", fix=again)
    return golden


def first_golden_input(manifest: Manifest) -> GoldenInputs:
    """Case 0 of `golden_from_manifest` alone, its text without padding; the other volumes are never made.

    Its bytes are not compared with the digests, which are over all cases: inputs that came out differently would show
    in the answers.

    Raises:
        DamagedError: the manifest does not describe golden inputs.
    """
    record = manifest.golden
    try:
        config, seed, count = manifest.parsed_config(), int(record["seed"]), int(record["count"])
        vocabularies = {str(name): int(size) for name, size in record["vocabularies"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(
            "bundle: the manifest does not describe its golden inputs", fix="export the bundle again"
        ) from error
    return trimmed(
        GoldenInputs(
            seed=seed,
            ct_B1DHW=_volume_if_used(config, seed=seed, case=0)[None, None],
            texts={
                name: GoldenText(input_ids_BT=t.input_ids_BT[:1], attention_mask_BT=t.attention_mask_BT[:1])
                for name, t in _texts(config, seed=seed, count=count, vocabularies=vocabularies).items()
            },
            radiomics_BFR=_radiomics(len(manifest.folds), seed=seed, case=0)[None],
        )
    )


def extreme_case(golden: GoldenInputs, config: Config) -> GoldenInputs:
    """One case of values far outside what a prepared case can hold, to stand beside golden cases in a batch.

    The volume is a checkerboard `EXTREME_FACTOR` range widths beyond either end, every text is as long as the batch
    allows and made of the highest id seen, and the radiomics alternate between -100 and 100.
    """
    low, high = config.ct.scale_to
    shape = golden.ct_B1DHW.shape[2:]
    odd = np.indices((2, 2, 2), dtype=np.int8).sum(0) % 2
    cell = np.where(odd, high + EXTREME_FACTOR * (high - low), low - EXTREME_FACTOR * (high - low)).astype(np.float32)
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
    """The cases of several sets in one batch; texts must be padded to one length."""
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
        rows, now = text.input_ids_BT.shape
        ids, mask = np.zeros((rows, width), np.int64), np.zeros((rows, width), np.int64)
        ids[:, :now] = text.input_ids_BT[:, :width]
        mask[:, :now] = text.attention_mask_BT[:, :width]
        texts[name] = GoldenText(input_ids_BT=ids, attention_mask_BT=mask)
    return replace(golden, texts=texts)


def _raw(seed: int, *purpose: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([seed, *purpose]))


def _uniform(stream: np.random.PCG64, count: int) -> NDArray[np.float32]:
    """`count` values on a grid of 2^-15 in [-1, 1)."""
    words = stream.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
    return words.astype(np.float32) / np.float32(2**15) - np.float32(1)


def _volume_if_used(config: Config, *, seed: int, case: int) -> NDArray[np.float32]:
    """One volume [D,H,W]; an empty one for a network that does not see the image."""
    return (
        _volume(config, seed=seed, case=case)
        if "image" in active_modalities(config)
        else np.zeros((0, 0, 0), np.float32)
    )


def _volume(config: Config, *, seed: int, case: int) -> NDArray[np.float32]:
    """One volume [D,H,W] within the scale range: soft ellipsoids in a body, with noise; case 1 is constant."""
    shape = config.ct.shape_DHW
    low, high = (np.float32(end) for end in config.ct.scale_to)
    if case == 1:
        return np.full(shape, low, dtype=np.float32)
    stream = _raw(seed, 0, case)
    z, y, x = (_axis(n, axis) for axis, n in enumerate(shape))
    unit = _ellipsoid(z, y, x, np.zeros(3, np.float32), np.asarray([4.0, 0.8, 0.9], np.float32)) * np.float32(0.5)
    for _ in range(5):
        draw = _uniform(stream, 7)
        weight = draw[6] / np.float32(2)
        unit += weight * _ellipsoid(z, y, x, draw[:3] * np.float32(0.6), (draw[3:6] + np.float32(1.5)) / np.float32(3))
    unit += np.float32(0.05) * _uniform(stream, unit.size).reshape(shape)
    np.clip(unit, 0, 1, out=unit)
    unit *= high - low
    unit += low
    return unit


def _axis(count: int, axis: int) -> NDArray[np.float32]:
    """Voxel centres in (-1, 1) along one axis of three."""
    centres = (2 * np.arange(count, dtype=np.float32) + np.float32(1)) / np.float32(count) - np.float32(1)
    return centres.reshape([-1 if a == axis else 1 for a in range(3)])


def _ellipsoid(
    z: NDArray[np.float32],
    y: NDArray[np.float32],
    x: NDArray[np.float32],
    centre: NDArray[np.float32],
    radius: NDArray[np.float32],
) -> NDArray[np.float32]:
    """1 inside, falling to 0 over the outer third; centre and radii in units of half the volume's edges."""
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
    """Tokens of a case's text: middling, shortest, longest, then others in between."""
    special = {0: longest // 3, 1: MIN_TEXT_TOKENS, 2: longest}
    return max(MIN_TEXT_TOKENS, special.get(case, longest // (2 + case)))


def _tokens(lengths: list[int], *, vocabulary: int, stream: np.random.PCG64) -> GoldenText:
    width = max(lengths)
    words = stream.random_raw(len(lengths) * width).reshape(len(lengths), width)
    mask = (np.arange(width) < np.asarray(lengths)[:, None]).astype(np.int64)
    ids = (1 + words % np.uint64(max(vocabulary - 1, 1))).astype(np.int64) * mask
    return GoldenText(input_ids_BT=ids, attention_mask_BT=mask)


def _radiomics(folds: int, *, seed: int, case: int) -> NDArray[np.float32]:
    """[F,R] scaled features: zero in case 1, at the ends in case 2, else uniform in [-1, 1)."""
    values = _uniform(_raw(seed, 1, case), folds * N_RADIOMICS).reshape(folds, N_RADIOMICS)
    if case == 1:
        return np.zeros_like(values)
    return np.where(values < 0, np.float32(-1), np.float32(1)) if case == 2 else values


def _digest(array: NDArray[np.generic]) -> str:
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.data).hexdigest()
