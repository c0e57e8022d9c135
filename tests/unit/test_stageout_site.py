"""The stage-out part of the site file: what is refused, and that secrets cannot get in."""

from __future__ import annotations

import msgspec
import pytest

from stageout.site import BreakerRules, EndpointSite, StageoutRules


def convert(**keys: object) -> EndpointSite:
    return msgspec.convert({"name": "primary", "url": "s3://bucket/prefix", **keys}, EndpointSite)


def test_the_defaults_are_those_of_the_event_service() -> None:
    rules = StageoutRules().breaker
    assert (rules.window, rules.share, rules.recovery, rules.opens, rules.opens_window) == (7200, 0.5, 21600, 4, 86400)
    assert not StageoutRules().delete_local and not StageoutRules().delete_failover


@pytest.mark.parametrize(
    "keys",
    [
        {"url": "https://bucket"},
        {"url": "s3:///prefix"},
        {"url": "file://host/folder"},
        {"url": "file:relative"},
        {"url": "s3://user:secret@bucket/prefix"},
        {"endpoint_url": "https://user:secret@host"},
        {"endpoint_url": "https://host/?X-Amz-Signature=secret"},
        {"endpoint_url": "host:9000"},
        {"aws_secret_access_key": "secret"},
        {"max_bandwidth": 0},
        {"part_size": 1},
        {"concurrency": 0},
        {"read_timeout": 0},
    ],
)
def test_refused_without_showing_the_value(keys: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        convert(**keys)
    assert "secret@" not in str(error.value) and "=secret" not in str(error.value)


def test_breaker_times_must_be_longer_than_nothing() -> None:
    with pytest.raises(ValueError):
        BreakerRules(window=0)
