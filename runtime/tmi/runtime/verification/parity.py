"""Parity checks: compare the outputs of an engine with those of the validated eager model. numpy only.

B cases, F folds, K classes, C channels of a feature. Errors are relative to the magnitude of each case's reference:

    error(a, r) = max over cases b of  max |a_b - r_b| / max(max |r_b|, max |r| / 16)

so that a case with small features is not hidden behind one with large features. The same checks run at the export of an
artefact and at the verification of a bundle; `docs/parity.md` lists the faults that each check detects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import Manifest
from tmi.runtime.engines.precision import largest_error
from tmi.runtime.engines.registry import Engine
from tmi.runtime.verification.golden_inputs import GoldenInputs, extreme_case, join, largest_batch, padded, trimmed
from tmi.runtime.verification.outputs import PIPELINE, Outputs, evaluate
from tmi.runtime.verification.profile_shapes import largest_profile, text_features, text_length_checks
from tmi.toolkit.trust.statistics import FoldTrust

REFERENCE_MARGIN = 1e-4
"""Tolerance of a probability of the reference itself, eager float32: rounding depends on the batch and the CPU."""
TRUST_ERROR, MIN_TRUST_BOUND = 4.0, 2.0**-7
"""Bound on the error of a distance from the training cases, in bounds of its features, and at least. Directions in
which the training cases hardly vary magnify an error of the features; the floor of their deviations limits it."""
ENGINE_ERRORS = (RuntimeError, ValueError)
"""Errors of an engine whose graph cannot run a batch or returns another shape than the manifest states."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Error bounds of one precision."""

    relative: float
    """Bound on `relative_error` of features and logits, against eager and between two batches of one engine."""


BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {
        "float32": Bounds(relative=2.0**-14),
        "tf32": Bounds(relative=2.0**-6),
        "float16": Bounds(relative=2.0**-6),
        "bfloat16": Bounds(relative=2.0**-5),
        "int8": Bounds(relative=2.0**-5),
    }
)
"""Precision -> bounds; this is their only definition.

The unit roundoff of float32 is 2^-24, so 2^-14 allows about a thousand roundings in one direction. TF32 and float16
have 2^-11 and bfloat16 2^-8: a graph that silently runs in one of them fails the float32 bound.

float16 and tf32 are allowed 2^5 times their unit roundoff: the simulation of a hundred layers reaches 2^-10, and the
order of summation on a GPU is not known on a CPU. bfloat16 is allowed 2^3 times its unit roundoff, because it is
validated on the processor that runs it. INT8 rounds to 2^-8 of the largest magnitude of a tensor, and gets the bound of
bfloat16. Coarser rounding of weights is detected by the weight audit
(`tmi.export.tensorrt.typed_graphs`).
"""


