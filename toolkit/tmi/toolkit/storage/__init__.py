"""How things are stored: atomic files, digests, JSON <-> dataclasses, the cache on disk.

It knows bytes, folders and dataclasses, and nothing of what they mean.
"""
