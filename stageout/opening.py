"""From a site file's entry to the endpoint it describes: the one place that knows all kinds."""

from __future__ import annotations

from stageout.endpoint import Endpoint, Tools
from stageout.site import EndpointSite


def open_endpoint(site: EndpointSite, tools: Tools | None = None) -> Endpoint:
    """The endpoint of a site file's entry. Nothing is contacted yet; boto3 is imported only for `s3://`."""
    if site.scheme == "file":
        from stageout.posix import PosixEndpoint

        return PosixEndpoint(site, tools or Tools())
    from stageout.s3 import S3Endpoint

    return S3Endpoint(site, tools or Tools())