def relative_error(output: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Relative error of outputs [B,...] as defined in this module.

    Args:
        output: outputs to check, cases along the first axis.
        reference: reference outputs of the same shape.

    Returns:
        max_b max |a_b - r_b| / max(max |r_b|, max |r| / 16); infinite if shapes differ or an output is not finite.
    """
    if output.shape != reference.shape or not np.isfinite(output).all():
        return float("inf")
    rows = output.shape[0]
    wide = reference.reshape(rows, -1).astype(np.float64)
    size_B = np.abs(wide).max(axis=1)
    # The floor of 1/16 of the largest case keeps rounding noise of a case near zero from dominating the maximum.
    scale_B = np.maximum(size_B, size_B.max() / 16)
    difference_B = np.abs(output.reshape(rows, -1) - wide).max(axis=1)
    return float((difference_B / np.where(scale_B > 0, scale_B, 1.0)).max())


def check_engine(
    engine: Engine,
    manifest: Manifest,
    golden: GoldenInputs,
    reference: Outputs,
    *,
    artefact: str,
    precision: str = "float32",
    reference_float64: Outputs | None = None,
    trust: Sequence[FoldTrust] = (),
    keep: Callable[[Outputs], None] | None = None,
) -> list[CheckResult]:
    """Run every parity check on an open engine.

    Args:
        engine: an engine that has the bundle of `manifest` open.
        manifest: manifest with graphs, folds and threshold.
        golden: golden inputs.
        reference: outputs of eager float32 for them.
        artefact: artefact kind that the engine runs, for the results.
        precision: a key of `BOUNDS`.
        reference_float64: outputs of eager float64 for them, if they were computed.
        trust: trust statistics of each fold, if the bundle has them.
        keep: callback that receives the engine's outputs for `golden`, to store them as evidence.

    Returns:
        One result for each check and graph, in a fixed order; a graph that cannot run a batch gives a failed result.
    """
    check = _ParityChecks(
        engine=engine,
        manifest=manifest,
        golden=golden,
        reference=reference,
        artefact=artefact,
        precision=precision,
        reference_float64=reference_float64,
        trust=trust,
        keep=keep,
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
    """Short form of `check_engine`: one run of `golden` against eager, without checks of batches and padding."""
    check = _ParityChecks(
        engine=engine,
        manifest=manifest,
        golden=golden,
        reference=reference,
        artefact=artefact,
        precision=precision,
        keep=keep,
    )
    return list(check.records(thorough=False))


@dataclass(frozen=True, kw_only=True)
class _ParityChecks:
    """Parity checks of one engine on one bundle; fields as the arguments of `check_engine`."""

    engine: Engine
    manifest: Manifest
    golden: GoldenInputs
    reference: Outputs
    artefact: str
    precision: str
    reference_float64: Outputs | None = None
    trust: Sequence[FoldTrust] = ()
    keep: Callable[[Outputs], None] | None = None

    @property
    def bounds(self) -> Bounds:
        """Bounds of the precision."""
        return BOUNDS[self.precision]

    @property
    def margin(self) -> float:
        """Largest error of a probability of this engine."""
        return largest_error(self.engine.name, self.precision) or REFERENCE_MARGIN

    def records(self, *, thorough: bool = True) -> Iterator[CheckResult]:
        """Run the checks; stop early only if the batch cannot run or an output is not finite."""
        try:
            outputs = evaluate(self.engine, self.manifest, self.golden)
        except ENGINE_ERRORS as error:
            yield self._failed_run("runs", PIPELINE, f"a batch of {self.golden.count}", error)
            return
        if self.keep is not None:
            self.keep(outputs)
        finite = list(self._finite(outputs))
        yield from finite
        if not all(record.passed for record in finite):
            return  # errors of NaN or infinity are meaningless
        yield from self._against_eager(outputs)
        yield from self._fold_order(outputs)
        yield from self._trust_distances(outputs)
        if thorough:
            yield from self._against_float64(outputs)
            yield from self._batch_independence(outputs)
            yield from self._largest_batch(outputs)
            yield from self._padding_independence(outputs)
            yield from self._profile_edges(outputs)

    def _finite(self, outputs: Outputs) -> Iterator[CheckResult]:
        for graph, output in outputs.by_graph().items():
            count = int(output.size - np.isfinite(output).sum())
            yield self._record("finite", graph, count, 0, f"{count} of {output.size} outputs are not finite")

    def _against_eager(self, outputs: Outputs) -> Iterator[CheckResult]:
        for graph, reference in self.reference.features.items():
            error = relative_error(outputs.features[graph], reference)
            yield self._record("features", graph, error, self.bounds.relative, "relative to eager float32")
        error = relative_error(outputs.logits_BFK, self.reference.logits_BFK)
        yield self._record("logits", PIPELINE, error, self.bounds.relative, "relative to eager float32, all folds")
        p_BK, eager_BK = outputs.probabilities_BK, self.reference.probabilities_BK
        yield self._record(
            "probabilities", PIPELINE, _max_abs(p_BK, eager_BK), self.margin, "absolute, mean over the folds"
        )
        positive, threshold = self.manifest.positive, self.manifest.threshold
        p, r = p_BK[:, positive], eager_BK[:, positive]
        # A reference within the margin of the threshold may fall on either side without being wrong.
        flips = int((((p >= threshold) != (r >= threshold)) & (np.abs(r - threshold) > self.margin)).sum())
        yield self._record(
            "decisions", PIPELINE, flips, 0, f"flipped at threshold {threshold:g} outside a margin of {self.margin:g}"
        )

    def _trust_distances(self, outputs: Outputs) -> Iterator[CheckResult]:
        """Distances of the encoders' features from the training cases, on which p-values and verdicts rest."""
        for spec, statistics in zip(self.manifest.folds, self.trust, strict=False):
            for part, graph in (("image.encoder", spec.ct), ("clinical.encoder", spec.text)):
                if graph is None or part not in statistics.parts:
                    continue
                measure = statistics.parts[part].distances
                expected, found = measure(self.reference.features[graph]), measure(outputs.features[graph])
                error = float((np.abs(found - expected) / np.maximum(expected, 1.0)).max())
                bound = max(TRUST_ERROR * self.bounds.relative, MIN_TRUST_BOUND)
                what = f"distance from the training cases of fold {spec.fold}, relative to eager float32's"
                yield self._record("trust", graph, error, bound, what)

    def _against_float64(self, outputs: Outputs) -> Iterator[CheckResult]:
        """Compare with the float64 reference: engine and eager float32 both round, but at different places."""
        if self.reference_float64 is None:
            return
        eager = self.reference.by_graph()
        for graph, exact in self.reference_float64.by_graph().items():
            error, own = relative_error(outputs.by_graph()[graph], exact), relative_error(eager[graph], exact)
            multiple = error / own if own > 0 and np.isfinite(error) else None
            suffix = "" if multiple is None else f", {multiple:.2g} times eager float32's own error"
            yield self._record(
                "float64", graph, error, self.bounds.relative, f"relative to eager float64{suffix}", multiple=multiple
            )

    def _fold_order(self, outputs: Outputs) -> Iterator[CheckResult]:
        """The logits of each fold must be nearest to the eager model of the same fold."""
        folds = [spec.fold for spec in self.manifest.folds]
        logits_BFK, eager_BFK = outputs.logits_BFK, self.reference.logits_BFK
        if logits_BFK.shape != eager_BFK.shape:
            yield self._record("fold-order", PIPELINE, None, 0, f"logits have shape {list(logits_BFK.shape)}")
            return
        # [B,F,1,K] - [B,1,F,K]: the largest difference of every pair (engine fold, eager fold).
        distance = np.abs(logits_BFK[:, :, None] - eager_BFK[:, None, :]).max(axis=(0, 3))
        nearest = distance.argmin(axis=1)
        # `not <=` instead of `>`, so that NaN counts as exchanged; equal folds tie and pass.
        exchanged = [i for i in range(len(folds)) if not distance[i, i] <= distance[i, nearest[i]]]
        detail = "; ".join(f"fold {folds[i]} matches fold {folds[nearest[i]]}" for i in exchanged)
        yield self._record("fold-order", PIPELINE, len(exchanged), 0, detail or "every fold matches its own model")

    def _batch_independence(self, outputs: Outputs) -> Iterator[CheckResult]:
        """The outputs of a case must depend neither on the size of the batch, nor its order, nor the other cases."""
        golden, count = self.golden, self.golden.count
        # With two cases the reversed batch covers the second one, which saves a run of many seconds.
        for row in range(count) if count > 2 else [0]:
            yield from self._compare_with_batch(
                "batch-of-1", golden.rows([row]), outputs.rows([row]), None, f"case {row} alone"
            )
        order = list(range(count))[::-1]
        yield from self._compare_with_batch(
            "permutation", golden.rows(order), outputs.rows(order), None, "the batch reversed"
        )
        extreme = extreme_case(golden, self.manifest.config)
        yield from self._compare_with_batch(
            "neighbours", join(extreme, golden.rows([0])), outputs.rows([0]), [1], "case 0 beside extreme values"
        )

    def _largest_batch(self, outputs: Outputs) -> Iterator[CheckResult]:
        """Outputs in the largest batch; the smallest one is covered by `batch-of-1`."""
        largest, count = largest_batch(self.manifest.config), self.golden.count
        if largest <= count:
            return  # the golden set is already the largest batch
        rows = [row % count for row in range(largest)]
        yield from self._compare_with_batch(
            "largest-batch", self.golden.rows(rows), outputs.rows(rows), None, f"a batch of {largest}"
        )

    def _padding_independence(self, outputs: Outputs) -> Iterator[CheckResult]:
        """The features of a text must not depend on the padding of the batch."""
        if not self.golden.texts:
            return
        longest = self.manifest.config.clinical.max_length
        variants = [(padded(self.golden, longest), list(range(self.golden.count)), f"padded to {longest} tokens")]
        for row in range(self.golden.count):
            alone = trimmed(self.golden.rows([row]))
            width = max(t.input_ids_BT.shape[1] for t in alone.texts.values())
            variants.append((alone, [row], f"case {row} without padding, {width} tokens"))
        for golden, rows, what in variants:
            try:
                features = text_features(self.engine, self.manifest, golden.texts)
            except ENGINE_ERRORS as error:
                yield self._failed_run("padding", PIPELINE, what, error)
                continue
            for graph, output in features.items():
                difference = relative_error(output, outputs.features[graph][rows])
                yield self._record("padding", graph, difference, self.bounds.relative, what)

    def _profile_edges(self, outputs: Outputs) -> Iterator[CheckResult]:
        """Outputs of TensorRT plans for the largest batch of their profiles and for the shortest and longest texts."""
        batch = largest_profile(self.engine.name, self.manifest)
        if batch is None:
            return
        rows = [row % self.golden.count for row in range(batch)]
        what = f"a batch of {batch}, the profile's largest"
        yield from self._compare_with_batch("profile-edges", self.golden.rows(rows), outputs.rows(rows), None, what)
        try:
            for detail, graph, batched, alone in text_length_checks(self.engine, self.manifest, self.golden, batch):
                error = relative_error(batched, alone)
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
            difference = relative_error(outputs.by_graph()[graph], reference)
            yield self._record(gate, graph, difference, self.bounds.relative, f"{what}, against the golden batch")

    def _failed_run(self, gate: str, graph: str, what: str, error: Exception) -> CheckResult:
        message = " ".join(str(error).split())[:300]
        return self._record(gate, graph, None, 0, f"{what}: {message}")

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
            check=gate,
            artefact=self.artefact,
            graph=graph,
            passed=measured is not None and measured <= bound,
            measured=measured,
            bound=bound,
            detail=detail,
            engine=self.engine.name,
            multiple=multiple,
        )


def _max_abs(output: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    if output.shape != reference.shape or not np.isfinite(output).all():
        return float("inf")
    return float(np.abs(output - reference).max())
