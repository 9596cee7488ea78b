#!/usr/bin/env python3
"""Checks what is in deploy/ and docker-compose.yml, without an engine. Exits with 1 and a line for each mistake.

Needs the standard library only. What needs PyYAML, cargo, promtool or nats-server is left out, and said so, where they are
missing.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import yaml
except ImportError:
    yaml = None

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
TABLE = ROOT / "shared/telemetry/src/metrics.rs"

mistakes = []
left_out = []


def wrong(where, what):
    mistakes.append(f"{where}: {what}")


def main():
    metrics = table()
    dashboards = sorted(DEPLOY.glob("grafana/dashboards/*.json"))
    if not dashboards:
        wrong("deploy/grafana/dashboards", "there is no dashboard")
    for dashboard in dashboards:
        check_dashboard(dashboard, metrics)
    for dockerfile in ["Dockerfile", "nats.Dockerfile"]:
        check_dockerfile(DEPLOY / dockerfile)
    if yaml:
        check_compose()
        for file in DEPLOY.rglob("*.yml"):
            load(file)
    else:
        left_out.append("docker-compose.yml and the other YAML files: PyYAML is not installed")
    check_stubs()
    run("promtool", "check", "config", DEPLOY / "prometheus.yml")
    run("nats-server", "-t", "-c", DEPLOY / "nats.conf")

    for line in left_out:
        print(f"left out: {line}")
    for line in mistakes:
        print(f"wrong: {line}")
    if not mistakes:
        print(f"good: {len(metrics)} metrics, {len(dashboards)} dashboard(s)")
    return 1 if mistakes else 0


# --- metrics and dashboards -------------------------------------------------------------------------------------------


def table():
    """The metrics of the telemetry crate: name -> (kind, labels)."""
    source = TABLE.read_text()
    body = source.split("DEFINITIONS: &[Definition]", 1)[-1].split("\n];", 1)[0]
    entry = re.compile(r'\b(counter|gauge|seconds|histogram)\(\s*"(\w+)",\s*"[^"]*",\s*&\[([^\]]*)\]')
    found = {name: (kind, set(re.findall(r'"(\w+)"', labels))) for kind, name, labels in entry.findall(body)}
    if len(found) < 20 or len(found) != len(re.findall(r"\b(?:counter|gauge|seconds|histogram)\(", body)):
        wrong(TABLE.relative_to(ROOT), f"the table of metrics can not be read: {len(found)} found")
    return found


# Words of PromQL that are no metrics.
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset", "inf"}


def check_dashboard(path, metrics):
    where = path.relative_to(ROOT)
    try:
        dashboard = json.loads(path.read_text())
    except ValueError as error:
        return wrong(where, error)
    shown = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(ids) != len(set(ids)):
        wrong(where, "two panels have the same id")
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            shown |= check_expression(f"{where}, {panel['title']!r}", target, metrics)
    for metric in sorted(set(metrics) - shown):
        wrong(where, f"no panel shows {metric}")
    return None


def check_expression(where, target, metrics):
    """Checks the names of metrics and labels in an expression, and gives the metrics."""
    expression = target["expr"]
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", " ".join(re.findall(r"\{([^}]*)\}", expression))))
    for group in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression):
        labels |= set(re.findall(r"\w+", group))
    labels |= set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target.get("legendFormat", "")))
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", expression)
    names = {name for name in re.findall(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()", bare)} - WORDS
    found = set()
    allowed = {"service", "instance", "le"}
    for name in names:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if name in metrics and metrics[name][0] in ("counter", "gauge"):
            base = name
        elif base not in metrics or base == name:
            wrong(where, f"there is no series {name}")
            continue
        found.add(base)
        allowed |= metrics[base][1]
    if not names:
        wrong(where, f"names no metric: {expression}")
    for label in sorted(labels - allowed):
        wrong(where, f"there is no label {label} on {', '.join(sorted(names))}")
    return found


# --- images and containers --------------------------------------------------------------------------------------------


def check_dockerfile(path):
    """Old engines must understand it, and it must not end as root."""
    where = path.relative_to(ROOT)
    text = path.read_text()
    for pattern, what in [
        (r"^#\s*syntax\s*=", "names a syntax, which old engines fetch"),
        (r"<<-?['\"]?\w+", "has a heredoc"),
        (r"^(COPY|ADD|RUN)\s.*--(link|mount|parents|chmod|network)\b", "has an option of new engines"),
    ]:
        if re.search(pattern, text, re.MULTILINE | re.IGNORECASE):
            wrong(where, what)
    arguments = set(re.findall(r"^ARG (\w+)=", text, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        if re.sub(r"\W", "", image) not in arguments:
            wrong(where, f"{image} is not an argument")


def check_stubs():
    """What stubs.sh leaves must have the targets that the workspace has."""
    if not shutil.which("cargo"):
        return left_out.append("deploy/stubs.sh: cargo is not installed")

    def targets(directory):
        command = ["cargo", "metadata", "--offline", "--no-deps", "--format-version", "1"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=directory)
        if result.returncode != 0:
            return wrong("deploy/stubs.sh", result.stderr.strip())
        packages = json.loads(result.stdout)["packages"]
        every = [(package["name"], target["name"], kind) for package in packages for target in package["targets"]
                 for kind in target["kind"]]
        return sorted(target for target in every if target[2] not in ("test", "bench", "example"))

    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["sh", DEPLOY / "stubs.sh", ROOT, directory], check=True)
        whole, stubs = targets(ROOT), targets(directory)
    if whole is not None and stubs is not None and whole != stubs:
        wrong("deploy/stubs.sh", f"not the same targets: {sorted(set(whole) ^ set(stubs))}")
    return None


def load(path):
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        wrong(path.relative_to(ROOT), error)
        return {}


def expand(value):
    """${NAME:-default} becomes its default, as without any variable."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", str(value))


