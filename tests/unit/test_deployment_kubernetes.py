"""The manifests of deploy/kubernetes are what Kubernetes knows, and fit the images and the settings."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
DOCUMENTS = [document for path in FILES for document in yaml.safe_load_all(path.read_text())]
PODS = {
    document["metadata"]["name"]: document["spec"]["template"]["spec"]
    for document in DOCUMENTS
    if document["kind"] in {"Deployment", "StatefulSet"}
}
CONTAINERS = [
    container for pod in PODS.values() for container in [*pod["containers"], *pod.get("initContainers", [])]
]


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in DOCUMENTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return dict(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_kubernetes_knows_every_field(document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="no schemas here: pip install kubernetes-validate"
    )
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    mistaken = {**document, "spec": {**document["spec"], "replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(mistaken, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_run_as_nobody(name: str) -> None:
    pod = PODS[name]
    dockerfile = (ROOT / "Dockerfile").read_text()
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{pod['securityContext']['runAsGroup']}" in dockerfile
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["fsGroup"] == user
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # DKLBENCH_PORT=tcp://... would be taken for the setting


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda each: each["name"])
def test_containers_may_do_little(container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    assert {"/data", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("name", PODS)
def test_mounts_have_volumes(name: str) -> None:
    pod = PODS[name]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for document in DOCUMENTS:
        if document["metadata"]["name"] == name:
            volumes |= {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    for volume in pod["volumes"]:
        if "persistentVolumeClaim" in volume:
            named("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


def test_no_secret_stands_in_a_manifest() -> None:
    for container in CONTAINERS:
        assert container["envFrom"] == [{"secretRef": {"name": "dklbench"}}]
        settings = {f"DKLBENCH_{name.upper()}" for name in Settings.model_fields}
        for variable in container.get("env", []):
            assert variable["name"] in settings | {"FORWARDED_ALLOW_IPS"}
            assert not re.search("KEY|PASSWORD|DATABASE|BROKER", variable["name"])


def test_services_and_probes_lead_somewhere(tmp_path: Path) -> None:
    paths = create_app(Settings(data_dir=tmp_path)).openapi()["paths"]
    (service,) = PODS["dklbench-service"]["containers"]
    assert service["ports"] == [{"name": "http", "containerPort": 8000}]
    assert Settings.model_fields["port"].default == 8000
    for probe, path in {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}.items():
        assert service[probe]["httpGet"] == {"path": path, "port": "http"}
        assert path in paths
    labels = named("Deployment", "dklbench-service")["spec"]["template"]["metadata"]["labels"]
    assert named("Service", "dklbench")["spec"]["selector"].items() <= labels.items()
    assert named("Deployment", "dklbench-service")["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_a_worker_has_one_gpu_time_to_leave_and_no_probe_that_kills_it() -> None:
    stateful = named("StatefulSet", "dklbench-worker")
    (worker,) = PODS["dklbench-worker"]["containers"]
    for kind in ("requests", "limits"):
        assert worker["resources"][kind]["nvidia.com/gpu"] == 1
    assert "livenessProbe" not in worker
    assert (
        PODS["dklbench-worker"]["terminationGracePeriodSeconds"] > Settings.model_fields["grace_seconds"].default
    )
    assert stateful["spec"]["podManagementPolicy"] == "Parallel"
    named("Service", stateful["spec"]["serviceName"])
