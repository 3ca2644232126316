"""Names of the 1,781 radiomic features in their fixed order; this module does not need pyradiomics.

1,781 = 14 shape features of the mask + 93 features of each of 19 image types: 18 first-order, 24 GLCM, 16 GLRLM,
16 GLSZM, 14 GLDM, 5 NGTDM. A name is `<image type>_<class>_<feature>`. Names and order are those of pyradiomics 3.0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SHAPE_FEATURES: tuple[str, ...] = tuple(
    """Elongation Flatness LeastAxisLength MajorAxisLength Maximum2DDiameterColumn Maximum2DDiameterRow
    Maximum2DDiameterSlice Maximum3DDiameter MeshVolume MinorAxisLength Sphericity SurfaceArea SurfaceVolumeRatio
    VoxelVolume""".split()
)
"""Shape features, which depend on the mask only."""

CLASS_FEATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: tuple(features.split())
        for name, features in {
            "firstorder": """10Percentile 90Percentile Energy Entropy InterquartileRange Kurtosis Maximum
                MeanAbsoluteDeviation Mean Median Minimum Range RobustMeanAbsoluteDeviation RootMeanSquared Skewness
                TotalEnergy Uniformity Variance""",
            "glcm": """Autocorrelation ClusterProminence ClusterShade ClusterTendency Contrast Correlation
                DifferenceAverage DifferenceEntropy DifferenceVariance Id Idm Idmn Idn Imc1 Imc2 InverseVariance
                JointAverage JointEnergy JointEntropy MCC MaximumProbability SumAverage SumEntropy SumSquares""",
            "glrlm": """GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance
                HighGrayLevelRunEmphasis LongRunEmphasis LongRunHighGrayLevelEmphasis LongRunLowGrayLevelEmphasis
                LowGrayLevelRunEmphasis RunEntropy RunLengthNonUniformity RunLengthNonUniformityNormalized
                RunPercentage RunVariance ShortRunEmphasis ShortRunHighGrayLevelEmphasis
                ShortRunLowGrayLevelEmphasis""",
            "glszm": """GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance
                HighGrayLevelZoneEmphasis LargeAreaEmphasis LargeAreaHighGrayLevelEmphasis
                LargeAreaLowGrayLevelEmphasis LowGrayLevelZoneEmphasis SizeZoneNonUniformity
                SizeZoneNonUniformityNormalized SmallAreaEmphasis SmallAreaHighGrayLevelEmphasis
                SmallAreaLowGrayLevelEmphasis ZoneEntropy ZonePercentage ZoneVariance""",
            "gldm": """DependenceEntropy DependenceNonUniformity DependenceNonUniformityNormalized DependenceVariance
                GrayLevelNonUniformity GrayLevelVariance HighGrayLevelEmphasis LargeDependenceEmphasis
                LargeDependenceHighGrayLevelEmphasis LargeDependenceLowGrayLevelEmphasis LowGrayLevelEmphasis
                SmallDependenceEmphasis SmallDependenceHighGrayLevelEmphasis SmallDependenceLowGrayLevelEmphasis""",
            "ngtdm": "Busyness Coarseness Complexity Contrast Strength",
        }.items()
    }
)
"""Feature class -> its features, computed for every image type."""

IMAGE_TYPES: tuple[str, ...] = (
    "original",
    *(f"log-sigma-{sigma}-0-mm-3D" for sigma in range(1, 6)),
    *(f"wavelet-{band}" for band in ("LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH", "LLL")),
    "square",
    "squareroot",
    "logarithm",
    "exponential",
    "gradient",
)
"""The 19 image types: the CT and its filtered versions."""

FEATURE_NAMES: tuple[str, ...] = (
    *(f"original_shape_{feature}" for feature in SHAPE_FEATURES),
    *(
        f"{image}_{kind}_{feature}"
        for image in IMAGE_TYPES
        for kind, names in CLASS_FEATURES.items()
        for feature in names
    ),
)
"""All features, in the order used by tables, arrays and scalers."""
