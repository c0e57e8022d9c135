"""`yoda report`: one self-contained HTML page on a task, from its journals: no network, a few megabytes at most."""

from __future__ import annotations

import os
import time

from eventrange.durable import write_file
from eventrange.taskdir import TaskDir
from yoda import report_sections as sections
from yoda.report_facts import Facts, gather
from yoda.report_page import figure, page
from yoda.report_pictures import draw


def report(taskdir: TaskDir, output: str | None = None, images: str | None = None) -> str:
    """Write the page (default: TASK/report.html) and, where asked for, its pictures. Returns the path of the page."""
    facts = gather(taskdir)
    pictures = draw(facts)
    path = os.path.abspath(output or taskdir.report)
    write_file(path, render(facts, pictures).encode())
    if images:
        from yoda.report_images import write_images

        write_images(facts, pictures, images)
    return path


def render(facts: Facts, pictures: dict[str, str]) -> str:
    """The page."""
    pictures = {name: figure(picture) for name, picture in pictures.items()}
    parts = [
        sections.summary(facts),
        sections.timeline(facts, pictures),
        sections.pace(facts, pictures),
        sections.outcome(facts, pictures),
        sections.attempts(facts),
        sections.events(facts, pictures),
        sections.failures(facts),
        sections.allocations(facts),
        sections.nodes(facts),
        sections.storage(facts, pictures),
        sections.provenance(facts),
    ]
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(facts.state["time"]))
    return page(f"{facts.frozen.task}: Yoda report", f"As of {stamp}.", "".join(parts))
