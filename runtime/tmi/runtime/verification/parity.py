"""Parity: does an engine answer like the eager model that was validated? Bounds, comparisons and gates. numpy only.

B cases, F folds, K classes, C channels of a feature. Every comparison is relative to the size of what is compared:

    error(a, r) = max over cases b of  max |a_b - r_b| / max(max |r_b|, max |r| / 16)

so that a case with weak features is not hidden behind one with strong features. The same gates judge an artefact when
it is exported and when a bundle is verified; `docs/parity.md` says what each gate catches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import Arrays, Engine, engine_spec
from tmi.runtime.inference.ensemble import probabilities, run_folds
from tmi.runtime.verification.golden_inputs import GoldenInputs, extreme_case, join, largest_batch, padded, trimmed
from tmi.runtime.verification.profile_shapes import largest_profile, text_features, text_length_checks

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

REFERENCE_MARGIN = 1e-4
"""What the reference itself, eager float32, may differ by in a probability: another batch or CPU rounds otherwise."""
FLOAT64_PREFIX = "float64."
"""Prefix of the float64 answers in `golden.safetensors`."""
PIPELINE = "pipeline"
"""Graph name of a record that judges all graphs together."""
ENGINE_ERRORS = (RuntimeError, ValueError)
"""What an engine raises when a graph cannot take a batch or gives another shape than the manifest says."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the figures of one precision must not exceed."""

    relative: float
    """Bound on `relative_error` of features and logits, against eager and between two batches of one engine."""


BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {
        "float32": Bounds(relative=2.0**-14),
        "tf32": Bounds(relative=2.0**-6),
        "float16": Bounds(relative=2.0**-6),
        "bfloat16": Bounds(relative=2.0**-5),
    }
)
"""Precision -> bounds; declared here and nowhere else.

float32 rounds to 2^-24, so 2^-14 leaves room for a thousand roundings in one direction. TF32 and float16 round to
2^-11 and bfloat16 to 2^-8: a graph that silently ran in one of them does not pass for float32.

float16 and tf32 have 2^5 times their own rounding: the emulation of a hundred layers shows 2^-10, and a GPU sums in an
order that a CPU cannot know. bfloat16 has 2^3 times its own, because the processor that answers is the one that is
judged. Weights rounded more coarsely are the audit's to find (`tmi.export.tensorrt.typed_graphs`).
"""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the pipeline answers: by an engine, or by the eager reference."""

    features: Mapping[str, NDArray[np.float32]]
    """Name of an encoder's graph -> features [B,C]."""
    logits_BFK: Float32[NDArray[np.float32], "B F K"]
    """Logits of every fold."""

    def rows(self, index: list[int]) -> Outputs:
        """The cases of `index`, in that order."""
        return Outputs(
            features={name: f[index] for name, f in self.features.items()}, logits_BFK=self.logits_BFK[index]
        )

    def by_graph(self) -> dict[str, NDArray[np.float32]]:
        """Features by encoder graph, and the logits as `pipeline`."""
        return {**self.features, PIPELINE: self.logits_BFK}

    @property
    def probabilities_BK(self) -> Float64[NDArray[np.float64], "B K"]:
        """Ensemble mean."""
        return probabilities(self.logits_BFK)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Named arrays for `golden.safetensors`: features by graph, logits, probabilities of the ensemble."""
        return {
            **{f"{name}.features": f for name, f in self.features.items()},
            "logits": self.logits_BFK,
            "probabilities": self.probabilities_BK.astype(np.float32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.float32]], *, prefix: str = "") -> Outputs:
        """What `tensors` gave, stored under names that begin with `prefix`; the arbiter's are taken when asked for."""
        ending = ".features"
        named = {
            n: t for n, t in tensors.items() if n.startswith(prefix) and (prefix or not n.startswith(FLOAT64_PREFIX))
        }
        mine = {name.removeprefix(prefix): t for name, t in named.items()}
        features = {name.removesuffix(ending): t for name, t in mine.items() if name.endswith(ending)}
        return cls(features=features, logits_BFK=mine["logits"])