def check_compose():
    where = "docker-compose.yml"
    compose = load(ROOT / where)
    services = compose.get("services", {})
    if not services:
        return wrong(where, "there are no services")
    for name, service in services.items():
        check_service(f"{where}, {name}", service, compose)
    scrape = load(DEPLOY / "prometheus.yml")
    for job in scrape.get("scrape_configs", []):
        if job.get("honor_labels") is not True:
            wrong("deploy/prometheus.yml", f"{job['job_name']} does not honour labels: `instance` would be the gateway")
        for target in [target for static in job["static_configs"] for target in static["targets"]]:
            if target.split(":")[0] not in services:
                wrong("deploy/prometheus.yml", f"{target} is no service of the stack")
    return None


def check_service(where, service, compose):
    services, volumes = compose["services"], compose.get("volumes", {})
    for key, wanted in [("read_only", True), ("cap_drop", ["ALL"]), ("security_opt", ["no-new-privileges:true"])]:
        if service.get(key) != wanted:
            wrong(where, f"{key} is {service.get(key)}, not {wanted}")
    if str(service.get("user", "0")).split(":")[0] in ("0", "root"):
        wrong(where, "runs as root")
    if "restart" not in service:
        wrong(where, "is not restarted")
    for port in service.get("ports", []):
        if not expand(port).startswith("127.0.0.1:"):
            wrong(where, f"publishes {port} not only on 127.0.0.1")
    for volume in service.get("volumes", []):
        source, target = expand(volume).split(":")[:2]
        if not source.startswith((".", "/")):
            if source not in volumes:
                wrong(where, f"there is no volume {source}")
        elif not (ROOT / source).exists():
            wrong(where, f"mounts {source}, which does not exist")
        elif not expand(volume).endswith(":ro"):
            wrong(where, f"may write {source} ({target})")
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            wrong(where, f"depends on {other}, which does not exist")
        elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
            wrong(where, f"waits for {other}, which has no health check")
    build = service.get("build")
    if build:
        dockerfile = ROOT / build["context"] / build["dockerfile"]
        if not dockerfile.exists():
            wrong(where, f"{dockerfile.relative_to(ROOT)} does not exist")
        for argument in build.get("args", {}):
            if not re.search(rf"^ARG {argument}=", dockerfile.read_text(), re.MULTILINE):
                wrong(where, f"{dockerfile.name} has no argument {argument}")
    elif ":" not in expand(service.get("image", "")):
        wrong(where, "its image has no tag")


# --- other people's checks --------------------------------------------------------------------------------------------


def run(program, *arguments):
    if not shutil.which(program):
        return left_out.append(f"what {program} would say: it is not installed")
    with tempfile.TemporaryDirectory() as directory:
        result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, cwd=directory)
    if result.returncode != 0:
        wrong(program, (result.stdout + result.stderr).strip())
    return None


if __name__ == "__main__":
    sys.exit(main())
