"""Renders the chart with several values and checks the manifests: against the schemas of Kubernetes, and for what the chart
promises. With a build of Posduif, also that an engine accepts settings and secrets. scripts/chart installs what this needs and
runs it: check.py HELM [POSDUIF]"""

import json
import pathlib
import re
import secrets
import subprocess
import sys
import tempfile
import textwrap

import kubernetes_validate
import yaml

FOLDER = pathlib.Path(__file__).resolve().parent
CHART, ROOT = FOLDER / "posduif", FOLDER.parent.parent
# The oldest version that Chart.yaml admits, and the newest that the package of schemas has.
VERSIONS = ["1.27", "1.37"]
CUSTOM = {"PodMonitor", "PrometheusRule", "HTTPRoute"}
PUBLIC, ADMIN = 8080, 8081
PROMETHEUS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]

EVERYTHING = {
    "image": {"repository": "images.example.com/posduif", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "images"}],
    "config": {
        "server": {"shutdown_grace_seconds": 60, "connections_max": 1_000_000, "trusted_proxies": ["10.0.0.0/8"]},
        "sync": {"upload_bytes_max": 16_777_216},
        "log": {"format": "text", "level": "info,posduif::publish=debug"},
        "push": {"webhook_url": "https://push.example.com/posduif"},
        "mail": {"webhook_url": "https://mail.example.com/posduif"},
        "telemetry": {"otlp_endpoint": "http://127.0.0.1:4318"},
        "routes": [{"table": "orders", "to": ["customer_id"]}],
    },
    "secrets": {
        name: {"secret": "other", "key": f"{name}.txt"}
        for name in [
            "postgresUrl", "redisUrl", "jwtSecret", "jwtPreviousSecrets", "adminToken", "pushWebhookSecret",
            "pushWebhookPreviousSecrets", "mailWebhookSecret", "mailWebhookPreviousSecrets", "otlpHeaders",
        ]
    },
    "certificates": {"secret": "authorities"},
    "ipv6": True,
    "api": {
        "preStopSeconds": 20, "priorityClassName": "high", "nodeSelector": {"pool": "api"},
        "extraEnv": [{"name": "RUST_BACKTRACE", "value": "1"}],
        "tolerations": [{"key": "pool", "operator": "Exists"}], "podAnnotations": {"a": "1"}, "podLabels": {"b": "2"},
        "extraVolumes": [{"name": "more", "emptyDir": {}}], "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    },
    "replicator": {"image": {"tag": "0.0.9"}},
    "ingress": {
        "enabled": True, "className": "nginx", "hosts": ["sync.example.com"],
        "tls": [{"secretName": "sync-tls", "hosts": ["sync.example.com"]}],
        "annotations": {"nginx.ingress.kubernetes.io/proxy-send-timeout": None, "example.com/number": 7},
    },
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["sync.example.com"]},
    "networkPolicy": {
        "publicFrom": PROMETHEUS, "adminFrom": PROMETHEUS,
        "egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 5432, "protocol": "TCP"}]}],
    },
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "grafanaDashboard": {"enabled": True},
}
LEAST = {
    "api": {"autoscaling": {"enabled": False}, "replicas": 1, "unreadyPeriods": 100_000_000},
    "replicator": {"replicas": 1},
    # As after a section whose keys are comments.
    "config": {"server": None, "log": None, "auth": None},
    "ingress": {"enabled": True, "hosts": ["sync.example.com"]},
    "certificates": {"configMap": "authorities"},
    "podDisruptionBudget": None,
    "networkPolicy": {"enabled": False},
    "podMonitor": {"enabled": True},
    "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    "serviceAccount": {"create": False},
}
# Values that are refused, and a part of the reason.
REFUSED = [
    ({"imagge": {}}, "imagge"),
    ({"image": {"digest": "sha256:0"}}, "digest"),
    ({"api": {"replicas": 0}}, "replicas"),
    ({"config": {"server.port": 9000}}, "config"),
    ({"config": {"server": {"port": 9000}}}, "config.server.port"),
    ({"config": {"admin": {"listen": "off"}}}, "config.admin.listen"),
    ({"config": {"postgres": {"url": "postgres://a:b@c/d"}}}, "secrets.postgresUrl"),
    ({"config": {"auth": {"jwt_previous_secrets": ["a"]}}}, "secrets.jwtPreviousSecrets"),
    ({"secrets": {"redisUrl": {"secret": "", "key": "a"}}}, "secrets.redisUrl.secret"),
    ({"certificates": {"secret": "a", "configMap": "b"}}, "certificates"),
    ({"ingress": {"enabled": True}}, "ingress.hosts"),
    ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    ({"podMonitor": {"enabled": True}}, "networkPolicy.adminFrom"),
]


