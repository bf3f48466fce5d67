"""Requests to AWS are signed as AWS's own tools sign them."""

from __future__ import annotations

from datetime import UTC, datetime

from sandpty.server.builds.ecr import signed
from sandpty.server.builds.recipe import AwsKeys


def test_a_request_is_signed_as_aws_wants_it() -> None:
    """The signature that botocore makes of the same request, key and moment."""
    keys = AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1")
    headers = signed(keys, "api.ecr.us-east-1.amazonaws.com", datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC))
    scope = "Credential=AKIDEXAMPLE/20240102/us-east-1/ecr/aws4_request"
    names = "SignedHeaders=content-type;host;x-amz-date;x-amz-target"
    signature = "Signature=dcc0a16730bb9374e60042aa53e932fec894818edd7fd9fe221c91f916ffafe1"
    assert headers["authorization"] == f"AWS4-HMAC-SHA256 {scope}, {names}, {signature}"
    assert keys.secret_access_key not in repr(keys)
