"""The setting for stores that don't know the checksums of the AWS SDK."""

from __future__ import annotations

from typing import Literal, TypeAlias

#: Whether the SDK sends checksums that S3 does not require, and checks those of replies.
Checksums: TypeAlias = Literal["when_supported", "when_required"]
CHECKSUMS_FIX = "set aws.checksums: when_required in the site file"
