"""All readers under fuzzing, by name."""

from __future__ import annotations

from factories.fuzzing import case_targets, image_targets, model_targets, table_targets
from factories.fuzzing.registry import TARGETS, Target

MODULES = (case_targets, image_targets, model_targets, table_targets)
"""Modules that register the readers."""
__all__ = ["MODULES", "TARGETS", "Target"]
