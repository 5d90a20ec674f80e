"""The dashboard and the alert rules in `contrib` query only what is exported: names, labels and their values.

The expressions are not evaluated, which needs Prometheus; `promtool check rules` parses them in full.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from oxidize.metrics import Live, Metrics
from oxidize.protocol import crypto
from oxidize.protocol.counters import TOTALS_WORDS, LinkState
from oxidize.protocol.device import Device
from oxidize.protocol.peer_settings import PeerSettings
from oxidize.runtime.peer_metrics import PeerMetrics
from tests.support.counters import ArraySlots

CONTRIB = Path(__file__).parents[2] / "contrib"
DASHBOARD = json.loads((CONTRIB / "grafana" / "oxidize.json").read_text())
RULES = yaml.safe_load((CONTRIB / "prometheus" / "oxidize.rules.yml").read_text())

TARGET_LABELS = frozenset({"job", "instance"})  # added by Prometheus
OVER_TIME = frozenset({"rate", "increase", "changes", "max_over_time", "min_over_time"})
OF_COUNTERS = frozenset({"rate", "increase"})
FUNCTIONS = OVER_TIME | {"sum", "max", "topk", "histogram_quantile"}
KEYWORDS = frozenset({"by", "and", "offset"})
INTERVAL = r"(\d+[smhd]|\$__rate_interval)"
TOKENS = re.compile(
    rf'"[^"]*"|\[{INTERVAL}\]|[A-Za-z_]\w*|\d+[smhd]\b|\d+(?:\.\d+)?|=~|!~|!=|==|>=|<=|[(){{}},=<>*/+-]|\S'
)
PAIRS = {")": "(", "}": "{"}


def live(link: LinkState | None) -> Live:
    return Live(
        connections_active=lambda: 1,
        peers=lambda: 1,
        kernel_drops=lambda: 1,
        generation=lambda: 1,
        state=lambda: "healthy",
        link=lambda: link,
        waiting_for_name=lambda: {"site": True},
    )


def device() -> Device:
    """Return a device with one peer, which was never heard."""
    peer = PeerSettings(crypto.public_key(bytes([2]) * 32), name="site")
    return Device(bytes([1]) * 32, [peer], ArraySlots(), bytes, lambda: 0.0, lambda change: None)


def exported() -> dict[str, dict[str, set[str]]]:
    """Return what a server and a client export: the values of every label, by metric and label."""
    found: dict[str, dict[str, set[str]]] = {"up": {}}
    counters = memoryview(bytearray(8 * TOTALS_WORDS)).cast("Q")
    for link in (None, LinkState.CONNECTED):
        body, _ = Metrics(counters, live(link), release="0.1.0").render()
        body += b"".join(PeerMetrics(device(), counters, 1, lambda: 0.0).pieces() or ())
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    return found


EXPORTED = exported()


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]], str, str]]:
    """Yield each queried name, its matchers (label, operator, value), its interval and its function."""
    name = r"(?<![\w\"])([A-Za-z_]\w*)(?!\w)"
    for found in re.finditer(rf"(?:\b(\w+)\()?{name}(\{{[^}}]*\}})?(?:\[{INTERVAL}\])?(?!\s*\()", expression):
        around, metric, braces, interval = found.groups()
        if metric in EXPORTED or metric.startswith(("oxidize_", "process_")):
            yield metric, re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', braces or ""), interval or "", around or ""


def shape_problems(expression: str) -> list[str]:
    """Return the brackets that do not match, and the words without a meaning."""
    problems: list[str] = []
    opened: list[str] = []
    tokens = [found.group() for found in TOKENS.finditer(expression)]
    for number, token in enumerate(tokens):
        following = tokens[number + 1] if number + 1 < len(tokens) else ""
        if token in PAIRS.values():
            opened.append(token)
        elif token in PAIRS and (not opened or opened.pop() != PAIRS[token]):
            problems.append(f"{token} closes nothing")
        elif re.fullmatch(r"[A-Za-z_]\w*", token):
            in_list = bool(opened) and (opened[-1] == "{" or re.search(r"by \([^)]*$", " ".join(tokens[:number])))
            known = FUNCTIONS if following == "(" and token not in KEYWORDS else set(EXPORTED) | KEYWORDS | FUNCTIONS
            if not in_list and token not in known:
                problems.append(f"{token} is neither exported nor a function")
        elif re.fullmatch(r"[^\w\s\"(){},=<>*/+\[-]", token):
            problems.append(f"{token} has no meaning")
    return problems + [f"{token} is not closed" for token in opened]


def problems_of(expression: str) -> list[str]:
    """Return the problems of a PromQL expression, as far as PromQL is used here."""
    problems = shape_problems(expression)
    found = list(selectors(expression))
    if not found:
        problems.append("nothing is queried")
    grouping = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", expression))))
    for metric, matchers, interval, function in found:
        labels = EXPORTED.get(metric, {})
        is_counter = metric.endswith(("_total", "_bucket", "_count", "_sum")) or metric == "process_cpu_seconds_total"
        if is_counter != (function in OF_COUNTERS) or (function in OVER_TIME) != bool(interval):
            problems.append(f"{metric}: {function or 'no function'} over {interval or 'no time'}")
        for label, operator, value in matchers:
            values = value.split("|") if "~" in operator else [value]
            if label in TARGET_LABELS:
                continue
            if label not in labels:
                problems.append(f"{metric} has no label {label}")
            problems += [f"{metric}: {label} is never {one}" for one in values if one not in labels.get(label, ())]
        grouping -= labels.keys()
    return problems + [f"nothing has the label {label}" for label in sorted(grouping - TARGET_LABELS)]


def kept_labels(expression: str) -> frozenset[str]:
    """Return the labels of the result of an expression."""
    grouping = re.findall(r"\bby \(([^)]*)\)", expression)
    if grouping:
        return frozenset(re.findall(r"\w+", grouping[0])) - {"le"}
    if re.match(r"(sum|max)\(", expression):
        return frozenset()
    return TARGET_LABELS.union(*(EXPORTED.get(name, {}) for name, *_ in selectors(expression)))


PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
ANNOTATIONS = [query for query in DASHBOARD["annotations"]["list"] if not query.get("builtIn")]
each_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


# --- The dashboard ---


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=[f"{title} {target['refId']}" for title, target in QUERIES])
def test_a_query_asks_only_for_exported_metrics(title: str, target: dict[str, Any]) -> None:
    assert problems_of(target["expr"]) == []
    assert {label for label, _, _ in next(selectors(target["expr"]))[1]} >= TARGET_LABELS, "the variables choose"
    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept_labels(target["expr"])
    assert target["legendFormat"]


@pytest.mark.parametrize("query", ANNOTATIONS, ids=lambda query: query["name"])
def test_an_annotation_asks_only_for_exported_metrics(query: dict[str, Any]) -> None:
    assert problems_of(query["expr"]) == []
    assert query["enable"]


@each_panel
def test_a_panel_has_a_query_and_a_description(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert DASHBOARD["schemaVersion"] >= 39
    assert "id" not in DASHBOARD
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "job", "instance"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert used == set(names)
    for variable in DASHBOARD["templating"]["list"][1:]:
        (name,) = re.findall(r"label_values\((\w+)", variable["definition"])
        assert name in EXPORTED


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        area = panel["gridPos"]
        assert area["x"] + area["w"] <= 24
        cells = {
            (x, y) for x in range(area["x"], area["x"] + area["w"]) for y in range(area["y"], area["y"] + area["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


# --- The alerts ---


@each_alert
def test_an_alert_asks_only_for_exported_metrics(alert: dict[str, Any]) -> None:
    assert problems_of(alert["expr"]) == []
    assert {"job", "instance"} <= kept_labels(alert["expr"])


@each_alert
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description"}
    assert "{{ $labels.instance }}" in alert["annotations"]["summary"]
    assert len(alert["annotations"]["description"]) > 60
    assert re.fullmatch(r"\d+[smh]", alert.get("for", "0s"))
    labels = re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"]))
    assert set(labels) <= kept_labels(alert["expr"])


def test_each_alert_has_a_name_of_its_own() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)


# --- The checks themselves: each finds the problem it is for ---


@pytest.mark.parametrize(
    "expression",
    [
        "oxidize_generations",
        "rate(oxidize_sent_bytes[5m])",
        "oxidize_sent_bytes_total",
        "rate(oxidize_generation[5m])",
        "rate(oxidize_sent_bytes_total)",
        "oxidize_generation[5m]",
        "sum(rate(oxidize_sent_bytes_total[5m])",
        "oxidize_generation)",
        "oxidize_state{state='healthy'} == 1",
        'oxidize_state{state="well"}',
        'oxidize_state{name="healthy"}',
        'oxidize_connection_state{state=~"failed|gone"}',
        "sum by (cause) (rate(oxidize_dropped_packets_total[5m]))",
        "summe(oxidize_generation)",
        "oxidize_generation or oxidize_peers",
        "1 > 0",
        "",
    ],
)
def test_a_wrong_expression_is_found(expression: str) -> None:
    assert problems_of(expression) != []