class RecordingEngine:
    """Passes every call on to an engine and keeps what each graph answered, so that one run judges every graph."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self.recorded: dict[str, list[NDArray[np.float32]]] = {}

    @property
    def copied_seconds(self) -> float | None:
        """The engine's."""
        return self._engine.copied_seconds

    def open(self, bundle: Bundle, *, threads: int | None) -> None:
        """Open the engine."""
        self._engine.open(bundle, threads=threads)

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """The engine's answer, kept."""
        outputs = self._engine.run(graph, inputs)
        self.recorded.setdefault(graph, []).extend(outputs.values())
        return outputs

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def evaluate(engine: Engine, manifest: Manifest, golden: GoldenInputs) -> Outputs:
    """One batch through the road that predictions take, with the features seen on the way.

    Raises:
        RuntimeError: the graph cannot take this batch.
        ValueError: it answers in another shape or type than the manifest says.
    """
    recorder = RecordingEngine(engine)
    logits_BFK = run_folds(
        recorder, manifest, ct_B1DHW=golden.ct_B1DHW, texts=golden.texts, radiomics_BFR=golden.radiomics_BFR
    )
    encoders = {name for fold in manifest.folds for name in (fold.ct, fold.text)} - {None}
    features = {name: np.concatenate(parts) for name, parts in recorder.recorded.items() if name in encoders}
    return Outputs(features=features, logits_BFK=logits_BFK)


