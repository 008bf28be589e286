"""The alert rules and the dashboard under docs/ speak of metrics that the service has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from segbatch.service.monitor.metrics import exposition
from segbatch.service.monitor.monitor import Monitor
from tests.house.places import ROOT
from tests.service.watching import status_of

ALERTS = ROOT / "docs" / "monitoring" / "alerts.yml"
DASHBOARD = ROOT / "docs" / "monitoring" / "grafana.json"
METRIC = re.compile(r"\b(?:segbatch|process)_[a-z_]+\b")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (apt-get install --no-install-recommends prometheus)",
)


def known() -> set[str]:
    """Return the names of all samples and families that the service has."""
    monitor = Monitor()
    text = exposition(monitor, status_of(monitor, camera={"state": "off"})).decode()
    samples = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
    return samples - {"#"}


def expressions(value: Any) -> list[str]:
    """Return every query of a dashboard."""
    if isinstance(value, dict):
        own = [value[key] for key in ("expr", "query") if isinstance(value.get(key), str)]
        return own + [text for part in value.values() for text in expressions(part)]
    if isinstance(value, list):
        return [text for part in value for text in expressions(part)]
    return []


@needs_promtool
def test_the_alert_rules_are_sound() -> None:
    """Prometheus' own checker accepts the alert rules."""
    check = subprocess.run(
        ["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False
    )

    assert check.returncode == 0, check.stdout + check.stderr


@needs_promtool
def test_each_alert_fires_when_it_should() -> None:
    """Played over three hours, each fault raises its alert, and a sound service raises none."""
    cases = ROOT / "tests" / "service" / "alerts_test.yml"
    check = subprocess.run(
        ["promtool", "test", "rules", cases], capture_output=True, text=True, check=False
    )

    assert check.returncode == 0, check.stdout + check.stderr
    alerts = re.findall(r"alert: (\w+)", ALERTS.read_text())
    assert all(cases.read_text().count(f'"{alert}"') == 1 for alert in alerts)


def test_alerts_name_metrics_that_exist() -> None:
    """No alert waits for a metric that the service does not have."""
    named = set(METRIC.findall(ALERTS.read_text()))

    assert named
    assert named <= known()


def test_the_dashboard_names_metrics_that_exist() -> None:
    """No panel asks for a metric that the service does not have."""
    dashboard = json.loads(DASHBOARD.read_text())
    named = {name for text in expressions(dashboard) for name in METRIC.findall(text)}

    assert {name for name in known() if name.startswith("segbatch")} >= {
        name for name in named if name.startswith("segbatch")
    }
    assert named <= known()


def test_panels_do_not_overlap() -> None:
    """Every panel of the dashboard has a place of its own within the grid of 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {
            (at["x"] + column, at["y"] + row) for column in range(at["w"]) for row in range(at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_the_document_lists_every_metric() -> None:
    """docs/monitoring.md explains each metric of the service, and no other."""
    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = set(re.findall(r"^\| `(segbatch_[a-z_]+)", text, re.MULTILINE))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known()}

    assert rows == {name for name in families if name.startswith("segbatch")}