def run(helm, values, *arguments):
    return subprocess.run(
        [helm, *arguments, str(CHART), "--values", "-"], input=json.dumps(values), capture_output=True, text=True, check=False
    )


def render(helm, values, release="live"):
    done = run(helm, values, "template", release, "--namespace", "sync")
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(manifests, kind):
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def selects(selector, labels):
    return selector["matchLabels"].items() <= labels.items()


def pod_of(deployment):
    template = deployment["spec"]["template"]
    return template["metadata"], template["spec"], template["spec"]["containers"][0]


def check_schemas(manifests):
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names), names
    for manifest in manifests:
        assert len(manifest["metadata"]["name"]) <= 63, manifest["metadata"]["name"]
        if manifest["kind"] not in CUSTOM:
            for version in VERSIONS:
                kubernetes_validate.validate(manifest, version, strict=True)


def check_pods(manifests, values):
    for name, deployment in of_kind(manifests, "Deployment").items():
        metadata, pod, container = pod_of(deployment)
        role = metadata["labels"]["app.kubernetes.io/component"]
        assert container["args"] == ["serve", "--role", role]
        assert selects(deployment["spec"]["selector"], metadata["labels"])
        # A pod of a new version of the chart is the same pod.
        assert "helm.sh/chart" not in metadata["labels"]

        # The profile "restricted" of Kubernetes, and a file system that nothing is written to.
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]} and security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"] and not security["privileged"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
        assert "memory" in container["resources"]["limits"]

        # Secrets are files that are mounted, and only those of the role.
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        assert len(variables) == len(container["env"])
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == volumes.keys()
        files = {
            f"{mounts['secrets']}/{item['path']}"
            for source in volumes["secrets"]["projected"]["sources"]
            for item in source["secret"]["items"]
        }
        assert files == {path for variable, path in variables.items() if variable.endswith("__FILE")}
        of_api = {path for path in files if "jwt" in path or "mail" in path}
        of_replicator = {path for path in files if "push" in path}
        assert bool(of_api) == (role == "api") and not (role == "api" and of_replicator), name
        assert variables["POSDUIF_CONFIG"].startswith(mounts["config"] + "/")

        # Probes reach the admin listener, the Service the public one.
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"http": PUBLIC, "admin": ADMIN}
        assert variables["POSDUIF__SERVER__PORT"] == str(PUBLIC)
        assert variables["POSDUIF__ADMIN__LISTEN"] == ("[::]" if values.get("ipv6") else "0.0.0.0") + f":{ADMIN}"
        for probe, path in {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}.items():
            assert container[probe]["httpGet"] == {"path": path, "port": "admin"}

        grace = (values.get("config", {}).get("server") or {}).get("shutdown_grace_seconds", 10)
        pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1]) if role == "api" else 0
        assert pod["terminationGracePeriodSeconds"] >= pause + grace + 10


def check_settings(posduif, manifests):
    """An engine of each role starts with its settings and files."""
    key = "whsec_" + "MDEy" * 8
    values = {"postgres__url": "postgres://a:b@db/c", "redis__url": "redis://a:b@redis/0", "telemetry__otlp_headers": "a=b"}
    (settings,) = [each["data"] for each in of_kind(manifests, "ConfigMap").values() if "config.yaml" in each["data"]]
    for deployment in of_kind(manifests, "Deployment").values():
        container = pod_of(deployment)[2]
        with tempfile.TemporaryDirectory() as folder:
            environment = {}
            for variable in container["env"]:
                name, value = variable["name"], variable["value"]
                if name.endswith("__FILE"):
                    path = pathlib.Path(folder, pathlib.Path(value).name)
                    secret = values.get(path.name, key if "webhook" in path.name else secrets.token_hex(32))
                    path.write_text(f"[{secret}]" if "previous" in path.name else secret)
                    value = str(path)
                elif name == "POSDUIF_CONFIG":
                    pathlib.Path(folder, "config.yaml").write_text(settings["config.yaml"])
                    value = f"{folder}/config.yaml"
                environment[name] = value
            role = container["args"][2]
            command = [posduif, "config", "check", "--role", role]
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{role}: {done.stderr}"


