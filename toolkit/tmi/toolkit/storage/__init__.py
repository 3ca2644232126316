"""Storage primitives: atomic writes, SHA-256 digests, JSON serialization of dataclasses, disk cache.

They handle bytes, folders and dataclasses, independent of their content.
"""
