"""Elements of the frames of an enhanced CT object, which lie in its functional groups (PS3.3 C.7.6.16).

An element of a frame is read from the frame's own groups, else from the shared groups, else from the attributes that a
converter could not assign (legacy converted enhanced CT), else from the top level of the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ENHANCED_CT_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
"""Enhanced CT and legacy converted enhanced CT: geometry and rescale lie in functional groups."""
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUP_TAGS = [SHARED, PER_FRAME]
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "FrameType": "CTImageFrameTypeSequence",
    "StackID": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
}
"""Keyword -> sequence of the functional group that holds it."""
UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")


@dataclass(frozen=True, kw_only=True)
class FrameElements:
    """Elements of one frame, under the keywords of a single-frame image."""

    top: Any
    """Data set of the object."""
    groups: tuple[Any, ...]
    """Items of the functional groups: the frame's own, then the shared."""

    def get(self, name: str) -> Any:
        """Return the value of an element; None if the object holds none."""
        if name == "ImageType":
            return self._grouped("FrameType") or self.top.get(name)
        if name == "AcquisitionDate":
            return str(self._grouped("FrameAcquisitionDateTime") or "")[:8] or self.top.get(name)
        value = self._grouped(name)
        return self.top.get(name) if value is None else value

    def _grouped(self, name: str) -> Any:
        sequences = (GROUPS[name], *UNASSIGNED) if name in GROUPS else ()
        for sequence in sequences:
            for group in self.groups:
                for item in group.get(sequence) or ():
                    if (value := item.get(name)) is not None:
                        return value
        return None


def frames_of(data: Any) -> list[FrameElements]:
    """Return the frames of an enhanced CT object; none if it has no item of functional groups for each frame."""
    own, shared = data.get(PER_FRAME) or (), data.get(SHARED) or ()
    if len(own) != int(data.get("NumberOfFrames") or 1):
        return []
    return [FrameElements(top=data, groups=(item, *shared[:1])) for item in own]
