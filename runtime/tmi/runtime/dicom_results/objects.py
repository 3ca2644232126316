"""DICOM objects of a prediction: a structured report (TID 1500) and a segmentation of the liver.

The report is a Comprehensive 3D SR with the probability of each class, those of each fold's model, the decision, the
reasons for which a decision is withheld, and the liver's volume; it is UNVERIFIED. SNOMED CT has concepts for a good
and a bad prognosis (HL7's value set clinicalimpression-prognosis); what has no standard concept has a private one of
the scheme 99TMI. Patient and study are those of the source series; series and instances are new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from highdicom import sr
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import RE_VALID_UID_PREFIX, generate_uid

from tmi.runtime.dicom_results.source import SourceSeries
from tmi.runtime.serving.results import RESEARCH_USE, Prediction
from tmi.toolkit.errors import UsageError

SCHEME = "99TMI"
PROGNOSIS = {"good": Code("170968001", "SCT", "Prognosis good"), "bad": Code("170969009", "SCT", "Prognosis bad")}
"""Concepts of the classes; HL7's value set clinicalimpression-prognosis."""
MANUFACTURER, MODEL = "TMI", "tmi"
SERIES_NUMBERS = {"SR": 9701, "SEG": 9702, "SC": 9703}
"""Numbers of the result series, behind those of a scanner."""
ROOT_CHARACTERS = 24
"""Longest root of UIDs; an instance has room for a long enough number behind it."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made the objects."""

    version: str
    """Version of this package."""
    bundle: str
    """SHA-256 of the bundle's manifest."""
    engine: str
    """Engine and precision."""
    uid_root: str | None = None
    """Root of the UIDs; None: UIDs derived from random UUIDs (2.25)."""

    def new_uid(self) -> str:
        """A new unique identifier."""
        if self.uid_root is None:
            return str(generate_uid(prefix=None))
        return str(generate_uid(prefix=f"{self.uid_root}."))

    @property
    def device_uid(self) -> str:
        """Identifier of the bundle as a device: the same in every object that it makes."""
        return str(
            generate_uid(prefix=None if self.uid_root is None else f"{self.uid_root}.", entropy_srcs=[self.bundle])
        )


def require_root(root: str | None) -> None:
    """Check the root of the UIDs.

    Raises:
        UsageError: it is no root, or too long.
    """
    if root is None:
        return
    if len(root) > ROOT_CHARACTERS or not re.match(RE_VALID_UID_PREFIX, f"{root}."):
        raise UsageError(
            f"UID root {root[:40]!r} is not valid",
            fix=f"give the numbers of your organisation with dots, at most {ROOT_CHARACTERS} characters",
        )


def make_segmentation(source: SourceSeries, mask: NDArray[np.bool_], origin: Origin) -> Any:
    """Segmentation of the liver, BINARY.

    Args:
        source: the series.
        mask: [slices, rows, columns] in the order of `source.slices`.
        origin: what made the object.
    """
    # Who drew the mask is not recorded in a case; neither MANUAL nor AUTOMATIC may be claimed.
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="liver",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Liver,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="liver mask of the case", family=_private("imported-mask", "Imported mask"), version=origin.version
        ),
        tracking_uid=origin.new_uid(),
        tracking_id="liver",
    )
    return hd.seg.Segmentation(
        source_images=list(source.slices),
        pixel_array=mask.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=origin.new_uid(),
        series_number=SERIES_NUMBERS["SEG"],
        sop_instance_uid=origin.new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=origin.version,
        device_serial_number=origin.bundle[:16],
        content_creator_name="TMI^",
        content_label="LIVER",
        content_description="Liver mask of the prediction",
        series_description="TMI liver mask (research use only)",
    )


def make_report(
    prediction: Prediction, source: SourceSeries, origin: Origin, *, segmentation: Any | None, liver_ml: float | None
) -> Any:
    """Structured report of a prediction.

    Args:
        prediction: the prediction.
        source: the series.
        origin: what made the object.
        segmentation: the segmentation that the liver's volume refers to; None: there is none.
        liver_ml: volume of the liver in mL; None: not known.
    """
    algorithm = sr.AlgorithmIdentification(
        name="TMI-CLNet liver prognosis",
        version=origin.version,
        parameters=[f"bundle {origin.bundle}", f"engine {origin.engine}", RESEARCH_USE],
    )
    groups: list[Any] = [
        sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid=origin.new_uid(), identifier="prognosis"),
            finding_type=_private("prognosis", "Predicted prognosis"),
            finding_sites=[sr.FindingSite(anatomic_location=codes.SCT.Liver)],
            algorithm_id=algorithm,
            measurements=_measurements(prediction),
            qualitative_evaluations=_evaluations(prediction),
        )
    ]
    if segmentation is not None and liver_ml is not None:
        groups.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(
                    uid=str(segmentation.SegmentSequence[0].TrackingUID), identifier="liver"
                ),
                referenced_segment=sr.ReferencedSegment(
                    sop_class_uid=segmentation.SOPClassUID,
                    sop_instance_uid=segmentation.SOPInstanceUID,
                    segment_number=1,
                    source_series=sr.SourceSeriesForSegmentation(source.slices[0].SeriesInstanceUID),
                ),
                finding_type=codes.SCT.Organ,
                finding_sites=[sr.FindingSite(anatomic_location=codes.SCT.Liver)],
                measurements=[
                    sr.Measurement(name=codes.SCT.Volume, value=liver_ml, unit=Code("mL", "UCUM", "milliliter"))
                ],
            )
        )
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=origin.device_uid, name="tmi", manufacturer_name=MANUFACTURER, model_name=MODEL
        ),
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    evidence = [*source.slices, *([] if segmentation is None else [segmentation])]
    return sr.Comprehensive3DSR(
        evidence=evidence,
        content=report[0],
        series_instance_uid=origin.new_uid(),
        series_number=SERIES_NUMBERS["SR"],
        sop_instance_uid=origin.new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="TMI prognosis (research use only)",
    )


def _private(value: str, meaning: str) -> sr.CodedConcept:
    return sr.CodedConcept(value=value, scheme_designator=SCHEME, meaning=meaning)


def _measurements(prediction: Prediction) -> list[Any]:
    """Probability of each class, of each fold's model, and the spread over the folds."""
    found = [
        sr.Measurement(
            name=_private(f"probability-{name}", f"Probability of {name} prognosis"),
            value=float(probability),
            unit=codes.UCUM.NoUnits,
        )
        for name, probability in prediction.probability.items()
    ]
    for fold in prediction.folds:
        found += [
            sr.Measurement(
                name=_private(f"fold{fold.fold}-{name}", f"Probability of {name} prognosis, model {fold.fold}"),
                value=float(probability),
                unit=codes.UCUM.NoUnits,
            )
            for name, probability in fold.probability.items()
        ]
    found.append(
        sr.Measurement(
            name=_private("spread", "Standard deviation over the models"),
            value=float(prediction.spread),
            unit=codes.UCUM.NoUnits,
        )
    )
    return found


def _evaluations(prediction: Prediction) -> Sequence[Any]:
    """The decision, or why it is withheld."""
    name = _private("decision", "Decision")
    standard = PROGNOSIS.get(prediction.decision)
    value = _private(prediction.decision, f"Decision withheld: {prediction.decision}") if standard is None else standard
    reason = _private("reason", "Alert about the case")
    return [
        sr.QualitativeEvaluation(name=name, value=value),
        *(sr.QualitativeEvaluation(name=reason, value=_private(code, code)) for code in prediction.reasons),
    ]
