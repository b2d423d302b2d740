"""A digest of files, without hashlib: that brings OpenSSL's library along, four megabytes in a process that stays."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # a Python that was built without
    from hashlib import blake2b

__all__ = ["blake2b"]
