"""Keeps OpenSSL out of a process that imports this first: the trainer's.

It hashes a bundle now and then, which Python's own SHA-256 does as well; to load OpenSSL for it takes 3.5 MB.
"""

import sys

if "hashlib" not in sys.modules:
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # hashlib then finds no OpenSSL and uses its own
