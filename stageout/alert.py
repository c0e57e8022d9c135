"""Telling people: a command or a web hook of the site, for what no waiting will heal.

Never raises and takes a bounded time: an alert that cannot be given is a line in the log.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from typing import Any

import msgspec

from stageout.site import StageoutRules

log = logging.getLogger("stageout")
SECONDS = 30.0  # for the command; web hooks should answer sooner


def alert(rules: StageoutRules, what: Mapping[str, Any]) -> None:
    """Give `what`, as one JSON object, to `rules.alert_command` on its stdin and to `rules.alert_url` as a POST."""
    data = json.dumps(what).encode()
    log.error("alert: %s", data.decode())
    if rules.alert_command:
        try:
            done = subprocess.run(rules.alert_command, input=data, stdout=subprocess.DEVNULL, timeout=SECONDS)
            if done.returncode:
                log.error("alert_command ended with status %d", done.returncode)
        except (OSError, subprocess.SubprocessError) as error:
            log.error("alert_command: %s", type(error).__name__)
    if rules.alert_url is not None:
        try:
            request = urllib.request.Request(rules.alert_url, data, {"Content-Type": "application/json"})
            urllib.request.urlopen(request, timeout=SECONDS / 3).close()
        except (OSError, ValueError) as error:
            log.error("alert_url: %s", type(error).__name__)


def main() -> None:
    """`python -m stageout.alert`, for those who may not start programs themselves: the first line of stdin is the
    rules, every other one something to tell. Ends with stdin."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    rules: StageoutRules | None = None
    for line in sys.stdin.buffer:
        if rules is None:
            rules = msgspec.json.decode(line, type=StageoutRules)
        else:
            alert(rules, json.loads(line))


if __name__ == "__main__":
    main()