def relative_error(answer: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """The module's error(a, r) over the first axis; infinite where shapes differ or an answer is not finite."""
    if answer.shape != reference.shape or not np.isfinite(answer).all():
        return float("inf")
    rows = answer.shape[0]
    wide = reference.reshape(rows, -1).astype(np.float64)
    size = np.abs(wide).max(axis=1)
    scale = np.maximum(size, size.max() / 16)
    difference = np.abs(answer.reshape(rows, -1) - wide).max(axis=1)
    return float((difference / np.where(scale > 0, scale, 1.0)).max())


def check_engine(
    engine: Engine,
    manifest: Manifest,
    golden: GoldenInputs,
    reference: Outputs,
    *,
    artefact: str,
    precision: str = "float32",
    reference_float64: Outputs | None = None,
    keep: Callable[[Outputs], None] | None = None,
) -> list[CheckResult]:
    """Every gate that an engine can be put through, on an open engine.

    Args:
        engine: opened on the bundle of `manifest`.
        manifest: names graphs, folds, threshold.
        golden: inputs.
        reference: what eager float32 answers to them.
        artefact: artefact kind that the engine runs, for the records.
        precision: a key of `BOUNDS`.
        reference_float64: what eager float64 answers to them, where it was asked.
        keep: given the engine's answers to `golden`, to keep as evidence.

    Returns:
        One record a gate and graph, in a fixed order; a graph that cannot take a batch is a failed record.
    """
    check = _ParityChecks(
        engine, manifest, golden, reference, artefact, BOUNDS[precision], reference_float64=reference_float64, keep=keep
    )
    return list(check.records())


def check_outputs(
    engine: Engine,
    manifest: Manifest,
    golden: GoldenInputs,
    reference: Outputs,
    *,
    artefact: str,
    precision: str = "float32",
    keep: Callable[[Outputs], None] | None = None,
) -> list[CheckResult]:
    """The short form of `check_engine`: one run of `golden` against eager, nothing about batches and padding."""
    check = _ParityChecks(engine, manifest, golden, reference, artefact, BOUNDS[precision], keep=keep)
    return list(check.records(thorough=False))


class _ParityChecks:
    """One engine on one bundle."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        golden: GoldenInputs,
        reference: Outputs,
        artefact: str,
        bounds: Bounds,
        *,
        reference_float64: Outputs | None = None,
        keep: Callable[[Outputs], None] | None = None,
    ) -> None:
        self.engine, self.manifest, self.golden, self.reference = engine, manifest, golden, reference
        self.artefact, self.bounds, self.reference_float64, self.keep = artefact, bounds, reference_float64, keep
        self.margin = engine_spec(engine.name).max_abs_err or REFERENCE_MARGIN

    def records(self, *, thorough: bool = True) -> Iterator[CheckResult]:
        """All gates; stops early only where nothing could be computed, or nothing finite."""
        try:
            whole = evaluate(self.engine, self.manifest, self.golden)
        except ENGINE_ERRORS as error:
            yield self._failed_run("runs", PIPELINE, f"a batch of {self.golden.count}", error)
            return
        if self.keep is not None:
            self.keep(whole)
        finite = list(self._finite(whole))
        yield from finite
        if not all(record.passed for record in finite):
            return  # no figure can be had from what is not a number
        yield from self._against_eager(whole)
        yield from self._fold_order(whole)
        if thorough:
            yield from self._against_float64(whole)
            yield from self._batch_independence(whole)
            yield from self._largest_batch(whole)
            yield from self._padding_independence(whole)
            yield from self._profile_edges(whole)

    def _finite(self, whole: Outputs) -> Iterator[CheckResult]:
        for graph, answer in whole.by_graph().items():
            bad = int(answer.size - np.isfinite(answer).sum())
            yield self._record("finite", graph, bad, 0, f"{bad} of {answer.size} outputs are not finite")

    def _against_eager(self, whole: Outputs) -> Iterator[CheckResult]:
        for graph, reference in self.reference.features.items():
            error = relative_error(whole.features[graph], reference)
            yield self._record("features", graph, error, self.bounds.relative, "relative to eager float32")
        error = relative_error(whole.logits_BFK, self.reference.logits_BFK)
        yield self._record("logits", PIPELINE, error, self.bounds.relative, "relative to eager float32, all folds")
        mine, eager = whole.probabilities_BK, self.reference.probabilities_BK
        yield self._record(
            "probabilities", PIPELINE, _max_abs(mine, eager), self.margin, "absolute, mean over the folds"
        )
        positive, threshold = self.manifest.positive, self.manifest.threshold
        p, r = mine[:, positive], eager[:, positive]
        flips = int((((p >= threshold) != (r >= threshold)) & (np.abs(r - threshold) > self.margin)).sum())
        yield self._record(
            "decisions", PIPELINE, flips, 0, f"flipped at threshold {threshold:g} outside a margin of {self.margin:g}"
        )

    def _against_float64(self, whole: Outputs) -> Iterator[CheckResult]:
        """The arbiter: an engine may be off by float32's rounding, in another place than eager is."""
        if self.reference_float64 is None:
            return
        eager = self.reference.by_graph()
        for graph, exact in self.reference_float64.by_graph().items():
            error, own = relative_error(whole.by_graph()[graph], exact), relative_error(eager[graph], exact)
            multiple = error / own if own > 0 and np.isfinite(error) else None
            times = "" if multiple is None else f", {multiple:.2g} times eager float32's own error"
            yield self._record(
                "float64", graph, error, self.bounds.relative, f"relative to eager float64{times}", multiple=multiple
            )

    def _fold_order(self, whole: Outputs) -> Iterator[CheckResult]:
        """Each fold's logits must be that fold's own: nearer to no other fold's eager model."""
        folds = [spec.fold for spec in self.manifest.folds]
        answer, eager = whole.logits_BFK, self.reference.logits_BFK
        if answer.shape != eager.shape:
            yield self._record("fold-order", PIPELINE, None, 0, f"logits have shape {list(answer.shape)}")
            return
        distance = np.abs(answer[:, :, None] - eager[:, None, :]).max(axis=(0, 3))
        nearest = distance.argmin(axis=1)
        wrong = [i for i in range(len(folds)) if not distance[i, i] <= distance[i, nearest[i]]]
        detail = "; ".join(f"fold {folds[i]} answers like fold {folds[nearest[i]]}" for i in wrong)
        yield self._record("fold-order", PIPELINE, len(wrong), 0, detail or "every fold answers like its own model")

    def _batch_independence(self, whole: Outputs) -> Iterator[CheckResult]:
        """A case's answer depends on that case alone: neither on the batch's size, nor its order, nor the others."""
        golden, count = self.golden, self.golden.count
        # Of two cases the reversed batch tries the second one; one run less where a run takes many seconds.
        for row in range(count) if count > 2 else [0]:
            yield from self._compare_with_batch(
                "batch-of-1", golden.rows([row]), whole.rows([row]), None, f"case {row} alone"
            )
        order = list(range(count))[::-1]
        yield from self._compare_with_batch(
            "permutation", golden.rows(order), whole.rows(order), None, "the batch reversed"
        )
        extreme = extreme_case(golden, self.manifest.parsed_config())
        yield from self._compare_with_batch(
            "neighbours", join(extreme, golden.rows([0])), whole.rows([0]), [1], "case 0 beside extreme values"
        )

    def _largest_batch(self, whole: Outputs) -> Iterator[CheckResult]:
        """The upper edge of the batch; the lower one is `batch-of-1`."""
        largest, count = largest_batch(self.manifest.parsed_config()), self.golden.count
        if largest <= count:
            return  # the golden set is the largest batch
        rows = [row % count for row in range(largest)]
        yield from self._compare_with_batch(
            "largest-batch", self.golden.rows(rows), whole.rows(rows), None, f"a batch of {largest}"
        )

    def _padding_independence(self, whole: Outputs) -> Iterator[CheckResult]:
        """A text's features do not depend on how far the batch was padded."""
        if not self.golden.texts:
            return
        longest = self.manifest.parsed_config().clinical.max_length
        trials = [(padded(self.golden, longest), list(range(self.golden.count)), f"padded to {longest} tokens")]
        for row in range(self.golden.count):
            alone = trimmed(self.golden.rows([row]))
            width = max(t.input_ids_BT.shape[1] for t in alone.texts.values())
            trials.append((alone, [row], f"case {row} without padding, {width} tokens"))
        for golden, rows, what in trials:
            try:
                features = text_features(self.engine, self.manifest, golden.texts)
            except ENGINE_ERRORS as error:
                yield self._failed_run("padding", PIPELINE, what, error)
                continue
            for graph, answer in features.items():
                error_here = relative_error(answer, whole.features[graph][rows])
                yield self._record("padding", graph, error_here, self.bounds.relative, what)

    def _profile_edges(self, whole: Outputs) -> Iterator[CheckResult]:
        """Of an engine that runs plans: the largest batch of its profiles, and the shortest and longest texts."""
        batch = largest_profile(self.engine.name, self.manifest)
        if batch is None:
            return
        rows = [row % self.golden.count for row in range(batch)]
        what = f"a batch of {batch}, the profile's largest"
        yield from self._compare_with_batch("profile-edges", self.golden.rows(rows), whole.rows(rows), None, what)
        try:
            for detail, graph, answer, alone in text_length_checks(self.engine, self.manifest, self.golden, batch):
                error = relative_error(answer, alone)
                yield self._record("profile-edges", graph, error, self.bounds.relative, detail)
        except ENGINE_ERRORS as error:
            yield self._failed_run("profile-edges", PIPELINE, "texts at the profile's edges", error)

    def _compare_with_batch(
        self, gate: str, golden: GoldenInputs, expected: Outputs, keep: list[int] | None, what: str
    ) -> Iterator[CheckResult]:
        try:
            outputs = evaluate(self.engine, self.manifest, golden)
        except ENGINE_ERRORS as error:
            yield self._failed_run(gate, PIPELINE, what, error)
            return
        outputs = outputs if keep is None else outputs.rows(keep)
        for graph, reference in expected.by_graph().items():
            error_here = relative_error(outputs.by_graph()[graph], reference)
            yield self._record(gate, graph, error_here, self.bounds.relative, f"{what}, against the golden batch")

    def _failed_run(self, gate: str, graph: str, what: str, error: Exception) -> CheckResult:
        text = " ".join(str(error).split())[:300]
        return self._record(gate, graph, None, 0, f"{what}: {text}")

    def _record(
        self,
        gate: str,
        graph: str,
        measured: float | None,
        bound: float,
        detail: str,
        *,
        multiple: float | None = None,
    ) -> CheckResult:
        return CheckResult(
            gate=gate,
            artefact=self.artefact,
            graph=graph,
            passed=measured is not None and measured <= bound,
            measured=measured,
            bound=bound,
            detail=detail,
            engine=self.engine.name,
            multiple=multiple,
        )


def _max_abs(answer: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    if answer.shape != reference.shape or not np.isfinite(answer).all():
        return float("inf")
    return float(np.abs(answer - reference).max())