def check_network(manifests, values):
    pods = {name: pod_of(pod)[0]["labels"] for name, pod in of_kind(manifests, "Deployment").items()}
    services = of_kind(manifests, "Service")
    assert len(services) == 1
    for service in services.values():
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
        reached = [name for name, labels in pods.items() if selects({"matchLabels": service["spec"]["selector"]}, labels)]
        assert len(reached) == 1 and reached[0].endswith("-api"), reached
    settings = values.get("networkPolicy", {})
    policies = of_kind(manifests, "NetworkPolicy").values()
    for name, labels in pods.items():
        own = [policy for policy in policies if selects(policy["spec"]["podSelector"], labels)]
        assert len(own) == settings.get("enabled", True)
        for policy in own:
            allowed = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["spec"]["ingress"]}
            assert allowed.get(ADMIN) == settings.get("adminFrom"), allowed
            assert (PUBLIC in allowed) == name.endswith("-api")
            assert ("Egress" in policy["spec"]["policyTypes"]) == bool(settings.get("egress"))
    for name, budget in of_kind(manifests, "PodDisruptionBudget").items():
        assert [pod for pod, labels in pods.items() if selects(budget["spec"]["selector"], labels)] == [name]
    for name, scaler in of_kind(manifests, "HorizontalPodAutoscaler").items():
        target = of_kind(manifests, "Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"]
        assert "cpu" in pod_of(target)[2]["resources"]["requests"]
    for monitor in of_kind(manifests, "PodMonitor").values():
        assert all(selects(monitor["spec"]["selector"], labels) for labels in pods.values())
        assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["admin"]
        assert monitor["spec"]["podMetricsEndpoints"][0]["relabelings"][0]["replacement"] == "posduif-sync-live"


def check_everything(manifests):
    deployments = of_kind(manifests, "Deployment")
    images = {name: pod_of(deployment)[2]["image"] for name, deployment in deployments.items()}
    assert images["live-posduif-api"] == "images.example.com/posduif@sha256:" + "0" * 64
    assert images["live-posduif-replicator"] == "images.example.com/posduif:0.0.9"

    rules = of_kind(manifests, "PrometheusRule")["live-posduif"]
    assert rules["spec"] == yaml.safe_load((ROOT / "config/prometheus-alerts.yml").read_text())
    dashboard = of_kind(manifests, "ConfigMap")["live-posduif-dashboard"]["data"]["posduif.json"]
    assert dashboard == (ROOT / "config/grafana-dashboard.json").read_text()

    settings = yaml.safe_load(of_kind(manifests, "ConfigMap")["live-posduif"]["data"]["config.yaml"])
    assert settings["server"] == {**EVERYTHING["config"]["server"], "public_url": "https://sync.example.com"}
    assert type(settings["server"]["connections_max"]) is int and settings["auth"] == {"hash_concurrency": 2}

    prefix = "nginx.ingress.kubernetes.io/"
    assert of_kind(manifests, "Ingress")["live-posduif"]["metadata"]["annotations"] == {
        prefix + "proxy-buffering": "off",
        prefix + "proxy-read-timeout": "3600",
        prefix + "proxy-body-size": "16777216",
        "example.com/number": "7",
    }


def check_rollouts(helm):
    """A pod is replaced if its settings change, and only then."""

    def pods(values):
        return {name: pod["spec"]["template"] for name, pod in of_kind(render(helm, values), "Deployment").items()}

    first = pods({})
    assert first == pods({"service": {"port": 81}})
    changed = pods({"config": {"live": {"heartbeat_seconds": 20}}})
    assert all(changed[name] != pod for name, pod in first.items())


def check_documentation(helm):
    """The values of the documentation are accepted."""
    text = (ROOT / "docs/kubernetes.md").read_text()
    blocks = re.findall(r"^( *)```yaml\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for _, block in blocks:
        render(helm, yaml.safe_load(textwrap.dedent(block)))


def main():
    helm, posduif = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    for values in [{}, EVERYTHING, LEAST]:
        done = run(helm, values, "lint", "--strict")
        assert done.returncode == 0, done.stdout + done.stderr
        manifests = render(helm, values)
        check_schemas(manifests)
        check_pods(manifests, values)
        check_network(manifests, values)
        if posduif:
            check_settings(posduif, manifests)
    check_everything(render(helm, EVERYTHING))
    check_rollouts(helm)
    check_documentation(helm)
    check_schemas(render(helm, {}, release="a" * 53))
    for values, reason in REFUSED:
        done = run(helm, values, "template", "live")
        assert done.returncode != 0 and reason in done.stderr, f"{values}: {done.stderr}"
    print(f"chart: 3 sets of values rendered and checked, {len(REFUSED)} refused")


if __name__ == "__main__":
    main()
